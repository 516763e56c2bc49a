"""The proof that a history is complete: walks a cluster's chain of commits and holds the sink against it.

What is proved: the commits are all there, each names the one before, and every slice of the history from the first
position to the last is covered; every segment that a commit names is there, as it was written; no other segment is
there; no record is there twice; no Event counts more occurrences than it reported. What could not be had is listed as
a gap.

What can't be told: that the newest commit was removed, when it named no segment; that a whole cluster was removed.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator

from kubehistory import record_pb2

from transforms import codec, commit
from transforms.commit import Link
from transforms.store import NotFound, Store
from transforms.types import Gap, Segment

_UNNAMED_WAIT_S = 5.0  # how long a segment may be there before its commit, in a history that is being written
_LIVE_S = 120.0  # a history whose newest commit is younger than this may be being written
_FORGET_HOURS = 48  # partitions after which an Event is not expected any more


@dataclasses.dataclass
class Report:
    """What was found in one cluster's history. It holds when there are no problems. Times are microseconds."""

    cluster: str
    commits: int = 0
    segments: int = 0
    bytes: int = 0
    records: dict[str, int] = dataclasses.field(default_factory=lambda: collections.defaultdict(int))
    occurrences: int = 0
    dead_letters: int = 0
    from_us: int = 0
    to_us: int = 0
    positions: dict[str, tuple[str, str]] = dataclasses.field(default_factory=dict)
    gaps: list[Gap] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    problems: list[str] = dataclasses.field(default_factory=list)


def verify(
    store: Store,
    cluster: str,
    *,
    progress: Callable[[int, int], None] = lambda done, of: None,
    clock: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
) -> Report:
    """Verifies one cluster's history; may run while it is written. progress: segments read so far, of how many."""
    report = Report(cluster)
    there = {entry.path: entry.size for entry in store.list(codec.cluster_directory(cluster) + "/")}
    links = list(commit.links(store, cluster, report.problems.append))
    links = _with_late_commits(store, report, there, links, clock, sleep)
    _walk_chain(links, report)
    named = _named(links, report)
    _check_unnamed(there, named, links, report)
    _check_numbers(set(there) | set(named), report)
    _read_segments(store, named, report, progress)
    _check_dead(store, links, report)
    return report


def _with_late_commits(
    store: Store,
    report: Report,
    there: dict[str, int],
    links: list[Link],
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> list[Link]:
    """The links, with those that appeared because a job is at work while its segments were listed."""
    if not links or clock() - links[-1].to_us / 1e6 > _LIVE_S:
        return links
    until = clock() + _UNNAMED_WAIT_S
    while _unnamed(there, links) and clock() < until:
        sleep(0.5)
        found: list[str] = []
        newer = [link for link in commit.links(store, report.cluster, found.append) if link.number > links[-1].number]
        links = links + newer
    return links


def _unnamed(there: Iterable[str], links: list[Link]) -> list[str]:
    named = {segment.path for link in links for segment in link.segments} | {
        path for link in links for path in link.found
    }
    return sorted(path for path in there if path not in named)


def _walk_chain(links: list[Link], report: Report) -> None:
    report.commits = len(links)
    if not links:
        report.problems.append("no commit is there: nothing says what this history covers")
        return
    previous: Link | None = None
    for link in links:
        if link.number != (previous.number if previous else 0) + 1:
            missing = f"{previous.number + 1 if previous else 1} to {link.number - 1}"
            report.problems.append(f"commits {missing} are missing: what they covered is not proved")
        elif previous is not None and link.previous != previous.checksum:
            report.problems.append(
                f"commit {link.number} was written after another commit {previous.number} than is there"
            )
        if previous is not None and link.before != previous.after:
            if link.identity != previous.identity and not link.before:
                report.notes.append(f"commit {link.number}: the name went to another cluster, read from its beginning")
            else:
                report.problems.append(
                    f"commit {link.number} goes on from other positions than commit {previous.number} ended at: "
                    "the slice between is not covered"
                )
        if link.cluster != report.cluster:
            report.problems.append(f"commit {link.number} is of cluster {link.cluster!r}")
        report.gaps.extend(link.gaps)
        if link.found:
            report.notes.append(
                f"commit {link.number}: {len(link.found)} segments were there before this chain began; "
                "only that they can be read is proved of them"
            )
        previous = link
    report.from_us, report.to_us = links[0].from_us, links[-1].to_us
    first: dict[str, str] = {}
    for link in links:
        for key, position in link.after.items():
            first.setdefault(key, position.resource_version)
    report.positions = {key: (first[key], p.resource_version) for key, p in links[-1].after.items()}


def _named(links: list[Link], report: Report) -> dict[str, Segment | None]:
    """Every segment that the chain knows of; None for one whose content no commit vouches for."""
    named: dict[str, Segment | None] = {path: None for link in links for path in link.found}
    for link in links:
        for segment in link.segments:
            if named.get(segment.path) is not None:
                report.problems.append(f"{segment.path} is named by two commits, the second is {link.number}")
            named[segment.path] = segment
    return named


def _check_unnamed(there: dict[str, int], named: dict[str, Segment | None], links: list[Link], report: Report) -> None:
    for path in sorted(set(there) - set(named)):
        what = "a segment that no commit names" if codec.parse_segment(path) else "not a segment"
        report.problems.append(
            f"{path}: {what}; a run that died may have left it (the next start takes it in), or it was put there"
        )


def _check_numbers(paths: Iterable[str], report: Report) -> None:
    numbers: dict[str, list[int]] = collections.defaultdict(list)
    for path in paths:
        if name := codec.parse_segment(path):
            numbers[f"{name[0]}/{name[1]}"].append(name[2])
    for key, found in sorted(numbers.items()):
        missing = sorted(set(range(max(found) + 1)) - set(found))
        if missing:
            report.problems.append(f"{key}: the segments with the numbers {missing[:10]} are missing")


def _read_segments(
    store: Store, named: dict[str, Segment | None], report: Report, progress: Callable[[int, int], None]
) -> None:
    """Reads every segment, hour by hour: an Event's identity fixes its time, so only an hour's need be remembered."""
    counts = _Counts(report)
    paths = sorted(named)
    for done, path in enumerate(paths):
        segment = named[path]
        try:
            data = store.read(path)
        except NotFound:
            report.problems.append(f"{path} is missing")
            continue
        if segment is not None and (len(data) != segment.size or codec.checksum(data) != segment.checksum):
            report.problems.append(
                f"{path} is not as it was written: {len(data)} bytes of {segment.size}, another checksum"
            )
        report.segments += 1
        report.bytes += len(data)
        try:
            records = [record_pb2.Record.FromString(record) for record in codec.unpack(data)]
        except Exception as error:  # CodecError, or what protobuf raises on bytes that are no record
            report.problems.append(f"{path} can't be read: {error}")
            continue
        if segment is not None and len(records) != segment.count:
            report.problems.append(f"{path} holds {len(records)} records, its commit says {segment.count}")
        counts.take(path, records)
        progress(done + 1, len(paths))
    counts.close()


class _Counts:
    """Counts records, and finds those that are there twice or count too much. Takes segments in the order of paths."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._partition = ""
        self._hours = 0
        self._of_hour: set[bytes] = set()
        self._others: set[bytes] = set()
        # uid → (sum of occurrences, sum that was reported, last count, when)
        self._events: dict[bytes, tuple[int, int, int, int]] = {}
        self._pending: list[record_pb2.Record] = []

    def take(self, path: str, records: list[record_pb2.Record]) -> None:
        partition = path.rpartition("/")[0]
        if partition != self._partition:
            self._end_of_hour()
            self._partition = partition
        for record in records:
            self._report.records[record_pb2.Kind.Name(record.kind)] += 1
            if codec.partition(record.cluster, record.time_us) != partition:
                self._report.problems.append(f"{path}: a record of {record.uid} does not belong into this file's hour")
            identity = hashlib.blake2b(f"{record.uid}\0{record.resource_version}".encode(), digest_size=16).digest()
            known = self._of_hour if record.kind == record_pb2.EVENT else self._others
            if identity in known:
                self._report.problems.append(
                    f"{path}: the record of {record.uid} at resourceVersion {record.resource_version} is there twice"
                )
            known.add(identity)
            if record.kind == record_pb2.EVENT:
                self._report.occurrences += record.occurrences
                self._pending.append(record)

    def close(self) -> None:
        self._end_of_hour()

    def _end_of_hour(self) -> None:
        """Adds up the hour's Events in the order of their versions."""
        self._pending.sort(key=lambda record: (len(record.resource_version), record.resource_version))
        for record in self._pending:
            key = hashlib.blake2b(record.uid.encode(), digest_size=16).digest()
            counted, reported, last, _ = self._events.get(key, (0, 0, 0, 0))
            # a count that fell began anew
            reported += record.count - last if record.count >= last else record.count
            counted += record.occurrences
            self._events[key] = counted, reported, record.count, self._hours
            if counted > reported:
                self._report.problems.append(
                    f"the event {record.uid} counts {counted} occurrences, it reported {reported} ({self._partition})"
                )
        self._pending.clear()
        self._of_hour.clear()
        self._hours += 1
        if self._hours % _FORGET_HOURS == 0:
            old = self._hours - _FORGET_HOURS
            self._events = {key: event for key, event in self._events.items() if event[3] >= old}


def _check_dead(store: Store, links: list[Link], report: Report) -> None:
    for link in links:
        for path, count in link.dead.items():
            report.dead_letters += count
            try:
                lines = store.read(path).count(b"\n")
            except NotFound:
                report.problems.append(f"{path} is missing")
                continue
            if lines != count:
                report.problems.append(f"{path} holds {lines} dead letters, its commit says {count}")


def clusters(store: Store) -> Iterator[str]:
    """The clusters that have a chain, or data."""
    names = set(commit.clusters(store))
    names.update(codec.cluster_of(name) for name in store.list_dirs("") if name.startswith("cluster="))
    yield from sorted(names)
