"""What runs that died left in the sink under no commit: finding it, and what of it the history is to keep.

The rule: a run writes segments for the commit after the newest that it knows, and they say so. When that commit is in
the chain and does not name them, another job wrote it; that job has read what they hold, or will: so they are stale,
and are voided. When it is not in the chain, the run died before it, and the next start takes them in. It holds what
they say against what the chain knows (`settle`): a crash may have left the later of two records of an Event and not the
earlier, and two jobs may have written the same.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence

from google.protobuf.message import DecodeError
from kubehistory.record_pb2 import EVENT, Record

from transforms import codec, commit, layout
from transforms.seen import Seen, number_of
from transforms.store import Store
from transforms.types import Segment
from transforms.write import label_of, opened_numbers


@dataclasses.dataclass(frozen=True)
class Orphan:
    """A segment under no commit: what it holds (None when it is no segment) and the commit it was written for."""

    segment: Segment
    records: list[Record] | None
    commit: int


def beyond(store: Store, cluster: str, sequences: Mapping[str, int]) -> Iterator[str]:
    """Paths of the segments beyond the numbers that the chain knows, or that a partition was opened with."""
    opened = {
        layout.opened_partition(marker.path): opened_numbers(store, marker.path)
        for marker in list(store.list(f"{layout.state(cluster)}/open/"))
    }
    for partition in sorted({key.rpartition("/")[0] for key in sequences} | set(opened)):
        for entry in store.list(f"{partition}/"):
            name = codec.parse_segment(entry.path)
            if name is None:
                continue
            first = sequences.get(f"{name[0]}/{name[1]}", opened.get(partition, {}).get(name[1], 0))
            if name[2] >= first:
                yield entry.path


def read(store: Store, path: str) -> Orphan:
    """Raises ChainError, StoreError."""
    data = commit.read_taken(store, path)
    records: list[Record] | None = None
    with contextlib.suppress(codec.CodecError, DecodeError):
        records = [Record.FromString(record) for record in codec.unpack(data)]
    segment = Segment(path, len(records or ()), codec.checksum(data), len(data))
    return Orphan(segment, records, label_of(data))


def is_committed(store: Store, cluster: str, orphan: Orphan) -> bool:
    """Whether the commit that a segment was written for names it: then it is none. Raises ChainError, StoreError."""
    link = commit.read_link(store, cluster, orphan.commit)
    return link is not None and any(segment.path == orphan.segment.path for segment in link.segments)


def settle(
    orphans: Sequence[Sequence[Record]], seen: Seen, written: Collection[tuple[str, str]], at_most: bool = False
) -> list[list[Record]]:
    """What of each orphan's records is to be kept: every identity once, with the occurrences that nothing else counts.

    An Event's records are taken in the order of their versions, each with the increase since the one before; the first
    with that since `seen`. A record that is right already comes back as the same object. at_most: occurrences are never
    raised, since what is not counted was left out on purpose.
    """
    kept: list[list[Record]] = [[] for _ in orphans]
    events: dict[str, list[tuple[int, int, int, Record]]] = collections.defaultdict(list)
    others = set(written)
    for number, records in enumerate(orphans):
        for record in records:
            if record.kind == EVENT:
                events[record.uid].append((number_of(record.resource_version), record.count, number, record))
            elif (record.uid, record.resource_version) not in others:
                others.add((record.uid, record.resource_version))
                kept[number].append(record)
    for uid, versions in events.items():
        for number, record in _event(seen.event(uid), versions, at_most):
            kept[number].append(record)
    return kept


def _event(
    known: tuple[int, int] | None, versions: list[tuple[int, int, int, Record]], at_most: bool
) -> Iterator[tuple[int, Record]]:
    """(orphan, record) of what is to be kept of one Event's records."""
    versions.sort(key=lambda entry: entry[:3])
    identities: dict[str, list[tuple[int, int, int, Record]]] = {}
    for entry in versions:
        identities.setdefault(entry[3].resource_version, []).append(entry)
    for copies in identities.values():
        version, count, number, record = copies[0]
        if known is not None and version and version <= known[0]:
            continue
        occurrences = count - known[1] if known is not None and count >= known[1] else count
        known = version, count
        if not occurrences:
            continue
        right = next((copy for copy in copies if copy[3].occurrences == occurrences), None)
        if right is not None:
            yield right[2:]
        elif at_most and record.occurrences < occurrences:
            yield number, record
        else:
            corrected = Record()
            corrected.CopyFrom(record)
            corrected.occurrences = occurrences
            yield number, corrected
