"""Records of one partition and shard come together, and batches close by size and window."""

from __future__ import annotations

from collections import defaultdict

import apache_beam as beam
import pytest
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.transforms.window import TimestampedValue
from apache_beam.typehints.native_type_compatibility import convert_to_beam_type
from hypothesis import given
from hypothesis import strategies as st

from tests.transforms.fakes import epoch
from transforms import codec
from transforms.batch import BatchByPartition, by_partition, decode_records, encode_records
from transforms.types import Encoded

NOON_US = 1_772_366_400_000_000  # 2026-03-01T12:00:00Z
HOUR_US = 3_600_000_000
NOON, ONE = "cluster=prod/dt=2026-03-01/hour=12", "cluster=prod/dt=2026-03-01/hour=13"


def record(number: int, time_us: int = NOON_US) -> Encoded:
    return Encoded(time_us, f"uid-{number}", str(number), b"record %d" % number)


records = st.lists(st.builds(record, st.integers(0, 99), st.integers(NOON_US, NOON_US + 3 * HOUR_US)), max_size=30)


@given(records)
def test_a_chunk_of_records_is_bytes_and_back(several):
    assert decode_records(encode_records(several)) == several


def test_records_go_to_the_hour_of_their_time_in_utc():
    several = [record(1), record(2, NOON_US + HOUR_US), record(3, NOON_US + HOUR_US - 1)]
    chunks = [(key, decode_records(chunk)) for key, chunk in by_partition("prod/07", several, 100)]
    assert chunks == [(f"{NOON}/07", [several[0], several[2]]), (f"{ONE}/07", [several[1]])]


def test_a_cluster_s_name_may_hold_a_slash():
    ((key, _),) = by_partition("eu/prod/07", [record(1)], 100)
    assert key == f"{codec.partition('eu/prod', NOON_US)}/07"


@given(records, st.integers(1, 7))
def test_no_record_is_lost_moved_or_put_before_another_and_no_chunk_is_larger_than_asked(several, unit):
    found = defaultdict(list)
    for key, chunk in by_partition("prod/00", several, unit):
        part = decode_records(chunk)
        assert 1 <= len(part) <= unit
        found[key] += part
    expected = defaultdict(list)
    for one in several:
        expected[f"{codec.partition('prod', one.time_us)}/00"].append(one)
    assert found == expected


def sizes(element: tuple[str, list[bytes]]) -> tuple[str, list[int]]:
    key, chunks = element
    return key.rpartition("hour=")[2], [len(decode_records(chunk)) for chunk in chunks]


def test_an_epoch_is_one_batch_a_partition_in_chunks_of_the_batch_size():
    several = [record(number) for number in range(250)] + [record(300, NOON_US + HOUR_US)]
    with epoch() as p:
        batches = (
            p
            | beam.Create([("prod/00", encode_records(several))])
            | BatchByPartition(batch_size=100, window_s=10.0)
            | beam.Map(sizes)
        )
        assert_that(batches, equal_to([("12/00", [100, 100, 50]), ("13/00", [1])]))


def test_shards_are_apart():
    with epoch() as p:
        batches = (
            p
            | beam.Create([(f"prod/0{shard}", encode_records([record(shard)])) for shard in range(3)])
            | BatchByPartition(batch_size=100, window_s=10.0)
            | beam.Map(sizes)
        )
        assert_that(batches, equal_to([(f"12/0{shard}", [1]) for shard in range(3)]))


def test_a_batch_crosses_no_window_of_observation_time():
    def observed(number: int, seconds: float) -> TimestampedValue:
        return TimestampedValue(("prod/00", encode_records([record(number)])), seconds)

    with epoch() as p:
        batches = (
            p
            | beam.Create([0])
            | beam.FlatMap(lambda _: [observed(1, 1), observed(2, 9), observed(3, 11)])
            | BatchByPartition(batch_size=100, window_s=10.0)
            | beam.Map(sizes)
        )
        assert_that(batches, equal_to([("12/00", [1, 1]), ("12/00", [1])]))


def test_a_stream_closes_a_batch_at_the_record_that_fills_it():
    with epoch() as p:
        batches = (
            p
            | beam.Create([("prod/00", encode_records([record(number) for number in range(5)]))])
            | BatchByPartition(batch_size=2, window_s=10.0, streaming=True)
            | beam.Map(sizes)
        )
        assert_that(batches, equal_to([("12/00", [1, 1]), ("12/00", [1, 1]), ("12/00", [1])]))


@pytest.mark.parametrize("streaming", [False, True])
def test_the_element_types_are_known(streaming):
    pairs = beam.Pipeline() | beam.Create([("prod/00", b"")])
    batched = pairs | BatchByPartition(2, 10.0, streaming=streaming)
    assert batched.element_type == convert_to_beam_type(tuple[str, beam.typehints.Iterable[bytes]])
    assert batched.windowing.is_default()
