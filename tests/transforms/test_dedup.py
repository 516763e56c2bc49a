"""What is news, and by how much: against a model, over any order, repetition, division and crash."""

from __future__ import annotations

import sys
import time
import tracemalloc
import uuid

import apache_beam as beam
import pytest
from apache_beam.testing.util import assert_that, equal_to
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.transforms import fakes
from transforms import coders
from transforms.carried import Process, Settings
from transforms.decode import Decoder
from transforms.dedup import Deduplicate, _DeduplicateFn, deduplicate, news_of, reported_count
from transforms.seen import _FOLD_AT, Seen, version_of
from transforms.store import StoreConfig
from transforms.types import (
    Change,
    Changes,
    Event,
    EventSeries,
    News,
    NewsChunk,
    ObjectMeta,
    Service,
    ServicePort,
    ServiceSpec,
)

SECOND = 1_000_000


def event(uid: str, version: int | str, count: int | None = None, series: int | None = None) -> Event:
    return Event(
        metadata=ObjectMeta(name=uid, namespace="shop", uid=uid, resource_version=str(version)),
        count=count,
        series=None if series is None else EventSeries(count=series),
    )


def change(uid: str, version: int | str, count: int | None = None, type_: str = "MODIFIED", at_us: int = 5) -> Change:
    return Change(type_, event(uid, version, count), at_us)


def told(seen: Seen, *changes: Change) -> list[tuple[str, str, int]]:
    """(uid, version, occurrences) of the news of a chunk of events."""
    news = news_of(Changes("prod", list(changes)), seen).events
    return [(n.object.metadata.uid, n.object.metadata.resource_version, n.occurrences) for n in news]


# --- events -----------------------------------------------------------------------------------


def test_a_new_event_is_news_with_all_its_occurrences():
    assert told(Seen(), change("a", 10), change("b", 11, 7)) == [("a", "10", 1), ("b", "11", 7)]


def test_a_version_is_news_once():
    seen = Seen()
    assert told(seen, change("a", 10, 1), change("a", 10, 1)) == [("a", "10", 1)]
    assert told(seen, change("a", 10, 1, "LISTED")) == []


def test_a_count_that_grew_is_news_by_as_much():
    assert told(Seen(), change("a", 10, 3), change("a", 12, 5)) == [("a", "10", 3), ("a", "12", 2)]


def test_a_newer_version_with_the_same_count_is_none():
    seen = Seen()
    assert told(seen, change("a", 10, 3), change("a", 11, 3)) == [("a", "10", 3)]
    assert seen.event("a") == (11, 3)


def test_an_older_version_is_none_whatever_its_count():
    assert told(Seen(), change("a", 12, 3), change("a", 10, 9)) == [("a", "12", 3)]


def test_a_count_that_fell_began_anew():
    assert told(Seen(), change("a", 10, 5), change("a", 11, 2), change("a", 12, 3)) == [
        ("a", "10", 5),
        ("a", "11", 2),
        ("a", "12", 1),
    ]


def test_the_news_carries_the_change_s_type_and_time():
    news = news_of(Changes("prod", [change("a", 10, 2, "LISTED", 77)]), Seen())
    assert news == NewsChunk("prod", [News("LISTED", event("a", 10, 2), 77, 2)])


def test_deleted_is_the_event_s_ttl_and_it_is_forgotten():
    seen = Seen()
    assert told(seen, change("a", 10, 3), change("a", 11, 3, "DELETED")) == [("a", "10", 3)]
    assert seen.event("a") is None
    assert told(seen, change("a", 20, 2)) == [("a", "20", 2)]


@pytest.mark.parametrize(
    ("count", "series", "expected"),
    [(None, None, 1), (0, None, 1), (4, None, 4), (None, 6, 6), (1, 6, 6), (None, 0, 1), (-3, None, 1)],
)
def test_how_often_an_event_says_it_occurred(count, series, expected):
    assert reported_count(event("a", 1, count, series)) == expected


@pytest.mark.parametrize(("version", "number"), [("12", 12), ("", 0), ("abc", 0), ("1.5", 0), ("-3", 0), ("9" * 40, 0)])
def test_a_version_that_is_no_number_of_64_bits_is_0(version, number):
    assert version_of(ObjectMeta(resource_version=version)) == number


def test_where_versions_are_no_numbers_counts_tell_what_is_new():
    seen = Seen()
    assert told(seen, change("a", "x", 3), change("a", "y", 3), change("a", "z", 4)) == [("a", "x", 3), ("a", "z", 1)]


def test_where_versions_are_no_numbers_memory_lasts_too():
    committed = Seen()
    committed.merge(deduplicate(Changes("prod", [change("a", "x", 3)]), Seen(committed))[1])
    memory = Seen(committed)
    news, _ = deduplicate(Changes("prod", [change("a", "x", 3)]), memory)
    assert news.events == []
    news, _ = deduplicate(Changes("prod", [change("a", "y", 4)]), memory)
    assert [n.occurrences for n in news.events] == [1]


def test_a_version_or_a_count_that_is_enormous_breaks_nothing():
    chunk = Changes("prod", [change("a", "9" * 40, 2**31 - 1), change("b", 2**64 - 1, 2**40)])
    news, addition = deduplicate(chunk, Seen())
    assert [n.occurrences for n in news.events] == [2**31 - 1, 2**40]
    assert addition


def test_uids_that_are_no_uuids_are_told_apart():
    assert len(told(Seen(), *(change(uid, 10) for uid in ("a", "b", "x" * 36, "y" * 36, str(uuid.uuid4()))))) == 5


# --- services ---------------------------------------------------------------------------------


def service(version: int | str, app: str = "web", uid: str = "s", labels: dict | None = None, **metadata) -> Service:
    kept = ObjectMeta(name="web", namespace="shop", uid=uid, resource_version=str(version), labels=labels, **metadata)
    return Service(metadata=kept, spec=ServiceSpec(selector={"app": app}))


def told_services(seen: Seen, *changes: tuple[str, Service]) -> list[News[Service]]:
    return news_of(Changes("prod", [], [Change(kind, item, 5) for kind, item in changes]), seen).services


def test_a_service_is_news_when_it_is_new_and_when_it_differs():
    seen = Seen()
    assert told_services(seen, ("ADDED", service(10))) == [News("ADDED", service(10), 5)]
    assert told_services(seen, ("MODIFIED", service(11, "api"))) == [
        News("MODIFIED", service(11, "api"), 5, 1, service(10))
    ]
    assert told_services(seen, ("LISTED", service(12, "api", labels={"team": "a"}))) == [
        News("LISTED", service(12, "api", labels={"team": "a"}), 5, 1, service(11, "api"))
    ]


def test_a_service_that_changed_in_what_no_record_shows_is_none():
    seen = Seen()
    told_services(seen, ("ADDED", service(10)))
    assert told_services(seen, ("MODIFIED", service(11, annotations={"note": "x"}))) == []
    assert seen.state("s") == service(11)


def test_a_service_listed_again_is_none():
    seen = Seen()
    told_services(seen, ("ADDED", service(10)), ("MODIFIED", service(11, "api")))
    assert told_services(seen, ("LISTED", service(11, "api")), ("ADDED", service(10))) == []


def test_a_service_that_is_gone_is_news_with_what_it_was():
    seen = Seen()
    told_services(seen, ("ADDED", service(10)))
    assert told_services(seen, ("DELETED", service(12))) == [News("DELETED", service(12), 5, 1, service(10))]
    assert seen.state("s") is None


def test_a_service_that_is_gone_and_was_never_seen_is_news_too():
    assert told_services(Seen(), ("DELETED", service(12))) == [News("DELETED", service(12), 5, 1, None)]


def test_a_service_whose_version_is_no_number_is_news_when_it_differs():
    seen = Seen()
    told_services(seen, ("ADDED", service("x")))
    assert told_services(seen, ("MODIFIED", service("y"))) == []
    assert len(told_services(seen, ("MODIFIED", service("z", "api")))) == 1


def test_what_is_kept_of_a_service_is_what_a_record_shows():
    seen = Seen()
    told_services(seen, ("ADDED", service(10, annotations={"kubectl": "x" * 10_000})))
    assert len(seen.encode()) < 200


# --- memory -----------------------------------------------------------------------------------


def filled(*entries: tuple[str, int, int], base: Seen | None = None, at_us: int = 0) -> Seen:
    seen = Seen(base)
    for uid, version, count in entries:
        seen.saw_event(uid, version, count, at_us)
    return seen


def test_a_memory_looks_into_its_base_and_never_changes_it():
    base = filled(("a", 10, 1), ("b", 11, 2))
    base.saw_state("s", service(5))
    before = base.encode()
    memory = filled(("a", 20, 3), base=base)
    memory.forget_event("b")
    memory.saw_state("s", None)
    assert [memory.event(uid) for uid in "abc"] == [(20, 3), None, None]
    assert memory.state("s") is None
    assert base.encode() == before
    assert base.event("b") == (11, 2)


def test_what_was_forgotten_goes_where_it_is_merged():
    base = filled(("a", 10, 1), ("b", 11, 2))
    base.saw_state("s", service(5))
    memory = Seen(base)
    memory.forget_event("b")
    memory.saw_state("s", None)
    base.merge(memory.encode())
    assert len(base) == 1
    assert base.encode() == filled(("a", 10, 1)).encode()


def test_expire_forgets_what_was_last_written_before():
    seen = filled(("old", 10, 1), at_us=100 * SECOND)
    seen.saw_event("new", 11, 1, 200 * SECOND)
    seen.forget_event("gone")
    seen.expire(200 * SECOND)
    assert len(seen) == 1
    assert seen.event("new") == (11, 1)


def test_an_encoded_memory_is_these_bytes():
    seen = filled(("00000000-0000-0000-0000-0000000000ff", 258, 3), at_us=7 * SECOND)
    seen.saw_state("s", None)
    assert seen.encode().hex() == (
        "00000020"  # 32 bytes of entries
        "000000000000000000000000000000ff"  # the UID
        "0000000000000102"  # its version
        "00000003"  # its count
        "00000007"  # when
        "93808091a173"  # no Services, no endpoints, and that "s" is gone, in msgpack
    )


uids = st.sampled_from(["a", "b", str(uuid.UUID(int=3)), str(uuid.UUID(int=4))])
services = st.none() | st.builds(service, st.integers(1, 50), st.sampled_from(["web", "api"]))
steps = st.lists(
    st.tuples(st.just("event"), uids, st.integers(0, 2**64 - 1), st.integers(1, 2**32 - 1))
    | st.tuples(st.just("forget"), uids)
    | st.tuples(st.just("service"), uids, services),
    max_size=8,
)


def memory_of(several, base: Seen | None = None) -> Seen:
    seen = Seen(base)
    for kind, *arguments in several:
        if kind == "event":
            seen.saw_event(*arguments, 9 * SECOND)
        elif kind == "forget":
            seen.forget_event(*arguments)
        else:
            seen.saw_state(*arguments)
    return seen


def content(seen: Seen):
    keys = ["a", "b", str(uuid.UUID(int=3)), str(uuid.UUID(int=4))]
    return [(seen.event(uid), seen.state(uid)) for uid in keys]


@given(steps, steps, steps)
def test_merging_is_associative_and_the_same_as_having_seen_it_all(one, two, three):
    whole = memory_of([*one, *two, *three])
    additions = [memory_of(part, Seen()).encode() for part in (one, two, three)]

    one_by_one = Seen()
    for addition in additions:
        one_by_one.merge(addition)

    pair = Seen(Seen())  # a memory with a base keeps what was forgotten, to mask it
    pair.merge(additions[1])
    pair.merge(additions[2])
    grouped = Seen()
    grouped.merge(additions[0])
    grouped.merge(pair.encode())

    layered = memory_of(three, memory_of(two, memory_of(one)))
    assert content(one_by_one) == content(grouped) == content(layered) == content(whole)


@given(steps)
def test_an_encoded_memory_merged_into_none_is_the_same(several):
    seen, again = memory_of(several), Seen()
    again.merge(seen.encode())
    assert content(again) == content(seen)


def test_a_memory_takes_about_as_much_as_it_says():
    keys = [str(uuid.UUID(int=number << 64)) for number in range(20_000)]
    tracemalloc.start()
    seen = Seen()
    for number, key in enumerate(keys):
        seen.saw_event(key, 10**9 + number, 1, 1_700_000_000 * SECOND)
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size / len(keys) < 200, sys.version
    assert len(seen.encode()) / len(keys) < 33


# --- any history, however it is read ----------------------------------------------------------


@st.composite
def histories(draw):
    """Versions of Events as they were written, and how they came: (uid, version, count) in the order of arrival.

    A watch shows all in order; it may go back and show some again; a relist shows the newest of each at that time, in
    the order of names.
    """
    writes = draw(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3)), min_size=1, max_size=15))
    counts: dict[str, int] = {}
    history = []
    for version, (uid, growth) in enumerate(writes, 100):
        counts[uid] = counts.get(uid, 0) + (growth if uid in counts else max(1, growth))
        history.append((uid, version, counts[uid]))
    arrivals = []
    position = 0
    while position < len(history):
        match draw(st.sampled_from(["watch", "again", "relist", "skip"])):
            case "watch":
                arrivals.append(("MODIFIED", *history[position]))
                position += 1
            case "again":
                position = draw(st.integers(0, position))
                arrivals.append(("MODIFIED", *history[position]))
                position += 1
            case _ as way:  # a relist shows the newest that there are, also those that the watch did not come to
                if way == "skip":
                    position = draw(st.integers(position, len(history)))
                newest = {uid: (uid, version, count) for uid, version, count in history[:position]}
                arrivals += [("LISTED", *newest[uid]) for uid in sorted(newest)]
    return history, arrivals


@given(histories(), st.data())
@settings(max_examples=100, suppress_health_check=[HealthCheck.large_base_example])
def test_occurrences_add_up_and_no_version_is_written_twice_however_it_is_read(read, data):
    history, arrivals = read
    carried, written = Seen(), []
    todo = [Change(kind, event(uid, version, count), 5) for kind, uid, version, count in arrivals]
    while todo:  # an epoch: some chunks, deduplicated over one memory, and either a commit or a crash
        size = data.draw(st.integers(1, len(todo)))
        epoch, memory, news, additions = todo[:size], Seen(carried), [], []
        while epoch:
            part = data.draw(st.integers(1, len(epoch)))
            told_now, addition = deduplicate(Changes("prod", epoch[:part]), memory)
            news += told_now.events
            additions.append(addition)
            epoch = epoch[part:]
        if data.draw(st.integers(0, 3)) == 0:
            continue  # nothing was committed: the same is read again, from the saved memory
        written += news
        saved = Seen()
        saved.merge(carried.encode())
        for addition in additions:
            saved.merge(addition)
        carried, todo = saved, todo[size:]
    final = {uid: count for uid, _, count in history}
    sums = dict.fromkeys(final, 0)
    for one in written:
        sums[one.object.metadata.uid] += one.occurrences
    assert sums == final
    identities = [(one.object.metadata.uid, one.object.metadata.resource_version) for one in written]
    assert len(identities) == len(set(identities))


# --- Beam -------------------------------------------------------------------------------------


def test_the_transform_tells_news_once_a_key_and_at_the_end_what_it_saw(tmp_path):
    coders.register()
    process = Process(Settings((), StoreConfig(str(tmp_path))))
    carried = process.acquire()
    carried.seen("prod").saw_event("known", 50, 2, 0)
    decode = Decoder(Event)

    def chunk(*items) -> Changes:
        return Changes("prod", decode.page(fakes.page(*items)[0], 5)[0])

    known = fakes.event("known", 50, 2)
    known["metadata"]["uid"] = "known"
    grown = fakes.event("known", 60, 5)
    grown["metadata"]["uid"] = "known"
    with fakes.epoch() as p:
        outputs = (
            p
            | beam.Create(
                [
                    ("prod/00", chunk(known, fakes.event("a", 70, 1))),
                    ("prod/00", chunk(grown, fakes.event("a", 70, 1))),
                    ("prod/01", chunk(fakes.event("b", 71, 4))),
                    ("prod/01", chunk(fakes.event("b", 71, 4))),
                ]
            )
            | Deduplicate(process)
        )
        told_news = outputs.news | beam.FlatMap(
            lambda kv: [(kv[0], n.object.metadata.resource_version, n.occurrences) for n in kv[1].events]
        )
        assert_that(
            told_news, equal_to([("prod/00", "60", 3), ("prod/00", "70", 1), ("prod/01", "71", 4)]), label="news"
        )

        def merged(additions):
            seen = Seen()
            for _, addition in additions:
                seen.merge(addition)
            assert [seen.event(uid) for uid in ("known", "uid-a", "uid-b")] == [(60, 5), (70, 1), (71, 4)]

        assert_that(outputs.seen, merged, label="seen")
    assert carried.seen("prod").event("known") == (50, 2)


def test_a_service_port_that_changed_is_a_change():
    seen = Seen()
    told_services(seen, ("ADDED", service(10)))
    other = Service(
        metadata=service(11).metadata, spec=ServiceSpec(selector={"app": "web"}, ports=[ServicePort(port=1)])
    )
    assert len(told_services(seen, ("MODIFIED", other))) == 1


# --- a stream ---------------------------------------------------------------------------------


class Bag(list):
    """Bag state; `reads` says how often it was read."""

    reads = 0

    def read(self) -> list[bytes]:
        self.reads += 1
        return list(self)

    def add(self, addition: bytes) -> None:
        self.append(addition)


class Cell:
    """Read-modify-write state."""

    value: bytes | None = None

    def read(self) -> bytes | None:
        return self.value

    def write(self, value: bytes) -> None:
        self.value = value


class Worker:
    """A worker of a stream: bundles over one key's state, which a runner keeps."""

    def __init__(self, directory) -> None:
        self.process = Process(Settings((), StoreConfig(str(directory))))
        self.carried = self.process.acquire()

    def bundle(self, bag: Bag, token: Cell, *chunks: Changes, fails: bool = False) -> list[tuple[str, int]]:
        function = _DeduplicateFn(self.process, 3600.0)
        function.setup()
        function.start_bundle()
        news = [
            n for chunk in chunks for _, news in function.process(("prod/00", chunk), bag, token) for n in news.events
        ]
        if not fails:
            function.finish_bundle()
        return [(n.object.metadata.resource_version, n.occurrences) for n in news]


def at(uid: str, version: int, count: int) -> Changes:
    return Changes("prod", [change(uid, version, count, at_us=time.time_ns() // 1000)])


def test_a_stream_remembers_from_bundle_to_bundle_and_reads_its_state_once(tmp_path):
    worker, bag, token = Worker(tmp_path), Bag(), Cell()
    assert worker.bundle(bag, token, at("a", 10, 3), at("a", 11, 4)) == [("10", 3), ("11", 1)]
    assert worker.bundle(bag, token, at("a", 11, 4)) == []
    assert worker.bundle(bag, token, at("a", 12, 9)) == [("12", 5)]
    assert bag.reads == 1
    assert len(bag) == 3  # what is no news adds nothing


def test_another_worker_goes_on_from_the_state(tmp_path):
    bag, token = Bag(), Cell()
    first, second = Worker(tmp_path), Worker(tmp_path)
    first.bundle(bag, token, at("a", 10, 3))
    assert second.bundle(bag, token, at("a", 10, 3), at("a", 12, 5)) == [("12", 2)]
    assert first.bundle(bag, token, at("a", 12, 5), at("a", 13, 6)) == [("13", 1)]


def test_after_a_restored_checkpoint_the_state_counts_and_not_the_worker(tmp_path):
    worker, bag, token = Worker(tmp_path), Bag(), Cell()
    worker.bundle(bag, token, at("a", 10, 3))
    saved, saved_token = Bag(bag), Cell()
    saved_token.value = token.value
    worker.bundle(bag, token, at("a", 12, 5))
    assert worker.bundle(saved, saved_token, at("a", 12, 5)) == [("12", 2)]


def test_a_bundle_that_fails_leaves_nothing_behind(tmp_path):
    worker, bag, token = Worker(tmp_path), Bag(), Cell()
    worker.bundle(bag, token, at("a", 10, 3))
    before, before_token = Bag(bag), token.value
    worker.bundle(bag, token, at("a", 12, 5), fails=True)
    token.value = before_token  # the runner undoes what it wrote
    assert worker.bundle(before, token, at("a", 12, 5)) == [("12", 2)]


def test_a_bag_is_folded_when_it_has_grown_and_forgets_what_is_old(tmp_path):
    worker, bag, token = Worker(tmp_path), Bag(), Cell()
    worker.bundle(bag, token, Changes("prod", [change("old", 5, 1, at_us=0)]))
    sizes = []
    for version in range(10, 10 + 3 * _FOLD_AT):
        assert worker.bundle(bag, token, at(f"e{version}", version, 1)) == [(str(version), 1)]
        sizes.append(len(bag))
    assert max(sizes) < 3 * _FOLD_AT
    assert sorted(sizes) != sizes
    remembered = Seen()
    for addition in bag:
        remembered.merge(addition)
    assert remembered.event("old") is None
    assert all(remembered.event(f"e{version}") == (version, 1) for version in range(10, 10 + 3 * _FOLD_AT))
    assert Worker(tmp_path).bundle(bag, token, at("e10", 10, 1), at("e11", 99, 2)) == [("99", 1)]
