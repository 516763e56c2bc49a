"""Deduplicate: keyed by shard; what passes is news, and says by how much the count of its Event grew.

Plain part: `Seen`, the memory of UIDs, and `news_of`. Beam part: stateful DoFns whose bag holds what was added to that
memory: in a stream since its beginning, in an epoch by its bundles; that of the epochs before comes in by handle.
"""

from __future__ import annotations

import dataclasses
import hashlib
import struct
import time
import uuid
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import msgspec
from apache_beam.coders import BytesCoder
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import BagStateSpec, ReadModifyWriteStateSpec, TimerSpec, on_timer
from apache_beam.transforms.window import GlobalWindow

from transforms.carried import Process
from transforms.coders import typed
from transforms.types import Change, Changes, Event, News, NewsChunk, ObjectMeta, Service

# --- plain ------------------------------------------------------------------------------------

_FOLD_AT = 50  # additions in a stream's bag, at least
_ENTRY = struct.Struct(">16sQII")  # UID, version (0: none), count (0: forgotten), when (s)
_COUNT_MAX = 2**32 - 1
_VERSION_MAX = 2**64 - 1


class Seen:
    """The memory of what was written: Event UID → (version, count, when), and the Services as they were.

    An entry takes about 170 bytes in memory and 32 encoded. `base` is looked in where this one has no entry and is
    never changed: so a run's additions stay apart until they are committed (`merge`).
    """

    def __init__(self, base: Seen | None = None) -> None:
        self._events: dict[bytes, int] = {}
        self._services: dict[str, Service | None] = {}
        self._base = base

    def __len__(self) -> int:
        return len(self._events)

    def event(self, uid: str) -> tuple[int, int] | None:
        """(version, count) of the last record of an Event, None when there was none."""
        packed = self._packed(_key(uid))
        return (packed >> 64, packed >> 32 & _COUNT_MAX) if packed else None

    def saw_event(self, uid: str, version: int, count: int, when_us: int) -> None:
        self._events[_key(uid)] = version << 64 | min(count, _COUNT_MAX) << 32 | when_us // 1_000_000

    def forget_event(self, uid: str) -> None:
        self._events[_key(uid)] = 0

    def service(self, uid: str) -> Service | None:
        if uid in self._services or self._base is None:
            return self._services.get(uid)
        return self._base.service(uid)

    def saw_service(self, uid: str, service: Service | None) -> None:
        """Remembers a Service as it is now; None forgets it."""
        self._services[uid] = service

    def merge(self, addition: bytes) -> None:
        """Takes in what `encode` gave of another; later entries win, and what was forgotten goes."""
        size = int.from_bytes(addition[:4], "big")
        for key, version, count, when in _ENTRY.iter_unpack(addition[4 : 4 + size]):
            if count or self._base is not None:  # what a base holds can only be masked
                self._events[key] = count and version << 64 | count << 32 | when
            else:
                self._events.pop(key, None)
        for uid, service in _SERVICES.decode(addition[4 + size :]).items():
            if service is not None or self._base is not None:
                self._services[uid] = service
            else:
                self._services.pop(uid, None)

    def expire(self, before_us: int) -> None:
        """Forgets the Events last written before a time."""
        before = before_us // 1_000_000
        for key in [key for key, packed in self._events.items() if packed & _COUNT_MAX < before]:
            del self._events[key]

    def _packed(self, key: bytes) -> int:
        packed = self._events.get(key)
        if packed is None:
            return self._base._packed(key) if self._base is not None else 0
        return packed

    def encode(self) -> bytes:
        """This memory, without its base."""
        entries = b"".join(
            _ENTRY.pack(key, packed >> 64, packed >> 32 & _COUNT_MAX, packed & _COUNT_MAX)
            for key, packed in self._events.items()
        )
        return len(entries).to_bytes(4, "big") + entries + msgspec.msgpack.encode(self._services)


_SERVICES = msgspec.msgpack.Decoder(dict[str, Service | None])
_NOTHING = Seen().encode()


def news_of(changes: Changes, seen: Seen) -> NewsChunk:
    """What of a chunk is new to `seen`, which takes it in.

    An Event is news when its UID is new, or when its count grew. One whose count fell began to count anew. A Service is
    news when it is new, gone, or differs in what a record shows of it. DELETED of an Event is its TTL: it is forgotten.
    """
    events = [news for change in changes.events if (news := _event_news(change, seen))]
    services = [change_of for change in changes.services if (change_of := _service_news(change, seen))]
    return NewsChunk(changes.cluster, events, services)


def reported_count(event: Event) -> int:
    """How often an Event says that it occurred: series.count, else count, else 1."""
    series = event.series.count if event.series else None
    return max(1, series or 1, event.count or 1)


def version_of(metadata: ObjectMeta) -> int:
    """An object's resourceVersion as a number; see `number_of`."""
    return number_of(metadata.resource_version)


def number_of(version: str) -> int:
    """A resourceVersion as a number (KEP-5504); 0 when it is none, and then only counts tell what is new."""
    return min(int(version), _VERSION_MAX) if version.isdecimal() else 0


def _event_news(change: Change[Event], seen: Seen) -> News[Event] | None:
    event = change.object
    uid = event.metadata.uid
    if change.type == "DELETED":
        seen.forget_event(uid)
        return None
    version, count = version_of(event.metadata), reported_count(event)
    known = seen.event(uid)
    occurrences = count
    if known is not None:
        known_version, known_count = known
        if version and version <= known_version:
            return None
        occurrences = count - known_count if count >= known_count else count
    seen.saw_event(uid, version, count, change.observed_us)
    return News(change.type, event, change.observed_us, occurrences) if occurrences else None


def _service_news(change: Change[Service], seen: Seen) -> News[Service] | None:
    service = _kept(change.object)
    uid = service.metadata.uid
    known = seen.service(uid)
    if change.type == "DELETED":
        seen.saw_service(uid, None)
        return News("DELETED", service, change.observed_us, 1, known)
    if known is None:
        seen.saw_service(uid, service)
        return News(change.type, service, change.observed_us)
    version = version_of(service.metadata)
    if version and version <= version_of(known.metadata):
        return None
    seen.saw_service(uid, service)
    same = service.spec == known.spec and service.metadata.labels == known.metadata.labels
    return None if same else News("MODIFIED", service, change.observed_us, 1, known)


def _kept(service: Service) -> Service:
    """A Service without what no record shows: its memory lasts as long as it does."""
    metadata = service.metadata
    kept = ObjectMeta(
        name=metadata.name,
        namespace=metadata.namespace,
        uid=metadata.uid,
        resource_version=metadata.resource_version,
        creation_timestamp=metadata.creation_timestamp,
        labels=metadata.labels,
    )
    return Service(metadata=kept, spec=service.spec)


def _key(uid: str) -> bytes:
    """16 bytes for a UID: the UUID's own, or a digest of what is no UUID."""
    if len(uid) == 36:
        try:
            return bytes.fromhex(uid.replace("-", ""))
        except ValueError:
            pass
    return hashlib.blake2b(uid.encode(), digest_size=16).digest()


# --- Beam -------------------------------------------------------------------------------------


class Memory:
    """What a worker keeps of one key of a stream between bundles: the bag's content, decoded.

    It is the bag's of the bundle that wrote `token` to the state, and of no other: after a restored checkpoint, or when
    another worker had the key meanwhile, the tokens differ and the bag is read again. So a bundle costs what it adds,
    however much there is to remember.
    """

    def __init__(self, additions: Iterable[bytes] = ()) -> None:
        self.seen, self.token = Seen(), b""
        self._added, self._added_size, self._folded_size = 0, 0, 0
        for addition in additions:
            self.seen.merge(addition)
            self.note(addition)

    def note(self, addition: bytes) -> None:
        """Counts what was added to the bag."""
        self._added += 1
        self._added_size += len(addition)

    def due(self) -> bool:
        """Whether the bag is to be folded: when it is twice what it was, so that an entry is rewritten seldom."""
        return self._added > _FOLD_AT and self._added_size > self._folded_size

    def fold(self, before_us: int) -> bytes:
        """The one addition that stands for all, without the Events last written before a time."""
        self.seen.expire(before_us)
        folded = self.seen.encode()
        self._added, self._added_size, self._folded_size = 0, 0, len(folded)
        return folded


class _DeduplicateFn(beam.DoFn):
    """In a stream: the memory is in the bag, to which each chunk adds, and decoded in the worker (`Memory`)."""

    ADDED = BagStateSpec("added", BytesCoder())
    TOKEN = ReadModifyWriteStateSpec("token", BytesCoder())

    def __init__(self, process: Process, retention_s: float) -> None:
        self._process, self._retention_us = process, int(retention_s * 1e6)

    def setup(self) -> None:
        self._carried = self._process.acquire()

    def start_bundle(self) -> None:
        self._memories: dict[str, Memory] = {}

    def process(
        self,
        element: tuple[str, Changes],
        added: Any = beam.DoFn.StateParam(ADDED),
        token: Any = beam.DoFn.StateParam(TOKEN),
    ) -> Iterator[tuple[str, NewsChunk]]:
        shard, changes = element
        if shard not in self._memories:
            self._memories[shard] = self._remembered(shard, added, token)
        memory = self._memories[shard]
        news, addition = deduplicate(changes, memory.seen)
        if addition != _NOTHING:
            added.add(addition)
            memory.note(addition)
        if news:
            yield shard, news

    def finish_bundle(self) -> None:
        # A bundle that fails gives nothing back: what it remembers is not in the state.
        self._carried.memories.update(self._memories)

    def _remembered(self, shard: str, added: Any, token: Any) -> Memory:
        """The memory of a key as its state says, under a new token; folded when due, and without what is too old."""
        memory = self._carried.memories.pop(shard, None)
        if memory is None or memory.token != token.read():
            memory = Memory(added.read())
        if memory.due():
            folded = memory.fold(time.time_ns() // 1000 - self._retention_us)
            added.clear()
            added.add(folded)
        memory.token = uuid.uuid4().bytes
        token.write(memory.token)
        return memory


class _DeduplicateEpochFn(beam.DoFn):
    """In an epoch: the memory is the process's, and the bag what the epoch adds, given out at the end of its input."""

    ADDED = _DeduplicateFn.ADDED
    END = TimerSpec("end", TimeDomain.WATERMARK)

    def __init__(self, process: Process) -> None:
        self._process = process

    def setup(self) -> None:
        self._carried = self._process.acquire()

    def start_bundle(self) -> None:
        self._memories: dict[str, Seen] = {}

    def process(
        self,
        element: tuple[str, Changes],
        added: Any = beam.DoFn.StateParam(ADDED),
        end: Any = beam.DoFn.TimerParam(END),
    ) -> Iterator[tuple[str, NewsChunk]]:
        shard, changes = element
        end.set(GlobalWindow().max_timestamp())
        if shard not in self._memories:
            self._memories[shard] = Seen(self._carried.seen(changes.cluster))
            for addition in added.read():
                self._memories[shard].merge(addition)
        news, addition = deduplicate(changes, self._memories[shard])
        added.add(addition)
        if news:
            yield shard, news

    @on_timer(END)
    def end_of_input(
        self, shard: Any = beam.DoFn.KeyParam, added: Any = beam.DoFn.StateParam(ADDED)
    ) -> Iterable[beam.pvalue.TaggedOutput]:
        for addition in added.read():
            yield beam.pvalue.TaggedOutput("seen", (shard, addition))


def deduplicate(changes: Changes, memory: Seen) -> tuple[NewsChunk, bytes]:
    """The news of a chunk, and what it adds to the memory, encoded."""
    chunk = Seen(memory)
    news = news_of(changes, chunk)
    addition = chunk.encode()
    memory.merge(addition)
    return news, addition


@dataclasses.dataclass
class Deduplicate(beam.PTransform):
    """(shard, Changes) → (shard, NewsChunk) as `news`, and in an epoch (shard, bytes) as `seen` when the input ends.

    Every `seen` output, merged in order, is what an epoch adds to the carried memory. A stream's memory is Beam state,
    and forgets an Event `retention_s` seconds after its last record.
    """

    process: Process
    streaming: bool = False
    retention_s: float = 7200.0

    def expand(self, changes: beam.PCollection) -> Any:
        fn = _DeduplicateFn(self.process, self.retention_s) if self.streaming else _DeduplicateEpochFn(self.process)
        outputs = changes | "Deduplicate" >> beam.ParDo(fn).with_outputs("seen", main="news")
        return typed(outputs, seen=tuple[str, bytes], news=tuple[str, NewsChunk])
