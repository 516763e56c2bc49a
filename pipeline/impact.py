"""`python -m pipeline.impact OUTPUT --service NS/NAME`: what happened to a Service, from the files alone.

Its own events, its pods', nodes' and workloads' events, its own changes and those of its endpoints, oldest first.
Repeats are one row: the same object, reason and message but for numbers and identifiers, with the first time, the
last and how often it truly occurred. Messages are cut to the width of a terminal, and whole elsewhere.

`--format json` prints one document: {"service", "from", "to", "summary": {...}, "timeline": [{"time", "last_time",
"count", "kind", "warning", "object", "reason", "message", "how"}], "gaps": [{"from", "to", "why"}]}, times as in
pipeline.cat.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import difflib
import os
import re
import shutil
import sys
import textwrap
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import msgspec
from kubehistory import record_pb2
from kubehistory.record_pb2 import Record

from pipeline.cat import parse_time, rfc3339
from transforms.codec import CodecError
from transforms.read import read_records
from transforms.store import Retrying, StoreConfig, StoreError

_IDENTIFIERS = re.compile(r"\b[0-9a-f]{8}-[0-9a-f-]{27}\b|\b0x[0-9a-f]+\b|\d+(?:\.\d+)*")
_SHOWN = 6  # names of one kind in the summary


@dataclasses.dataclass
class Row:
    """One line of the timeline: something that happened to one object, `count` times from `time_us` to `last_us`."""

    time_us: int
    last_us: int
    count: int
    kind: str
    warning: bool
    object: str
    reason: str
    message: str
    how: str


@dataclasses.dataclass
class Timeline:
    """What happened to one Service. Rows are in the order of their first times."""

    service: str
    rows: list[Row] = dataclasses.field(default_factory=list)
    gaps: list[tuple[int, int, str]] = dataclasses.field(default_factory=list)
    events: int = 0
    warnings: int = 0
    reasons: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    pods: set[str] = dataclasses.field(default_factory=set)
    nodes: set[str] = dataclasses.field(default_factory=set)
    joined: int = 0
    left: int = 0
    unready: int = 0
    changes: int = 0


def timeline(records: Iterable[Record], service: str, others: collections.Counter[str] | None = None) -> Timeline:
    """Folds records, oldest first, into the timeline of "namespace/name"; counts the other Services it meets."""
    found = Timeline(service)
    folded: dict[tuple[str, str, str, str], Row] = {}
    for record in records:
        if record.kind == record_pb2.GAP:
            found.gaps.append((record.gap.from_us, record.gap.to_us, record.gap.why))
            continue
        how = ""
        for one in record.services:
            name = f"{one.namespace}/{one.name}"
            if name == service:
                how = one.how or "self"
            elif others is not None:
                others[name] += 1
        if not how:
            continue
        _count(found, record)
        row = _row(record, how)
        key = (row.kind, row.object, row.reason, _IDENTIFIERS.sub("#", row.message))
        known = folded.get(key) if record.kind == record_pb2.EVENT else None
        if known is None:
            folded[key] = row
            found.rows.append(row)
        else:
            known.last_us, known.count, known.message = row.last_us, known.count + row.count, row.message
    found.rows.sort(key=lambda row: row.time_us)
    return found


def _count(found: Timeline, record: Record) -> None:
    if record.kind == record_pb2.EVENT:
        found.events += record.occurrences
        found.warnings += record.occurrences if record.type == "Warning" else 0
        found.reasons[record.reason] += record.occurrences
        if record.involved.kind == "Pod":
            found.pods.add(record.involved.name)
        if record.node:
            found.nodes.add(record.node)
    elif record.kind == record_pb2.SERVICE_CHANGE:
        found.changes += record.service_change.change != record_pb2.ServiceChange.LISTED
    else:
        change = record.endpoints_change
        found.joined += len(change.joined)
        found.left += len(change.left)
        found.unready += len(change.became_unready)


def _row(record: Record, how: str) -> Row:
    involved = record.involved
    row = Row(record.time_us, record.time_us, 1, "EVENT", False, f"{involved.kind}/{involved.name}", "", "", how)
    if record.kind == record_pb2.EVENT:
        first = record.first_time_us or record.event_time_us or record.time_us
        row.time_us = min(first, record.time_us) if record.occurrences > 1 else record.time_us
        row.count, row.warning = record.occurrences, record.type == "Warning"
        row.reason, row.message = record.reason, " ".join(record.message.split())
    elif record.kind == record_pb2.SERVICE_CHANGE:
        row.kind = "SERVICE"
        row.reason = record_pb2.ServiceChange.Change.Name(record.service_change.change).capitalize()
        row.message = service_change(record.service_change)
        row.warning = record.service_change.change == record_pb2.ServiceChange.DELETED
    else:
        row.kind = "ENDPOINTS"
        row.reason, row.message = endpoints_change(record.endpoints_change)
        row.warning = bool(record.endpoints_change.left or record.endpoints_change.became_unready)
    return row


def service_change(change: record_pb2.ServiceChange) -> str:
    """What changed of a Service, before → after, and how many pods were behind it."""
    parts = []
    for name in change.changed:
        before, after = _shown(change.before, name), _shown(change.after, name)
        parts.append(f"{name}: {before} -> {after}" if before != after else name)
    if not parts:
        state = change.after if change.HasField("after") else change.before
        parts = [f"{state.type or 'ClusterIP'}, ports {_shown(state, 'ports')}, selector {_shown(state, 'selector')}"]
    return f"{'; '.join(parts)}; {len(change.pods)} pods behind it"


def endpoints_change(change: record_pb2.EndpointsChange) -> tuple[str, str]:
    """A reason and a message for what became of endpoints."""
    parts = [
        (reason, f"{verb} {', '.join(one.name or ','.join(one.addresses) for one in endpoints)}")
        for reason, verb, endpoints in (
            ("Left", "left:", change.left),
            ("Unready", "unready:", change.became_unready),
            ("Joined", "joined:", change.joined),
            ("Ready", "ready:", change.became_ready),
        )
        if endpoints
    ]
    return "+".join(reason for reason, _ in parts), "; ".join(text for _, text in parts)


def _shown(state: record_pb2.ServiceState, name: str) -> str:
    if name == "ports":
        ports = [f"{port.port}->{port.target_port or port.port}/{port.protocol or 'TCP'}" for port in state.ports]
        return ",".join(ports) or "none"
    field = {"clusterIP": "cluster_ip", "externalName": "external_name"}.get(name, name)
    value = getattr(state, field, "")
    if isinstance(value, Mapping):
        return ",".join(f"{key}={value[key]}" for key in sorted(value)) or "none"
    return str(value) or "none"


# --- output ---------------------------------------------------------------------------------------


def as_document(found: Timeline) -> dict[str, Any]:
    """The timeline as one JSON document; see the module's docstring."""
    times = [row.time_us for row in found.rows] + [row.last_us for row in found.rows]
    return {
        "service": found.service,
        "from": rfc3339(min(times)) if times else None,
        "to": rfc3339(max(times)) if times else None,
        "summary": {
            "events": found.events,
            "warnings": found.warnings,
            "reasons": dict(found.reasons.most_common()),
            "pods": sorted(found.pods),
            "nodes": sorted(found.nodes),
            "endpoints_joined": found.joined,
            "endpoints_left": found.left,
            "endpoints_became_unready": found.unready,
            "service_changes": found.changes,
        },
        "timeline": [
            {
                "time": rfc3339(row.time_us),
                "last_time": rfc3339(row.last_us),
                "count": row.count,
                "kind": row.kind,
                "warning": row.warning,
                "object": row.object,
                "reason": row.reason,
                "message": row.message,
                "how": row.how,
            }
            for row in found.rows
        ],
        "gaps": [{"from": rfc3339(start), "to": rfc3339(end), "why": why} for start, end, why in found.gaps],
    }


def as_text(found: Timeline, width: int = 0, colour: bool = False) -> Iterator[str]:
    """The timeline as lines. width: of the terminal, in columns; 0 cuts nothing. Times are UTC."""
    start, end = min(row.time_us for row in found.rows), max(row.last_us for row in found.rows)
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in found.reasons.most_common(_SHOWN))
    yield f"{found.service}   {_time(start)} to {_time(end)} UTC"
    yield f"  events     {found.events:,}, {found.warnings:,} of them warnings: {reasons or 'none'}"
    yield f"  pods       {_names(found.pods)}"
    yield f"  nodes      {_names(found.nodes)}"
    yield f"  endpoints  {found.joined:,} joined, {found.left:,} left, {found.unready:,} turned unready"
    yield f"  service    {found.changes:,} changes"
    for begins, ends, why in found.gaps:
        yield f"  GAP        {_time(begins)} to {_time(ends)}: {why}"
    yield ""
    same_day = _time(start)[:10] == _time(end)[:10]
    table = [_cells(row, same_day) for row in found.rows]
    widths = [max(len(cells[column]) for cells in table) for column in range(6)]
    for row, cells in zip(found.rows, table, strict=True):
        line = "  ".join(cell.ljust(size) for cell, size in zip(cells[:6], widths, strict=True))
        line = f"{line}  {cells[6]}"
        if width and len(line) > width:
            line = line[: max(width - 1, 20)] + "…"
        yield f"\x1b[33m{line}\x1b[0m" if colour and row.warning else line


def _cells(row: Row, same_day: bool) -> tuple[str, ...]:
    begin = 11 if same_day else 0
    first, last = _time(row.time_us)[begin:], _time(row.last_us)[begin:]
    count = f"x{row.count}" if row.count > 1 else ""
    return (
        first,
        "" if first == last else f"..{last}",
        count,
        "!" if row.warning else "",
        row.object,
        row.reason,
        row.message,
    )


def _time(time_us: int) -> str:
    return str(rfc3339(time_us))[:19].replace("T", " ")


def _names(names: set[str]) -> str:
    shown = sorted(names)[:_SHOWN]
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    return f"{len(names)}: {', '.join(shown)}{more}" if names else "none"


# --- the command ------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; --help tells more\n")


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(
        prog="python -m pipeline.impact",
        description="Prints what happened to a Service: its own, its pods' and its nodes' events, and its changes.",
        allow_abbrev=False,
    )
    parser.add_argument("output", metavar="OUTPUT", help="a directory or s3://bucket/prefix, the --output of the job")
    parser.add_argument("--service", metavar="NS/NAME", required=True, help="the Service")
    parser.add_argument("--cluster", metavar="NAME", action="append", default=[], help="only of this cluster")
    parser.add_argument("--since", metavar="TIME", help="only from then on: 2026-01-31T14:00:00Z, or 15m, 2h, 1d ago")
    parser.add_argument("--until", metavar="TIME", help="only before then, given like --since")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="[text]")
    parser.add_argument("--s3_endpoint", metavar="URL", help="of an S3 server that is not AWS's")
    parser.add_argument("--s3_region", help="of the bucket")
    parser.add_argument("--s3_profile", help="of the AWS configuration")
    arguments = parser.parse_args(argv)
    if not re.fullmatch(r"[^/]+/[^/]+", arguments.service):
        parser.error(f"expected --service to be NAMESPACE/NAME, got {arguments.service!r}")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """0: printed. 1: the Service is not in the history, or a file can't be read. 2: it could not be asked for."""
    try:
        args = _arguments(sys.argv[1:] if argv is None else argv)
    except SystemExit as stop:  # --help, or an error that the parser has printed
        return int(stop.code or 0)
    now_us = time.time_ns() // 1000
    try:
        since_us = None if args.since is None else parse_time(args.since, now_us)
        until_us = None if args.until is None else parse_time(args.until, now_us)
        store = Retrying(StoreConfig(args.output, args.s3_endpoint, args.s3_region, args.s3_profile).open(), attempts=4)
        store.check(write=False)
    except (ValueError, StoreError) as error:
        _complain(str(error))
        return 2
    bad: list[str] = []
    others: collections.Counter[str] = collections.Counter()

    def on_bad(path: str, error: StoreError | CodecError | Exception) -> None:
        bad.append(path)
        _complain(str(error) if path in str(error) else f"{path}: {error}")

    try:
        found = timeline(read_records(store, since_us, until_us, args.cluster, on_bad), args.service, others)
    except StoreError as error:
        _complain(str(error))
        return 1
    if not found.rows:
        near = difflib.get_close_matches(args.service, others, 3, 0.5) or [name for name, _ in others.most_common(3)]
        hint = f"; there is {', '.join(near)}" if near else ""
        _complain(f"expected something about the Service {args.service}, found nothing in this span{hint}")
        return 1
    try:
        _print(found, args.format)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what the interpreter flushes at its end
    return 1 if bad else 0


def _print(found: Timeline, form: str) -> None:
    if form == "json":
        print(msgspec.json.encode(as_document(found)).decode())
        return
    terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if terminal else 0
    for line in as_text(found, width, terminal and "NO_COLOR" not in os.environ):
        print(line)


def _complain(message: str) -> None:
    print(f"pipeline.impact: {textwrap.shorten(message, 500)}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
