"""`python -m pipeline.impact OUTPUT --service NS/NAME`: what happened to a Service, from the files alone.

Its own events, its pods', nodes' and workloads' events, its own changes and those of its endpoints, oldest first.
Repeats are one row: the same object, reason and message but for numbers and identifiers, with the first time, the
last and how often it truly occurred; steps of scaling stay apart. Messages are cut to the width of a terminal, and
whole elsewhere. Clusters that have a Service of the name are told one after the other.

`--format json` prints one document a cluster, each a line: {"cluster", "service", "from", "to", "summary": {...},
"timeline": [{"time", "last_time", "count", "kind", "warning", "object", "reason", "message", "how"}], "gaps":
[{"from", "to", "resource", "why"}]}, times as in pipeline.cat. `summary.ready` is how many endpoints were ready of how
many there were: at first, when they were fewest, and at last, as far as slices changed in the span; null when none did.
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
from functools import partial
from typing import Any, NamedTuple

import msgspec
from kubehistory import record_pb2 as pb

from pipeline.reading import Parser, rfc3339, span_of, store_of
from transforms.read import read_records
from transforms.store import Retrying, StoreError

_IDENTIFIERS = re.compile(r"\b[0-9a-f]{8}-[0-9a-f-]{27}\b|\b0x[0-9a-f]+\b|\d+(?:\.\d+)*")
_SCALING = frozenset({"ScalingReplicaSet", "SuccessfulRescale"})  # whose numbers are the news
_SHOWN = 6  # names of one kind in the summary
_WIDE = 110  # columns from which on a terminal has room for last times
_GAP_SHOWN = 3  # gaps of one resource and reason in the summary


# --- the timeline -----------------------------------------------------------------------------


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


class Ready(NamedTuple):
    """How many endpoints were ready, of how many there were, from when on."""

    time_us: int
    ready: int
    total: int

    def __str__(self) -> str:
        return f"{self.ready} of {self.total} ready"


@dataclasses.dataclass
class Timeline:
    """What happened to one Service of one cluster. Rows are in the order of their first times.

    endpoints: how many were ready, at first and after each change, over the slices that changed.
    """

    service: str
    cluster: str = ""
    rows: list[Row] = dataclasses.field(default_factory=list)
    gaps: list[pb.Gap] = dataclasses.field(default_factory=list)
    endpoints: list[Ready] = dataclasses.field(default_factory=list)
    events: int = 0
    warnings: int = 0
    reasons: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    pods: set[str] = dataclasses.field(default_factory=set)
    nodes: set[str] = dataclasses.field(default_factory=set)
    joined: int = 0
    left: int = 0
    unready: int = 0
    changes: int = 0

    @property
    def span(self) -> tuple[int, int]:
        """From the first occurrence to the last."""
        return min(row.time_us for row in self.rows), max(row.last_us for row in self.rows)

    @property
    def fewest(self) -> Ready:
        """When the fewest endpoints were ready, the first time."""
        return min(self.endpoints, key=lambda one: (one.ready, one.time_us))


def timelines(
    records: Iterable[pb.Record], service: str, others: collections.Counter[str] | None = None
) -> list[Timeline]:
    """Folds records, oldest first, into the timelines of "namespace/name", one a cluster, in the order of their names.

    others: counts the other Services that it meets.
    """
    namespace, found, gaps = service.partition("/")[0], dict[str, _Folding](), list[pb.Record]()
    for record in records:
        if record.kind == pb.GAP:
            if record.gap.namespace in ("", namespace):
                gaps.append(record)
            continue
        how = ""
        for one in record.services:
            name = f"{one.namespace}/{one.name}"
            if name == service:
                how = one.how or "self"
            elif others is not None:
                others[name] += 1
        if how:
            if record.cluster not in found:
                found[record.cluster] = _Folding(Timeline(service, record.cluster))
            found[record.cluster].add(record, how)
    for record in gaps:
        if record.cluster in found:
            found[record.cluster].timeline.gaps.append(record.gap)
    return [found[cluster].finished() for cluster in sorted(found)]


class _Folding:
    """One timeline as it grows."""

    def __init__(self, timeline: Timeline) -> None:
        self.timeline = timeline
        self._folded: dict[tuple[str, str, str], Row] = {}
        self._slices: dict[str, tuple[int, int]] = {}  # (ready, total) of each at first
        self._changes: list[tuple[Row, str, tuple[int, int]]] = []

    def add(self, record: pb.Record, how: str) -> None:
        """Takes in a record that names the Service."""
        match record.kind:
            case pb.EVENT:
                self._add_event(record, how)
            case pb.SERVICE_CHANGE:
                self.timeline.changes += record.service_change.change != pb.ServiceChange.LISTED
                self.timeline.rows.append(_service_row(record, how))
            case pb.ENDPOINTS_CHANGE:
                self._add_endpoints(record, how)

    def finished(self) -> Timeline:
        """The timeline, with its rows in order and the endpoints counted over all slices."""
        self.timeline.rows.sort(key=lambda row: row.time_us)
        slices = self._slices
        if self._changes:
            start_us = self._changes[0][0].time_us
            self.timeline.endpoints.append(_sum(start_us, slices))
        for row, uid, after in self._changes:
            slices[uid] = after
            now = _sum(row.time_us, slices)
            self.timeline.endpoints.append(now)
            row.message = f"{now}; {row.message}"
        return self.timeline

    def _add_event(self, record: pb.Record, how: str) -> None:
        found, row = self.timeline, _event_row(record, how)
        found.events += record.occurrences
        found.warnings += record.occurrences * row.warning
        found.reasons[record.reason] += record.occurrences
        if record.involved.kind == "Pod":
            found.pods.add(record.involved.name)
        if record.node:
            found.nodes.add(record.node)
        pattern = row.message if row.reason in _SCALING else _IDENTIFIERS.sub("#", row.message)
        key = (f"{record.involved.namespace}/{row.object}", row.reason, pattern)
        known = self._folded.setdefault(key, row)
        if known is row:
            found.rows.append(row)
            return
        known.time_us, known.last_us = min(known.time_us, row.time_us), row.last_us
        known.count, known.message = known.count + row.count, row.message
        known.warning = known.warning or row.warning

    def _add_endpoints(self, record: pb.Record, how: str) -> None:
        found, change = self.timeline, record.endpoints_change
        leaving = change.former_service == found.service.partition("/")[2]
        coming = bool(change.former_service) and not leaving
        joined, left = () if leaving else change.joined, () if coming else change.left
        after = (0, 0) if leaving else (change.ready, change.total)
        there = record.found_by_list and not left and len(joined) == change.total
        if not there:
            found.joined += len(joined)
            found.left += len(left)
            found.unready += len(change.became_unready)
        lost = sum(one.ready for one in left) + len(change.became_unready)
        gained = sum(one.ready for one in joined) + len(change.became_ready)
        before = (after[0] - gained + lost, after[1] - len(joined) + len(left))
        self._slices.setdefault(record.uid, after if there else before)
        row = _row(record, "ENDPOINTS", how)
        row.warning = lost > gained
        row.reason, row.message = endpoints_change(change, joined, left, there)
        row.message += " (found by a list)" if record.found_by_list and not there else ""
        found.rows.append(row)
        self._changes.append((row, record.uid, after))


def _sum(time_us: int, slices: Mapping[str, tuple[int, int]]) -> Ready:
    return Ready(time_us, sum(ready for ready, _ in slices.values()), sum(total for _, total in slices.values()))


def _row(record: pb.Record, kind: str, how: str) -> Row:
    name = f"{record.involved.kind}/{record.involved.name}"
    return Row(record.time_us, record.time_us, 1, kind, False, name, "", "", how)


def _event_row(record: pb.Record, how: str) -> Row:
    row = _row(record, "EVENT", how)
    if record.occurrences > 1:
        row.time_us = min(record.first_time_us or record.event_time_us or record.time_us, record.time_us)
    row.count, row.warning = record.occurrences, record.type == "Warning"
    row.reason, row.message = record.reason, " ".join(record.message.split())
    return row


def _service_row(record: pb.Record, how: str) -> Row:
    row, change = _row(record, "SERVICE", how), record.service_change
    row.reason = pb.ServiceChange.Change.Name(change.change).capitalize()
    row.message = service_change(change)
    row.message += " (found by a list)" if record.found_by_list and change.change != pb.ServiceChange.LISTED else ""
    row.warning = change.change == pb.ServiceChange.DELETED
    return row


def service_change(change: pb.ServiceChange) -> str:
    """What changed of a Service, before → after, and how many pods were behind it."""
    parts = []
    for name in change.changed:
        before, after = _shown(change.before, name), _shown(change.after, name)
        parts.append(f"{name}: {before} -> {after}" if before != after else name)
    if not parts:
        state = change.after if change.HasField("after") else change.before
        parts = [f"{state.type or 'ClusterIP'}, ports {_shown(state, 'ports')}, selector {_shown(state, 'selector')}"]
    return f"{'; '.join(parts)}; {len(change.pods)} {'pod' if len(change.pods) == 1 else 'pods'} behind it"


def endpoints_change(
    change: pb.EndpointsChange, joined: Sequence[pb.EndpointRef], left: Sequence[pb.EndpointRef], there: bool = False
) -> tuple[str, str]:
    """A reason and a message for what became of endpoints. there: nobody knows since when those that joined are."""
    parts = [
        (reason, f"{verb}: {', '.join(_named(one, mark) for one in endpoints)}")
        for reason, verb, endpoints, mark in (
            ("Left", "left", left, False),
            ("Unready", "unready", change.became_unready, False),
            ("Listed" if there else "Joined", "there" if there else "joined", joined, True),
            ("Ready", "ready", change.became_ready, False),
        )
        if endpoints
    ]
    return "+".join(reason for reason, _ in parts), "; ".join(text for _, text in parts)


def _named(one: pb.EndpointRef, mark_unready: bool) -> str:
    return (one.name or ",".join(one.addresses)) + (" (not ready)" if mark_unready and not one.ready else "")


def _shown(state: pb.ServiceState, name: str) -> str:
    if name == "ports":
        return ",".join(_port(port) for port in state.ports) or "none"
    field = {"clusterIP": "cluster_ip", "externalName": "external_name"}.get(name, name)
    value = getattr(state, field, "")
    if isinstance(value, Mapping):
        return ",".join(f"{key}={value[key]}" for key in sorted(value)) or "none"
    return str(value) or "none"


def _port(port: pb.Port) -> str:
    name, node = f"{port.name}:" if port.name else "", f",node {port.node_port}" if port.node_port else ""
    return f"{name}{port.port}->{port.target_port or port.port}/{port.protocol or 'TCP'}{node}"


# --- output -----------------------------------------------------------------------------------


def as_document(found: Timeline) -> dict[str, Any]:
    """The timeline as a JSON document; see the module's docstring."""
    start, end = found.span
    ready = None
    if found.endpoints:
        points = {"first": found.endpoints[0], "fewest": found.fewest, "last": found.endpoints[-1]}
        ready = {
            name: {"time": rfc3339(one.time_us), "ready": one.ready, "total": one.total} for name, one in points.items()
        }
    return {
        "cluster": found.cluster,
        "service": found.service,
        "from": rfc3339(start),
        "to": rfc3339(end),
        "summary": {
            "events": found.events,
            "warnings": found.warnings,
            "reasons": dict(found.reasons.most_common()),
            "pods": sorted(found.pods),
            "nodes": sorted(found.nodes),
            "ready": ready,
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
        "gaps": [
            {"from": rfc3339(gap.from_us), "to": rfc3339(gap.to_us), "resource": gap.resource, "why": gap.why}
            for gap in found.gaps
        ],
    }


def as_text(found: Timeline, width: int = 0, colour: bool = False) -> Iterator[str]:
    """The timeline as lines. width: of the terminal, in columns; 0 cuts nothing. Times are UTC."""
    start, end = found.span
    same_day = _time(start)[:10] == _time(end)[:10]
    for line in _summary(found, start, end, same_day):
        yield _cut(line, width)
    yield ""
    table = [_cells(row, same_day, width) for row in found.rows]
    columns = [column for column in range(6) if column != 1 or not width or width >= _WIDE]
    widths = {column: max(len(cells[column]) for cells in table) for column in columns}
    for row, cells in zip(found.rows, table, strict=True):
        aligned = "  ".join(cells[column].ljust(widths[column]) for column in columns)
        line = _cut(f"{aligned}  {cells[6]}", width)
        yield f"\x1b[33m{line}\x1b[0m" if colour and row.warning else line


def _summary(found: Timeline, start: int, end: int, same_day: bool) -> Iterator[str]:
    where = f" in {found.cluster}" if found.cluster else ""
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in found.reasons.most_common(_SHOWN))
    yield f"{found.service}{where}   {_time(start)} to {_time(end)[11 if same_day else 0 :]} UTC"
    yield f"  events     {found.events:,}, {found.warnings:,} of them warnings: {reasons or 'none'}"
    yield f"  pods       {_names(found.pods)}"
    yield f"  nodes      {_names(found.nodes)}"
    yield f"  endpoints  {_endpoints(found, same_day)}"
    yield f"  service    changed {_times(found.changes)}"
    gaps: dict[tuple[str, str], list[pb.Gap]] = collections.defaultdict(list)
    for gap in found.gaps:
        gaps[gap.resource, gap.why].append(gap)
    for (resource, why), several in gaps.items():
        spans = ", ".join(f"{_time(gap.from_us)} to {_time(gap.to_us)}" for gap in several[:_GAP_SHOWN])
        more = f" and {len(several) - _GAP_SHOWN} more" if len(several) > _GAP_SHOWN else ""
        yield f"  GAP        {resource} {spans}{more}: {_printable(why)}"


def _endpoints(found: Timeline, same_day: bool) -> str:
    if not found.endpoints:
        return "no change"
    first, fewest, last = found.endpoints[0], found.fewest, found.endpoints[-1]
    moves = f"{found.joined:,} joined, {found.left:,} left, {found.unready:,} turned unready"
    if fewest.ready in (first.ready, last.ready):
        return f"{first} at first, {last} at last; {moves}"
    return f"{first} at first, {fewest} at {_time(fewest.time_us)[11 if same_day else 0 :]}, {last} at last; {moves}"


def _cells(row: Row, same_day: bool, width: int) -> tuple[str, ...]:
    begin = 11 if same_day else 0
    first, last = _time(row.time_us)[begin:], _time(row.last_us)[begin:]
    return (
        first,
        "" if first == last else f"..{last}",
        f"x{row.count}" if row.count > 1 else "",
        "!" if row.warning else "",
        _elided(_printable(row.object), max(20, width // 4) if width else 0),
        _elided(_printable(row.reason), max(12, width // 7) if width else 0),
        _printable(row.message),
    )


def _time(time_us: int) -> str:
    return str(rfc3339(time_us))[:19].replace("T", " ")


def _times(count: int) -> str:
    return "never" if count == 0 else "once" if count == 1 else f"{count:,} times"


def _names(names: set[str]) -> str:
    shown = sorted(names)[:_SHOWN]
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    return f"{len(names)}: {', '.join(shown)}{more}" if names else "none"


def _cut(line: str, width: int) -> str:
    return line[: max(width - 1, 20)] + "…" if width and len(line) > width else line.rstrip()


def _elided(text: str, width: int) -> str:
    """A name without its middle: its end tells it from others."""
    if not width or len(text) <= width:
        return text
    return f"{text[: width - width // 2 - 1]}…{text[len(text) - width // 2 :]}"


def _printable(text: str) -> str:
    """What a message says can't command the terminal."""
    return text if text.isprintable() else "".join(one if one.isprintable() else "?" for one in text)


# --- the command ------------------------------------------------------------------------------


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        "python -m pipeline.impact",
        "Prints what happened to a Service: its own, its pods' and its nodes' events, and its changes.",
    )
    parser.add_argument("--service", metavar="NS/NAME", required=True, help="the Service")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="[text]")
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
    try:
        since_us, until_us = span_of(args, time.time_ns() // 1000)
        store = Retrying(store_of(args).open(), attempts=4, report=_complain)
        store.check(write=False)
    except (ValueError, StoreError) as error:
        _complain(str(error))
        return 2
    bad: list[str] = []
    others: collections.Counter[str] = collections.Counter()

    def on_bad(path: str, error: Exception) -> None:
        bad.append(path)
        _complain(str(error) if path in str(error) else f"{path}: {error}")

    try:
        found = timelines(read_records(store, since_us, until_us, args.cluster, on_bad), args.service, others)
    except StoreError as error:
        _complain(str(error))
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        store.close()
    if not found:
        _complain(_unknown(args.service, others))
        return 1
    try:
        _print(found, args.format)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what the interpreter flushes at its end
    return 1 if bad else 0


def _unknown(service: str, others: collections.Counter[str]) -> str:
    name = service.partition("/")[2]
    same = sorted(other for other in others if other.partition("/")[2] == name)  # in another namespace
    near = (same or difflib.get_close_matches(service, others, 3, 0.5) or [one for one, _ in others.most_common()])[:3]
    hint = f"; there is {', '.join(near)}" if near else ""
    return f"expected something about the Service {service}, found nothing in this span{hint}"


def _print(found: Sequence[Timeline], form: str) -> None:
    if form == "json":
        for one in found:
            print(msgspec.json.encode(as_document(one)).decode())
        return
    terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if terminal else 0
    shown = partial(as_text, width=width, colour=terminal and "NO_COLOR" not in os.environ)
    for number, one in enumerate(found):
        print("\n" * bool(number), end="")
        for line in shown(one):
            print(line)


def _complain(message: str) -> None:
    print(f"pipeline.impact: {textwrap.shorten(message, 500)}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
