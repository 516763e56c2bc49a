"""The proof that a history is complete: walks a cluster's chain of commits and holds the sink against it.

What is proved: the commits are all there, each names the one before, and every slice of the history from the first
position to the last is covered; every segment that a commit names is there, as it was written; no other segment is
there; no record is there twice; no Event counts more occurrences than it reported. What could not be had is listed as
a gap.

What can't be told: that the newest commit was removed, when it named no segment; that a whole cluster was removed; that
a record is there twice when its time is not its object's own and the two are more than 48 hours of data apart.

In memory are the names of all segments (about 500 bytes each), and of records the identities of one hour; of the Events
that count on, and of what has no time of its own, those of 48 hours.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import itertools
import time
from collections.abc import Callable, Iterable, Iterator

from google.protobuf.message import DecodeError
from kubehistory import record_pb2

from transforms import codec, commit, layout
from transforms.commit import Link
from transforms.seen import number_of
from transforms.store import NotFound, Store
from transforms.types import Gap, Segment
from transforms.write import label_of

_UNNAMED_WAIT_S = 5.0  # how long a segment may be there before its commit, in a history that is being written
_LIVE_S = 120.0  # a history whose newest commit is younger than this may be being written
_PAUSE_S = 0.5  # between two looks at what may be changing
_LOOKS = 4  # at what is not as it should be, and may be in the hands of a job at work
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
    there = {entry.path for entry in store.list(codec.cluster_directory(cluster) + "/")}
    links = _links(store, report, sleep)
    links += _late_links(store, cluster, there, links, clock, sleep)
    _walk_chain(links, report)
    named = _named(links, report)
    _check_unnamed(store, sorted(there - set(named)), links, report)
    _check_numbers(there | set(named), report)
    _read_segments(store, named, report, progress, sleep)
    _check_dead(store, links, report)
    return report


def _links(store: Store, report: Report, sleep: Callable[[float], None]) -> list[Link]:
    """The chain; walked again when a number is missing, since it may have been folded into an archive meanwhile."""
    for _ in range(_LOOKS):
        problems: list[str] = []
        links = list(commit.links(store, report.cluster, problems.append))
        passed = {layout.commit(report.cluster, number) for link in links for number in link.passed}
        if not any(_missing(links)):
            break
        sleep(_PAUSE_S)
    for problem in problems:
        if problem.partition(":")[0] in passed:
            report.notes.append(f"{problem}; a start passed over it, and what it covered was read again")
        else:
            report.problems.append(problem)
    return links


def _late_links(
    store: Store,
    cluster: str,
    there: set[str],
    links: list[Link],
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> list[Link]:
    """The links that appear because a job is at work: its segments are there a moment before their commit."""
    late: list[Link] = []
    if not links or clock() - links[-1].to_us / 1e6 > _LIVE_S:
        return late
    unnamed = there - {path for link in links for path in _paths(link)}
    for _ in range(round(_UNNAMED_WAIT_S / _PAUSE_S)):
        if not unnamed:
            break
        sleep(_PAUSE_S)
        while (link := _link_after(store, cluster, (late or links)[-1])) is not None:
            late.append(link)
            unnamed -= set(_paths(link))
    return late


def _link_after(store: Store, cluster: str, link: Link) -> Link | None:
    try:
        return commit.read_link(store, cluster, link.number + 1)
    except commit.ChainError:
        return None  # damaged, as was said already


def _paths(link: Link) -> Iterator[str]:
    yield from (segment.path for segment in link.segments)
    yield from link.found


def _missing(links: list[Link]) -> Iterator[tuple[int, int]]:
    """The spans of numbers that are not there, and that no later commit says it passed over."""
    newest = 0
    for link in links:
        passed = set(link.passed)
        lacking = [number for number in range(newest + 1, link.number) if number not in passed]
        if lacking:
            yield lacking[0], lacking[-1]
        newest = link.number


def _walk_chain(links: list[Link], report: Report) -> None:
    report.commits = len(links)
    if not links:
        report.problems.append("no commit is there: nothing says what this history covers")
        return
    for first, last in _missing(links):
        numbers = f"commit {first} is" if first == last else f"commits {first} to {last} are"
        report.problems.append(f"{numbers} missing: what was covered there is not proved")
    for previous, link in itertools.pairwise(links):
        _check_pair(previous, link, report)
    for link in links:
        if link.cluster != report.cluster:
            report.problems.append(f"commit {link.number} is of cluster {link.cluster!r}")
        report.gaps.extend(link.gaps)
        if link.found:
            report.notes.append(
                f"commit {link.number}: {len(link.found):,} segments were there under no commit; "
                "only that they can be read is proved of them"
            )
    report.from_us, report.to_us = links[0].from_us, links[-1].to_us
    first_versions: dict[str, str] = {}
    for link in links:
        for key, position in link.after.items():
            first_versions.setdefault(key, position.resource_version)
    report.positions = {key: (first_versions[key], p.resource_version) for key, p in links[-1].after.items()}


def _check_pair(previous: Link, link: Link, report: Report) -> None:
    """Whether a link goes on where the one before it ended; where one is missing, nothing but that can be said."""
    if any(number not in link.passed for number in range(previous.number + 1, link.number)):
        return
    if link.previous != previous.checksum:
        report.problems.append(f"commit {link.number} was written after another commit {previous.number} than is there")
    if link.identity != previous.identity and previous.identity:
        report.notes.append(f"commit {link.number}: the name went to another cluster, whose history begins here")
    elif link.before != previous.after:
        report.problems.append(
            f"commit {link.number} goes on from other positions than commit {previous.number} ended at: "
            "the slice between is not covered"
        )


def _named(links: list[Link], report: Report) -> dict[str, Segment | None]:
    """Every segment that the chain knows of; None for one whose content no commit vouches for."""
    named: dict[str, Segment | None] = {path: None for link in links for path in link.found}
    for link in links:
        for segment in link.segments:
            if named.get(segment.path) is not None:
                report.problems.append(f"{segment.path} is named by two commits, the second is {link.number}")
            named[segment.path] = segment
    return named


def _check_unnamed(store: Store, paths: Iterable[str], links: list[Link], report: Report) -> None:
    newest = links[-1].number if links else 0
    for path in paths:
        if codec.parse_segment(path) is None:
            report.problems.append(f"{path}: expected nothing but segments here, found what is none")
            continue
        try:
            label = label_of(store.read(path))
        except NotFound:
            continue
        why = "no commit names it; it was put there, or another kind of job wrote it"
        if label > newest:
            why = (
                f"it was written for commit {label}, which is not there: the run died before it (then the next start "
                "takes this in), or it was removed"
            )
        elif label:
            why = (
                f"it was written for commit {label}, which does not name it: a copy, or another job's "
                "(the next start empties it)"
            )
        report.problems.append(f"{path} is under no commit: {why}")


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
    store: Store,
    named: dict[str, Segment | None],
    report: Report,
    progress: Callable[[int, int], None],
    sleep: Callable[[float], None],
) -> None:
    """Reads every segment, hour by hour: an Event's identity fixes its time, so only an hour's need be remembered."""
    counts = _Counts(report)
    paths = sorted(named)
    for done, path in enumerate(paths):
        segment = named[path]
        data = _read(store, path, segment, sleep)
        progress(done + 1, len(paths))
        if data is None:
            if segment is None or segment.count:  # a name that was voided holds nothing
                report.problems.append(f"{path} is missing")
            continue
        if segment is not None and not _is(segment, data):
            report.problems.append(
                f"{path} is not as it was written: it has {len(data):,} bytes of {segment.size:,}, and another checksum"
            )
        report.segments += 1
        report.bytes += len(data)
        try:
            records = [record_pb2.Record.FromString(record) for record in codec.unpack(data)]
        except (codec.CodecError, DecodeError) as error:
            report.problems.append(f"{path} can't be read: {error}")
            continue
        if segment is not None and len(records) != segment.count:
            report.problems.append(f"{path} holds {len(records):,} records, its commit says {segment.count:,}")
        counts.take(path, records)
    counts.close()


def _read(store: Store, path: str, segment: Segment | None, sleep: Callable[[float], None]) -> bytes | None:
    """A segment's bytes, None when it is not there. One to be voided is looked at again: a job may be about it."""
    for look in range(_LOOKS):
        try:
            data: bytes | None = store.read(path)
        except NotFound:
            data = None
        if segment is None or segment.count or (data is not None and _is(segment, data)):
            break
        if look + 1 < _LOOKS:
            sleep(_PAUSE_S)
    return data


def _is(segment: Segment, data: bytes) -> bool:
    return len(data) == segment.size and codec.checksum(data) == segment.checksum


class _Counts:
    """Counts records, and finds those that are there twice or count too much. Takes segments in the order of paths."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._partition = ""
        self._hours = 0
        self._of_hour: set[bytes] = set()
        self._services: set[bytes] = set()
        self._undated: dict[bytes, int] = {}  # identity → when; its time is when it was read, which may be twice
        # UID → (sum of occurrences, sum that was reported, newest version, its count, when)
        self._events: dict[bytes, tuple[int, int, int, int, int]] = {}
        self._pending: list[record_pb2.Record] = []

    def take(self, path: str, records: list[record_pb2.Record]) -> None:
        partition = path.rpartition("/")[0]
        if partition != self._partition:
            self._end_of_hour()
            self._partition = partition
        for record in records:
            if codec.partition(record.cluster, record.time_us) != partition:
                self._report.problems.append(f"{path}: a record of {record.uid} is of another cluster or hour")
            if self._is_there(record):
                self._report.problems.append(
                    f"{path}: the record of {record.uid} at resourceVersion {record.resource_version} is there twice"
                )
            if record.kind == record_pb2.EVENT:
                self._report.occurrences += record.occurrences
                self._pending.append(record)
        for kind, count in collections.Counter(record.kind for record in records).items():
            self._report.records[record_pb2.Kind.Name(kind)] += count

    def close(self) -> None:
        self._end_of_hour()

    def _is_there(self, record: record_pb2.Record) -> bool:
        """Whether a record of this identity was taken before; now one was."""
        identity = hashlib.blake2b(f"{record.uid}\0{record.resource_version}".encode(), digest_size=16).digest()
        if record.kind == record_pb2.SERVICE_CHANGE:
            known = identity in self._services
            self._services.add(identity)
        elif record.kind == record_pb2.EVENT and record.time_us != record.observed_time_us:
            known = identity in self._of_hour
            self._of_hour.add(identity)
        else:
            known = identity in self._undated
            self._undated[identity] = self._hours
        return known

    def _end_of_hour(self) -> None:
        """Adds up the hour's Events in the order of their versions.

        What an Event reported is its highest count; where the count fell, it began anew: what it reported adds up.
        """
        self._pending.sort(key=lambda record: number_of(record.resource_version))
        for record in self._pending:
            key = hashlib.blake2b(record.uid.encode(), digest_size=16).digest()
            counted, reported, newest, last, _ = self._events.get(key, (0, 0, 0, 0, 0))
            version = number_of(record.resource_version)
            if version >= newest:
                reported += record.count - last if record.count >= last else record.count
                newest, last = version, record.count
            counted += record.occurrences
            self._events[key] = counted, reported, newest, last, self._hours
            if counted > reported:
                self._report.problems.append(
                    f"the event {record.uid} counts {counted:,} occurrences, it reported {reported:,} "
                    f"({self._partition})"
                )
        self._pending.clear()
        self._of_hour.clear()
        self._hours += 1
        if self._hours % _FORGET_HOURS == 0:
            old = self._hours - _FORGET_HOURS
            self._events = {key: event for key, event in self._events.items() if event[-1] >= old}
            self._undated = {key: when for key, when in self._undated.items() if when >= old}


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
