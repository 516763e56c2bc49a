"""The commit protocol against a model: jobs that die at any instant, in any interleaving, over a sink in memory.

The jobs run the real code (History, news_of, write_epoch, ...) around a source that is a model; only Beam is left
out. Each is a thread that stops before every operation on the sink, where a tape of numbers says who goes on and who
dies how: so a run is its tape, and hypothesis finds the shortest one that breaks a promise.
"""

from __future__ import annotations

import collections
import dataclasses
import random
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kubehistory.record_pb2 import EVENT, SERVICE_CHANGE, Record

from runners.history import Epoch, History
from tests.chains import CLUSTER, EVENTS, HOUR_US, NOW_US, SERVICES, TTL_S, Carried, Killed, MemoryStore
from transforms import codec, commit
from transforms.batch import by_partition, decode_records
from transforms.commit import ChainError
from transforms.dedup import deduplicate
from transforms.kube import newer
from transforms.record import event_time
from transforms.seen import Seen
from transforms.store import Store
from transforms.types import (
    Change,
    Changes,
    Encoded,
    Event,
    NewsChunk,
    ObjectMeta,
    Position,
    Progress,
    Service,
    ServiceSpec,
)
from transforms.verify import verify
from transforms.write import write_epoch

BATCH_SIZE = 2

# --- the source ----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Version:
    """One version of an object: an Event with its count and its time, or a Service, which may be gone."""

    uid: str
    number: int
    count: int = 0
    time_us: int = 0
    gone: bool = False

    @property
    def is_event(self) -> bool:
        return self.uid.startswith("e")


class Source:
    """A cluster as list and watch show it: all versions in order, or the newest of each object."""

    def __init__(self, hours: int) -> None:
        self.versions: list[Version] = []
        self._hours = hours

    def happen(self, choice: int) -> None:
        """An Event or a Service is new, occurs again or changes, or a Service goes; `choice` says which."""
        number = 10 + len(self.versions)
        newest = {version.uid: version for version in self.versions}
        if choice % 7 == 6:
            uid = f"s{choice // 7 % 2}"
            gone = uid in newest and not newest[uid].gone and choice // 14 % 3 == 0
            if not (uid in newest and newest[uid].gone):
                self.versions.append(Version(uid, number, gone=gone))
            return
        uid = f"e{choice // 7 % 5}"
        known = newest.get(uid)
        count = 1 + choice // 35 % 3 + (known.count if known else 0)
        time_us = NOW_US - choice % 7 % self._hours * HOUR_US
        self.versions.append(Version(uid, number, count, time_us))

    def read(self, position: Position, events: bool, choice: int) -> tuple[list[Change[Event | Service]], Position]:
        """A watch from `position` on (maybe not all of it), or a list of what is newer than it."""
        floor = position.resource_version
        mine = [v for v in self.versions if v.is_event == events]
        if position.listing or choice % 3 == 0:
            newest = {version.uid: version for version in mine}
            shown = [v for v in newest.values() if not v.gone and (not floor or newer(str(v.number), floor))]
            end = str(9 + len(self.versions))
            return [self._change("LISTED", v) for v in shown], Position(end, listing=False)
        following = [v for v in mine if newer(str(v.number), floor)]
        if choice % 3 == 1:
            following = following[: 1 + choice // 3 % 4]
        end = str(following[-1].number) if following else floor
        kinds = [self._change("DELETED" if v.gone else "MODIFIED", v) for v in following]
        return kinds, Position(end, listing=False)

    @staticmethod
    def _change(kind: str, version: Version) -> Change[Event | Service]:
        metadata = ObjectMeta(name=version.uid, uid=version.uid, resource_version=str(version.number))
        if version.is_event:
            at = datetime.fromtimestamp(version.time_us / 1e6, UTC)
            return Change(kind, Event(metadata=metadata, count=version.count, last_timestamp=at), NOW_US)
        return Change(kind, Service(metadata=metadata, spec=ServiceSpec(type=str(version.number))), NOW_US)


# --- a job ---------------------------------------------------------------------------------------------------------


def run_job(store: Store, source: Source, run: str, choose: Callable[[int], int], epochs: int, began_us: int) -> None:
    """A start, and epochs as the runner does them, until all is read or there were enough. Raises ChainError."""
    carried = Carried(store)
    history = History(carried, CLUSTER, "identity", run, TTL_S)  # type: ignore[arg-type]
    history.open()
    for _ in range(epochs):
        if not run_epoch(carried, history, source, choose, began_us):
            return


def run_epoch(carried: Carried, history: History, source: Source, choose: Callable[[int], int], began_us: int) -> bool:
    """Returns whether it moved on."""
    epoch = Epoch(began_us)
    encoded: list[Encoded] = []
    progress = []
    memory = Seen(carried.seen(CLUSTER))
    before = dict(history.positions)
    for target in (EVENTS, SERVICES):
        events = target is EVENTS
        changes, position = source.read(history.positions.get(target.key, Position()), events, choose(30))
        chunk = Changes(CLUSTER, changes, []) if events else Changes(CLUSTER, [], changes)  # type: ignore[arg-type]
        news, addition = deduplicate(chunk, memory)
        encoded += records_of(news)
        epoch.seen.setdefault(CLUSTER, []).append(addition)
        progress.append(Progress(target, position, len(changes), []))
    chunks = collections.defaultdict(list)
    for key, chunk_bytes in by_partition(f"{CLUSTER}/00", encoded, 100):
        chunks[key] += decode_records(chunk_bytes)
    for key in sorted(chunks, reverse=bool(choose(2))):
        segments, sequence = write_epoch(
            carried,  # type: ignore[arg-type]
            carried.commits[CLUSTER],
            key,
            None,
            chunks[key],
            BATCH_SIZE,
        )
        epoch.segments.setdefault(CLUSTER, []).extend(segments)
        epoch.sequences.setdefault(CLUSTER, {})[key] = sequence
    epoch.progress[CLUSTER] = progress
    history.commit(epoch)
    return history.positions != before


def records_of(chunk: NewsChunk) -> list[Encoded]:
    records = []
    for news in chunk.events:
        version = news.object.metadata.resource_version
        records.append(
            Record(
                kind=EVENT,
                cluster=CLUSTER,
                uid=news.object.metadata.uid,
                resource_version=version,
                time_us=event_time(news.object, NOW_US)[0],
                observed_time_us=news.observed_us,
                count=news.object.count or 1,
                occurrences=news.occurrences,
            )
        )
    for change in chunk.services:
        record = Record(
            kind=SERVICE_CHANGE,
            cluster=CLUSTER,
            uid=change.object.metadata.uid,
            resource_version=change.object.metadata.resource_version,
            time_us=change.observed_us,
        )
        record.service_change.change = 4 if change.type == "DELETED" else 3
        records.append(record)
    return [Encoded(r.time_us, r.uid, r.resource_version, r.SerializeToString()) for r in records]


# --- a run ---------------------------------------------------------------------------------------------------------

DEATHS = ["die before", "die after", "die, and it is done later"]


class Tape:
    """Decisions: the tape's numbers, then zeros."""

    def __init__(self, numbers: Sequence[int]) -> None:
        self._numbers = iter(numbers)
        self.ended = False

    def choose(self, of: int) -> int:
        number = next(self._numbers, None)
        self.ended = number is None
        return (number or 0) % of


class Actor:
    """A job in a thread, one after the other when it dies, that waits before each operation for its turn."""

    def __init__(self, name: str, world: World) -> None:
        self.name, self._world = name, world
        self._turn, self._waits = threading.Semaphore(0), threading.Semaphore(0)
        self._how = "go"
        self.store = MemoryStore(world.objects, self._before)
        self.alive, self.stopped, self.runs = False, False, 0
        self.error: BaseException | None = None

    def step(self, how: str) -> None:
        """Lets it do one operation, or die at it; starts it when it is not alive."""
        self._how = how
        if self.alive:
            self._turn.release()
        else:
            self.alive, self.stopped = True, False
            self.runs += 1
            threading.Thread(target=self._run, daemon=True).start()
        self._waits.acquire()

    def _before(self, operation: str) -> str:
        self._waits.release()
        self._turn.acquire()
        return self._how

    def _run(self) -> None:
        try:
            run_job(self.store, self._world.source, f"{self.name}{self.runs}", self._world.tape.choose, 6, NOW_US)
            self.stopped = True
        except ChainError:
            self.stopped = True
        except Killed:
            pass
        except BaseException as error:  # told by the test
            self.error = error
        finally:
            self.alive = False
            self._waits.release()


class World:
    """Jobs over one sink and one source, driven by a tape."""

    def __init__(self, numbers: Sequence[int], jobs: int, hours: int, late: bool) -> None:
        self.objects: dict[str, bytes] = {}
        self.source, self.tape = Source(hours), Tape(numbers)
        self.actors = [Actor(f"job{number}-", self) for number in range(jobs)]
        self._late = late

    def play(self) -> None:
        """Runs the tape to its end, kills what is alive, and drains twice: the second time after what came late."""
        for _ in range(3):
            self.source.happen(self.tape.choose(256))
        while not self.tape.ended:
            choice = self.tape.choose(256)
            actor = self.actors[choice % len(self.actors)]
            action = choice // len(self.actors) % 24
            if action < 3:
                self.source.happen(self.tape.choose(256))
            elif action == 3 and self._late:
                actor.store.late()
            elif action < 6 and actor.alive:
                actor.step(DEATHS[self.tape.choose(3 if self._late else 2)])
            elif not actor.stopped or action == 6:
                actor.step("go")
            self._raise(actor)
        for actor in self.actors:
            if actor.alive:
                actor.step(DEATHS[0])
            self._raise(actor)
        self.drain()
        for actor in self.actors:
            actor.store.late()
        self.drain()

    def drain(self) -> None:
        run_job(MemoryStore(self.objects), self.source, "drain", Tape([]).choose, 1000, NOW_US)

    def records(self) -> list[Record]:
        segments = [data for path, data in sorted(self.objects.items()) if codec.parse_segment(path)]
        return [Record.FromString(record) for data in segments for record in codec.unpack(data)]

    def check(self) -> None:
        """The promises."""
        records = self.records()
        identities = collections.Counter((record.uid, record.resource_version) for record in records)
        assert [identity for identity, count in identities.items() if count > 1] == []
        newest = {version.uid: version for version in self.source.versions}
        counted: collections.Counter[str] = collections.Counter()
        for record in records:
            counted[record.uid] += record.occurrences
        events = {uid: version.count for uid, version in newest.items() if version.is_event}
        assert {uid: counted[uid] for uid in events} == events
        shown = {record.uid for record in records if record.kind == SERVICE_CHANGE}
        assert {uid for uid, v in newest.items() if not v.is_event and not v.gone} <= shown
        assert verify(MemoryStore(self.objects), CLUSTER, sleep=lambda seconds: None).problems == []

    @staticmethod
    def _raise(actor: Actor) -> None:
        if actor.error is not None:
            raise actor.error


TAPES = st.lists(st.integers(0, 2**16 - 1), min_size=20, max_size=600)
RUNS = settings(
    derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow], max_examples=150
)


@pytest.fixture(autouse=True)
def _short_chains(monkeypatch: pytest.MonkeyPatch) -> None:
    """A base every 3 commits, so that runs cross bases, archives and partitions that close."""
    monkeypatch.setattr(commit, "KEEP", 3)


@RUNS
@given(TAPES)
def test_a_job_that_dies_at_any_instants_writes_every_record_and_every_occurrence_once(tape: list[int]) -> None:
    world = World(tape, jobs=1, hours=7, late=False)
    world.play()
    world.check()


@RUNS
@given(TAPES)
def test_two_jobs_in_any_interleaving_that_die_anyhow_write_every_record_and_every_occurrence_once(
    tape: list[int],
) -> None:
    world = World(tape, jobs=2, hours=2, late=True)
    world.play()
    world.check()


@pytest.mark.parametrize("seed", range(60))
def test_long_runs_keep_the_same_promises(seed: int) -> None:
    numbers = random.Random(seed)
    jobs = 1 + seed % 2
    tape = [numbers.randrange(2**16) for _ in range(3000)]
    world = World(tape, jobs=jobs, hours=2 if jobs == 2 else 7, late=jobs == 2)
    world.play()
    world.check()
