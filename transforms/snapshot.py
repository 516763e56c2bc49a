"""ObjectSnapshots: the facts about a cluster's objects, kept current (`snapshot_reader`), as a side input."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
import msgspec
from apache_beam.io.iobase import RestrictionProgress, RestrictionTracker
from apache_beam.transforms.core import RestrictionProvider
from apache_beam.transforms.window import FixedWindows, TimestampedValue
from apache_beam.typehints.native_type_compatibility import convert_to_beam_type
from apache_beam.utils.timestamp import Duration, Timestamp

from transforms.carried import Carried, Process
from transforms.coders import StructCoder
from transforms.snapshot_reader import SnapshotReader
from transforms.types import Progress
from transforms.watch import WatermarkProvider, not_before

# How long the first snapshot of a stream may take: one that does not answer holds the others' events back.
_FIRST_WINDOW_S = 10.0


class _RefreshFn(beam.DoFn):
    def __init__(self, process: Process, namespaces: tuple[str, ...]) -> None:
        self._process, self._namespaces = process, namespaces

    def setup(self) -> None:
        self._carried = self._process.acquire()

    def process(self, progress: list[Progress]) -> Iterator[str]:
        kinds: dict[str, set[tuple[str, str]]] = {}
        for one in progress:
            kinds.setdefault(one.target.cluster, set()).update(one.kinds)
        with self._carried.failing():
            for cluster in kinds:
                _reader(self._carried, cluster, self._namespaces).refresh(kinds[cluster])
        yield "refreshed"


def _reader(carried: Carried, cluster: str, namespaces: tuple[str, ...]) -> SnapshotReader:
    if cluster not in carried.snapshots:
        facts = carried.facts(cluster)
        carried.snapshots[cluster] = SnapshotReader(
            cluster, carried.readers, facts, namespaces, lock=carried.facts_lock
        )
    return carried.snapshots[cluster]


@dataclasses.dataclass
class ObjectSnapshots(beam.PTransform):
    """Progress → one element that says that the facts are current, for Enrich to wait for as its side input.

    In micro-batches the facts are in the process (`Carried.facts`) and don't travel.
    """

    process: Process
    namespaces: tuple[str, ...] = ()

    def expand(self, progress: beam.PCollection) -> Any:
        return (
            progress
            | "Gather" >> beam.CombineGlobally(beam.combiners.ToListCombineFn())
            | "Refresh" >> beam.ParDo(_RefreshFn(self.process, self.namespaces)).with_output_types(str)
        )


class Windows(msgspec.Struct, frozen=True, array_like=True):
    """The restriction of a snapshot source: the windows from number `following` on (0: from now); `ended` for none."""

    following: int = 0
    ended: bool = False


class WindowsTracker(RestrictionTracker):
    """Claims window numbers in order; what was not claimed goes to the residual."""

    def __init__(self, windows: Windows) -> None:
        self._windows = windows

    def current_restriction(self) -> Windows:
        return self._windows

    def try_claim(self, number: int) -> bool:
        if self._windows.ended or number < self._windows.following:
            return False
        self._windows = Windows(number + 1)
        return True

    def try_split(self, fraction_of_remainder: float) -> tuple[Windows, Windows] | None:
        if self._windows.ended:
            return None
        residual = self._windows
        self._windows = Windows(residual.following, True)
        return self._windows, residual

    def check_done(self) -> bool:
        if not self._windows.ended:
            raise ValueError(f"expected the windows to be checkpointed, got {self._windows!r}")
        return True

    def current_progress(self) -> RestrictionProgress:
        return RestrictionProgress(completed=0.0, remaining=1.0)

    def is_bounded(self) -> bool:
        return self._windows.ended


class _WindowsFn(beam.DoFn, RestrictionProvider):
    def __init__(self, process: Process, namespaces: tuple[str, ...], window_s: float) -> None:
        self._process, self._namespaces, self._window_s = process, namespaces, window_s

    def setup(self) -> None:
        self._carried = self._process.acquire()

    def initial_restriction(self, cluster: str) -> Windows:
        return Windows()

    def create_tracker(self, windows: Windows) -> WindowsTracker:
        return WindowsTracker(windows)

    def restriction_size(self, cluster: str, windows: Windows) -> int:
        return 1

    def restriction_coder(self) -> StructCoder:
        return StructCoder(Windows)

    @beam.DoFn.unbounded_per_element()
    def process(
        self,
        cluster: str,
        tracker: Any = beam.DoFn.RestrictionParam(),
        watermark: Any = beam.DoFn.WatermarkEstimatorParam(WatermarkProvider()),
    ) -> Iterator[TimestampedValue[tuple[str, bytes]]]:
        now = time.time()
        number = max(int(now // self._window_s), tracker.current_restriction().following)
        begins, ends = number * self._window_s, (number + 1) * self._window_s
        if begins <= now and tracker.try_claim(number):
            # Enrich waits for the snapshots of all clusters: one that does not answer may hold it back once.
            first_list_s = 0.0 if cluster in self._carried.snapshots else _FIRST_WINDOW_S
            facts = _reader(self._carried, cluster, self._namespaces).refresh(first_list_s=first_list_s)
            yield TimestampedValue((cluster, facts.encode()), not_before(Timestamp(begins), watermark))
            # The snapshot of this window is all that comes of it: nobody need wait for its end.
            watermark.set_watermark(Timestamp(ends))
            begins = ends
        tracker.defer_remainder(Duration(seconds=max(0.0, begins - time.time())))


@dataclasses.dataclass
class SnapshotWindows(beam.PTransform):
    """Cluster names → (cluster, `Facts.encode`), one in each fixed window of `window_s` seconds: a stream's snapshots.

    Emitted as soon as the window begins, and the watermark goes to its end at once: events don't wait.
    """

    process: Process
    namespaces: tuple[str, ...]
    window_s: float

    def expand(self, clusters: beam.PCollection) -> Any:
        snapshots = clusters | "Read" >> beam.ParDo(_WindowsFn(self.process, self.namespaces, self.window_s))
        snapshots.element_type = convert_to_beam_type(tuple[str, bytes])
        return snapshots | "Window" >> beam.WindowInto(FixedWindows(self.window_s))
