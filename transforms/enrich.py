"""Enrich: news → finished records, with what was true of the involved object at the event's time.

Logic is in `record`, over `facts` and `associate`. An event that can't be made a record is a dead letter.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam
import msgspec

from transforms.batch import encode_records
from transforms.carried import Process
from transforms.coders import typed
from transforms.facts import Facts
from transforms.record import endpoints_record, event_record, gap_record, service_record
from transforms.shards import shard_key
from transforms.types import DeadLetter, Encoded, Gap, News, NewsChunk

# --- plain ------------------------------------------------------------------------------------


def enrich(chunk: NewsChunk, facts: Facts) -> tuple[list[Encoded], list[DeadLetter]]:
    """The records of a chunk, in its order, and what could not become one."""
    records: list[Encoded] = []
    dead: list[DeadLetter] = []
    builders: tuple[tuple[str, Any, Sequence[News[Any]]], ...] = (
        ("events", event_record, chunk.events),
        ("services", service_record, chunk.services),
        ("endpointslices", endpoints_record, chunk.endpoints),
    )
    for resource, build, items in builders:
        for news in items:
            try:
                records.append(build(chunk.cluster, news, facts))
            except Exception as error:  # an object that breaks our code must not stop the job, nor be lost
                dead.append(_dead(chunk.cluster, resource, news, error))
    return records, dead


def _dead(cluster: str, resource: str, news: News[Any], error: Exception) -> DeadLetter:
    reason = f"not enriched: {type(error).__name__}: {error}"
    return DeadLetter(cluster, resource, reason, msgspec.json.encode(news.object), news.observed_us)


# --- Beam -------------------------------------------------------------------------------------


class _EnrichFn(beam.DoFn):
    """In an epoch the facts are the process's own, and `current` says that they are current."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def setup(self) -> None:
        self._carried = self._process.acquire()

    def process(self, element: tuple[str, NewsChunk], current: Any) -> Iterator[tuple[str, bytes]]:
        shard_key, chunk = element
        with self._carried.facts_lock:
            records, dead = enrich(chunk, self._facts(chunk.cluster, current))
        if records:
            yield shard_key, encode_records(records)
        for letter in dead:
            yield beam.pvalue.TaggedOutput("dead", letter)

    def _facts(self, cluster: str, current: Any) -> Facts:
        return self._carried.facts(cluster)


class _EnrichStreamFn(_EnrichFn):
    """In a stream the facts come as the side input: the snapshot of the element's window, by cluster, encoded.

    Where the runner gives none for the window, the facts that this worker's own snapshot source keeps, if it has one.
    """

    def setup(self) -> None:
        super().setup()
        self._decoded: dict[str, tuple[bytes, Facts]] = {}

    def _facts(self, cluster: str, current: dict[str, bytes]) -> Facts:
        encoded = current.get(cluster)
        if encoded is None:
            return super()._facts(cluster, current)
        kept = self._decoded.get(cluster)
        if kept is None or kept[0] != encoded:
            kept = self._decoded[cluster] = encoded, Facts.decode(encoded)
        return kept[1]


@dataclasses.dataclass
class Enrich(beam.PTransform):
    """(shard key, NewsChunk) → `records` (shard key, bytes of `encode_records`) and `dead` DeadLetter.

    current: the side input, of ObjectSnapshots in an epoch and of SnapshotWindows in a stream.
    """

    process: Process
    current: beam.pvalue.AsSideInput
    streaming: bool = False

    def expand(self, news: beam.PCollection) -> Any:
        kind = _EnrichStreamFn if self.streaming else _EnrichFn
        enriched = beam.ParDo(kind(self.process), self.current)
        outputs = news | "Enrich" >> enriched.with_outputs("dead", main="records")
        return typed(outputs, dead=DeadLetter, records=tuple[str, bytes])


class _GapRecordFn(beam.DoFn):
    def process(self, gap: Gap) -> Iterator[tuple[str, bytes]]:
        record = gap_record(gap.target, gap.from_us, gap.to_us or gap.from_us, gap.why)
        yield shard_key(gap.target.cluster, 0), encode_records([record])


class GapRecords(beam.PTransform):
    """Gap → (shard key, bytes of `encode_records`): what could not be had is in the data, too."""

    def expand(self, gaps: beam.PCollection) -> Any:
        return gaps | "Gap" >> beam.ParDo(_GapRecordFn()).with_output_types(tuple[str, bytes])
