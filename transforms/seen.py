"""What was written: the memory that tells news from repeats, and by how much a count grew. No Beam."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable

import msgspec

from transforms.types import Endpoints, ObjectMeta, Service

_FOLD_AT = 50  # additions in a stream's bag, at least
_ENTRY = struct.Struct(">16sQII")  # UID, version (0: none), count (0: forgotten), when (s)
_COUNT_MAX = 2**32 - 1
_VERSION_MAX = 2**64 - 1


class _States(msgspec.Struct, array_like=True):
    services: dict[str, Service] = msgspec.field(default_factory=dict)
    endpoints: dict[str, Endpoints] = msgspec.field(default_factory=dict)
    gone: list[str] = msgspec.field(default_factory=list)


class Seen:
    """The memory of what was written: Event UID → (version, count, when), and Services and endpoints as they were.

    An entry takes about 170 bytes in memory and 32 encoded. `base` is looked in where this one has no entry and is
    never changed: so a run's additions stay apart until they are committed (`merge`).
    """

    def __init__(self, base: Seen | None = None) -> None:
        self._events: dict[bytes, int] = {}
        self._states: dict[str, Service | Endpoints | None] = {}
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

    def state(self, uid: str) -> Service | Endpoints | None:
        """A Service, or a slice of endpoints, as the last record showed it."""
        if uid in self._states or self._base is None:
            return self._states.get(uid)
        return self._base.state(uid)

    def saw_state(self, uid: str, state: Service | Endpoints | None) -> None:
        """Remembers a Service or a slice of endpoints as it is now; None forgets it."""
        self._states[uid] = state

    def states(self) -> dict[str, Service | Endpoints | None]:
        """All that is remembered of Services and slices, by UID; what was forgotten is None."""
        return {**(self._base.states() if self._base is not None else {}), **self._states}

    def merge(self, addition: bytes) -> None:
        """Takes in what `encode` gave of another; later entries win, and what was forgotten goes."""
        size = int.from_bytes(addition[:4], "big")
        for key, version, count, when in _ENTRY.iter_unpack(addition[4 : 4 + size]):
            if count or self._base is not None:  # what a base holds can only be masked
                self._events[key] = count and version << 64 | count << 32 | when
            else:
                self._events.pop(key, None)
        states = _STATES.decode(addition[4 + size :])
        self._states.update(states.services)
        self._states.update(states.endpoints)
        for uid in states.gone:
            if self._base is not None:
                self._states[uid] = None
            else:
                self._states.pop(uid, None)

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
        states = _States()
        for uid, state in self._states.items():
            if isinstance(state, Service):
                states.services[uid] = state
            elif isinstance(state, Endpoints):
                states.endpoints[uid] = state
            else:
                states.gone.append(uid)
        return len(entries).to_bytes(4, "big") + entries + msgspec.msgpack.encode(states)


_STATES = msgspec.msgpack.Decoder(_States)
NOTHING = Seen().encode()


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


def version_of(metadata: ObjectMeta) -> int:
    """An object's resourceVersion as a number; see `number_of`."""
    return number_of(metadata.resource_version)


def number_of(version: str) -> int:
    """A resourceVersion as a number (KEP-5504); 0 when it is none of 64 bits, and then only counts tell what is new."""
    number = int(version) if version.isdecimal() else 0
    return number if number <= _VERSION_MAX else 0


def _key(uid: str) -> bytes:
    """16 bytes for a UID: the UUID's own, or a digest of what is no UUID."""
    if len(uid) == 36:
        try:
            return bytes.fromhex(uid.replace("-", ""))
        except ValueError:
            pass
    return hashlib.blake2b(uid.encode(), digest_size=16).digest()
