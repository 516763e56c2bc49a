"""The commit chain: what each epoch read and wrote, so that a start knows where to go on and a reader what is complete.

A commit is one small object, created under the number after the newest: of two jobs only one can. It names the commit
before it by checksum, the positions before and after, the segments with counts and checksums, the gaps, and what a start
needs: the keyed state that the epoch added, or all of it every so often (`base`), and the next segment numbers. Older
commits are folded, without their keyed state, into archives, which `links` walks as if they were commits still.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import msgspec
from isal import igzip

from transforms import codec, layout
from transforms.store import NotFound, Store
from transforms.types import Gap, Position, Segment

T = TypeVar("T")

KEEP = 64
"""Commits that stay as they are; also the most that a start has to read back to the last base."""


class ChainError(Exception):
    """The chain in the sink is not what this job can go on from: says what was expected, what is there, what to do."""


class Link(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A commit without its keyed state: what `verify` walks.

    number: from 1, without holes. previous: the checksum of the commit before; "" for the first.
    before, after: the positions by target key. from_us, to_us: when the epoch began and ended.
    found: segments that were there before the chain began, under no commit.
    """

    number: int
    previous: str
    cluster: str
    identity: str
    run: str
    from_us: int
    to_us: int
    before: dict[str, Position] = {}
    after: dict[str, Position] = {}
    segments: list[Segment] = []
    gaps: list[Gap] = []
    dead: dict[str, int] = {}
    found: list[str] = []
    checksum: str = ""


class Commit(Link, frozen=True, kw_only=True, omit_defaults=True):
    """A link with what a start needs.

    base: `seen` and `sequences` are all there is to know; else what this epoch added.
    seen: as `dedup.Seen.encode` gives it. sequences: "<partition>/<shard>" → the next segment number.
    """

    base: bool = False
    seen: list[bytes] = []
    sequences: dict[str, int] = {}


class State(msgspec.Struct, kw_only=True):
    """What the newest valid commit, with those back to its base, says of where to go on."""

    last: Commit | None = None
    next_number: int = 1
    seen: list[bytes] = []
    sequences: dict[str, int] = {}
    since_base: int = 0
    skipped: list[str] = []


_COMMIT = msgspec.json.Decoder(Commit)
_LINKS = msgspec.json.Decoder(list[Link])


def encode(commit: Commit | Sequence[Link]) -> bytes:
    return igzip.compress(msgspec.json.encode(commit), 1, mtime=0)


def decode(data: bytes) -> Commit:
    """Raises ChainError for bytes that are no commit."""
    return msgspec.structs.replace(_decoded(_COMMIT, data), checksum=codec.checksum(data))


def decode_archive(data: bytes) -> list[Link]:
    """Raises ChainError for bytes that are no archive."""
    return _decoded(_LINKS, data)


def read_state(store: Store, cluster: str) -> State:
    """Reads the newest valid commit, and what is before it back to its base. A commit that is damaged is passed over.

    Raises ChainError when commits are there and none can be gone on from; StoreError.
    """
    numbers = [layout.commit_number(entry.path) for entry in store.list(f"{layout.state(cluster)}/commits/")]
    state = State(next_number=numbers[-1] + 1 if numbers else 1)
    newest_first: list[Commit] = []
    for number in reversed(numbers):
        path = layout.commit(cluster, number)
        try:
            commit = decode(store.read(path))
        except (ChainError, NotFound) as error:
            if newest_first:
                raise ChainError(f"{path} is needed to go on, but {error}; see `python -m pipeline.verify`") from error
            state.skipped.append(f"{path}: {error}")
            continue
        newest_first.append(commit)
        if commit.base:
            break
    if numbers and not (newest_first and newest_first[-1].base):
        raise ChainError(
            f"{layout.state(cluster)}: expected a commit with the whole keyed state among {len(numbers)} commits, found "
            "none that is whole; see `python -m pipeline.verify`, or move the directory away to begin a new chain"
        )
    state.since_base = len(newest_first)
    for commit in reversed(newest_first):
        state.last = commit
        state.seen.extend(commit.seen)
        state.sequences.update(commit.sequences)
    return state


def append(store: Store, commit: Commit) -> str:
    """Creates a commit and returns its checksum. Raises ChainError when its number is taken: another job is at work."""
    data = encode(commit)
    path = layout.commit(commit.cluster, commit.number)
    if not store.create(path, data):
        raise taken(store, path)
    return codec.checksum(data)


def taken(store: Store, path: str) -> ChainError:
    """The error that another job has written a commit which this one was to write."""
    return ChainError(
        f"{store.url}/{path}: expected to be the only job that writes this cluster's history, but another job has "
        "written this commit; this one stops, nothing is lost: stop one of them, or give each its own --cluster"
    )


def compact(store: Store, cluster: str, base: int, keep: int = KEEP) -> None:
    """Folds all commits but the last `keep` before the newest base into an archive, and many archives into one.

    What is folded is deleted after the archive is there. Safe to repeat.
    """
    numbers = [layout.commit_number(entry.path) for entry in store.list(f"{layout.state(cluster)}/commits/")]
    _fold_commits(store, cluster, [number for number in numbers if number < base - keep])
    archives = [entry.path for entry in store.list(f"{layout.state(cluster)}/chain/")]
    young = [path for path in archives if _length(path) < keep * keep]
    if len(young) > keep:
        links = [link for path in young for link in decode_archive(store.read(path))]
        _archive(store, cluster, links, young)


def links(store: Store, cluster: str, problem: Callable[[str], None]) -> Iterator[Link]:
    """All links of a cluster's chain in the order of their numbers; what can't be read goes to `problem`."""
    last = 0
    for entry in list(store.list(f"{layout.state(cluster)}/chain/")):
        try:
            for link in decode_archive(store.read(entry.path)):
                if link.number > last:  # an archive and what was folded into it may both be there
                    last = link.number
                    yield link
        except (ChainError, NotFound) as error:
            problem(f"{entry.path}: {error}")
    for entry in list(store.list(f"{layout.state(cluster)}/commits/")):
        try:
            commit = decode(store.read(entry.path))
        except NotFound:
            continue  # folded into an archive since it was listed
        except ChainError as error:
            problem(f"{entry.path}: {error}")
            continue
        if commit.number > last:
            last = commit.number
            yield commit


def clusters(store: Store) -> list[str]:
    """The names of the clusters that have a chain."""
    return [codec.cluster_of(name) for name in store.list_dirs("_state")]


def orphans(store: Store, cluster: str, sequences: Mapping[str, int]) -> Iterator[str]:
    """Paths of the segments in open partitions beyond the committed numbers: what a run that died left."""
    for marker in list(store.list(f"{layout.state(cluster)}/open/")):
        partition = layout.opened_partition(marker.path)
        for entry in store.list(f"{partition}/"):
            name = codec.parse_segment(entry.path)
            if name and name[2] >= sequences.get(f"{name[0]}/{name[1]}", 0):
                yield entry.path


def _fold_commits(store: Store, cluster: str, numbers: Sequence[int]) -> None:
    paths = [layout.commit(cluster, number) for number in numbers]
    if paths:
        _archive(store, cluster, [_link(decode(store.read(path))) for path in paths], paths)


def _archive(store: Store, cluster: str, links: Sequence[Link], folded: Sequence[str]) -> None:
    store.create(layout.archive(cluster, links[0].number, links[-1].number), encode(links))
    for path in folded:
        store.delete(path)


def _link(commit: Commit) -> Link:
    return Link(**{name: getattr(commit, name) for name in Link.__struct_fields__})


def _length(path: str) -> int:
    first, last = layout.archive_span(path)
    return last - first + 1


def _decoded(decoder: msgspec.json.Decoder[T], data: bytes) -> T:
    try:
        return decoder.decode(igzip.decompress(data))
    except (msgspec.MsgspecError, OSError, EOFError, zlib.error, ValueError, *codec.DAMAGED) as error:
        raise ChainError(f"expected gzipped JSON of commits, got {len(data)} bytes that are not ({error})") from error
