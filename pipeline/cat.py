"""`python -m pipeline.cat OUTPUT`: prints the records of a sink as JSON lines, oldest first."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO, cast

import msgspec
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from kubehistory.record_pb2 import Kind, Record

from pipeline.reading import Parser, rfc3339, span_of, store_of
from transforms.read import read_segments, segments
from transforms.store import Retrying, Store, StoreError

_POLL = 2.0  # seconds between two looks for new segments
_RECENT_US = 2 * 3_600_000_000  # each look lists the hours from this long ago; every 30th, all that were asked for
_FULL_LOOK = 30
_ATTEMPTS = 4  # of a read, in about a second; --follow waits for as long as it takes

# --- a record as JSON -------------------------------------------------------------------------------------------------


_Table = dict[int, tuple[str, Callable[[Any], Any] | None]]
"""By the number of a message's field: its key in JSON, and how its value gets there (None: as it is)."""


def as_dict(record: Record) -> dict[str, Any]:
    """A record as what JSON has: snake_case names, enum values by name, int64 as numbers; empty fields are left out.

    A field that is a time (`*_us`) loses the suffix and becomes an RFC 3339 string in UTC with microseconds; a time
    that a calendar doesn't have stays a number.
    """
    return _as_dict(_RECORD, record)


def _as_dict(table: _Table, message: Message) -> dict[str, Any]:
    out = {}
    for field, value in message.ListFields():
        key, convert = table[field.number]
        out[key] = value if convert is None else convert(value)
    return out


def _table(message: Descriptor) -> _Table:
    return {field.number: (field.name.removesuffix("_us"), _converter(field)) for field in message.fields}


def _converter(field: FieldDescriptor) -> Callable[[Any], Any] | None:
    if field.name.endswith("_us"):
        return rfc3339
    if field.enum_type is not None:
        names = {number: value.name for number, value in field.enum_type.values_by_number.items()}
        return lambda number: names.get(number, number)
    if field.message_type is None:
        return list if field.is_repeated else None
    if field.message_type.GetOptions().map_entry:
        return lambda entries: dict(sorted(entries.items()))
    convert = partial(_as_dict, _table(field.message_type))
    return (lambda messages: [convert(message) for message in messages]) if field.is_repeated else convert


_RECORD = _table(cast(Descriptor, Record.DESCRIPTOR))

# --- which records ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Filter:
    """Which records to print; an empty field passes all.

    namespaces: the event's or the involved object's. services: "namespace/name" or "name", under impact or changed.
    kinds: the involved object's ("Pod") or the record's ("SERVICE_CHANGE", "GAP").
    """

    namespaces: frozenset[str] = frozenset()
    services: frozenset[str] = frozenset()
    reasons: frozenset[str] = frozenset()
    types: frozenset[str] = frozenset()
    kinds: frozenset[str] = frozenset()

    def __call__(self, record: Record) -> bool:
        return (
            (not self.reasons or record.reason in self.reasons)
            and (not self.types or record.type in self.types)
            and (
                not self.namespaces
                or record.namespace in self.namespaces
                or record.involved.namespace in self.namespaces
            )
            and (not self.kinds or record.involved.kind in self.kinds or Kind.Name(record.kind) in self.kinds)
            and (not self.services or any(not self.services.isdisjoint(names) for names in _services(record)))
        )


def _services(record: Record) -> Iterator[tuple[str, str]]:
    """The Services that a record is about, each as "name" and as "namespace/name"."""
    for service in record.services:
        yield service.name, f"{service.namespace}/{service.name}"
    if record.HasField("service_change"):
        yield record.name, f"{record.namespace}/{record.name}"
    if record.HasField("endpoints_change"):
        service_name = record.endpoints_change.service
        yield service_name, f"{record.namespace}/{service_name}"


# --- the command ------------------------------------------------------------------------------------------------------


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        "python -m pipeline.cat",
        "Prints the records of OUTPUT as JSON lines, oldest first.",
        "A filter that is given several times passes what any of them passes.",
    )
    parser.add_argument("--follow", action="store_true", help="go on with new records as they appear, until Ctrl-C")
    for option, name, text in (
        ("--namespace", "NAME", "only if the event or its involved object is in this namespace"),
        ("--service", "[NS/]NAME", "only if this Service is under impact, or changed"),
        ("--reason", "REASON", "only with this reason, such as BackOff"),
        ("--type", "TYPE", "only of this type, Normal or Warning"),
        ("--kind", "KIND", "only about this kind of object (Pod, Node, ...), or records of this kind (GAP, ...)"),
    ):
        parser.add_argument(option, metavar=name, action="append", default=[], help=text)
    parser.add_argument("--limit", metavar="N", type=int, help="stop after so many records")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command. Returns 0; 1 when a segment could not be read; 2, after a line on stderr, for a wrong option.

    A reader that goes away (`| head`) and Ctrl-C during --follow end it with 0.
    """
    try:
        args = _arguments(sys.argv[1:] if argv is None else argv)
    except SystemExit as stop:  # --help, or an error that the parser has printed
        return int(stop.code or 0)
    now_us = time.time_ns() // 1000
    try:
        since_us, until_us = span_of(args, now_us)
        if args.limit is not None and args.limit < 1:
            raise ValueError(f"expected a limit of 1 or more, got {args.limit}")
        store = Retrying(store_of(args).open(), attempts=None if args.follow else _ATTEMPTS, report=_complain)
        store.check(write=False)
    except (ValueError, StoreError) as error:
        _complain(str(error))
        return 2
    wanted = Filter(*(frozenset(of) for of in (args.namespace, args.service, args.reason, args.type, args.kind)))
    bad: list[str] = []

    def on_bad(path: str, error: Exception) -> None:
        bad.append(path)
        _complain(str(error) if path in str(error) else f"{path}: {error}")

    batches = follow(store, since_us, until_us, args.cluster, on_bad, once=not args.follow)
    try:
        _print(batches, wanted, args.limit, sys.stdout.buffer)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what the interpreter flushes at its end
        return 0
    except KeyboardInterrupt:
        return 0 if args.follow else 130
    except StoreError as error:
        _complain(str(error))
        return 1
    finally:
        store.close()
    return 1 if bad else 0


def follow(
    store: Store,
    since_us: int | None,
    until_us: int | None,
    clusters: Sequence[str],
    on_bad: Callable[[str, Exception], None],
    *,
    once: bool = False,
    clock: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Iterator[Record]]:
    """The records that are there, oldest first; then, unless `once`, those of new segments, a batch each 2 seconds.

    A new segment in an hour that is more than two hours old is seen within a minute.
    """
    seen: set[str] = set()

    def new(start_us: int | None) -> Iterator[str]:
        for path in segments(store, start_us, until_us, clusters):
            if path not in seen:
                seen.add(path)
                yield path

    yield read_segments(store, new(since_us), since_us, until_us, on_bad)
    looks = 0
    while not once:
        sleep(_POLL)
        looks += 1
        recent_us = int(clock() * 1e6) - _RECENT_US
        start_us = since_us if looks % _FULL_LOOK == 0 else max(recent_us, since_us or recent_us)
        yield read_segments(store, new(start_us), since_us, until_us, on_bad)


def _print(batches: Iterator[Iterator[Record]], wanted: Filter, limit: int | None, out: BinaryIO) -> None:
    encode, left = msgspec.json.Encoder().encode, limit
    for records in batches:
        for record in records:
            if not wanted(record):
                continue
            out.write(encode(as_dict(record)) + b"\n")
            if left is not None:
                left -= 1
                if left == 0:
                    out.flush()
                    return
        out.flush()


def _complain(message: str) -> None:
    print(f"pipeline.cat: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
