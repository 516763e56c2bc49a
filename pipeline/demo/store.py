"""The demo cluster's memory: versions of objects under one increasing resourceVersion, as etcd keeps them.

Guarantees, for any number of threads:
- every write takes the next resourceVersion, whatever the resource;
- `snapshot(resource, version)` is the collection as it was at that version, or `ApiError` 410, never a mixture;
- a `Subscription` gets each change after the version that it starts from, once and in order, or fails with 410 when it
  starts; once open, no compaction takes anything from it.
"""

from __future__ import annotations

import bisect
import collections
import dataclasses
import datetime
import json
import random
import threading
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from pipeline.demo import errors
from pipeline.demo.kinds import RESOURCES, JsonObject, Resource

ChangeType = Literal["ADDED", "MODIFIED", "DELETED"]

_CACHED_SNAPSHOTS = 16


def utc_now() -> datetime.datetime:
    """The wall clock."""
    return datetime.datetime.now(datetime.UTC)


def timestamp(moment: datetime.datetime) -> str:
    """A `metav1.Time`: RFC 3339 in whole seconds."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def dumps(value: Any) -> bytes:
    """Compact JSON in UTF-8."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def random_uid(rng: random.Random) -> str:
    """A version 4 UUID from `rng`."""
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


@dataclasses.dataclass(frozen=True, slots=True)
class Version:
    """One version of one object; `raw` is its JSON without kind and apiVersion, as a typed list holds it."""

    key: str
    number: int
    raw: bytes

    def decode(self) -> JsonObject:
        """A fresh copy of the object, without kind and apiVersion."""
        obj: JsonObject = json.loads(self.raw)
        return obj


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """One step of a resource's history. Of a deletion, `now` is the last state under the deletion's version."""

    type: ChangeType
    now: Version
    before: Version | None


@dataclasses.dataclass(frozen=True, slots=True)
class Snapshot:
    """A collection at one version of the store: keys in order, and what they hold."""

    number: int
    keys: Sequence[str]
    versions: Sequence[Version]

    def span(self, start: str, prefix: str) -> range:
        """Where the keys are that have the prefix, from the key `start` on."""
        first = bisect.bisect_left(self.keys, max(start, prefix))
        # chr(0x10FFFF) sorts after all that a key can hold: the prefix range's end.
        last = bisect.bisect_left(self.keys, prefix + "\U0010ffff") if prefix else len(self.keys)
        return range(first, max(first, last))


class _Collection:
    """One resource's objects and the newest part of its history; the store's lock guards it."""

    def __init__(self, resource: Resource) -> None:
        self.resource = resource
        self.current: dict[str, Version] = {}
        self.history: list[Change] = []
        self.forgotten = 0  # the version of the newest change that the history no longer holds
        self.subscriptions: set[Subscription] = set()

    def since(self, number: int) -> list[Change]:
        return self.history[bisect.bisect_right(self.history, number, key=lambda change: change.now.number) :]

    def at(self, number: int) -> dict[str, Version]:
        """The objects at an older version: today's with the changes since then undone, newest first."""
        objects = dict(self.current)
        for change in reversed(self.since(number)):
            if change.before is None:
                del objects[change.now.key]
            else:
                objects[change.now.key] = change.before
        return objects

    def record(self, change: Change, bound: int) -> None:
        self.history.append(change)
        if len(self.history) > 2 * bound:
            self.forgotten = self.history[-bound - 1].now.number
            del self.history[:-bound]
        for subscription in self.subscriptions:
            subscription.push(change)


class Subscription:
    """The changes of one resource after a version, as they come. A context manager: leaving it ends the deliveries."""

    def __init__(self, lock: threading.RLock, leave: Callable[[Subscription], None], backlog: Iterable[Change]) -> None:
        self._pending = collections.deque(backlog)
        self._condition = threading.Condition(lock)
        self._leave = leave
        self._woken = False

    def push(self, change: Change) -> None:
        """Called by the store, which holds the lock."""
        self._pending.append(change)
        self._condition.notify_all()

    def wake(self) -> None:
        """Make the present or the next `take` return at once."""
        with self._condition:
            self._woken = True
            self._condition.notify_all()

    def take(self, timeout_s: float) -> list[Change]:
        """The changes that are pending, after at most `timeout_s` seconds; none when time is up or after `wake`."""
        with self._condition:
            self._condition.wait_for(lambda: self._pending or self._woken, timeout_s)
            self._woken = False
            changes = list(self._pending)
            self._pending.clear()
            return changes

    def __enter__(self) -> Subscription:
        return self

    def __exit__(self, *_: object) -> None:
        self._leave(self)


class Store:
    """Objects by resource (its plural) and key.

    `history` bounds how many changes of a resource can be watched again or listed at (twice as many are kept before
    the older half goes). `uid` of kube-system is what identifies a cluster: it follows from `seed` unless
    `cluster_uid` says it. Objects come and go as plain JSON; what the caller holds is never shared with the store.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        history: int = 20_000,
        first_version: int = 1000,
        cluster_uid: str = "",
        resources: Mapping[str, Resource] = RESOURCES,
        clock: Callable[[], datetime.datetime] = utc_now,
    ) -> None:
        self.resources = resources
        self._lock = threading.RLock()
        self._rng = random.Random(seed)
        self._clock = clock
        self._bound = history
        self._version = first_version
        self._compacted = 0
        self._token_generation = 0
        self._collections = {plural: _Collection(resource) for plural, resource in resources.items()}
        self._snapshots: collections.OrderedDict[tuple[str, int], Snapshot] = collections.OrderedDict()
        uid = cluster_uid or random_uid(self._rng)
        self.create("namespaces", {"metadata": {"name": "kube-system", "uid": uid}, "status": {"phase": "Active"}})
        self.create("namespaces", {"metadata": {"name": "default"}, "status": {"phase": "Active"}})

    @property
    def version(self) -> int:
        """The resourceVersion of the last write."""
        with self._lock:
            return self._version

    @property
    def token_generation(self) -> int:
        """Continue tokens of another generation have expired."""
        with self._lock:
            return self._token_generation

    # --- writing

    def create(self, resource: str, obj: JsonObject) -> JsonObject:
        """Store a new object and return it as stored; uid, namespace and creationTimestamp are filled in if missing."""
        with self._lock:
            collection = self._collections[resource]
            metadata = dict(obj["metadata"])
            if collection.resource.namespaced:
                metadata.setdefault("namespace", "default")
            key = collection.resource.key(metadata.get("namespace", ""), metadata["name"])
            if key in collection.current:
                raise errors.already_exists(collection.resource, metadata["name"])
            metadata.setdefault("uid", random_uid(self._rng))
            metadata.setdefault("creationTimestamp", timestamp(self._clock()))
            return self._write(collection, "ADDED", key, obj | {"metadata": metadata})

    def update(self, resource: str, obj: JsonObject) -> JsonObject:
        """Replace an object whole and return it as stored; uid and creationTimestamp stay what they were."""
        with self._lock:
            collection = self._collections[resource]
            before = self._find(collection, obj).decode()["metadata"]
            kept = {field: before[field] for field in ("namespace", "uid", "creationTimestamp") if field in before}
            key = collection.resource.key(before.get("namespace", ""), before["name"])
            return self._write(collection, "MODIFIED", key, obj | {"metadata": obj["metadata"] | kept})

    def delete(self, resource: str, obj: JsonObject) -> None:
        """Remove the object of this name and namespace; watchers see its last state under a version of its own."""
        with self._lock:
            collection = self._collections[resource]
            last = self._find(collection, obj)
            self._write(collection, "DELETED", last.key, last.decode())

    def _find(self, collection: _Collection, obj: JsonObject) -> Version:
        metadata = obj["metadata"]
        key = collection.resource.key(metadata.get("namespace", "default"), metadata["name"])
        if key not in collection.current:
            raise errors.not_found(collection.resource, metadata["name"])
        return collection.current[key]

    def _write(self, collection: _Collection, kind: ChangeType, key: str, obj: JsonObject) -> JsonObject:
        self._version += 1
        bare = {field: value for field, value in obj.items() if field not in ("kind", "apiVersion")}
        bare["metadata"] = bare["metadata"] | {"resourceVersion": str(self._version)}
        now = Version(key, self._version, dumps(bare))
        before = collection.current.get(key)
        if kind == "DELETED":
            del collection.current[key]
        else:
            collection.current[key] = now
        collection.record(Change(kind, now, before), self._bound)
        return now.decode()

    # --- reading

    def get(self, resource: str, name: str, namespace: str = "") -> JsonObject:
        """One object, with kind and apiVersion."""
        with self._lock:
            collection = self._collections[resource]
            version = collection.current.get(collection.resource.key(namespace, name))
            if version is None:
                raise errors.not_found(collection.resource, name)
            kind = {"kind": collection.resource.kind, "apiVersion": collection.resource.api_version}
            return kind | version.decode()

    def snapshot(self, resource: str, number: int | None = None) -> Snapshot:
        """The collection at a version, by default at the newest; `ApiError` 410 if the history does not reach back."""
        with self._lock:
            number = self._version if number is None else number
            collection = self._collections[resource]
            self._check_reach(collection, number)
            cached = self._snapshots.pop((resource, number), None)
            if cached is None:
                objects = sorted(collection.at(number).items())
                cached = Snapshot(number, [key for key, _ in objects], [version for _, version in objects])
            self._snapshots[resource, number] = cached
            if len(self._snapshots) > _CACHED_SNAPSHOTS:
                self._snapshots.popitem(last=False)
            return cached

    def subscribe(self, resource: str, after: int) -> Subscription:
        """What changes after a version, beginning with what the history holds; `ApiError` 410 if it is too old."""
        with self._lock:
            collection = self._collections[resource]
            self._check_reach(collection, after)
            return self._subscribe(collection, collection.since(after))

    def subscribe_with_state(self, resource: str) -> Subscription:
        """Today's objects as ADDED, then what changes: a watch without a version."""
        with self._lock:
            collection = self._collections[resource]
            state = (Change("ADDED", version, None) for _, version in sorted(collection.current.items()))
            return self._subscribe(collection, state)

    def settled(self, subscription: Subscription) -> int | None:
        """The newest version up to which the subscription has handed out all changes; None while some are pending."""
        with self._lock:
            return None if subscription._pending else self._version

    def _subscribe(self, collection: _Collection, backlog: Iterable[Change]) -> Subscription:
        subscription = Subscription(self._lock, self._unsubscribe, backlog)
        collection.subscriptions.add(subscription)
        return subscription

    def _unsubscribe(self, subscription: Subscription) -> None:
        with self._lock:
            for collection in self._collections.values():
                collection.subscriptions.discard(subscription)

    def _check_reach(self, collection: _Collection, number: int) -> None:
        oldest = max(self._compacted, collection.forgotten)
        if number < oldest:
            raise errors.too_old()

    # --- faults

    def compact(self) -> None:
        """Forget the history, as etcd's compaction does: older versions of any resource, lists and watches, get 410."""
        with self._lock:
            self._compacted = self._version
            self._snapshots.clear()
            for collection in self._collections.values():
                collection.history.clear()

    def expire_continue_tokens(self) -> None:
        """Make each continue token that is out there get 410; those of lists that start from now on are good."""
        with self._lock:
            self._token_generation += 1
