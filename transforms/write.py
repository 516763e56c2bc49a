"""WriteBatches: batches → segments in the sink, each created under a name that no other has, or not at all.

A segment is (partition, shard, sequence number). A name that is taken was written by a run that died, or by another job:
the segment is read back, what it holds is dropped from the batch, and the next number is tried. So a replay adds nothing.
Dead letters go to `_dead/`, under the checksum of their bytes.
"""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import msgspec
from apache_beam.coders import VarIntCoder
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec
from kubehistory import record_pb2

from transforms import codec, layout
from transforms.batch import decode_records
from transforms.carried import Process
from transforms.coders import typed
from transforms.store import Store
from transforms.types import DeadLetter, Encoded, Segment

# --- plain ------------------------------------------------------------------------------------


def write_batch(
    store: Store, key: str, sequence: int, records: Iterable[Encoded], batch_size: int
) -> tuple[list[Segment], int]:
    """Writes the records of a partition key, at most `batch_size` a segment; returns the segments and the next number.

    The segments include those that were found taken, as they are in the sink. The same records give the same segments.
    Raises StoreError; what was written before it stays, and a repetition adds nothing to it.
    """
    partition, _, shard = key.rpartition("/")
    left = sorted(records, key=lambda record: (record.time_us, record.uid, record.resource_version))
    segments: list[Segment] = []
    while left:
        batch = left[:batch_size]
        data = codec.pack([record.data for record in batch])
        path = codec.segment_name(partition, shard, sequence)
        sequence += 1
        if store.create(path, data):
            segments.append(Segment(path, len(batch), codec.checksum(data), len(data)))
            left = left[batch_size:]
        else:
            segment, taken = read_segment(store, path)
            segments.append(segment)
            left = subtract(left, taken)
    return segments, sequence


def read_segment(store: Store, path: str) -> tuple[Segment, list[record_pb2.Record]]:
    """A segment as it is in the sink, and its records."""
    data = store.read(path)
    records = [record_pb2.Record.FromString(record) for record in codec.unpack(data)]
    return Segment(path, len(records), codec.checksum(data), len(data)), records


def subtract(records: Sequence[Encoded], written: Iterable[record_pb2.Record]) -> list[Encoded]:
    """`records` without those whose identity is written, and without the occurrences that are.

    An Event whose count was 3 when it was written and is 5 now has two new occurrences, whatever its record said.
    """
    versions: dict[str, set[str]] = {}
    counts: dict[str, int] = {}
    for record in written:
        versions.setdefault(record.uid, set()).add(record.resource_version)
        counts[record.uid] = max(record.count, counts.get(record.uid, 0))
    left = []
    for encoded in records:
        if encoded.resource_version in versions.get(encoded.uid, ()):
            continue
        left.append(_less(encoded, counts[encoded.uid]) if counts.get(encoded.uid) else encoded)
    return left


def _less(encoded: Encoded, count: int) -> Encoded:
    record = record_pb2.Record.FromString(encoded.data)
    if not count < record.count < count + record.occurrences:
        return encoded
    record.occurrences = record.count - count
    return msgspec.structs.replace(encoded, data=record.SerializeToString())


def first_sequence(store: Store, key: str, records: Sequence[Encoded]) -> tuple[int, list[Encoded]]:
    """The next number of a partition key of which no state is known, and what of the records is not there yet.

    Marks the partition as open first, so that a start after a crash looks into it (`layout.open_marker`).
    """
    partition, _, shard = key.rpartition("/")
    store.create(layout.open_marker(partition), b"")
    sequence = 0
    left = list(records)
    for entry in store.list(f"{partition}/{shard}-"):
        name = codec.parse_segment(entry.path)
        if name and name[1] == shard:
            left = subtract(left, read_segment(store, entry.path)[1])
            sequence = name[2] + 1
    return sequence, left


def write_dead(store: Store, letters: Sequence[DeadLetter]) -> str:
    """Writes dead letters as JSON lines, the bytes in base64; the same letters give the same object. Returns its path."""
    lines = [
        msgspec.json.encode(
            {
                "cluster": letter.cluster,
                "resource": letter.resource,
                "reason": letter.reason,
                "observed_us": letter.observed_us,
                "data_base64": base64.b64encode(letter.data).decode(),
            }
        )
        for letter in letters
    ]
    data = b"\n".join(lines) + b"\n"
    content = codec.checksum(b"\n".join(letter.data for letter in letters))
    path = layout.dead_letters(letters[0].cluster, letters[0].observed_us, content)
    store.create(path, data)
    return path


# --- Beam -------------------------------------------------------------------------------------


class _WriteFn(beam.DoFn):
    NEXT = ReadModifyWriteStateSpec("next", VarIntCoder())

    def __init__(self, process: Process, batch_size: int) -> None:
        self._process, self._batch_size = process, batch_size

    def setup(self) -> None:
        self._carried = self._process.acquire()

    def process(
        self, element: tuple[str, Iterable[bytes]], following: Any = beam.DoFn.StateParam(NEXT)
    ) -> Iterator[Segment]:
        key, chunks = element
        store = self._carried.store
        records = [record for chunk in chunks for record in decode_records(chunk)]
        if self._carried.written:
            records = [r for r in records if (r.uid, r.resource_version) not in self._carried.written]
        with self._carried.failing():
            sequence = following.read()
            if sequence is None:
                sequence = self._carried.sequences.get(key)
            if sequence is None:
                sequence, records = first_sequence(store, key, records)
            segments, sequence = write_batch(store, key, sequence, records, self._batch_size)
        following.write(sequence)
        yield from segments
        yield beam.pvalue.TaggedOutput("sequences", (key, sequence))


class _WriteDeadFn(beam.DoFn):
    def __init__(self, process: Process) -> None:
        self._process = process

    def setup(self) -> None:
        self._carried = self._process.acquire()

    def process(self, element: tuple[str, Iterable[DeadLetter]]) -> Iterator[tuple[str, int]]:
        letters = list(element[1])
        with self._carried.failing():
            yield write_dead(self._carried.store, letters), len(letters)


@dataclasses.dataclass
class WriteBatches(beam.PTransform):
    """(partition key, chunks) → `segments` Segment, and `sequences` (partition key, next number)."""

    process: Process
    batch_size: int

    def expand(self, batches: beam.PCollection) -> Any:
        write = beam.ParDo(_WriteFn(self.process, self.batch_size))
        outputs = batches | "Write" >> write.with_outputs("sequences", main="segments")
        return typed(outputs, sequences=tuple[str, int], segments=Segment)


def _by_cluster(letter: DeadLetter) -> tuple[str, DeadLetter]:
    return letter.cluster, letter


@dataclasses.dataclass
class WriteDeadLetters(beam.PTransform):
    """DeadLetter → (path, count) of each object written under `_dead/`; `max_age_s` as in BatchByPartition."""

    process: Process
    max_age_s: float | None = None

    def expand(self, letters: beam.PCollection) -> Any:
        return (
            letters
            | "ByCluster" >> beam.Map(_by_cluster).with_output_types(tuple[str, DeadLetter])
            | "Group" >> beam.GroupIntoBatches(1000, self.max_age_s)
            | "Write" >> beam.ParDo(_WriteDeadFn(self.process)).with_output_types(tuple[str, int])
        )
