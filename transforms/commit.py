"""The commit chain: what each epoch read and wrote, so that a start knows where to go on and a reader what is complete.

A commit is one small object, created under the number after the newest: of two jobs only one can. It names the commit
before it by checksum, the positions before and after, the segments with counts and checksums, the gaps, and what a
start needs: the keyed state that the epoch added, or all of it every so often (`base`), and the next segment numbers.
Older commits are folded, without their keyed state, into archives, which `links` walks as if they were commits still.

Guarantees: of the jobs that try to write a number one succeeds, so what the chain names was written by one job after
the other, each from the state that the one before left. Nothing is deleted from the chain before an archive has it.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
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
    segments: what the epoch wrote; and, with a count of 0, the names that another job took, which are voided.
    found: objects that are there under no commit, such as those from before the chain began.
    passed: the numbers of damaged commits that this one does not build on.
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
    passed: list[int] = []
    checksum: str = ""


class Commit(Link, frozen=True, kw_only=True, omit_defaults=True):
    """A link with what a start needs.

    base: `seen` and `sequences` are all there is to know; else what this epoch added.
    seen: as `Seen.encode` gives it. sequences: "<partition>/<shard>" → the next segment number.
    written: identities of what is no Event that were written, but are beyond the positions: to be read again.
    """

    base: bool = False
    seen: list[bytes] = []
    sequences: dict[str, int] = {}
    written: list[tuple[str, str]] = []


class State(msgspec.Struct, kw_only=True):
    """What the newest valid commit, with those back to its base, says of where to go on.

    named: the segments that these commits name. passed: newer commits that are damaged, and why.
    """

    last: Commit | None = None
    base: int = 0
    next_number: int = 1
    seen: list[bytes] = []
    sequences: dict[str, int] = {}
    since_base: int = 0
    named: set[str] = set()
    passed: dict[int, str] = {}


_COMMIT = msgspec.json.Decoder(Commit)
_LINKS = msgspec.json.Decoder(list[Link])
_SEALED = re.compile(rb"\x1f\x8b\x08\x10.{6}([0-9a-f]{64})\0", re.DOTALL)


def encode(commit: Commit | Sequence[Link]) -> bytes:
    """Gzipped JSON with its checksum as the comment in the gzip header: gzip's own checksum leaves some bits out."""
    data = igzip.compress(msgspec.json.encode(commit), 1, mtime=0)
    return data[:3] + b"\x10" + data[4:10] + codec.checksum(data).encode() + b"\0" + data[10:]


def decode(data: bytes) -> Commit:
    """Raises ChainError for bytes that are no commit."""
    return msgspec.structs.replace(_decoded(_COMMIT, data), checksum=codec.checksum(data))


def decode_archive(data: bytes) -> list[Link]:
    """Raises ChainError for bytes that are no archive."""
    return _decoded(_LINKS, data)


def read_state(store: Store, cluster: str) -> State:
    """Reads the newest valid commit, and those before it back to its base. Newer ones, if damaged, are passed over.

    Raises ChainError when commits are there and none can be gone on from; StoreError.
    """
    directory = layout.state(cluster)
    numbers = _numbers(store, cluster)
    state = State(next_number=numbers[-1] + 1 if numbers else 1)
    newest_first: list[Commit] = []
    for number in reversed(numbers):
        if newest_first and number in newest_first[-1].passed:
            continue
        path = layout.commit(cluster, number)
        try:
            commit = _read_commit(store, cluster, number)
            if newest_first and newest_first[-1].previous != commit.checksum:
                raise ChainError(f"expected what commit {newest_first[-1].number} was written after, found another")
        except (ChainError, NotFound) as error:
            if newest_first:
                raise ChainError(f"{path} is needed to go on: {error}; {_ADVICE}") from error
            state.passed[number] = str(error)
            continue
        newest_first.append(commit)
        if commit.base:
            break
    if (numbers and not (newest_first and newest_first[-1].base)) or (not numbers and _archives(store, cluster)):
        raise ChainError(
            f"{directory}: expected a commit with the whole keyed state among {len(numbers)} commits, found none that "
            f"is whole; {_ADVICE}"
        )
    state.since_base = len(newest_first)
    state.base = newest_first[-1].number if newest_first else 0
    for commit in reversed(newest_first):
        state.last = commit
        state.seen.extend(commit.seen)
        state.sequences.update(commit.sequences)
        state.named.update(segment.path for segment in commit.segments)
    return state


_ADVICE = "see `python -m pipeline.verify`, or move the directory away to begin a new chain"


def append(store: Store, commit: Commit) -> str:
    """Creates a commit and returns its checksum. Raises ChainError when another job is at work.

    Its number is taken then; or it was, and is free because that commit was folded into an archive while this job was
    halted: then there are newer ones, and this one counts for nothing (`compact`, `links`).
    """
    data = encode(commit)
    path = layout.commit(commit.cluster, commit.number)
    if not store.create(path, data):
        raise taken(store, path)
    for newer in store.list(f"{layout.state(commit.cluster)}/commits/", path):
        raise taken(store, newer.path)
    return codec.checksum(data)


def taken(store: Store, path: str) -> ChainError:
    """The error that another job has written a commit which this one was to write."""
    return ChainError(
        f"{store.url}/{path}: expected to be the only job that writes this cluster's history, but another job has "
        "written this commit; this one stops, nothing is lost: stop one of them, or give each its own --cluster"
    )


def read_taken(store: Store, path: str) -> bytes:
    """The segment of a name that was found taken. Raises ChainError when it has gone: another job is voiding it."""
    try:
        return store.read(path)
    except NotFound as error:
        raise ChainError(
            f"{store.url}/{path}: expected the segment that was there a moment ago, but another job has removed it; "
            "this one stops, nothing is lost: stop one of them, or give each its own --cluster"
        ) from error


def compact(store: Store, cluster: str, before: int, keep: int = KEEP) -> None:
    """Folds the commits before a number into an archive, and many archives into one.

    What is folded is deleted after the archive is there; what is damaged stays as it is, for `verify` to find. Safe to
    repeat after a crash: of a number that an archive holds a commit is left over, or came too late (`append`).
    """
    numbers = _numbers(store, cluster)
    archived = max((layout.archive_span(path)[1] for path in _archives(store, cluster)), default=0)
    old = [layout.commit(cluster, number) for number in numbers if archived < number < before]
    _fold(store, cluster, old)
    for number in numbers:
        if number <= archived:
            with contextlib.suppress(ChainError, NotFound):
                _read_commit(store, cluster, number)
                store.delete(layout.commit(cluster, number))
    young = list(itertools.takewhile(lambda path: _length(path) < keep * keep, reversed(_archives(store, cluster))))
    if len(young) > keep:
        _fold(store, cluster, young[::-1])


def read_link(store: Store, cluster: str, number: int) -> Link | None:
    """The link of a number, from its commit or from an archive; None when it is not there. Raises ChainError."""
    try:
        return _read_commit(store, cluster, number)
    except NotFound:
        pass
    for path in _archives(store, cluster):
        first, last = layout.archive_span(path)
        if first <= number <= last:
            for link in _read_archive(store, path):
                if link.number == number:
                    return link
    return None


def links(store: Store, cluster: str, problem: Callable[[str], None]) -> Iterator[Link]:
    """All links of a cluster's chain in the order of their numbers; what can't be read goes to `problem`."""
    last = 0
    for path in _archives(store, cluster, problem):
        try:
            here = decode_archive(store.read(path))
            for link in here:
                if link.number > last:  # an archive and what was folded into it may both be there
                    last = link.number
                    yield link
            _check_span(path, here)
        except NotFound:
            continue  # folded into another since it was listed
        except ChainError as error:
            problem(f"{path}: {error}")
    for number in _numbers(store, cluster, problem):
        try:
            commit = _read_commit(store, cluster, number)
        except NotFound:
            continue  # folded into an archive since it was listed
        except ChainError as error:
            problem(f"{layout.commit(cluster, number)}: {error}")
            continue
        if commit.number > last:
            last = commit.number
            yield commit


def clusters(store: Store) -> list[str]:
    """The names of the clusters that have a chain."""
    return [codec.cluster_of(name) for name in store.list_dirs("_state")]


def _fold(store: Store, cluster: str, paths: Sequence[str]) -> None:
    """Puts what these commits or archives hold into one archive, and deletes them; not those that are damaged."""
    links: dict[int, Link] = {}
    folded = []
    for path in paths:
        try:
            here = _links_of(store, cluster, path)
        except ChainError:
            continue
        links.update((link.number, link) for link in here if link.number not in links)
        folded.append(path)
    if not links:
        return
    archive = layout.archive(cluster, min(links), max(links))
    data = encode([links[number] for number in sorted(links)])
    if not store.create(archive, data) and store.read(archive) != data:
        return  # another selection of the same span: all stays as it is
    for path in folded:
        if path != archive:
            store.delete(path)


def _links_of(store: Store, cluster: str, path: str) -> list[Link]:
    if "/chain/" in path:
        return _read_archive(store, path)
    return [_link(_read_commit(store, cluster, layout.commit_number(path)))]


def _read_commit(store: Store, cluster: str, number: int) -> Commit:
    """Raises ChainError, NotFound."""
    commit = decode(store.read(layout.commit(cluster, number)))
    if commit.number != number:
        raise ChainError(f"expected commit {number}, found commit {commit.number}")
    return commit


def _read_archive(store: Store, path: str) -> list[Link]:
    """Raises ChainError, NotFound."""
    links = decode_archive(store.read(path))
    _check_span(path, links)
    return links


def _check_span(path: str, links: Sequence[Link]) -> None:
    first, last = layout.archive_span(path)
    found = [link.number for link in links] or [0]
    if (first, last) != (found[0], found[-1]):
        raise ChainError(f"expected commits {first} to {last}, found commits {found[0]} to {found[-1]}")


def _ignore(problem: str) -> None:
    return


def _numbers(store: Store, cluster: str, problem: Callable[[str], None] = _ignore) -> list[int]:
    """The numbers of the commits that are there; of what has a name that is none, `problem` is told."""
    paths = [entry.path for entry in store.list(f"{layout.state(cluster)}/commits/")]
    return [layout.commit_number(path) for path in _named_well(paths, layout.is_commit, problem)]


def _archives(store: Store, cluster: str, problem: Callable[[str], None] = _ignore) -> list[str]:
    paths = [entry.path for entry in store.list(f"{layout.state(cluster)}/chain/")]
    return list(_named_well(paths, layout.is_archive, problem))


def _named_well(paths: Sequence[str], is_one: Callable[[str], bool], problem: Callable[[str], None]) -> Iterator[str]:
    for path in paths:
        if is_one(path):
            yield path
        else:
            problem(f"{path}: expected nothing but the chain here, found what is none of it")


def _link(commit: Commit) -> Link:
    return Link(**{name: getattr(commit, name) for name in Link.__struct_fields__})


def _length(path: str) -> int:
    first, last = layout.archive_span(path)
    return last - first + 1


def _decoded(decoder: msgspec.json.Decoder[T], data: bytes) -> T:
    if sealed := _SEALED.match(data):
        data = data[:3] + b"\0" + data[4:10] + data[sealed.end() :]
    if data[3:4] != b"\0" or (sealed and codec.checksum(data).encode() != sealed[1]):
        raise ChainError(f"expected gzipped JSON of commits, got {len(data)} bytes that are not as they were written")
    try:
        return decoder.decode(igzip.decompress(data))
    except (msgspec.MsgspecError, OSError, EOFError, zlib.error, ValueError, *codec.DAMAGED) as error:
        raise ChainError(f"expected gzipped JSON of commits, got {len(data)} bytes that are not ({error})") from error
