"""Segments: their bytes, and their names."""

import gzip
import hashlib
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from hypothesis import given
from hypothesis import strategies as st
from kubehistory.record_pb2 import Record

from transforms import codec

GOLDEN = Path(__file__).parents[1] / "golden"
HOUR_US = 3_600_000_000

RECORDS = [
    Record(kind=1, cluster="prod", uid="a", resource_version="7", time_us=1_769_900_400_000_001, reason="BackOff"),
    Record(kind=1, cluster="prod", uid="b", resource_version="8", time_us=1_769_900_401_000_000, message="x" * 300),
    Record(),
]


def serialized(records=RECORDS):
    return [record.SerializeToString(deterministic=True) for record in records]


@given(st.lists(st.binary(max_size=300)))
def test_what_was_packed_is_unpacked(records):
    assert list(codec.unpack(codec.pack(records))) == records


@given(st.lists(st.binary(max_size=50)), st.lists(st.binary(max_size=50)))
def test_segments_one_after_the_other_are_the_segment_of_both(first, second):
    assert list(codec.unpack(codec.pack(first) + codec.pack(second))) == first + second


@given(st.lists(st.binary(max_size=300)))
def test_the_same_records_give_the_same_bytes(records):
    assert codec.pack(records) == codec.pack(iter(records))


@given(st.lists(st.binary(min_size=1, max_size=50), min_size=1), st.data())
def test_a_truncated_segment_is_an_error_before_its_first_record(records, data):
    segment = codec.pack(records)
    cut = data.draw(st.integers(0, len(segment) - 1))
    with pytest.raises(codec.CodecError):
        next(codec.unpack(segment[:cut]))


@given(st.lists(st.binary(min_size=1, max_size=50), min_size=1), st.data())
def test_a_changed_byte_after_the_header_never_gives_other_records(records, data):
    segment = bytearray(codec.pack(records))
    segment[data.draw(st.integers(10, len(segment) - 1))] ^= data.draw(st.integers(1, 255))
    with suppress(codec.CodecError):
        assert list(codec.unpack(bytes(segment))) == records  # a bit that deflate doesn't use


def test_records_of_any_size_around_a_length_of_another_byte_are_kept():
    records = [b"x" * size for size in (0, 1, 127, 128, 16_383, 16_384, 2_097_152)]
    assert list(codec.unpack(codec.pack(records))) == records


def test_the_stream_is_the_golden_one():
    stream = gzip.decompress(codec.pack(serialized()))
    assert stream == (GOLDEN / "segment.bin").read_bytes()


def test_the_golden_segment_is_read():
    data = (GOLDEN / "segment.pb.gz").read_bytes()
    assert [Record.FromString(record) for record in codec.unpack(data)] == RECORDS


def test_the_gzip_header_has_neither_time_nor_name():
    flags, mtime = codec.pack(serialized())[3], codec.pack(serialized())[4:8]
    assert (flags, mtime) == (0, bytes(4))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "expected a gzip file (1f 8b), got nothing in 0 bytes"),
        (b"PAR1....", "expected a gzip file (1f 8b), got 50 41 52 31 in 8 bytes"),
        (codec.pack(serialized())[:40], "cut off after 40 bytes"),
        (codec.pack(serialized())[:-8] + bytes(8), "damaged"),
        (gzip.compress(b"\x05abc"), "expected a record of 5 bytes at byte 0 of the stream, but 3 are left"),
        (gzip.compress(b"\x01a\xff\xff"), "expected a record's length at byte 2 of the stream, got ff ff"),
        (gzip.compress(b"\xff" * 20), "expected a record's length at byte 0 of the stream"),
    ],
)
def test_what_is_not_a_segment_is_an_error_that_says_what_it_is(data, says):
    with pytest.raises(codec.CodecError) as error:
        list(codec.unpack(data))
    assert says in str(error.value)


def test_the_descriptor_set_is_the_golden_one():
    # A change of the schema changes it: look at the difference, then write it anew.
    assert codec.descriptor_set() == (GOLDEN / "record.desc").read_bytes()


def test_a_reader_that_has_only_the_descriptor_set_reads_a_segment():
    pool = descriptor_pool.DescriptorPool()
    for file in FileDescriptorSet.FromString(codec.descriptor_set()).file:
        pool.Add(file)
    reader = message_factory.GetMessageClass(pool.FindMessageTypeByName("kubehistory.v1.Record"))
    read = [reader.FromString(data) for data in codec.unpack((GOLDEN / "segment.pb.gz").read_bytes())]
    assert [record.uid for record in read] == ["a", "b", ""]


def test_the_checksum_is_sha256():
    assert codec.checksum(b"abc") == hashlib.sha256(b"abc").hexdigest()


def test_a_partition_is_the_hour_in_utc():
    time = datetime(2026, 1, 31, 23, 59, 59, 999_999, tzinfo=UTC)
    time_us = (int(time.timestamp()) * 1_000_000) + time.microsecond
    assert codec.partition("prod", time_us) == "cluster=prod/dt=2026-01-31/hour=23"
    assert codec.partition("prod", time_us + 1) == "cluster=prod/dt=2026-02-01/hour=00"


@pytest.mark.parametrize(
    ("time_us", "hour"),
    [
        (0, "dt=1970-01-01/hour=00"),
        (-1, "dt=1969-12-31/hour=23"),
        (-(2**63), "dt=0001-01-01/hour=00"),
        (2**63 - 1, "dt=9999-12-31/hour=23"),
    ],
)
def test_a_time_that_a_calendar_does_not_have_goes_to_its_first_or_last_hour(time_us, hour):
    assert codec.partition("prod", time_us) == f"cluster=prod/{hour}"


@given(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**63), 2**63 - 1))
def test_partitions_sort_as_times_do(one, other):
    first, second = sorted([one, other])
    assert codec.partition("prod", first) <= codec.partition("prod", second)


@given(st.text(min_size=1), st.integers(0, 10**15))
def test_any_cluster_name_makes_a_partition_of_three_parts_that_gives_it_back(cluster, time_us):
    try:
        cluster.encode()
    except UnicodeEncodeError:
        return
    partition = codec.partition(cluster, time_us)
    assert len(partition.split("/")) == 3
    assert codec.cluster_of(partition) == cluster
    assert codec.parse_segment(codec.segment_name(partition, "00", 1)) == (partition, "00", 1)


def test_a_partition_needs_a_cluster():
    with pytest.raises(ValueError, match="expected the name of a cluster"):
        codec.partition("", 0)


def test_a_segment_name_is_the_golden_one():
    partition = codec.partition("prod", 1_769_900_400_000_000)
    assert codec.segment_name(partition, "03", 42) == "cluster=prod/dt=2026-01-31/hour=23/03-0000000042.pb.gz"


@given(st.integers(0, 10**10 - 1), st.integers(0, 10**10 - 1))
def test_the_names_of_a_shard_sort_as_its_sequence_numbers_do(one, other):
    first, second = sorted([one, other])
    assert codec.segment_name("p", "s", first) <= codec.segment_name("p", "s", second)


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]*", fullmatch=True), st.integers(0, 10**10 - 1))
def test_a_segment_name_gives_back_what_it_was_made_of(shard, seq):
    partition = "cluster=prod/dt=2026-01-31/hour=23"
    assert codec.parse_segment(codec.segment_name(partition, shard, seq)) == (partition, shard, seq)


@pytest.mark.parametrize("shard", ["", "a/b", ".a", "_a", "ä"])
def test_a_shard_that_would_make_a_hidden_or_a_deeper_path_is_refused(shard):
    with pytest.raises(ValueError, match="expected a shard"):
        codec.segment_name("p", shard, 0)


@pytest.mark.parametrize("seq", [-1, 10**10])
def test_a_sequence_number_that_would_not_sort_is_refused(seq):
    with pytest.raises(ValueError, match="expected a sequence number"):
        codec.segment_name("p", "s", seq)


@pytest.mark.parametrize(
    "path",
    [
        "_state/0000000001.json",
        "_schema/record.desc",
        "cluster=prod/dt=2026-01-31/hour=23",
        "cluster=prod/dt=2026-01-31/hour=23/03-42.pb.gz",
        "cluster=prod/dt=2026-01-31/hour=23/03-0000000042.pb",
        "cluster=prod/dt=2026-01-31/hour=23/x/03-0000000042.pb.gz",
        "x/cluster=prod/dt=2026-01-31/hour=23/03-0000000042.pb.gz",
    ],
)
def test_what_is_not_a_segment_has_no_parts(path):
    assert codec.parse_segment(path) is None
