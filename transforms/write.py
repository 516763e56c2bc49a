"""WriteBatches: batches → segments in the sink, each created under a name that no other has, or not at all.

A segment is (partition, shard, sequence number). In a stream a name that is taken was written before a restored
checkpoint, or by another job: the segment is read back, what it holds is dropped from the batch, and the next number is
tried. So a replay adds nothing.

In micro-batches a start has taken in what a dead run left (`orphans`), so a name that is taken is another job's. Each
segment says in its gzip header which commit is to name it. Of the jobs that write for one commit only one gets to write
it; it voids the names that it found taken, after that commit: what they held, it has read or will read itself.

Dead letters go to `_dead/`, under the checksum of their bytes.
"""

from __future__ import annotations

import base64
import dataclasses
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import msgspec
from apache_beam.coders import VarIntCoder
from apache_beam.transforms.userstate import BagStateSpec, ReadModifyWriteStateSpec
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.windowed_value import WindowedValue
from kubehistory import record_pb2

from transforms import codec, layout
from transforms.batch import decode_records
from transforms.carried import Carried, Process
from transforms.coders import typed
from transforms.commit import read_taken
from transforms.kube import newer
from transforms.store import FatalStoreError, NotFound, Store
from transforms.types import DeadLetter, Encoded, Segment

_DEAD_LETTERS = 1000  # at most in an object
_KEYS_REMEMBERED = 16  # partition keys whose found segments are not read again

# --- plain ------------------------------------------------------------------------------------


def write_batch(
    store: Store,
    key: str,
    sequence: int,
    records: Iterable[Encoded],
    batch_size: int,
    found: list[int] | None = None,
    commit: int = 0,
) -> tuple[list[Segment], int]:
    """Writes the records of a partition key, at most `batch_size` a segment; returns the segments and the next number.

    The segments include those that were found taken, as they are in the sink. The same records give the same segments.
    found: gets the numbers of those that hold more than these records: later batches may hold the rest.
    commit: the number of the commit that is to name the segments; those found taken are then to be voided.
    Raises StoreError; what was written before it stays, and a repetition adds nothing to it.
    """
    partition, _, shard = key.rpartition("/")
    left = sorted(records, key=_order)
    given = _identities(left)
    segments: list[Segment] = []
    while left:
        batch = left[:batch_size]
        data = codec.pack([record.data for record in batch])
        if commit:
            data = labelled(data, commit)
        path = codec.segment_name(partition, shard, sequence)
        sequence += 1
        if store.create(path, data):
            segments.append(Segment(path, len(batch), codec.checksum(data), len(data)))
            left = left[batch_size:]
        elif commit and label_of(read_taken(store, path)):
            segments.append(voided(path))
        else:
            segment, taken = read_segment(store, path)
            segments.append(segment)
            if found is not None and not _identities(taken) <= given:
                found.append(sequence - 1)
            left = subtract(left, written_in(taken))
    return segments, sequence


def _order(record: Encoded) -> tuple[int, str, int, str]:
    version = record.resource_version
    return record.time_us, record.uid, len(version), version


def read_segment(store: Store, path: str) -> tuple[Segment, list[record_pb2.Record]]:
    """A segment as it is in the sink, and its records."""
    data = store.read(path)
    records = [record_pb2.Record.FromString(record) for record in codec.unpack(data)]
    return Segment(path, len(records), codec.checksum(data), len(data)), records


_LABEL = re.compile(rb"\x1f\x8b\x08\x10.{6}commit (\d+)\0", re.DOTALL)
_VOID = codec.pack([])


def labelled(segment: bytes, commit: int) -> bytes:
    """A segment with the number of its commit as the comment of its gzip header (RFC 1952), which readers skip."""
    return segment[:3] + b"\x10" + segment[4:10] + b"commit %d\0" % commit + segment[10:]


def label_of(segment: bytes) -> int:
    """The number of the commit that a segment was written for; 0 when it doesn't say, as in a stream."""
    match = _LABEL.match(segment)
    return int(match[1]) if match else 0


def voided(path: str) -> Segment:
    """What a commit says of a name that another job took: it is to be an empty segment."""
    return Segment(path, 0, codec.checksum(_VOID), len(_VOID))


def void(store: Store, path: str) -> None:
    """Puts an empty segment in the place of one that no commit names. The name stays taken, so none can use it again.

    Only for the job that has written a commit which says so. Safe to repeat.
    """
    while True:
        try:
            if store.read(path) == _VOID:
                return
            store.delete(path)
        except NotFound:
            pass
        store.create(path, _VOID)


Written = dict[str, list[tuple[str, int, int]]]
"""What is in the sink: UID → (resourceVersion, count before, count) of each record."""


def written_in(records: Iterable[record_pb2.Record], into: Written | None = None) -> Written:
    """The identities and the counts of records, added to `into` if that is given."""
    written: Written = {} if into is None else into
    for record in records:
        entry = (record.resource_version, record.count - record.occurrences, record.count)
        written.setdefault(record.uid, []).append(entry)
    return written


def subtract(records: Iterable[Encoded], written: Written) -> list[Encoded]:
    """`records` without those whose identity is written, and without the occurrences that are.

    An Event whose count was 3 when it was written and is 5 now has two new occurrences, whatever its record said. One
    whose count was 5 when it was written is not written again as it was at 4, if the record of 5 counted all since.
    """
    return [rest for one in records if (rest := _rest(one, written.get(one.uid, ()))) is not None]


def _rest(encoded: Encoded, written: Sequence[tuple[str, int, int]]) -> Encoded | None:
    if not written:
        return encoded
    if any(version == encoded.resource_version for version, _, _ in written):
        return None
    record = record_pb2.Record.FromString(encoded.data)
    before, count = record.count - record.occurrences, record.count
    if not record.occurrences:
        return encoded  # a Service or a gap: nothing is counted
    for version, written_before, written_count in written:
        if newer(version, encoded.resource_version):
            if written_before < count <= written_count:
                count = written_before
        elif before < written_count <= count:
            before = written_count
    if before >= count:
        return None
    if count - before == record.occurrences:
        return encoded
    record.occurrences = count - before
    return msgspec.structs.replace(encoded, data=record.SerializeToString())


def _identities(records: Iterable[Encoded] | Iterable[record_pb2.Record]) -> set[tuple[str, str]]:
    return {(record.uid, record.resource_version) for record in records}


def write_epoch(
    carried: Carried, commit: int, key: str, sequence: int | None, records: Iterable[Encoded], batch_size: int
) -> tuple[list[Segment], int]:
    """`write_batch` for a commit, from the next number of its key on: `sequence`, or the carried one, or a new key's.

    Without the records that a dead run wrote and a start took in.
    """
    records = [record for record in records if (record.uid, record.resource_version) not in carried.written]
    if sequence is None:
        sequence = carried.sequences.get(key)
    if sequence is None:
        sequence = open_partition(carried.store, key)
    return write_batch(carried.store, key, sequence, records, batch_size, commit=commit)


def open_partition(store: Store, key: str) -> int:
    """The next number of a key of which the chain says nothing. Notes first that its partition is open.

    The marker holds the next numbers as they are now, by shard: what is later found beyond them, and under no commit,
    was left by a run that died. It stays until the chain forgets the partition's numbers.
    """
    partition, _, shard = key.rpartition("/")
    numbers: dict[str, int] = {}
    for entry in store.list(f"{partition}/"):
        if name := codec.parse_segment(entry.path):
            numbers[name[1]] = name[2] + 1
    marker = layout.open_marker(partition)
    if not store.create(marker, msgspec.json.encode(numbers)):
        numbers = opened_numbers(store, marker)
    return numbers.get(shard, 0)


def opened_numbers(store: Store, marker: str) -> dict[str, int]:
    """By shard, the next numbers of a partition when it was opened."""
    try:
        return msgspec.json.decode(store.read(marker) or b"{}", type=dict[str, int])
    except msgspec.DecodeError as error:
        raise FatalStoreError(f"{store.url}/{marker}: expected numbers by shard in JSON, got {error}") from error


def first_sequence(
    store: Store, key: str, records: Sequence[Encoded], found: list[int] | None = None
) -> tuple[int, list[Encoded]]:
    """In a stream: the next number of a partition key of which no state is known, and what of the records is not there.

    found: as in `write_batch`.
    """
    partition, _, shard = key.rpartition("/")
    sequence = 0
    left, given = list(records), _identities(records)
    for entry in store.list(f"{partition}/{shard}-"):
        name = codec.parse_segment(entry.path)
        if name and name[1] == shard:
            taken = read_segment(store, entry.path)[1]
            sequence = name[2] + 1
            if found is not None and not _identities(taken) <= given:
                found.append(name[2])
            left = subtract(left, written_in(taken))
    return sequence, left


def write_dead(store: Store, letters: Sequence[DeadLetter]) -> str:
    """Writes dead letters as JSON lines, the bytes in base64, and returns the path; the same give the same object."""
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
    """Keeps the next number, and the numbers of the segments that others wrote: each batch is without what they hold.

    After a restored checkpoint a replay can come in other batches and in another order (a list is in the order of
    names), so a segment that a batch finds taken may hold what comes with a later batch.
    """

    NEXT = ReadModifyWriteStateSpec("next", VarIntCoder())
    FOUND = BagStateSpec("found", VarIntCoder())

    def __init__(self, process: Process, batch_size: int) -> None:
        self._process, self._batch_size = process, batch_size

    def setup(self) -> None:
        self._carried = self._process.acquire()
        self._written: dict[str, tuple[set[int], Written]] = {}

    def process(
        self,
        element: tuple[str, Iterable[bytes]],
        following: Any = beam.DoFn.StateParam(NEXT),
        found: Any = beam.DoFn.StateParam(FOUND),
    ) -> Iterator[Segment]:
        key, chunks = element
        store, sequence = self._carried.store, following.read()
        records = [record for chunk in chunks for record in decode_records(chunk)]
        commit, taken = self._carried.commits.get(codec.cluster_of(key), 0), list[int]()
        with self._carried.failing():
            if commit:
                segments, sequence = write_epoch(self._carried, commit, key, sequence, records, self._batch_size)
            else:
                if sequence is None:
                    sequence, records = first_sequence(store, key, records, taken)
                elif earlier := set(found.read()):
                    records = subtract(records, self._written_in(store, key, earlier))
                segments, sequence = write_batch(store, key, sequence, records, self._batch_size, taken)
        for number in taken:
            found.add(number)
        following.write(sequence)
        yield from segments
        yield beam.pvalue.TaggedOutput("sequences", (key, sequence))

    def _written_in(self, store: Store, key: str, numbers: set[int]) -> Written:
        """What these segments of a key hold; each is read once while the key is among the last that were written."""
        read, written = self._written.pop(key, (set(), {}))
        partition, _, shard = key.rpartition("/")
        for number in sorted(numbers - read):
            written_in(read_segment(store, codec.segment_name(partition, shard, number))[1], written)
            read.add(number)
        self._written[key] = read, written
        while len(self._written) > _KEYS_REMEMBERED:
            del self._written[next(iter(self._written))]
        return written


class _WriteDeadFn(beam.DoFn):
    """Writes the dead letters of a bundle together.

    No second GroupIntoBatches: FnApiRunner buffers the timers of a stage by the name of their family only, and would
    give these to BatchByPartition's, which can't decode them.
    """

    def __init__(self, process: Process) -> None:
        self._process = process

    def setup(self) -> None:
        self._carried = self._process.acquire()

    def start_bundle(self) -> None:
        self._letters: dict[str, list[DeadLetter]] = {}

    def process(self, letter: DeadLetter) -> Iterator[tuple[str, int]]:
        letters = self._letters.setdefault(letter.cluster, [])
        letters.append(letter)
        if len(letters) >= _DEAD_LETTERS:
            yield self._written(letter.cluster)

    def finish_bundle(self) -> Iterator[WindowedValue]:
        for cluster in list(self._letters):
            yield GlobalWindows.windowed_value(self._written(cluster))

    def _written(self, cluster: str) -> tuple[str, int]:
        letters = self._letters.pop(cluster)
        with self._carried.failing():
            return write_dead(self._carried.store, letters), len(letters)


@dataclasses.dataclass
class WriteBatches(beam.PTransform):
    """(partition key, chunks) → `segments` Segment, and `sequences` (partition key, next number)."""

    process: Process
    batch_size: int

    def expand(self, batches: beam.PCollection) -> Any:
        write = beam.ParDo(_WriteFn(self.process, self.batch_size))
        outputs = batches | "Write" >> write.with_outputs("sequences", main="segments")
        return typed(outputs, sequences=tuple[str, int], segments=Segment)


@dataclasses.dataclass
class WriteDeadLetters(beam.PTransform):
    """DeadLetter → (path, count) of each object written under `_dead/`."""

    process: Process

    def expand(self, letters: beam.PCollection) -> Any:
        return letters | "Write" >> beam.ParDo(_WriteDeadFn(self.process)).with_output_types(tuple[str, int])
