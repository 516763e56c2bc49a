"""Deduplicate: keyed by shard; what passes is news, and says by how much the count of its Event grew.

Plain part: `news_of`, over `Seen`, the memory of UIDs (`seen`). Beam part: stateful DoFns whose bag holds what was
added to that memory: in a stream since its beginning, in an epoch by its bundles; that of the epochs before comes in
by handle.
"""

from __future__ import annotations

import dataclasses
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import msgspec
from apache_beam.coders import BytesCoder
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import BagStateSpec, ReadModifyWriteStateSpec, TimerSpec, on_timer
from apache_beam.transforms.window import GlobalWindow

from transforms.carried import Process
from transforms.coders import typed
from transforms.endpoints import difference, endpoints_of
from transforms.seen import NOTHING, Memory, Seen, number_of, version_of
from transforms.shards import shard_of
from transforms.types import (
    Change,
    Changes,
    Endpoints,
    EndpointSlice,
    Event,
    Listed,
    News,
    NewsChunk,
    ObjectMeta,
    Service,
)

# --- plain ------------------------------------------------------------------------------------


def news_of(changes: Changes, seen: Seen) -> NewsChunk:
    """What of a chunk is new to `seen`, which takes it in.

    An Event is news when its UID is new, or when its count grew. One whose count fell began to count anew. A Service is
    news when it is new, gone, or differs in what a record shows of it. DELETED of an Event is its TTL: it is forgotten.
    The changes of one slice of endpoints in a chunk are one piece of news: who joined, left, or turned ready in the
    end. What a complete list does not show was deleted while nobody watched (UNLISTED). Such a list is one chunk a
    shard, which says so (`Changes.listed`): so nothing of a list need be remembered from one epoch to the next.
    """
    events = [news for change in changes.events if (news := _event_news(change, seen))]
    services: list[News[Any]] = [found for change in changes.services if (found := _service_news(change, seen))]
    endpoints: list[News[Any]] = _endpoints_news(changes.slices, seen)
    if changes.listed is not None:
        shown = {one.object.metadata.uid for one in changes.services} | {
            one.object.metadata.uid for one in changes.slices
        }
        gone = services if changes.listed.resource == "services" else endpoints
        gone.extend(_gone(changes.listed, shown, seen))
    return NewsChunk(changes.cluster, events, services, endpoints)


def reported_count(event: Event) -> int:
    """How often an Event says that it occurred: series.count, else count, else 1."""
    series = event.series.count if event.series else None
    return max(1, series or 1, event.count or 1)


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
    state = seen.state(uid)
    known = state if isinstance(state, Service) else None
    if change.type == "DELETED":
        seen.saw_state(uid, None)
        return News("DELETED", service, change.observed_us, 1, known)
    if known is None:
        seen.saw_state(uid, service)
        return News(change.type, service, change.observed_us)
    version = version_of(service.metadata)
    if version and version <= version_of(known.metadata):
        return None
    seen.saw_state(uid, service)
    same = service.spec == known.spec and service.metadata.labels == known.metadata.labels
    kind = "LISTED" if change.type == "LISTED" else "MODIFIED"
    return None if same else News(kind, service, change.observed_us, 1, known)


def _endpoints_news(changes: Sequence[Change[EndpointSlice]], seen: Seen) -> list[News[Endpoints]]:
    """One piece of news a slice, whatever the number of its changes; none when they come to nothing."""
    first: dict[str, Endpoints | None] = {}
    last: dict[str, News[Endpoints]] = {}
    for change in changes:
        after = endpoints_of(change.object)
        state = seen.state(after.uid)
        known = state if isinstance(state, Endpoints) else None
        gone, version = change.type == "DELETED", number_of(after.resource_version)
        if known is None and not after.service:
            continue
        if known is not None and not gone and version and version <= number_of(known.resource_version):
            continue
        first.setdefault(after.uid, known)
        seen.saw_state(after.uid, None if gone or not after.service else after)
        last[after.uid] = News(change.type, after, change.observed_us, 1, first[after.uid])
    return [
        news for news in last.values() if difference(news.previous, None if news.type == "DELETED" else news.object)
    ]


def _gone(listed: Listed, shown: set[str], seen: Seen) -> Iterator[News[Any]]:
    """What is remembered of a resource in a list's scope and the list does not show; filed under its version.

    An API server's cache may lag: a list says nothing of what is newer than it.
    """
    kind = Service if listed.resource == "services" else Endpoints
    for uid, state in seen.states().items():
        if not isinstance(state, kind) or uid in shown or shard_of(state, listed.shards) != listed.shard:
            continue
        namespace = state.namespace if isinstance(state, Endpoints) else state.metadata.namespace or ""
        if (listed.namespace and namespace != listed.namespace) or namespace in listed.excluded:
            continue
        version = state.resource_version if isinstance(state, Endpoints) else state.metadata.resource_version
        if number_of(version) > number_of(listed.version) > 0:
            continue
        seen.saw_state(uid, None)
        if isinstance(state, Service) or difference(state, None):
            yield News("UNLISTED", _at_version(state, listed.version), listed.observed_us, 1, state)


def _at_version(state: Service | Endpoints, version: str) -> Service | Endpoints:
    if isinstance(state, Endpoints):
        return msgspec.structs.replace(state, resource_version=version)
    return msgspec.structs.replace(state, metadata=msgspec.structs.replace(state.metadata, resource_version=version))


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


# --- Beam -------------------------------------------------------------------------------------


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
        if addition != NOTHING:
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
