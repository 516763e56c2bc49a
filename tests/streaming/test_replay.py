"""A stream that goes back to a checkpoint: the state as it was then, the sink as it is now, the input once more.

The real DoFns are driven one by one, with state objects in memory in the place of a runner's: any division into bundles
and batches, any order of the batches, any earlier checkpoint, a worker that survived or a new one, and after a restart
either the same watch events again or a list that shows only the newest version of each (the intermediate are gone).

What holds, always: no identity (UID, resourceVersion) is written twice, and no occurrence is lost: `sum(occurrences)`
of an Event is at least its count. It is its count exactly, but for one case:

    a version was written into the partition of hour A after the checkpoint, and then the job went back; the replay did
    not see that version (a relist collapsed it into a newer one), and the newer one belongs to the partition of hour B.

Then the newer record counts what is already in A, for the state that it is subtracted by (which segments were found
taken) belongs to B's key. So the excess is at most what was written into A between the checkpoint and the failure: a
checkpoint's interval, across the turn of an hour, and only where the API server has meanwhile compacted the versions (5
minutes by default) or the job lists for another reason. To read back the other hours' segments at each restart would
cost more than that is worth.
"""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from apache_beam.io.watermark_estimators import ManualWatermarkEstimator
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.window import TimestampedValue
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kubehistory.record_pb2 import Record

from tests.transforms import fakes
from transforms import codec
from transforms.batch import _ByPartitionFn
from transforms.carried import Process, Settings
from transforms.dedup import _DeduplicateFn
from transforms.enrich import _EnrichStreamFn
from transforms.kube import Frame, relist
from transforms.seen import _FOLD_AT
from transforms.store import Entry, StoreConfig
from transforms.types import Position, Target
from transforms.watch import Filter, Span, SpanTracker, _WatchFn
from transforms.write import _WriteFn

TARGET = Target("prod", "events")
HOUR_S = 3600
START_S = 1_700_000_400  # 2023-11-14T22:20:00Z


# --- in the place of a runner and of the world ------------------------------------------------


class Bag(list[Any]):
    """Bag state."""

    def add(self, value: Any) -> None:
        self.append(value)

    def read(self) -> Iterator[Any]:
        return iter(list(self))


@dataclasses.dataclass
class Value:
    """ReadModifyWrite state."""

    value: Any = None

    def read(self) -> Any:
        return self.value

    def write(self, value: Any) -> None:
        self.value = value


class Sink:
    """A store in memory."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.reads = Counter[str]()

    def create(self, path: str, data: bytes) -> bool:
        return self.objects.setdefault(path, data) is data

    def read(self, path: str) -> bytes:
        self.reads[path] += 1
        return self.objects[path]

    def list(self, prefix: str, after: str = "") -> Iterator[Entry]:
        for path in sorted(self.objects):
            if path.startswith(prefix) and path > after:
                yield Entry(path, len(self.objects[path]))

    def records(self) -> list[Record]:
        found = []
        for path, data in sorted(self.objects.items()):
            if codec.parse_segment(path):
                found += [Record.FromString(one) for one in codec.unpack(data)]
        return found


@dataclasses.dataclass(frozen=True)
class Version:
    """One version of an Event, as it was stored."""

    version: int
    uid: str
    count: int
    hour: int

    def json(self) -> dict[str, Any]:
        last = datetime.fromtimestamp(START_S + self.hour * HOUR_S, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        stored = fakes.event(self.uid, self.version, self.count, lastTimestamp=last)
        stored["metadata"]["uid"] = self.uid
        stored["involvedObject"]["name"] = self.uid  # which decides the shard
        return stored


class Cluster:
    """The history of the Events, as far as it has come (`now`), and readers that show it from any position on.

    relists: readers that begin at a position list, as when the API server no longer has what follows it.
    """

    error = None
    waiting = 0

    def __init__(self, history: Sequence[Version]) -> None:
        self._history, self.now = history, 0
        self.relists = False
        self._position = Position()

    def reader(self, target: Target, resource: Any, position: Position) -> Cluster:
        self._position = position
        return self

    def take(self, limit: int, wait_s: float = 0.0) -> Iterator[Frame]:
        position, at_us = self._position, (START_S + 10 * HOUR_S) * 1_000_000
        seen = self._history[: self.now]
        head = str(seen[-1].version if seen else 1)
        if self.relists and not position.listing:
            position, self.relists = relist(position), False
        if position.listing:
            newest = sorted({one.uid: one for one in seen}.values(), key=lambda one: one.uid)
            after = Position(head, False)
            body = fakes.page(*(one.json() for one in newest), version=head)
            yield Frame("page", body, after, at_us, len(newest), True, True, position.floor)
            position = after
        for one in seen:
            if one.version > int(position.resource_version):
                kind = "ADDED" if one.count == 1 else "MODIFIED"
                yield Frame("lines", [fakes.line(kind, one.json())], Position(str(one.version), False), at_us)


class Tracker(SpanTracker):
    """A runner's view of the tracker, which splits after so many claims."""

    def __init__(self, span: Span, claims: int) -> None:
        super().__init__(span)
        self._claims = claims
        self.residual: Span | None = None

    def try_claim(self, position: Position | None) -> bool:
        if not self._claims:
            self._split()
        self._claims -= 1
        return super().try_claim(position)

    def defer_remainder(self, _: Any) -> None:
        self._split()

    def _split(self) -> None:
        split = self.try_split(0.0)
        if split is not None:
            self.residual = split[1]


@dataclasses.dataclass
class State:
    """What a checkpoint holds."""

    span: Span = dataclasses.field(default_factory=lambda: Span(Position()))
    seen: dict[str, tuple[Bag, Value]] = dataclasses.field(default_factory=lambda: defaultdict(_bag_and_value))
    batches: dict[tuple[str, int], list[bytes]] = dataclasses.field(default_factory=lambda: defaultdict(list))
    written: dict[str, tuple[Bag, Value]] = dataclasses.field(default_factory=lambda: defaultdict(_bag_and_value))


def _bag_and_value() -> tuple[Bag, Value]:
    return Bag(), Value()


class Job:
    """The stages of the streaming graph, each a real DoFn, over a State; `sink` is what stays when it goes back."""

    def __init__(self, cluster: Cluster, directory: str, batch_size: int) -> None:
        self.cluster, self.sink, self.state = cluster, Sink(), State()
        self._directory, self._batch_size = directory, batch_size
        self.start_worker()

    def start_worker(self) -> None:
        """A new process: nothing of the one before is remembered."""
        self.process = Process(Settings((), StoreConfig(self._directory)))
        self.carried = self.process.acquire()
        self.carried.readers, self.carried.store = self.cluster, self.sink
        self._watch = _WatchFn(self.process, 2, Filter(), bounded=False, limit=1000)
        self._deduplicate = _DeduplicateFn(self.process, 7200.0)
        self._enrich = _EnrichStreamFn(self.process)
        self._partition = _ByPartitionFn(1)
        self._write = _WriteFn(self.process, self._batch_size)
        for fn in (self._watch, self._deduplicate, self._enrich, self._write):
            fn.setup()

    def read(self, claims: int, window: int, bundles: int = 1) -> None:
        """One call of the source; what comes of it goes through the stages up to the batches, in so many bundles."""
        for bundle in _parts(self._chunks(claims), bundles):
            self._bundle(bundle, window)

    def fail(self) -> None:
        """A bundle that breaks off in the middle, and whose worker lives on."""
        self._deduplicate.start_bundle()
        for key, changes in self._chunks(1000):
            list(self._deduplicate.process((key, changes), *self.state.seen[key]))

    def _chunks(self, claims: int) -> list[Any]:
        tracker = Tracker(self.state.span, claims)
        outputs = list(self._watch.process(TARGET, tracker, ManualWatermarkEstimator(None)))
        assert tracker.check_done()
        assert tracker.residual is not None
        self.state.span = tracker.residual
        return [one.value for one in outputs if isinstance(one, TimestampedValue)]

    def _bundle(self, chunks: Sequence[Any], window: int) -> None:
        self._deduplicate.start_bundle()
        for key, changes in chunks:
            for element in self._deduplicate.process((key, changes), *self.state.seen[key]):
                for record in self._enrich.process(element, {}):
                    assert not isinstance(record, TaggedOutput), record
                    for partition, chunk in self._partition.process(record):
                        self.state.batches[partition, window].append(chunk)
        self._deduplicate.finish_bundle()

    def flush(self, which: int) -> None:
        """A batch closes: one of those that are open."""
        if self.state.batches:
            partition, window = sorted(self.state.batches)[which % len(self.state.batches)]
            chunks = self.state.batches.pop((partition, window))
            found, following = self.state.written[partition]
            list(self._write.process((partition, chunks[: self._batch_size]), following, found))
            if chunks[self._batch_size :]:
                self.state.batches[partition, window] = chunks[self._batch_size :]

    def checkpoint(self) -> State:
        return copy.deepcopy(self.state)

    def restore(self, state: State) -> None:
        self.state = copy.deepcopy(state)

    def finish(self) -> None:
        """All that there is, read and written."""
        self.read(1000, window=10**6)
        while self.state.batches:
            self.flush(0)


def _parts(chunks: Sequence[Any], bundles: int) -> list[Sequence[Any]]:
    size = -(-len(chunks) // bundles) or 1
    return [chunks[start : start + size] for start in range(0, len(chunks), size)]


# --- any history, any way of reading it, any failures -----------------------------------------


@st.composite
def histories(draw, hours: int) -> list[Version]:
    """Writes of Events whose counts grow, in the order of their versions; time does not go back."""
    writes = draw(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 3), st.integers(0, 3)), max_size=25))
    counts: Counter[str] = Counter()
    hour, history = 0, []
    for version, (uid, growth, later) in enumerate(writes, 10):
        counts[uid] += growth
        hour = min(hours - 1, hour + (later == 3))
        history.append(Version(version, uid, counts[uid], hour))
    return history


steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(1, 6)),
        st.tuples(st.just("read"), st.integers(0, 6), st.integers(1, 3)),
        st.tuples(st.just("flush"), st.integers(0, 5)),
        st.tuples(st.just("flush"), st.integers(0, 5)),
        st.tuples(st.just("checkpoint")),
        st.tuples(st.just("back"), st.integers(0, 5), st.booleans(), st.booleans()),
        st.tuples(st.just("fail")),
    ),
    max_size=40,
)


def run(
    history: Sequence[Version], script: Sequence[tuple[Any, ...]], batch_size: int, directory: str, lists: bool
) -> Job:
    """The job's way through a script, to the end of the history. lists: whether a restart may relist."""
    cluster = Cluster(history)
    job = Job(cluster, directory, batch_size)
    if not lists:
        job.read(1, 0)  # the first read of all is a list
    checkpoints = [job.checkpoint()]
    for window, (kind, *arguments) in enumerate(script):
        if kind == "write":
            cluster.now = min(len(history), cluster.now + arguments[0])
        elif kind == "read":
            job.read(*arguments[:1], window // 4, arguments[1])
        elif kind == "flush":
            job.flush(*arguments)
        elif kind == "checkpoint":
            checkpoints.append(job.checkpoint())
        elif kind == "fail":
            job.fail()
            job.restore(checkpoints[-1])
        else:
            number, new_worker, relists = arguments
            job.restore(checkpoints[-1 - number % len(checkpoints)])
            cluster.relists = relists and lists
            if new_worker:
                job.start_worker()
    cluster.now = len(history)
    job.finish()
    return job


def assert_whole(job: Job, history: Sequence[Version], exact: bool = True) -> None:
    records = job.sink.records()
    identities = Counter((record.uid, record.resource_version) for record in records)
    assert not [identity for identity, times in identities.items() if times > 1]
    sums: Counter[str] = Counter()
    for record in records:
        sums[record.uid] += record.occurrences
    final = {one.uid: one.count for one in history}
    newest = {(one.uid, str(one.version)) for one in {one.uid: one for one in history}.values()}
    assert newest <= set(identities)
    if exact:
        assert sums == final
    else:
        assert not {uid: (sums[uid], count) for uid, count in final.items() if sums[uid] < count}


sizes = st.integers(1, 4)
any_way = settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@any_way
@given(histories(hours=1), steps, sizes)
def test_a_replay_neither_loses_nor_repeats_anything(tmp_path, history, script, batch_size):
    assert_whole(run(history, script, batch_size, str(tmp_path), lists=True), history)


@any_way
@given(histories(hours=3), steps, sizes)
def test_nor_across_hours_when_the_watch_shows_the_same_versions_again(tmp_path, history, script, batch_size):
    assert_whole(run(history, script, batch_size, str(tmp_path), lists=False), history)


@any_way
@given(histories(hours=3), steps, sizes)
def test_across_hours_a_relist_may_count_more_but_loses_nothing(tmp_path, history, script, batch_size):
    assert_whole(run(history, script, batch_size, str(tmp_path), lists=True), history, exact=False)


def test_the_one_case_in_which_occurrences_are_counted_twice(tmp_path):
    """See the module: count 3 is in hour A's segment, and the replay sees only count 5, which is in hour B."""
    history = [Version(10, "a", 2, 0), Version(11, "a", 3, 0), Version(12, "a", 5, 1)]
    script = [
        ("write", 1), ("read", 9, 1), ("flush", 0), ("checkpoint",),
        ("write", 1), ("read", 9, 1), ("flush", 0),
        ("write", 1), ("back", 0, True, True),
    ]  # fmt: skip
    job = run(history, script, 4, str(tmp_path), lists=True)
    assert [(r.resource_version, r.occurrences) for r in job.sink.records()] == [("10", 2), ("11", 1), ("12", 3)]


def test_what_a_list_collapsed_is_not_written_again_as_it_was_between(tmp_path):
    """Count 5 was written with all since 2; then the watch, from before, shows how it came to 3 and to 4."""
    history = [Version(10, "a", 2, 0), Version(11, "a", 3, 0), Version(12, "a", 4, 0), Version(13, "a", 5, 0)]
    script = [
        ("write", 1), ("read", 9, 1), ("flush", 0), ("checkpoint",),
        ("write", 3), ("back", 0, False, True), ("read", 9, 1), ("flush", 0),
        ("back", 0, True, False), ("read", 2, 1), ("flush", 0),
    ]  # fmt: skip
    job = run(history, script, 4, str(tmp_path), lists=True)
    assert [(r.resource_version, r.occurrences) for r in job.sink.records()] == [("10", 2), ("13", 3)]


@pytest.mark.parametrize("new_worker", [False, True])
def test_what_a_segment_of_a_dead_run_holds_is_subtracted_from_every_later_batch(tmp_path, new_worker):
    """A list is in the order of names: the first batch of a replay has new Events between old ones."""
    history = [Version(10 + number, name, 1, 0) for number, name in enumerate("dcba")] + [Version(20, "bb", 1, 0)]
    script = [
        ("write", 4), ("read", 9, 1), ("checkpoint",), ("flush", 0), ("flush", 0), ("flush", 0),
        ("back", 5, new_worker, True), ("write", 1), ("read", 9, 1), ("flush", 0),
    ]  # fmt: skip
    job = run(history, script, 2, str(tmp_path), lists=True)
    assert_whole(job, history)


def test_without_any_state_nothing_of_the_current_hour_is_written_twice(tmp_path):
    """A job that starts anew over an old sink lists it all once more: more batches than one find the old segments."""
    history = [Version(10 + number, f"e{number:02d}", 1, 0) for number in range(20)]
    cluster = Cluster(history)
    cluster.now = len(history)
    job = Job(cluster, str(tmp_path), 3)
    job.finish()
    job.restore(State())
    job.start_worker()
    job.finish()
    assert_whole(job, history)


# --- the memory -------------------------------------------------------------------------------


def memory_job(tmp_path, n: int) -> tuple[Job, list[Version]]:
    history = [Version(10 + number, f"e{number}", 1, 0) for number in range(n)]
    return Job(Cluster(history), str(tmp_path), 1000), history


class CountingBag(Bag):
    reads = 0

    def read(self) -> Iterator[Any]:
        self.reads += 1
        return super().read()


def test_a_bundle_does_not_read_again_what_the_worker_remembers(tmp_path):
    job, history = memory_job(tmp_path, 30)
    bags = {key: CountingBag() for key in ("prod/00", "prod/01")}
    job.state.seen.update({key: (bag, Value()) for key, bag in bags.items()})
    for now in range(1, len(history) + 1):
        job.cluster.now = now
        job.read(1000, 0)
    assert sum(bag.reads for bag in bags.values()) == 2
    job.finish()
    assert_whole(job, history)


def test_the_bag_is_folded_as_it_grows_and_stays_within_twice_of_what_it_holds(tmp_path):
    job, history = memory_job(tmp_path, 600)
    longest = 0
    for now in range(1, len(history) + 1):
        job.cluster.now = now
        job.read(1000, 0)
        longest = max(longest, *(len(bag) for bag, _ in job.state.seen.values()))
    for bag, _ in job.state.seen.values():
        held = sum(len(addition) for addition in bag)
        assert held < 2.2 * 37 * len(history) / 2 + 37 * _FOLD_AT
    assert longest < len(history) / 2
    job.start_worker()
    job.finish()
    assert_whole(job, history)


def test_a_chunk_without_news_adds_nothing_to_the_state(tmp_path):
    job, history = memory_job(tmp_path, 5)
    job.cluster.now = len(history)
    job.read(1000, 0)
    before = {key: len(bag) for key, (bag, _) in job.state.seen.items()}
    job.cluster.relists = True
    job.state.span = Span(Position("1", False))
    job.read(1000, 0)
    assert {key: len(bag) for key, (bag, _) in job.state.seen.items()} == before
