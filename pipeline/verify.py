"""`python -m pipeline.verify OUTPUT`: proves that a history is complete, or says what does not hold."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

import msgspec

from pipeline.reading import rfc3339
from transforms.store import Retrying, Store, StoreConfig, StoreError
from transforms.verify import Report, clusters, verify


def main(argv: Sequence[str] | None = None) -> int:
    """Prints what each cluster's history covers. 0: all holds. 1: something does not. 2: it could not be looked at."""
    try:
        arguments = _arguments(argv)
    except SystemExit as stop:  # --help, or an error that the parser has printed
        return int(stop.code or 0)
    try:
        config = StoreConfig(
            arguments.output, arguments.s3_endpoint, arguments.s3_region, arguments.s3_profile, storage_class=None
        )
        store = Retrying(config.open(), attempts=4)
        store.check(write=False)
        names = list(clusters(store))
        if not names:
            raise StoreError(f"{arguments.output}: expected a history, found none (is this the job's --output?)")
        if arguments.cluster and arguments.cluster not in names:
            raise StoreError(f"expected --cluster to be one of {', '.join(names)}, got {arguments.cluster!r}")
        reports = [_verify(store, name) for name in names if arguments.cluster in (None, name)]
    except (StoreError, ValueError) as error:
        print(f"python -m pipeline.verify: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    if arguments.format == "json":
        print(msgspec.json.encode([_as_dict(report) for report in reports]).decode())
    else:
        for report in reports:
            _print(report)
    return 1 if any(report.problems for report in reports) else 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; --help tells more\n")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _Parser(prog="python -m pipeline.verify", description=__doc__, allow_abbrev=False)
    parser.add_argument("output", metavar="OUTPUT", help="a directory or s3://bucket/prefix, the --output of the job")
    parser.add_argument("--cluster", metavar="NAME", help="only this cluster's history [all]")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="[text]")
    parser.add_argument("--s3_endpoint", metavar="URL", help="of an S3 server that is not AWS's")
    parser.add_argument("--s3_region", help="of the bucket")
    parser.add_argument("--s3_profile", help="of the AWS configuration")
    return parser.parse_args(argv)


def _verify(store: Store, cluster: str) -> Report:
    terminal = sys.stderr.isatty()

    def progress(done: int, of: int) -> None:
        if terminal and (done % 50 == 0 or done == of):
            print(f"\r\x1b[K{cluster}: {done:,} of {of:,} segments", end="", file=sys.stderr, flush=True)

    report = verify(store, cluster, progress=progress)
    if terminal:
        print("\r\x1b[K", end="", file=sys.stderr)
    return report


def _print(report: Report) -> None:
    records = ", ".join(f"{count:,} {kind}" for kind, count in sorted(report.records.items())) or "none"
    print(f"cluster {report.cluster}")
    if report.commits:
        print(f"  from          {rfc3339(report.from_us)}")
        print(f"  to            {rfc3339(report.to_us)}")
    for key, (first, last) in sorted(report.positions.items()):
        print(f"  covered       {key} resourceVersion {first} to {last}")
    print(f"  commits       {report.commits:,}")
    print(f"  segments      {report.segments:,} ({report.bytes:,} bytes)")
    print(f"  records       {records}")
    print(f"  occurrences   {report.occurrences:,}")
    if report.dead_letters:
        print(f"  dead letters  {report.dead_letters:,}")
    for gap in report.gaps:
        since = rfc3339(gap.from_us) if gap.from_us else "the beginning"
        until = rfc3339(gap.to_us) if gap.to_us else "still open"
        print(f"  GAP           {gap.target.key} from {since} to {until}: {gap.why}")
    for note in report.notes:
        print(f"  note          {note}")
    for problem in report.problems:
        print(f"  PROBLEM       {problem}")
    verdict = f"{len(report.problems):,} problems" if report.problems else "nothing is missing, nothing is there twice"
    print(f"  {'FAILED' if report.problems else 'OK'}: {verdict}" + (", but for the gaps" if report.gaps else ""))


def _as_dict(report: Report) -> dict[str, object]:
    return {
        "cluster": report.cluster,
        "ok": not report.problems,
        "from": rfc3339(report.from_us),
        "to": rfc3339(report.to_us),
        "covered": {key: {"from": first, "to": last} for key, (first, last) in report.positions.items()},
        "commits": report.commits,
        "segments": report.segments,
        "bytes": report.bytes,
        "records": dict(report.records),
        "occurrences": report.occurrences,
        "dead_letters": report.dead_letters,
        "gaps": [
            {"target": gap.target.key, "from": rfc3339(gap.from_us), "to": rfc3339(gap.to_us), "why": gap.why}
            for gap in report.gaps
        ],
        "notes": report.notes,
        "problems": report.problems,
    }


if __name__ == "__main__":
    sys.exit(main())
