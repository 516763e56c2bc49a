"""WriteBatches: records to segments, names that are taken, partitions that open, dead letters."""

from __future__ import annotations

import base64
import gzip
import json

import msgspec
import pytest

from tests.chains import CLUSTER, NOW_US, THIS_HOUR_US, Carried, MemoryStore, encoded, event, service
from transforms import codec, layout
from transforms.store import FatalStoreError
from transforms.types import DeadLetter, Segment
from transforms.write import (
    first_sequence,
    label_of,
    labelled,
    open_partition,
    opened_numbers,
    read_segment,
    subtract,
    void,
    voided,
    write_batch,
    write_dead,
    write_epoch,
    written_in,
)

HOUR = codec.partition(CLUSTER, THIS_HOUR_US)
KEY = f"{HOUR}/00"


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore({})


def uids(store: MemoryStore, segment: Segment) -> list[str]:
    return [record.uid for record in read_segment(store, segment.path)[1]]


# --- segments


def test_records_are_divided_into_segments_with_numbers_from_the_next_on(store: MemoryStore) -> None:
    records = encoded(*[event(f"e{number}", number) for number in range(5)])
    segments, following = write_batch(store, KEY, 3, records, 2)
    assert [segment.path for segment in segments] == [codec.segment_name(HOUR, "00", number) for number in (3, 4, 5)]
    assert ([segment.count for segment in segments], following) == ([2, 2, 1], 6)
    for segment in segments:
        data = store.read(segment.path)
        assert (segment.size, segment.checksum) == (len(data), codec.checksum(data))


def test_the_same_records_give_the_same_segments_in_whatever_order_they_come() -> None:
    records = encoded(event("b", 2), event("a", 1), event("c", 3, time_us=THIS_HOUR_US + 1))
    one, other = MemoryStore({}), MemoryStore({})
    write_batch(one, KEY, 0, records, 2, commit=7)
    write_batch(other, KEY, 0, records[::-1], 2, commit=7)
    assert one.objects == other.objects


def test_nothing_writes_nothing(store: MemoryStore) -> None:
    assert write_batch(store, KEY, 3, [], 2) == ([], 3)
    assert store.objects == {}


def test_a_replay_in_a_stream_adds_nothing(store: MemoryStore) -> None:
    records = encoded(*[event(f"e{number}", number) for number in range(5)])
    first = write_batch(store, KEY, 0, records, 2)
    assert write_batch(store, KEY, 0, records, 2) == first
    assert len(store.objects) == 3


def test_a_replay_that_holds_more_writes_the_rest_under_the_next_numbers(store: MemoryStore) -> None:
    write_batch(store, KEY, 0, encoded(event("a", 5, 3)), 10)
    segments, following = write_batch(
        store, KEY, 0, encoded(event("a", 5, 3), event("a", 6, 4, more=1), event("b", 7)), 10
    )
    assert ([uids(store, segment) for segment in segments], following) == ([["a"], ["a", "b"]], 2)


def test_a_stream_is_told_which_taken_segments_hold_what_later_batches_may_bring(store: MemoryStore) -> None:
    write_batch(store, KEY, 0, encoded(event("a", 5), event("b", 6)), 10)
    found: list[int] = []
    write_batch(store, KEY, 0, encoded(event("a", 5)), 10, found)
    assert found == [0]


# --- labels, and names that another job took


def test_a_label_is_a_comment_that_readers_skip() -> None:
    data = codec.pack([b"record"])
    with_label = labelled(data, 17)
    assert (label_of(with_label), label_of(data), label_of(b"")) == (17, 0, 0)
    assert gzip.decompress(with_label) == gzip.decompress(data)
    assert list(codec.unpack(with_label)) == [b"record"]


def test_a_name_that_another_job_took_is_passed_over_and_to_be_voided(store: MemoryStore) -> None:
    write_batch(store, KEY, 0, encoded(event("a", 5)), 10, commit=2)
    segments, following = write_batch(store, KEY, 0, encoded(event("a", 5), event("b", 6)), 10, commit=2)
    assert segments[0] == voided(codec.segment_name(HOUR, "00", 0))
    assert (uids(store, segments[1]), following) == (["a", "b"], 2)


def test_a_name_that_a_stream_took_is_read_back(store: MemoryStore) -> None:
    write_batch(store, KEY, 0, encoded(event("a", 5)), 10)
    segments, _ = write_batch(store, KEY, 0, encoded(event("a", 5), event("b", 6)), 10, commit=2)
    assert [uids(store, segment) for segment in segments] == [["a"], ["b"]]


def test_voiding_leaves_an_empty_segment_whatever_was_there(store: MemoryStore) -> None:
    path = codec.segment_name(HOUR, "00", 0)
    for before in (None, b"something", codec.pack([b"x"])):
        if before is not None:
            store.objects[path] = before
        void(store, path)
        void(store, path)
        assert read_segment(store, path) == (voided(path), [])
        store.delete(path)


# --- where a key begins


def test_an_epoch_goes_on_at_the_carried_number_without_what_is_written(store: MemoryStore) -> None:
    carried = Carried(store)
    carried.sequences[KEY] = 4
    carried.written.add(("web", "5"))
    segments, following = write_epoch(carried, 2, KEY, None, encoded(event("a", 6), service("web", 5)), 10)  # type: ignore[arg-type]
    assert ([uids(store, segment) for segment in segments], following) == ([["a"]], 5)
    assert label_of(store.read(segments[0].path)) == 2
    assert not any(path.startswith("_state/") for path in store.objects)


def test_a_new_partition_is_marked_as_open_before_anything_is_in_it() -> None:
    operations: list[str] = []
    store = MemoryStore({}, lambda operation: operations.append(operation) or "go")
    assert open_partition(store, KEY) == 0
    assert (operations, list(store.objects)) == (["list", "create"], [layout.open_marker(HOUR)])


def test_a_partition_that_is_opened_again_goes_on_and_its_marker_says_where_each_shard_was(store: MemoryStore) -> None:
    for shard, number in (("00", 0), ("00", 1), ("01", 0)):
        store.create(codec.segment_name(HOUR, shard, number), b"")
    assert open_partition(store, KEY) == 2
    assert opened_numbers(store, layout.open_marker(HOUR)) == {"00": 2, "01": 1}
    store.create(codec.segment_name(HOUR, "00", 2), b"")
    assert open_partition(store, KEY) == 2  # as when it was opened: what was written since is another job's


def test_a_marker_that_is_empty_knows_no_numbers(store: MemoryStore) -> None:
    store.create(layout.open_marker(HOUR), b"")
    assert open_partition(store, KEY) == 0


def test_a_marker_that_is_no_marker_is_told(store: MemoryStore) -> None:
    store.create(layout.open_marker(HOUR), b"?")
    with pytest.raises(FatalStoreError, match="expected numbers by shard"):
        open_partition(store, KEY)


def test_a_stream_that_knows_no_number_finds_it_and_drops_what_is_there(store: MemoryStore) -> None:
    write_batch(store, KEY, 0, encoded(event("a", 5, 3), event("b", 6)), 1)
    write_batch(store, f"{HOUR}/00-x", 0, encoded(event("c", 7)), 1)
    sequence, left = first_sequence(store, KEY, encoded(event("a", 5, 3), event("c", 7)))
    assert (sequence, [record.uid for record in left]) == (2, ["c"])


# --- subtraction


@pytest.mark.parametrize(
    ("written", "record", "left"),
    [
        ([], event("a", 5, 3), 3),
        ([event("a", 5, 3)], event("a", 5, 3), None),
        ([event("a", 5, 3)], event("a", 7, 5), 2),
        ([event("a", 5, 3)], event("a", 7, 5, more=2), 2),
        ([event("a", 7, 5)], event("a", 5, 3), None),
        ([event("a", 7, 5, more=2)], event("a", 5, 3), 3),
        ([event("a", 5, 3), event("a", 7, 5, more=2)], event("a", 9, 6), 1),
        ([event("b", 5, 3)], event("a", 7, 5), 5),
        ([service("a", 5)], service("a", 6), 0),
        ([service("a", 5)], service("a", 5), None),
    ],
)
def test_what_is_written_is_taken_off_a_record(written: list, record, left: int | None) -> None:
    rest = subtract(encoded(record), written_in(written))
    assert [r.FromString(one.data).occurrences for one in rest for r in [record]] == ([] if left is None else [left])


# --- dead letters


def test_dead_letters_keep_their_bytes_and_the_reason_and_are_written_once(store: MemoryStore) -> None:
    letters = [
        DeadLetter(CLUSTER, "events", "no JSON", b"\x00\xff", NOW_US),
        DeadLetter(CLUSTER, "services", "no spec", b"{}", NOW_US),
    ]
    path = write_dead(store, letters)
    assert path.startswith(f"_dead/cluster={CLUSTER}/dt=")
    assert write_dead(store, letters) == path
    lines = [json.loads(line) for line in store.read(path).splitlines()]
    assert [(line["resource"], line["reason"], base64.b64decode(line["data_base64"])) for line in lines] == [
        ("events", "no JSON", b"\x00\xff"),
        ("services", "no spec", b"{}"),
    ]
    assert msgspec.json.decode(store.read(path).splitlines()[0])["observed_us"] == NOW_US
