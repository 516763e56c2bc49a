"""WatchResources: the unbounded source, a splittable DoFn over list+watch.

Element: a `Target`. Restriction: a `Span`, how far the target's history has been read.
The same DoFn reads a bounded epoch (what the reader has buffered, then the span ends) and an unbounded stream (then it
checkpoints itself, at least once a second). Readers keep watching between two calls of `process`, so that a call costs
no request. A position is claimed before what lies before it goes out: a split never leaves an object to two sides or
none.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import msgspec
from apache_beam.io.iobase import RestrictionProgress, RestrictionTracker
from apache_beam.io.watermark_estimators import ManualWatermarkEstimator
from apache_beam.transforms.core import RestrictionProvider, WatermarkEstimatorProvider
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import Duration, Timestamp

from transforms.carried import Process
from transforms.coders import StructCoder, typed
from transforms.decode import Decoder, Undecodable
from transforms.kube import Frame, Resource
from transforms.shards import shard_key, shard_of
from transforms.types import (
    Change,
    Changes,
    DeadLetter,
    EndpointSlice,
    Event,
    Gap,
    Listed,
    Object,
    Position,
    Progress,
    Service,
    Target,
)

# --- API --------------------------------------------------------------------------------------

_CHUNK = 500  # changes that a watch brought one by one go on together
_POLL_S = 0.5  # how soon a stream looks again at a reader that had nothing
_LIST_WAIT_S = 0.5  # how long a call waits for the next page of a list that is in progress

RESOURCES = {
    "events": Resource("v1", "events", bookmarks=False),
    "services": Resource("v1", "services", whole=True),
    "endpointslices": Resource("discovery.k8s.io/v1", "endpointslices", whole=True),
}
_TYPES: dict[str, type[Object]] = {"events": Event, "services": Service, "endpointslices": EndpointSlice}


@dataclasses.dataclass(frozen=True)
class Filter:
    """Which Events are kept; an empty field keeps all. Reasons, types and kinds compare exactly."""

    exclude_namespaces: frozenset[str] = frozenset()
    reasons: frozenset[str] = frozenset()
    types: frozenset[str] = frozenset()
    kinds: frozenset[str] = frozenset()

    def keeps(self, event: Event) -> bool:
        involved = event.involved_object
        return not (
            (self.reasons and event.reason not in self.reasons)
            or (self.types and event.type not in self.types)
            or (self.kinds and involved.kind not in self.kinds)
            or event.metadata.namespace in self.exclude_namespaces
        )

    @property
    def selector(self) -> str:
        """The part that the API server can do: a field selector."""
        return ",".join(f"metadata.namespace!={namespace}" for namespace in sorted(self.exclude_namespaces))


# --- state, coder, tracker --------------------------------------------------------------------


class Span(msgspec.Struct, frozen=True, array_like=True):
    """The restriction: what follows `position`; `ended` when nothing more is to be read of it."""

    position: Position
    ended: bool = False


class SpanTracker(RestrictionTracker):
    """Claims positions in order; None claims the end. A split gives all that was not claimed to the residual."""

    def __init__(self, span: Span) -> None:
        self._span = span

    def current_restriction(self) -> Span:
        return self._span

    def try_claim(self, position: Position | None) -> bool:
        if self._span.ended:
            return False
        self._span = Span(self._span.position, True) if position is None else Span(position)
        return True

    def try_split(self, fraction_of_remainder: float) -> tuple[Span, Span] | None:
        if self._span.ended:
            return None
        residual = self._span
        self._span = Span(residual.position, True)
        return self._span, residual

    def check_done(self) -> bool:
        if not self._span.ended:
            raise ValueError(f"expected the span to be claimed to its end or checkpointed, got {self._span!r}")
        return True

    def current_progress(self) -> RestrictionProgress:
        ended = float(self._span.ended)
        return RestrictionProgress(completed=ended, remaining=1.0 - ended)

    def is_bounded(self) -> bool:
        return self._span.ended


class _SpanProvider(RestrictionProvider):
    """A target is read from its carried position: where the epoch before ended; from its beginning in a stream."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def initial_restriction(self, target: Target) -> Span:
        return Span(self._process.acquire().positions.get(target.key, Position()))

    def create_tracker(self, span: Span) -> SpanTracker:
        return SpanTracker(span)

    def restriction_size(self, target: Target, span: Span) -> int:
        return 0 if span.ended else 1

    def restriction_coder(self) -> StructCoder:
        return StructCoder(Span)


# --- plain ------------------------------------------------------------------------------------


class FrameReader:
    """Frames of one target → chunks by shard, and beside them what could not be decoded; no Beam, no HTTP."""

    def __init__(self, target: Target, shards: int, keep: Filter) -> None:
        self._target, self._shards, self._filter = target, shards, keep
        self._decoder: Decoder[Any] = Decoder(_TYPES[target.resource])

    def decode(self, frame: Frame) -> tuple[list[Change[Any]], list[Undecodable]]:
        """The changes of a frame that pass the filter, and what could not be decoded."""
        if frame.kind not in ("page", "lines"):
            return [], []
        if frame.kind == "page":
            # a whole list says what is gone, so what is known already must stay in it
            floor = "" if RESOURCES[self._target.resource].whole else frame.floor
            changes, bad = self._decoder.page(frame.items[0], frame.received_us, floor)
        else:
            changes, bad = self._decoder.lines(frame.items, frame.received_us)
        if self._target.resource == "events":
            changes = [change for change in changes if self._filter.keeps(change.object)]
        elif self._filter.exclude_namespaces:
            excluded = self._filter.exclude_namespaces
            changes = [change for change in changes if change.object.metadata.namespace not in excluded]
        return changes, bad

    def chunks(self, changes: list[Change[Any]], page: Frame | None = None) -> Iterator[tuple[str, Changes]]:
        """(shard key, chunk): all about one involved object has one shard, whichever the cluster's order.

        page: the frame that the changes are of, where it is a list's; a whole list goes to every shard.
        """
        by_shard: dict[int, list[Change[Any]]] = collections.defaultdict(list)
        if self._shards == 1:
            by_shard[0] = changes
        else:
            for change in changes:
                by_shard[shard_of(change.object, self._shards)].append(change)
        if page is not None and self._is_whole(page):
            for shard in range(self._shards):
                yield self._chunk(shard, by_shard[shard], self._listed(page, shard))
            return
        for shard, part in by_shard.items():
            if part:
                yield self._chunk(shard, part, None)

    def _chunk(self, shard: int, part: list[Change[Any]], listed: Listed | None) -> tuple[str, Changes]:
        field = "slices" if self._target.resource == "endpointslices" else self._target.resource
        return shard_key(self._target.cluster, shard), Changes(self._target.cluster, **{field: part}, listed=listed)

    def _is_whole(self, frame: Frame) -> bool:
        return frame.kind == "page" and frame.first and frame.last and RESOURCES[self._target.resource].whole

    def _listed(self, frame: Frame, shard: int) -> Listed:
        return Listed(
            self._target.resource,
            self._target.namespace,
            frame.position.resource_version,
            frame.received_us,
            shard,
            self._shards,
            tuple(sorted(self._filter.exclude_namespaces)),
        )


# --- Beam -------------------------------------------------------------------------------------


class WatermarkProvider(WatermarkEstimatorProvider):
    """Beam's manual watermark, with a coder of its own: Beam's default would put a pickle into the savepoint."""

    def initial_estimator_state(self, element: Any, restriction: Any) -> None:
        return None

    def create_watermark_estimator(self, estimator_state: Timestamp | None) -> ManualWatermarkEstimator:
        return ManualWatermarkEstimator(estimator_state)

    def estimator_state_coder(self) -> WatermarkCoder:
        return WatermarkCoder()


class WatermarkCoder(beam.coders.Coder):
    """A Timestamp or None as big-endian microseconds: Beam's own coder has milliseconds, and so would go back."""

    def encode(self, value: Timestamp | None) -> bytes:
        return b"" if value is None else value.micros.to_bytes(8, "big", signed=True)

    def decode(self, encoded: bytes) -> Timestamp | None:
        return Timestamp(micros=int.from_bytes(encoded, "big", signed=True)) if encoded else None

    def is_deterministic(self) -> bool:
        return True


class _WatchFn(beam.DoFn, _SpanProvider):
    def __init__(self, process: Process, shards: int, keep: Filter, bounded: bool, limit: int) -> None:
        _SpanProvider.__init__(self, process)
        self._shards, self._filter = shards, keep
        self._bounded, self._limit = bounded, limit

    def setup(self) -> None:
        self._carried = self._process.acquire()
        self._readers = self._carried.readers
        self._frame_readers: dict[Target, FrameReader] = {}

    @beam.DoFn.unbounded_per_element()
    def process(
        self,
        target: Target,
        tracker: Any = beam.DoFn.RestrictionParam(),
        watermark: Any = beam.DoFn.WatermarkEstimatorParam(WatermarkProvider()),
    ) -> Iterator[tuple[str, Changes]]:
        position = tracker.current_restriction().position
        reader = self._readers.reader(target, RESOURCES[target.resource], position)
        frames = self._frame_reader(target)
        read = 0
        kinds: set[tuple[str, str]] = set()
        heard: list[Change[Any]] = []
        for frame in reader.take(self._limit, _LIST_WAIT_S):
            claimed = tracker.try_claim(frame.position)
            if heard and (not claimed or frame.kind != "lines" or len(heard) >= _CHUNK):
                yield from self._emit(frames.chunks(heard), position, watermark)
                heard = []
            if not claimed:
                return
            position = frame.position
            changes, bad = frames.decode(frame)
            read += len(changes) + len(bad)
            kinds.update(kinds_of(changes))
            if frame.kind == "lines":
                heard += changes
            else:
                # what can't be decoded is in the list, and so is not gone
                yield from self._emit(frames.chunks(changes, None if bad else frame), position, watermark)
            yield from self._emit(_tagged(target, frame, bad), position, watermark)
        if heard:
            yield from self._emit(frames.chunks(heard), position, watermark)
        if reader.error:
            raise reader.error
        if self._bounded:
            if gap := self._carried.gaps.pop(target.key, None):
                yield beam.pvalue.TaggedOutput("gaps", gap)
            yield beam.pvalue.TaggedOutput("progress", Progress(target, position, read, sorted(kinds)))
            tracker.try_claim(None)
            return
        # What comes later is stamped no earlier (`_stamped`): the watermark can follow the clock in a quiet cluster.
        watermark.set_watermark(not_before(Timestamp.now(), watermark))
        tracker.defer_remainder(Duration(seconds=0.0 if reader.waiting else _POLL_S))

    def _frame_reader(self, target: Target) -> FrameReader:
        if target not in self._frame_readers:
            self._frame_readers[target] = FrameReader(target, self._shards, self._filter)
        return self._frame_readers[target]

    def _emit(self, outputs: Iterable[Any], position: Position, watermark: Any) -> Iterator[Any]:
        for output in outputs:
            yield output if self._bounded else _stamped(output, position.time_us, watermark)


def kinds_of(changes: Sequence[Change[Any]]) -> set[tuple[str, str]]:
    """(apiVersion, kind) of the objects that events are about."""
    events = (change.object for change in changes if isinstance(change.object, Event))
    return {(event.involved_object.api_version, event.involved_object.kind) for event in events}


def _tagged(target: Target, frame: Frame, bad: Sequence[Undecodable]) -> Iterator[Any]:
    """What a frame brought beside objects: dead letters, and a gap."""
    for item in bad:
        letter = DeadLetter(target.cluster, target.resource, item.reason, item.data, frame.received_us)
        yield beam.pvalue.TaggedOutput("dead", letter)
    if frame.kind == "gap":
        yield beam.pvalue.TaggedOutput("gaps", Gap(target, frame.since_us, frame.received_us, frame.items[0].decode()))


def _stamped(output: Any, received_us: int, watermark: Any) -> Any:
    """An output with the time when it was received, or the watermark's where that is later: so nothing is ever late."""
    at = not_before(Timestamp(micros=received_us), watermark)
    if isinstance(output, beam.pvalue.TaggedOutput):
        return beam.pvalue.TaggedOutput(output.tag, TimestampedValue(output.value, at))
    return TimestampedValue(output, at)


def not_before(time: Timestamp, watermark: Any) -> Timestamp:
    """A time, or the watermark (None before it is first set) where that is later."""
    current = watermark.current_watermark()
    return time if current is None else max(time, current)


@dataclasses.dataclass
class WatchResources(beam.PTransform):
    """Targets → `changes` (shard key, Changes), `progress` Progress, `dead` DeadLetter, `gaps` Gap.

    process: the worker's connections. shards: over how many keys a cluster's objects are spread.
    bounded: an epoch, else a stream. limit: about how many objects one call of process reads of a target.
    """

    process: Process
    shards: int = 1
    keep: Filter = Filter()
    bounded: bool = True
    limit: int = 10_000

    def expand(self, targets: beam.PCollection) -> Any:
        read = _WatchFn(self.process, self.shards, self.keep, self.bounded, self.limit)
        outputs = targets | "Read" >> beam.ParDo(read).with_outputs("progress", "dead", "gaps", main="changes")
        return typed(outputs, progress=Progress, dead=DeadLetter, gaps=Gap, changes=tuple[str, Changes])
