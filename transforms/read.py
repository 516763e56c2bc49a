"""Reading the history back: a sink's segments by the hour, and their records in the order of their times."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import groupby

from google.protobuf.message import DecodeError
from kubehistory.record_pb2 import Record

from transforms import codec
from transforms.store import Store, StoreError

OnBad = Callable[[str, Exception], None]
"""Gets the path of a segment that could not be read, and the StoreError or CodecError that says why."""


def clusters_in(store: Store) -> list[str]:
    """The names of the clusters that a sink has data of, sorted as their directories are."""
    return [codec.cluster_of(name) for name in store.list_dirs() if name.startswith("cluster=")]


def segments(
    store: Store,
    since_us: int | None = None,
    until_us: int | None = None,
    clusters: Collection[str] = (),
) -> Iterator[str]:
    """The paths of the segments that may hold records of the times from `since_us` to before `until_us`.

    Sorted by hour, then by cluster, shard and sequence number. Lazy: only the hours asked for are listed, a page at a
    time. No clusters are all; no bound is the first and the last hour there is.
    """
    names = [name for name in clusters_in(store) if not clusters or name in clusters]
    return heapq.merge(*(_of_cluster(store, name, since_us, until_us) for name in names), key=hour_of)


def _of_cluster(store: Store, cluster: str, since_us: int | None, until_us: int | None) -> Iterator[str]:
    directory = codec.cluster_directory(cluster)
    # The directory of an hour sorts before all that is in it, and after all of the hours before.
    after = f"{directory}/{codec.hour_directory(since_us)}" if since_us is not None else ""
    last = codec.hour_directory(until_us - 1) if until_us is not None else ""
    for entry in store.list(f"{directory}/dt=", after):
        if codec.parse_segment(entry.path) is None:
            continue
        if last and hour_of(entry.path) > last:
            return
        yield entry.path


def hour_of(path: str) -> str:
    """The part of a segment's path that is its hour, "dt=YYYY-MM-DD/hour=HH"."""
    _, day, hour, _ = path.split("/")
    return f"{day}/{hour}"


def read_segment(store: Store, path: str) -> list[Record]:
    """The records of one segment, in its order.

    Raises StoreError when it can't be read, and CodecError when it isn't a segment, or holds what isn't a record.
    """
    try:
        return [Record.FromString(data) for data in codec.unpack(store.read(path))]
    except codec.CodecError as error:
        raise codec.CodecError(f"{path}: {error}") from error
    except DecodeError as error:
        raise codec.CodecError(f"{path}: expected records of kubehistory.v1.Record: {error}") from error


def read_segments(
    store: Store,
    paths: Iterable[str],
    since_us: int | None = None,
    until_us: int | None = None,
    on_bad: OnBad | None = None,
) -> Iterator[Record]:
    """The records of these segments with `since_us` <= time_us < `until_us`, oldest first.

    `paths` must be sorted by hour, as `segments` has them: one hour's records are in memory at a time. Records of one
    time are in the order of the paths. With `on_bad` a segment that can't be read is left out whole and reported;
    without, its error is raised.
    """
    for _, hour in groupby(paths, hour_of):
        records: list[Record] = []
        for path in hour:
            try:
                found = read_segment(store, path)
            except (StoreError, codec.CodecError) as error:
                if on_bad is None:
                    raise
                on_bad(path, error)
                continue
            records.extend(
                record
                for record in found
                if (since_us is None or record.time_us >= since_us) and (until_us is None or record.time_us < until_us)
            )
        records.sort(key=_time_of)
        yield from records


def _time_of(record: Record) -> int:
    return record.time_us


def read_records(
    store: Store,
    since_us: int | None = None,
    until_us: int | None = None,
    clusters: Collection[str] = (),
    on_bad: OnBad | None = None,
) -> Iterator[Record]:
    """A sink's records with `since_us` <= time_us < `until_us` (microseconds since 1970, UTC), oldest first.

    As `read_segments` of `segments`: only the hours of that span are listed and read, one at a time.
    """
    return read_segments(store, segments(store, since_us, until_us, clusters), since_us, until_us, on_bad)
