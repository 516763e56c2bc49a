"""Where things are in the sink. Data is under `cluster=<name>/`; what begins with an underscore is ours.

cluster=<name>/dt=YYYY-MM-DD/hour=HH/<shard>-<number>.pb.gz     segments (`codec`)
_schema/record.desc                                             the FileDescriptorSet of a record
_state/cluster=<name>/commits/<number>.json.gz                  the newest commits, one an epoch
_state/cluster=<name>/chain/<first>-<last>.json.gz              older commits, without keyed state
_state/cluster=<name>/open/dt=...,hour=...                      partitions that a crash may have left segments in
_dead/cluster=<name>/dt=YYYY-MM-DD/<checksum>.jsonl             what could not be decoded or enriched
"""

from __future__ import annotations

import re

from transforms import codec

SCHEMA = "_schema/record.desc"

_COMMIT = re.compile(r"_state/[^/]+/commits/\d{10}\.json\.gz")
_ARCHIVE = re.compile(r"_state/[^/]+/chain/\d{10}-\d{10}\.json\.gz")


def state(cluster: str) -> str:
    """The directory of a cluster's commits."""
    return f"_state/{codec.cluster_directory(cluster)}"


def commit(cluster: str, number: int) -> str:
    return f"{state(cluster)}/commits/{number:010d}.json.gz"


def commit_number(path: str) -> int:
    """The number in a commit's path."""
    return int(path.rpartition("/")[2].partition(".")[0])


def is_commit(path: str) -> bool:
    return bool(_COMMIT.fullmatch(path))


def archive(cluster: str, first: int, last: int) -> str:
    return f"{state(cluster)}/chain/{first:010d}-{last:010d}.json.gz"


def archive_span(path: str) -> tuple[int, int]:
    """The first and last commit number in an archive's path."""
    first, _, last = path.rpartition("/")[2].partition(".")[0].partition("-")
    return int(first), int(last)


def is_archive(path: str) -> bool:
    return bool(_ARCHIVE.fullmatch(path))


def facts(cluster: str, time: str) -> str:
    """Saved facts; with an empty time, the prefix of all."""
    return f"{state(cluster)}/facts/{time}" + (".msgpack.gz" if time else "")


def open_marker(partition: str) -> str:
    """The object that says that a partition may hold segments which no commit names yet."""
    cluster, _, hour = partition.partition("/")
    return f"_state/{cluster}/open/{hour.replace('/', ',')}"


def opened_partition(marker: str) -> str:
    """The partition of an open marker's path."""
    _, cluster, _, hour = marker.split("/")
    return f"{cluster}/{hour.replace(',', '/')}"


def dead_letters(cluster: str, time_us: int, checksum: str) -> str:
    day = codec.hour_directory(time_us).partition("/")[0]
    return f"_dead/{codec.cluster_directory(cluster)}/{day}/{checksum}.jsonl"
