"""One cluster's chain as a running job writes it: where it goes on, what a dead run left, and an epoch's commit."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Sequence
from typing import Any

from kubehistory import record_pb2

from transforms import codec, commit, layout
from transforms.carried import Carried
from transforms.commit import Commit
from transforms.seen import Seen, number_of
from transforms.types import Gap, Position, Progress, Segment
from transforms.write import read_segment

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

    Raises ChainError where the chain can't be gone on from, or is written by another job; StoreError.
    """

    def __init__(self, carried: Carried, cluster: str, identity: str, run: str, event_ttl_s: float) -> None:
        self.cluster = cluster
        self.positions: dict[str, Position] = {}
        self.committed_at = 0.0
        self._carried, self._store, self._seen = carried, carried.store, carried.seen(cluster)
        self._identity, self._run = identity, run
        self._event_ttl_us = int(event_ttl_s * 1e6)
        self._number, self._previous, self._since_base = 1, "", commit.KEEP
        self._found: list[str] = []
        self.unknown_since_us: int | None = None

    def open(self) -> bool:
        """Reads the chain and rolls forward what a dead run left beyond it; False when there is no chain yet.

        unknown_since_us is then None, or from when on it is not known what of the cluster's Events was written: there is
        data (0), but no chain to it; or the chain is another cluster's.
        """
        state = commit.read_state(self._store, self.cluster)
        for skipped in state.skipped:
            _LOG.warning("passed over a damaged commit: %s", skipped)
        self._number = state.next_number
        if state.last is not None:
            self._previous, self._since_base = state.last.checksum, state.since_base
            self._carried.sequences.update(state.sequences)
            if self._identity and state.last.identity and self._identity != state.last.identity:
                self._begin_anew(state.last)
            else:
                self.positions = dict(state.last.after)
                for addition in state.seen:
                    self._seen.merge(addition)
            self._mark_open(state.sequences)
        orphans = list(commit.orphans(self._store, self.cluster, state.sequences))
        if state.last is None:
            there = (entry.path for entry in self._store.list(codec.cluster_directory(self.cluster) + "/"))
            self._found = sorted(set(there) - set(orphans))
            if self._found:
                self.unknown_since_us = 0
        self._roll_forward(orphans)
        return state.last is not None

    def commit(self, epoch: Epoch) -> None:
        """Writes an epoch's commit, and makes its additions part of the carried state."""
        additions = epoch.seen.get(self.cluster, [])
        sequences = epoch.sequences.get(self.cluster, {})
        after = {**self.positions, **{p.target.key: p.position for p in epoch.progress.get(self.cluster, [])}}
        base = self._since_base >= commit.KEEP
        self._carried.sequences.update(sequences)
        for addition in additions:
            self._seen.merge(addition)
        if base:
            self._seen.expire(epoch.began_us - 2 * self._event_ttl_us)
            self._close_partitions(epoch.began_us)
            additions, sequences = [self._seen.encode()], self._own_sequences()
        now_us = time.time_ns() // 1000
        self._previous = commit.append(
            self._store,
            Commit(
                number=self._number,
                previous=self._previous,
                cluster=self.cluster,
                identity=self._identity,
                run=self._run,
                from_us=epoch.began_us,
                to_us=now_us,
                before=self.positions,
                after=after,
                segments=sorted(epoch.segments.get(self.cluster, []), key=lambda segment: segment.path),
                gaps=epoch.gaps.get(self.cluster, []),
                dead=epoch.dead.get(self.cluster, {}),
                found=self._found,
                base=base,
                seen=additions,
                sequences=sequences,
            ),
        )
        self.positions, self._found = after, []
        self.committed_at = time.monotonic()
        if base:
            commit.compact(self._store, self.cluster, self._number)
        self._since_base = 1 if base else self._since_base + 1
        self._number += 1

    def check_alone(self) -> None:
        """Raises ChainError when another job has committed since this one began."""
        for entry in self._store.list(layout.state(self.cluster) + "/commits/"):
            if layout.commit_number(entry.path) >= self._number:
                raise commit.taken(self._store, entry.path)

    def _begin_anew(self, last: Commit) -> None:
        self.unknown_since_us = last.to_us
        self._since_base = commit.KEEP  # what is remembered of the other cluster ends with this commit
        _LOG.warning(
            "%s: the history in the sink is of a cluster with identity %s, this one's is %s: begins anew",
            self.cluster,
            last.identity,
            self._identity,
        )

    def _roll_forward(self, orphans: Sequence[str]) -> None:
        """Takes in the segments beyond the newest commit: what they hold is seen, and a commit names them."""
        adopted: list[Segment] = []
        next_numbers: dict[str, int] = {}
        addition = Seen()
        for path in orphans:
            try:
                segment, records = read_segment(self._store, path)
            except codec.CodecError as error:
                _LOG.warning("%s is not a segment: %s; it is left as it is", path, error)
                continue
            adopted.append(segment)
            partition, shard, number = codec.parse_segment(path) or ("", "", 0)
            next_numbers[f"{partition}/{shard}"] = max(number + 1, next_numbers.get(f"{partition}/{shard}", 0))
            for record in records:
                self._carried.written.add((record.uid, record.resource_version))
                if record.kind == record_pb2.EVENT:
                    version = number_of(record.resource_version)
                    addition.saw_event(record.uid, version, record.count, record.observed_time_us)
        if adopted:
            _LOG.warning("%s: took in %d segments that a run left without a commit", self.cluster, len(adopted))
            epoch = Epoch(time.time_ns() // 1000)
            epoch.segments[self.cluster] = adopted
            epoch.sequences[self.cluster] = next_numbers
            epoch.seen[self.cluster] = [addition.encode()]
            self.commit(epoch)

    def _own_sequences(self) -> dict[str, int]:
        prefix = codec.cluster_directory(self.cluster) + "/"
        return {key: number for key, number in self._carried.sequences.items() if key.startswith(prefix)}

    def _mark_open(self, sequences: dict[str, int]) -> None:
        """A run that died while it closed a partition may have left it without its marker."""
        there = {layout.opened_partition(e.path) for e in self._store.list(layout.state(self.cluster) + "/open/")}
        for partition in {key.rpartition("/")[0] for key in sequences} - there:
            self._store.create(layout.open_marker(partition), b"")

    def _close_partitions(self, now_us: int) -> None:
        """Forgets the segment numbers of hours long gone; a late record finds them by listing.

        The markers go before the commit without the numbers: a start recreates a marker that it misses, but could not
        tell a forgotten partition from one that a dead run opened.
        """
        newest = codec.partition(self.cluster, now_us - 2 * self._event_ttl_us)
        for key in [key for key in self._own_sequences() if key.rpartition("/")[0] < newest]:
            del self._carried.sequences[key]
            self._store.delete(layout.open_marker(key.rpartition("/")[0]))
