"""BatchByPartition: finished records of one partition and shard, together until they are enough or old enough."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import msgspec
from apache_beam.transforms.util import GroupIntoBatches
from apache_beam.transforms.window import FixedWindows, GlobalWindows

from transforms import codec
from transforms.types import Encoded

# --- plain ------------------------------------------------------------------------------------


_RECORDS = msgspec.msgpack.Decoder(list[Encoded])


def encode_records(records: Sequence[Encoded]) -> bytes:
    """A chunk of finished records, as the stages from Enrich on hand it over.

    Plain bytes, since GroupIntoBatches pickles what Beam has no primitive for, and its state is measured object by
    object.
    """
    return msgspec.msgpack.encode(records)


def decode_records(chunk: bytes) -> list[Encoded]:
    return _RECORDS.decode(chunk)


def by_partition(shard_key: str, records: Iterable[Encoded], unit: int) -> Iterator[tuple[str, bytes]]:
    """(partition key, chunk) of records of one shard ("<cluster>/<shard>"), at most `unit` records a chunk."""
    cluster, _, shard = shard_key.rpartition("/")
    groups: dict[str, list[Encoded]] = {}
    for record in records:
        groups.setdefault(codec.partition(cluster, record.time_us), []).append(record)
    for partition, group in groups.items():
        for start in range(0, len(group), unit):
            yield f"{partition}/{shard}", encode_records(group[start : start + unit])


# --- Beam -------------------------------------------------------------------------------------


class _ByPartitionFn(beam.DoFn):
    def __init__(self, unit: int) -> None:
        self._unit = unit

    def process(self, element: tuple[str, bytes]) -> Iterator[tuple[str, bytes]]:
        shard_key, records = element
        yield from by_partition(shard_key, decode_records(records), self._unit)


@dataclasses.dataclass
class BatchByPartition(beam.PTransform):
    """(shard key, chunk) → (partition key "<partition>/<shard>", chunks), in the global window.

    batch_size: records a batch. window_s: the fixed window, in seconds of observation time, that no batch crosses.
    max_age_s: a batch closes at this age since its first element; None leaves that to the end of the input, which ends
    an epoch: FnApiRunner fires no processing-time timer.
    streaming: GroupIntoBatches counts elements. A stream gives it one record an element, so a batch closes at the
    record that fills it. An epoch is batched as a whole, in chunks, and divided by WriteBatches.
    """

    batch_size: int
    window_s: float
    max_age_s: float | None = None
    streaming: bool = False

    def expand(self, records: beam.PCollection) -> Any:
        unit = 1 if self.streaming else self.batch_size
        chunks = records | "ByPartition" >> beam.ParDo(_ByPartitionFn(unit)).with_output_types(tuple[str, bytes])
        return (
            chunks
            | "Window" >> beam.WindowInto(FixedWindows(self.window_s))
            | "GroupIntoBatches" >> GroupIntoBatches(self.batch_size, self.max_age_s)
            | "GlobalWindow" >> beam.WindowInto(GlobalWindows())
        )
