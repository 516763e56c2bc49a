"""Histories in memory: a sink, what a history is carried by, and a job that writes what it is told."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from kubehistory.record_pb2 import EVENT, SERVICE_CHANGE, Record

from runners.history import Epoch, History
from transforms import codec
from transforms.batch import by_partition, decode_records
from transforms.seen import Seen
from transforms.store import Entry, NotFound, Store
from transforms.types import Encoded, Gap, Position, Progress, Segment, Target
from transforms.write import write_epoch

CLUSTER = "prod"
EVENTS, SERVICES = Target(CLUSTER, "events"), Target(CLUSTER, "services")
HOUR_US = 3_600_000_000
NOW_US = time.time_ns() // 1000
THIS_HOUR_US = NOW_US // HOUR_US * HOUR_US
TTL_S = 3600.0


class Killed(BaseException):
    """A job died here: nothing catches it."""


class MemoryStore(Store):
    """A sink in memory. `before` is asked ahead of each operation: "go", or how the job dies there."""

    url = "memory:"

    def __init__(self, objects: dict[str, bytes], before: Callable[[str], str] = lambda operation: "go") -> None:
        self.objects, self._before = objects, before
        self.delayed: list[tuple[str, bytes]] = []

    def create(self, path: str, data: bytes) -> bool:
        how = self._before("create")
        if how == "die after":
            self.objects.setdefault(path, data)
        elif how == "die, and it is done later":
            self.delayed.append((path, data))
        self._die_unless(how)
        if path in self.objects:
            return False
        self.objects[path] = data
        return True

    def read(self, path: str) -> bytes:
        self._die_unless(self._before("read"))
        if path not in self.objects:
            raise NotFound(path)
        return self.objects[path]

    def list(self, prefix: str, after: str = "") -> Iterator[Entry]:
        self._die_unless(self._before("list"))
        found = sorted(path for path in self.objects if path.startswith(prefix) and path > after)
        return iter([Entry(path, len(self.objects[path])) for path in found])

    def list_dirs(self, directory: str = "") -> Sequence[str]:
        start = f"{directory}/" if directory else ""
        rests = [path[len(start) :] for path in self.objects if path.startswith(start)]
        return sorted({rest.split("/")[0] for rest in rests if "/" in rest})

    def delete(self, path: str) -> None:
        how = self._before("delete")
        if how == "die after":
            self.objects.pop(path, None)
        self._die_unless(how)
        self.objects.pop(path, None)

    def check(self, *, write: bool = True) -> None:
        return

    def late(self) -> None:
        """What a dead job had sent arrives now."""
        for path, data in self.delayed:
            self.objects.setdefault(path, data)
        self.delayed.clear()

    @staticmethod
    def _die_unless(how: str) -> None:
        if how != "go":
            raise Killed


class Carried:
    """What `transforms.carried.Carried` carries of a history, without its connections."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.commits: dict[str, int] = {}
        self.sequences: dict[str, int] = {}
        self.written: set[tuple[str, str]] = set()
        self._seen = Seen()

    def seen(self, cluster: str) -> Seen:
        return self._seen


def event(uid: str, version: int, count: int = 1, *, more: int | None = None, time_us: int = THIS_HOUR_US) -> Record:
    """An Event's record; `more` is by how much the count grew, all of it unless given."""
    return Record(
        kind=EVENT,
        cluster=CLUSTER,
        uid=uid,
        resource_version=str(version),
        time_us=time_us,
        observed_time_us=NOW_US,
        count=count,
        occurrences=count if more is None else more,
    )


def service(uid: str, version: int) -> Record:
    """A Service's record."""
    return Record(kind=SERVICE_CHANGE, cluster=CLUSTER, uid=uid, resource_version=str(version), time_us=THIS_HOUR_US)


def encoded(*records: Record) -> list[Encoded]:
    return [Encoded(r.time_us, r.uid, r.resource_version, r.SerializeToString()) for r in records]


class Job:
    """A job on a sink, whose epochs write the records that they are given, and end at the newest of their versions."""

    def __init__(self, store: Store, identity: str = "identity", run: str = "run", batch_size: int = 2) -> None:
        self.carried = Carried(store)
        self.history = History(self.carried, CLUSTER, identity, run, TTL_S)  # type: ignore[arg-type]
        self.known = self.history.open()
        self._batch_size = batch_size

    def write(self, *records: Record) -> Epoch:
        """An epoch up to its commit: the segments are there, and nothing names them."""
        epoch = Epoch(NOW_US)
        seen = Seen()
        segments: list[Segment] = []
        sequences: dict[str, int] = {}
        for record in records:
            if record.kind == EVENT:
                seen.saw_event(record.uid, int(record.resource_version), record.count, record.observed_time_us)
        for key, chunk in by_partition(f"{CLUSTER}/00", encoded(*records), 1000):
            written, sequences[key] = write_epoch(
                self.carried,  # type: ignore[arg-type]
                self.carried.commits[CLUSTER],
                key,
                sequences.get(key),
                decode_records(chunk),
                self._batch_size,
            )
            segments += written
        epoch.segments[CLUSTER], epoch.sequences[CLUSTER] = segments, sequences
        epoch.seen[CLUSTER] = [seen.encode()]
        newest = max((int(record.resource_version) for record in records), default=1)
        epoch.progress[CLUSTER] = [
            Progress(target, Position(str(newest), listing=False), len(records), []) for target in (EVENTS, SERVICES)
        ]
        return epoch

    def epoch(self, *records: Record, gaps: Sequence[Gap] = (), dead: dict[str, int] | None = None) -> None:
        """An epoch and its commit."""
        epoch = self.write(*records)
        epoch.gaps[CLUSTER], epoch.dead[CLUSTER] = list(gaps), dead or {}
        self.history.commit(epoch)


def segments_in(store: Store) -> list[str]:
    return [entry.path for entry in store.list(f"cluster={CLUSTER}/")]


def records_in(store: Store) -> list[tuple[str, str, int]]:
    """(UID, resourceVersion, occurrences) of every record there is, sorted."""
    records = [Record.FromString(data) for path in segments_in(store) for data in codec.unpack(store.read(path))]
    return sorted((record.uid, record.resource_version, record.occurrences) for record in records)
