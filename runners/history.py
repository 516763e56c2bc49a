"""One cluster's chain as a running job writes it: where it goes on, what a dead run left, and an epoch's commit."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Sequence
from typing import Any

from kubehistory import record_pb2

from transforms import codec, commit, layout, orphans
from transforms.carried import Carried
from transforms.commit import Commit
from transforms.kube import newer
from transforms.orphans import Orphan
from transforms.seen import Seen, number_of
from transforms.types import Encoded, Gap, Position, Progress, Segment
from transforms.write import void, voided, write_batch

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass
class Epoch:
    """What one run of the graph put out, sorted by cluster."""

    began_us: int
    progress: dict[str, list[Progress]] = dataclasses.field(default_factory=dict)
    gaps: dict[str, list[Gap]] = dataclasses.field(default_factory=dict)
    seen: dict[str, list[bytes]] = dataclasses.field(default_factory=dict)
    segments: dict[str, list[Segment]] = dataclasses.field(default_factory=dict)
    sequences: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)
    dead: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, began_us: int, outputs: dict[str, list[Any]]) -> Epoch:
        epoch = cls(began_us)
        for progress in outputs["progress"]:
            epoch.progress.setdefault(progress.target.cluster, []).append(progress)
        for gap in outputs["gaps"]:
            epoch.gaps.setdefault(gap.target.cluster, []).append(gap)
        for shard_key, addition in outputs["seen"]:
            epoch.seen.setdefault(shard_key.rpartition("/")[0], []).append(addition)
        for segment in outputs["segments"]:
            epoch.segments.setdefault(codec.cluster_of(segment.path), []).append(segment)
        for key, number in outputs["sequences"]:
            epoch.sequences.setdefault(codec.cluster_of(key), {})[key] = number
        for path, count in outputs["dead"]:
            epoch.dead.setdefault(codec.cluster_of(path.partition("/")[2]), {})[path] = count
        return epoch


class History:
    """One cluster's chain as this job writes it: where it goes on, and what it has committed since.

    Guarantees, for a death at any instant and for two jobs by mistake: what the chain names holds every identity once
    and every occurrence once; a segment that it does not name is taken in or voided at a start, when its name is met,
    or every `commit.KEEP` commits. Not guaranteed: that a job which was halted for longer than twice the event TTL
    while another went on leaves nothing behind; `verify` finds it.
    Raises ChainError where the chain can't be gone on from, or is written by another job; StoreError.
    """

    def __init__(self, carried: Carried, cluster: str, identity: str, run: str, event_ttl_s: float) -> None:
        self.cluster = cluster
        self.positions: dict[str, Position] = {}
        self.unknown_since_us: int | None = None
        self._carried, self._store, self._seen = carried, carried.store, carried.seen(cluster)
        self._identity, self._run = identity, run
        self._event_ttl_us = int(event_ttl_s * 1e6)
        self._number, self._previous, self._base, self._since_base = 1, "", 0, commit.KEEP
        self._found: list[str] = []
        self._passed: list[int] = []
        self._written: set[tuple[str, str]] = set()

    def open(self) -> bool:
        """Reads the chain and takes in what a dead run left beyond it; False when there is no chain yet.

        unknown_since_us is then None, or from when on it is not known what of the cluster's Events was written: there
        is data (0), but no chain to it; or the chain is another cluster's.
        """
        state = commit.read_state(self._store, self.cluster)
        for number, why in state.passed.items():
            _LOG.warning("passed over commit %d of %s: %s", number, self.cluster, why)
        last, identity = state.last, self._identity
        self._number, self._passed = state.next_number, sorted(state.passed)
        self._carried.sequences.update(state.sequences)
        if last is not None:
            self._identity = last.identity  # until what its cluster left is taken in
            self._previous, self._base, self._since_base = last.checksum, state.base, state.since_base
            self.positions = dict(last.after)
            self._written = set(last.written)
            for segment in last.segments:
                if not segment.count:  # its run may have died before it did this
                    void(self._store, segment.path)
        seen = Seen()
        for addition in state.seen:
            seen.merge(addition)
        unread = last is None or not last.after
        # Before the markers, which are older than their segments: what another job writes now is not taken for found.
        there = list(self._store.list(codec.cluster_directory(self.cluster) + "/")) if unread else []
        left = list(orphans.beyond(self._store, self.cluster, state.sequences))
        self._find({entry.path for entry in there} - state.named - set(left), seen)
        self._take_in([orphans.read(self._store, path) for path in left], last.number if last else 0, seen)
        if last is not None and identity and last.identity and identity != last.identity:
            self._begin_anew(last, identity)
        else:
            self._seen.merge(seen.encode())
        self._identity = identity or self._identity
        if self.unknown_since_us is not None:
            self._since_base = commit.KEEP  # what counts as written is to be in the first commit
        self._carried.written |= self._written
        self._carried.commits[self.cluster] = self._number
        return last is not None

    def commit(self, epoch: Epoch) -> None:
        """Writes an epoch's commit, and makes its additions part of the carried state."""
        additions = epoch.seen.get(self.cluster, [])
        sequences = epoch.sequences.get(self.cluster, {})
        segments = list(epoch.segments.get(self.cluster, []))
        after = {**self.positions, **{p.target.key: p.position for p in epoch.progress.get(self.cluster, [])}}
        base = self._since_base >= commit.KEEP
        closed: set[str] = set()
        self._carried.sequences.update(sequences)
        for addition in additions:
            self._seen.merge(addition)
        if base:
            segments += self._stale()
            self._seen.expire(epoch.began_us - 2 * self._event_ttl_us)
            closed = self._close_partitions(epoch.began_us)
            additions, sequences = [self._seen.encode()], self._own_sequences()
        self._check_voided(segments)
        written = sorted(identity for identity in self._written if _is_ahead(identity[1], after))
        self._previous = commit.append(
            self._store,
            Commit(
                number=self._number,
                previous=self._previous,
                cluster=self.cluster,
                identity=self._identity,
                run=self._run,
                from_us=epoch.began_us,
                to_us=time.time_ns() // 1000,
                before=self.positions,
                after=after,
                segments=sorted(segments, key=lambda segment: segment.path),
                gaps=epoch.gaps.get(self.cluster, []),
                dead=epoch.dead.get(self.cluster, {}),
                found=self._found,
                passed=self._passed,
                base=base,
                seen=additions,
                sequences=sequences,
                written=written,
            ),
        )
        for segment in segments:
            if not segment.count:
                void(self._store, segment.path)
        self._carried.written -= self._written - set(written)
        self.positions, self._found, self._passed, self._written = after, [], [], set(written)
        if base:
            commit.compact(self._store, self.cluster, self._base, commit.KEEP)
            for partition in closed:
                self._store.delete(layout.open_marker(partition))
            self._base = self._number
        self._since_base = 1 if base else self._since_base + 1
        self._number += 1
        self._carried.commits[self.cluster] = self._number

    def check_alone(self) -> None:
        """Raises ChainError when another job has committed since this one began."""
        newest = layout.commit(self.cluster, self._number - 1)
        for entry in self._store.list(layout.state(self.cluster) + "/commits/", newest):
            raise commit.taken(self._store, entry.path)

    # --- a start ---

    def _find(self, found: set[str], seen: Seen) -> None:
        """What is there under no commit, when no commit has read anything yet; what is recent of it counts as seen."""
        self._found = sorted(found)
        if not found:
            return
        self.unknown_since_us = 0
        recent = codec.partition(self.cluster, time.time_ns() // 1000 - 2 * self._event_ttl_us)
        for path in self._found:
            if path >= recent and codec.parse_segment(path):
                self._remember(orphans.read(self._store, path).records or [], seen)

    def _begin_anew(self, last: Commit, identity: str) -> None:
        self.unknown_since_us = last.to_us
        self.positions, self._written = {}, set()
        _LOG.warning(
            "%s: the history in the sink is of a cluster with identity %s, this one's is %s: begins anew",
            self.cluster,
            last.identity,
            identity,
        )

    def _take_in(self, left: Sequence[Orphan], newest: int, seen: Seen) -> None:
        """Takes in the segments beyond the newest commit: what is to be kept is seen, and a commit names it."""
        epoch = Epoch(time.time_ns() // 1000)
        segments = epoch.segments.setdefault(self.cluster, [])
        sequences = epoch.sequences.setdefault(self.cluster, {})
        whole: list[tuple[Orphan, list[record_pb2.Record]]] = []
        for orphan in left:
            key, number = _key_of(orphan.segment.path)
            sequences[key] = max(number + 1, sequences.get(key, 0))
            if orphan.segment == voided(orphan.segment.path):
                continue  # by a commit whose partition was closed since
            if orphan.records is None:
                _LOG.warning("%s is not a segment; it is left as it is", orphan.segment.path)
                self._found.append(orphan.segment.path)
            elif not orphan.commit or orphan.commit > newest:
                whole.append((orphan, orphan.records))
            elif not orphans.is_committed(self._store, self.cluster, orphan):
                segments.append(voided(orphan.segment.path))
        at_most = self.unknown_since_us is not None
        kept = orphans.settle([records for _, records in whole], seen, self._written, at_most)
        addition = Seen()
        for (orphan, records), right in zip(whole, kept, strict=True):
            if {id(record) for record in records} == {id(record) for record in right}:
                segments.append(orphan.segment)
            else:
                segments.append(voided(orphan.segment.path))
                segments += self._rewrite(_key_of(orphan.segment.path)[0], right, sequences)
            self._remember(right, addition)
        if left:
            _LOG.warning("%s: took in %d segments that a run left without a commit", self.cluster, len(segments))
            epoch.seen[self.cluster] = [addition.encode()]
            carried, self._seen = self._seen, seen
            self.commit(epoch)
            self._seen = carried

    def _rewrite(self, key: str, records: Sequence[record_pb2.Record], sequences: dict[str, int]) -> Sequence[Segment]:
        encoded = [Encoded(r.time_us, r.uid, r.resource_version, r.SerializeToString()) for r in records]
        written, sequences[key] = write_batch(
            self._store, key, sequences[key], encoded, max(1, len(encoded)), commit=self._number
        )
        return written

    def _remember(self, records: Sequence[record_pb2.Record], seen: Seen) -> None:
        """Records that are in the sink are seen; of what is no Event, the identities are written."""
        for record in records:
            if record.kind == record_pb2.EVENT:
                version, known = number_of(record.resource_version), seen.event(record.uid)
                if known is None or (version, record.count) > known:
                    seen.saw_event(record.uid, version, record.count, record.observed_time_us)
            elif record.kind != record_pb2.GAP:
                self._written.add((record.uid, record.resource_version))
                if record.service_change.change == record_pb2.ServiceChange.DELETED:
                    seen.saw_state(record.uid, None)

    # --- a commit ---

    def _stale(self) -> list[Segment]:
        """The names that other jobs have taken beyond this one's numbers, to be voided."""
        stale = []
        for path in orphans.beyond(self._store, self.cluster, self._own_sequences()):
            orphan = orphans.read(self._store, path)
            if 0 < orphan.commit <= self._number and not orphans.is_committed(self._store, self.cluster, orphan):
                stale.append(voided(path))
                key, number = _key_of(path)
                self._carried.sequences[key] = number + 1
        return stale

    def _check_voided(self, segments: Sequence[Segment]) -> None:
        """Raises ChainError when a commit that is there names one of the segments that are to be voided."""
        for segment in segments:
            if not segment.count:
                orphan = orphans.read(self._store, segment.path)
                if orphan.commit and orphans.is_committed(self._store, self.cluster, orphan):
                    raise commit.taken(self._store, layout.commit(self.cluster, orphan.commit))

    def _own_sequences(self) -> dict[str, int]:
        prefix = codec.cluster_directory(self.cluster) + "/"
        return {key: number for key, number in self._carried.sequences.items() if key.startswith(prefix)}

    def _close_partitions(self, now_us: int) -> set[str]:
        """Forgets the segment numbers of hours long gone; returns their partitions. A late record opens one anew.

        Their markers go after the commit without the numbers: a start that finds one still there sees by the segments'
        labels that commits name them.
        """
        newest = codec.partition(self.cluster, now_us - 2 * self._event_ttl_us)
        closed = {key for key in self._own_sequences() if key.rpartition("/")[0] < newest}
        for key in closed:
            del self._carried.sequences[key]
        return {key.rpartition("/")[0] for key in closed}


def _key_of(path: str) -> tuple[str, int]:
    """The partition key and the number of a segment's path."""
    partition, shard, number = codec.parse_segment(path) or ("", "", 0)
    return f"{partition}/{shard}", number


def _is_ahead(version: str, positions: dict[str, Position]) -> bool:
    """Whether a change at this version may be read again from one of these positions."""
    return (
        any(
            position.listing or newer(version, position.resource_version)
            for key, position in positions.items()
            if key.rsplit("/", 2)[1] != "events"
        )
        or not positions
    )
