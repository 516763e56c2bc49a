"""What the commands that read a history share: their options, and times as people give and read them."""

from __future__ import annotations

import argparse
import re
from datetime import datetime, timedelta
from functools import lru_cache
from typing import NoReturn

from transforms.store import StoreConfig

_EPOCH = datetime(1970, 1, 1)
_UNITS_US = {"s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000, "d": 86_400_000_000, "w": 604_800_000_000}


class Parser(argparse.ArgumentParser):
    """Parses OUTPUT, where it is, --cluster, --since and --until; a wrong option is one line and exit code 2."""

    def __init__(self, prog: str, description: str, epilog: str | None = None) -> None:
        super().__init__(prog=prog, description=description, epilog=epilog, allow_abbrev=False)
        self.add_argument("output", metavar="OUTPUT", help="a directory or s3://bucket/prefix, the --output of the job")
        self.add_argument("--cluster", metavar="NAME", action="append", default=[], help="only of this cluster")
        self.add_argument("--since", metavar="TIME", help="only from then on: 2026-01-31T14:00:00Z, or 15m, 2h, 1d ago")
        self.add_argument("--until", metavar="TIME", help="only before then, given like --since")
        self.add_argument("--s3_endpoint", metavar="URL", help="of an S3 server that is not AWS's")
        self.add_argument("--s3_region", metavar="NAME", help="of the bucket")
        self.add_argument("--s3_profile", metavar="NAME", help="of the AWS configuration")

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; --help tells more\n")


def store_of(args: argparse.Namespace) -> StoreConfig:
    """Where the history is. Raises ValueError."""
    return StoreConfig(args.output, args.s3_endpoint, args.s3_region, args.s3_profile)


def span_of(args: argparse.Namespace, now_us: int) -> tuple[int | None, int | None]:
    """--since and --until in microseconds since 1970; None where there is none. Raises ValueError."""
    since_us, until_us = (None if text is None else parse_time(text, now_us) for text in (args.since, args.until))
    return since_us, until_us


def parse_time(text: str, now_us: int) -> int:
    """Microseconds since 1970 of an RFC 3339 time (UTC when it has no offset), or of a duration back from now.

    A duration is a number and s, m, h, d or w: "15m", "2h", "1d". Raises ValueError.
    """
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text):
        return now_us - round(float(match[1]) * _UNITS_US[match[2]])
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(
            f"expected a time such as 2026-01-31T14:00:00Z or a duration such as 15m, 2h or 1d, got {text!r}"
        ) from None
    offset = parsed.utcoffset() or timedelta()
    return (parsed.replace(tzinfo=None) - offset - _EPOCH) // timedelta(microseconds=1)


def rfc3339(time_us: int) -> str | int:
    """ "2026-01-02T03:04:05.000006Z" of microseconds since 1970; the number itself outside of the years 1 to 9999."""
    second, microsecond = divmod(time_us, 1_000_000)
    try:
        return f"{_second(second)}.{microsecond:06d}Z"
    except OverflowError:
        return time_us


@lru_cache(maxsize=4096)
def _second(second: int) -> str:
    return (_EPOCH + timedelta(seconds=second)).isoformat()
