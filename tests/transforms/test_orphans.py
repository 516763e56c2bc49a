"""What dead runs left: which segments are under no commit, and what of them is to be kept."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kubehistory.record_pb2 import Record

from tests.chains import CLUSTER, NOW_US, THIS_HOUR_US, Job, MemoryStore, event, service
from transforms import codec, layout, orphans
from transforms.seen import Seen

HOUR = codec.partition(CLUSTER, THIS_HOUR_US)


def seen(**events: tuple[int, int]) -> Seen:
    memory = Seen()
    for uid, (version, count) in events.items():
        memory.saw_event(uid, version, count, NOW_US)
    return memory


def settled(
    *segments: list[Record], known: Seen | None = None, at_most: bool = False
) -> list[list[tuple[str, str, int]]]:
    kept = orphans.settle(segments, known or Seen(), (), at_most)
    return [[(record.uid, record.resource_version, record.occurrences) for record in records] for records in kept]


def test_what_is_right_is_kept_as_it_is() -> None:
    records = [event("a", 5, 3), event("a", 6, 5, more=2), service("web", 7)]
    kept = orphans.settle([records], Seen(), ())
    assert {id(record) for record in kept[0]} == {id(record) for record in records}


def test_an_event_goes_on_from_the_count_that_is_known() -> None:
    assert settled([event("a", 6, 5, more=2)], known=seen(a=(5, 3))) == [[("a", "6", 2)]]


def test_what_the_chain_knows_already_is_dropped() -> None:
    assert settled([event("a", 5, 3)], known=seen(a=(5, 3))) == [[]]
    assert settled([event("a", 4, 2)], known=seen(a=(5, 3))) == [[]]
    assert settled([event("a", 6, 3, more=3)], known=seen(a=(5, 3))) == [[]]


def test_where_an_earlier_record_is_missing_the_later_one_counts_for_it() -> None:
    assert settled([event("a", 9, 5, more=2)]) == [[("a", "9", 5)]]


def test_of_two_copies_the_one_that_is_right_is_kept() -> None:
    assert settled([event("a", 9, 5, more=2)], [event("a", 9, 5)]) == [[], [("a", "9", 5)]]


def test_the_records_of_two_jobs_interleave_in_the_order_of_versions() -> None:
    one, other = [event("a", 5, 3), event("a", 9, 6, more=3)], [event("a", 7, 4)]
    assert settled(one, other) == [[("a", "5", 3), ("a", "9", 2)], [("a", "7", 1)]]


def test_a_count_that_fell_begins_anew() -> None:
    assert settled([event("a", 6, 2)], known=seen(a=(5, 3))) == [[("a", "6", 2)]]


def test_what_was_left_out_on_purpose_is_not_counted() -> None:
    assert settled([event("a", 9, 5, more=2)], at_most=True) == [[("a", "9", 2)]]


def test_a_service_is_kept_once_and_not_when_it_was_written() -> None:
    kept = orphans.settle([[service("web", 7)], [service("web", 7), service("db", 7)]], Seen(), {("db", "7")})
    assert [[record.uid for record in records] for records in kept] == [["web"], []]


@given(st.lists(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 3)), max_size=8), max_size=4))
def test_whatever_was_left_every_version_is_there_once_and_the_sum_is_the_newest_count(
    segments: list[list[tuple[int, int]]],
) -> None:
    records = [[event("a", version, version * 2, more=more) for version, more in segment] for segment in segments]
    kept = [record for part in orphans.settle(records, Seen(), ()) for record in part]
    versions = [record.resource_version for record in kept]
    assert sorted(versions) == sorted({record.resource_version for segment in records for record in segment})
    assert sum(record.occurrences for record in kept) == max((r.count for s in records for r in s), default=0)


# --- finding


def test_what_is_beyond_the_known_numbers_or_those_at_the_opening_is_found() -> None:
    store = MemoryStore({})
    for number in range(4):
        store.create(codec.segment_name(HOUR, "00", number), b"")
        store.create(codec.segment_name(HOUR, "01", number), b"")
    store.create(f"{HOUR}/00-0000000009.tmp", b"")
    store.create(layout.open_marker(HOUR), msgspec.json.encode({"01": 3}))
    found = list(orphans.beyond(store, CLUSTER, {f"{HOUR}/00": 2}))
    assert found == [
        codec.segment_name(HOUR, "00", 2),
        codec.segment_name(HOUR, "00", 3),
        codec.segment_name(HOUR, "01", 3),
    ]


def test_a_partition_that_is_neither_known_nor_open_is_not_looked_at() -> None:
    store = MemoryStore({codec.segment_name(HOUR, "00", 0): b""})
    assert list(orphans.beyond(store, CLUSTER, {})) == []


def test_an_orphan_says_what_it_holds_and_which_commit_it_was_written_for() -> None:
    store = MemoryStore({})
    job = Job(store)
    job.write(event("a", 5))
    path = codec.segment_name(HOUR, "00", 0)
    orphan = orphans.read(store, path)
    assert orphan.records is not None
    assert ([record.uid for record in orphan.records], orphan.commit, orphan.segment.count) == (["a"], 1, 1)
    assert not orphans.is_committed(store, CLUSTER, orphan)
    Job(store)
    assert orphans.is_committed(store, CLUSTER, orphan)


@pytest.mark.parametrize("data", [b"", b"text", codec.pack([b"\xff\xff"])])
def test_what_is_no_segment_has_no_records(data: bytes) -> None:
    store = MemoryStore({"cluster=prod/x": data})
    assert orphans.read(store, "cluster=prod/x").records is None
