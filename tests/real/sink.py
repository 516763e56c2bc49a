"""An independent reader of the job's output: gzip, varint-delimited, the schema in `_schema/`; not the job's codec."""

import gzip
import json
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from tests.servers.s3 import S3Server

Record = Any  # a message of the class that the sink's own schema describes

SEGMENT = re.compile(r"cluster=([^/]+)/dt=(\d{4}-\d\d-\d\d)/hour=(\d\d)/([^/]+)-(\d+)\.pb\.gz")


class Sink(Protocol):
    """Where a job writes, as a user names it and as a test reads it."""

    output: str
    options: dict[str, str]
    environment: dict[str, str]

    def paths(self) -> list[str]:
        """The paths of all objects, relative to the output, in order."""

    def read(self, path: str) -> bytes | None:
        """An object's bytes; None if it is gone since it was listed."""


class LocalSink:
    """A directory."""

    def __init__(self, root: Path) -> None:
        self.root, self.output = root, str(root)
        self.options: dict[str, str] = {}
        self.environment: dict[str, str] = {}

    def paths(self) -> list[str]:
        files = (path for path in self.root.rglob("*") if path.is_file())
        return sorted(str(path.relative_to(self.root)) for path in files)

    def read(self, path: str) -> bytes | None:
        try:
            return (self.root / path).read_bytes()
        except FileNotFoundError:
            return None


class S3Sink:
    """A prefix of a bucket; the job may reach it through `endpoint`, the test reads it from the server."""

    def __init__(self, server: S3Server, bucket: str, prefix: str = "history", endpoint: str | None = None) -> None:
        self._server, self.bucket, self._prefix = server, bucket, f"{prefix}/"
        self.output = f"s3://{bucket}/{prefix}"
        self.options = {"s3_endpoint": endpoint or server.endpoint, "s3_region": server.region}
        keys = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
        self.environment = {key: server.environment[key] for key in keys}

    def paths(self) -> list[str]:
        return [key.removeprefix(self._prefix) for key in self._server.keys(self.bucket, self._prefix)]

    def read(self, path: str) -> bytes | None:
        try:
            return self._server.read(self.bucket, self._prefix + path)
        except self._server.client.exceptions.NoSuchKey:
            return None


class History:
    """What is in a sink, read as it grows: a segment is immutable, so each is read once.

    (But for one that two jobs fought over, or that a dead run left: it may become empty. `read` has the last state.)
    """

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self.segments: dict[str, list[Record]] = {}

    def refresh(self) -> "History":
        """Reads the segments that are new."""
        new = [path for path in self.sink.paths() if SEGMENT.fullmatch(path) and path not in self.segments]
        if new:
            schema = self.sink.read("_schema/record.desc")
            assert schema is not None, "data, but no schema"
            message = record_class(schema)
            for path in new:
                data = self.sink.read(path)
                if data is not None:
                    self.segments[path] = [message.FromString(one) for one in delimited(data)]
        return self

    @property
    def records(self) -> list[Record]:
        """All records, in the order of their segments' paths."""
        return [record for path in sorted(self.segments) for record in self.segments[path]]

    def of_kind(self, kind: str) -> list[Record]:
        """The records of a kind: EVENT, SERVICE_CHANGE, ENDPOINTS_CHANGE or GAP."""
        return [record for record in self.records if kind_of(record) == kind]

    def events(self) -> dict[str, Record]:
        """The newest record of each Event, by UID."""
        newest: dict[str, Record] = {}
        for record in self.of_kind("EVENT"):
            known = newest.get(record.uid)
            if known is None or int(record.resource_version) > int(known.resource_version):
                newest[record.uid] = record
        return newest

    def wait_for(self, what: str, holds: Callable[["History"], bool], timeout: float = 60.0) -> "History":
        """Reads on until `holds` of this history; fails with `what` after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while not holds(self.refresh()):
            if time.monotonic() > deadline:
                raise AssertionError(
                    f"not within {timeout:.0f} s: {what}; there are {Counter(map(kind_of, self.records))}"
                )
            time.sleep(0.1)
        return self

    def wait_for_events(self, uids: Collection[str], timeout: float = 60.0) -> "History":
        """Reads on until all these Events are there."""
        wanted = set(uids)

        def holds(history: History) -> bool:
            wanted.difference_update(record.uid for record in history.records)
            return not wanted

        return self.wait_for(f"{len(uids)} events written", holds, timeout)

    def wait_for_counts(self, counts: Mapping[str, int], timeout: float = 60.0) -> "History":
        """Reads on until these Events are there with these counts."""

        def holds(history: History) -> bool:
            newest = history.events()
            return all(uid in newest and newest[uid].count >= count for uid, count in counts.items())

        return self.wait_for(f"{len(counts)} events written with their counts", holds, timeout)


def read(sink: Sink) -> History:
    """All that is in a sink now."""
    return History(sink).refresh()


def record_class(descriptors: bytes) -> Any:
    """The class of a record, made from a serialized FileDescriptorSet and nothing else."""
    files = descriptor_pb2.FileDescriptorSet.FromString(descriptors)
    pool = descriptor_pool.DescriptorPool()
    for file in files.file:
        pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("kubehistory.v1.Record"))


def delimited(data: bytes) -> Iterable[bytes]:
    """The messages of a gzip file of varint-length-delimited messages."""
    stream, at = gzip.decompress(data), 0
    while at < len(stream):
        size = shift = 0
        while True:
            byte = stream[at]
            at += 1
            size |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        message = stream[at : at + size]
        assert len(message) == size, f"a record of {size} bytes is cut off after {len(message)}"
        at += size
        yield message


def kind_of(record: Record) -> str:
    """The name of a record's kind."""
    return str(record.DESCRIPTOR.fields_by_name["kind"].enum_type.values_by_number[record.kind].name)


def enrichment_of(record: Record) -> str:
    """FRESH, TOMBSTONE or MISSING."""
    return str(record.DESCRIPTOR.fields_by_name["enrichment"].enum_type.values_by_number[record.enrichment].name)


def change_of(record: Record) -> str:
    """ADDED, UPDATED, DELETED or LISTED, of a SERVICE_CHANGE."""
    field = record.service_change.DESCRIPTOR.fields_by_name["change"]
    return str(field.enum_type.values_by_number[record.service_change.change].name)


# Now and then a kube-apiserver has something of its own to say about a Service that a test has made.
_API_SERVERS_OWN = frozenset({"ipallocator-repair-controller", "portallocator-repair-controller"})


def differences(created: Mapping[str, int], records: Sequence[Record]) -> list[str]:
    """What is wrong with the Events that were written, against those created: final count by UID; [] if nothing is.

    Each Event is there, none that was not created is; no identity (UID and resourceVersion) is there twice; the
    occurrences of a UID sum up to its final count, and its newest record has that count. An Event that was never
    patched (count 1) has one record.
    """
    by_uid: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if record.component not in _API_SERVERS_OWN:
            by_uid[record.uid].append(record)
    found = list[str]()
    missing = [uid for uid in created if uid not in by_uid]
    if missing:
        found.append(f"{len(missing)} of {len(created)} missing: {missing[:3]}")
    unexpected = [uid for uid in by_uid if uid not in created]
    if unexpected:
        found.append(f"{len(unexpected)} never created: {[_brief(by_uid[uid][0]) for uid in unexpected[:3]]}")
    identities = Counter((record.uid, record.resource_version) for record in records)
    doubled = [identity for identity, times in identities.items() if times > 1]
    if doubled:
        found.append(f"{len(doubled)} of {len(identities)} identities more than once: {doubled[:3]}")
    wrong = [
        (uid, count, [_brief(record) for record in sorted(by_uid[uid], key=_version)])
        for uid, count in created.items()
        if uid in by_uid
        and (sum(r.occurrences for r in by_uid[uid]) != count or max(by_uid[uid], key=_version).count != count)
    ]
    found += [f"{len(wrong)} with wrong occurrences: {wrong[:3]}"] if wrong else []
    return found


def assert_written(sink: Sink, created: Mapping[str, int], cluster: str = "test") -> History:
    """The sink holds the created Events (final count by UID), each exactly once, and what it holds is well formed."""
    history = read(sink)
    found = differences(created, history.of_kind("EVENT"))
    for path, records in history.segments.items():
        found += misplaced(path, records, cluster)
    identities = Counter((r.uid, r.resource_version) for r in history.records if kind_of(r) != "EVENT")
    found += [f"{identity} more than once" for identity, times in identities.items() if times > 1]
    assert not found, "\n".join(found)
    return history


def misplaced(path: str, records: Sequence[Record], cluster: str) -> list[str]:
    """What is in the wrong segment: records of another cluster, or of another hour of UTC."""
    match = SEGMENT.fullmatch(path)
    assert match is not None, path
    found = [] if match[1] == cluster else [f"{path}: not of {cluster}"]
    for record in records:
        at = time.strftime("%Y-%m-%d %H", time.gmtime(record.time_us // 1_000_000))
        if at != f"{match[2]} {match[3]}" or record.cluster != cluster:
            found.append(f"{path}: has {_brief(record)} of {at} of {record.cluster}")
    return found


def commits(sink: Sink) -> list[dict[str, Any]]:
    """The commits that are still there as they were written, oldest first."""
    paths = [path for path in sink.paths() if path.startswith("_state/") and "/commits/" in path]
    return [json.loads(gzip.decompress(data)) for path in paths if (data := sink.read(path)) is not None]


def _version(record: Record) -> int:
    return int(record.resource_version)


def _brief(record: Record) -> str:
    return f"{record.name}@{record.resource_version} count={record.count} occurrences={record.occurrences}"
