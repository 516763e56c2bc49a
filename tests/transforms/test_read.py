"""The history read back: by the hour, over clusters, oldest first."""

import gzip

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kubehistory.record_pb2 import Record

from transforms import codec
from transforms.read import clusters_in, read_records, read_segment, segments
from transforms.store import LocalStore, NotFound

HOUR_US = 3_600_000_000
START_US = 1_769_900_400_000_000  # 2026-01-31T23:00:00Z


class Counting(LocalStore):
    """A local store that keeps what was read and listed."""

    def __init__(self, root):
        super().__init__(root)
        self.were_read, self.were_listed = [], []

    def read(self, path):
        self.were_read.append(path)
        return super().read(path)

    def list(self, prefix, after=""):
        for entry in super().list(prefix, after):
            self.were_listed.append(entry.path)
            yield entry


def write(store, cluster, times_us, shard="00", seq=0):
    """One segment an hour with a record of each time; gives the paths."""
    paths = []
    for hour in sorted({time_us // HOUR_US for time_us in times_us}):
        records = [
            Record(cluster=cluster, uid=str(time_us), time_us=time_us).SerializeToString()
            for time_us in times_us
            if time_us // HOUR_US == hour
        ]
        paths.append(codec.segment_name(codec.partition(cluster, hour * HOUR_US), shard, seq))
        assert store.create(paths[-1], codec.pack(records))
    return paths


@pytest.fixture
def store(tmp_path):
    return Counting(tmp_path)


def times(records):
    return [record.time_us for record in records]


def test_records_of_several_files_and_clusters_come_oldest_first(store):
    write(store, "a", [START_US + 5, START_US + 1, START_US + HOUR_US])
    write(store, "a", [START_US + 3], shard="01")
    write(store, "b", [START_US + 4, START_US + 2 * HOUR_US])
    expected = [START_US + 1, START_US + 3, START_US + 4, START_US + 5, START_US + HOUR_US, START_US + 2 * HOUR_US]
    assert times(read_records(store)) == expected


def test_only_the_hours_that_are_asked_for_are_listed_and_read(store):
    paths = write(store, "a", [START_US + hour * HOUR_US for hour in range(100)])
    found = times(read_records(store, START_US + 10 * HOUR_US, START_US + 12 * HOUR_US))
    assert found == [START_US + 10 * HOUR_US, START_US + 11 * HOUR_US]
    assert store.were_read == paths[10:12]
    assert store.were_listed == paths[10:13]


def test_a_span_has_its_beginning_and_not_its_end(store):
    write(store, "a", [START_US, START_US + 1, START_US + 2, START_US + 3])
    assert times(read_records(store, START_US + 1, START_US + 3)) == [START_US + 1, START_US + 2]


def test_the_first_record_needs_one_hour_only(store):
    paths = write(store, "a", [START_US + hour * HOUR_US for hour in range(10)])
    next(read_records(store))
    assert store.were_read == paths[:1]


def test_clusters_are_chosen_by_name(store):
    write(store, "a/b c", [START_US])
    write(store, "other", [START_US + 1])
    assert clusters_in(store) == ["a/b c", "other"]
    assert [record.cluster for record in read_records(store, clusters=["a/b c"])] == ["a/b c"]
    assert [*read_records(store, clusters=["none"])] == []


def test_what_is_not_a_segment_is_not_data(store):
    write(store, "a", [START_US])
    for path in (
        "_state/0001.json",
        "_schema/record.desc",
        "_dead/cluster=a/dt=2026-01-31/hour=23/00-0000000000.pb.gz",
        "cluster=a/dt=2026-01-31/hour=23/notes.txt",
        "cluster=a/notes.txt",
        "other/dt=2026-01-31/hour=23/00-0000000000.pb.gz",
    ):
        store.create(path, b"not a segment")
    assert times(read_records(store)) == [START_US]


def test_a_segment_that_is_damaged_is_an_error_that_names_it(store):
    for seq, (data, says) in enumerate(
        [
            (b"nothing", "expected a gzip file"),
            (gzip.compress(b"\x03\xff\xff\xff"), "expected records of kubehistory.v1.Record"),
            (gzip.compress(b"\x03a"), "expected a record of 3 bytes"),
        ]
    ):
        path = codec.segment_name(codec.partition("a", START_US), "00", seq)
        store.create(path, data)
        with pytest.raises(codec.CodecError) as error:
            read_segment(store, path)
        assert str(error.value).startswith(f"{path}: {says}")
    with pytest.raises(codec.CodecError):
        list(read_records(store))
    with pytest.raises(NotFound):
        read_segment(store, codec.segment_name(codec.partition("a", START_US), "00", 9))


def test_a_damaged_segment_can_be_reported_and_the_rest_read(store):
    path = codec.segment_name(codec.partition("a", START_US), "00", 0)
    store.create(path, b"nothing")
    write(store, "a", [START_US], shard="01")
    bad = []
    assert times(read_records(store, on_bad=lambda path, error: bad.append((path, type(error))))) == [START_US]
    assert bad == [(path, codec.CodecError)]


def test_an_empty_sink_has_no_records(store):
    assert [*read_records(store)] == []
    assert [*segments(store)] == []


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 5 * HOUR_US)), max_size=20),
    st.none() | st.integers(0, 5 * HOUR_US),
    st.none() | st.integers(0, 5 * HOUR_US),
)
def test_a_span_is_what_a_filter_of_all_would_give(tmp_path_factory, events, since_us, until_us):
    store = LocalStore(tmp_path_factory.mktemp("out"))
    for cluster in "ab":
        write(store, cluster, [time_us for of, time_us in events if of == cluster])
    expected = sorted(
        time_us
        for _, time_us in events
        if (since_us is None or time_us >= since_us) and (until_us is None or time_us < until_us)
    )
    assert times(read_records(store, since_us, until_us)) == expected
