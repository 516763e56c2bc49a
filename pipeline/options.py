"""The job's parameters: Beam options with help texts, each also a key of `--config FILE`, read once into a JobConfig."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import yaml
from apache_beam.options.pipeline_options import PipelineOptions

from runners.config import JobConfig
from transforms.carried import Settings
from transforms.kube import Cluster, Timing
from transforms.store import StoreConfig
from transforms.watch import Filter

RUNNERS = ("DirectRunner",)


class UsageError(Exception):
    """A parameter is wrong: one line that says what was expected and what was given."""


class HistoryOptions(PipelineOptions):
    """Parameters of the job."""

    @classmethod
    def _add_argparse_args(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--output", help="where the history goes: a directory, or s3://bucket/prefix")
        parser.add_argument(
            "--cluster", help="the cluster's name in the history [the kubeconfig context's, or 'default']"
        )
        parser.add_argument(
            "--kubeconfig", help="a kubeconfig file [in-cluster if there is one, else the default file]"
        )
        parser.add_argument("--context", help="the kubeconfig's context [its current one]")
        parser.add_argument("--namespaces", type=_names, help="read only these, comma-separated [all]")
        parser.add_argument("--exclude_namespaces", type=_names, help="read all but these, comma-separated")
        parser.add_argument("--reasons", type=_names, help="keep only events with these reasons, comma-separated [all]")
        parser.add_argument("--types", type=_names, help="keep only events of these types: Normal, Warning [all]")
        parser.add_argument(
            "--kinds", type=_names, help="keep only events about these kinds of objects: Pod, ... [all]"
        )
        parser.add_argument("--batch_size", type=_positive, default=1000, help="most records a file [1000]")
        parser.add_argument(
            "--batch_interval", type=_seconds, default=10.0, help="most seconds a record waits for its file [10]"
        )
        parser.add_argument(
            "--snapshot_interval",
            type=_seconds,
            default=60.0,
            help="most seconds between two looks at the objects [60]",
        )
        parser.add_argument(
            "--resync_interval",
            type=_seconds_or_never,
            default=0.0,
            help="seconds between two lists that make sure of what the watch brought; 0 is never [0]",
        )
        parser.add_argument(
            "--event_ttl",
            type=_seconds,
            default=3600.0,
            help="seconds that the API server keeps an event (--event-ttl) [3600]",
        )
        parser.add_argument(
            "--delivery",
            choices=("no-loss", "no-duplicates"),
            default="no-loss",
            help="what is done with events of which it is unknown whether they were written [no-loss: they are written]",
        )
        parser.add_argument("--shards", type=_positive, default=1, help="files that are written side by side [1]")
        parser.add_argument("--s3_endpoint", help="the S3 endpoint's URL, for another store than AWS's")
        parser.add_argument("--s3_region", help="the S3 region [from the AWS configuration]")
        parser.add_argument("--s3_profile", help="the AWS profile [from the environment]")
        parser.add_argument("--s3_storage_class", help="the S3 storage class of what is written [the bucket's]")
        parser.add_argument(
            "--run_for", type=_seconds_or_never, default=0.0, help="end after so many seconds; 0 is never [0]"
        )
        parser.add_argument("--once", action="store_true", help="read what is there, write it, and end")
        parser.add_argument("--demo", action="store_true", help="read an embedded demo cluster")
        parser.add_argument("--debug", action="store_true", help="log more, with tracebacks")
        parser.add_argument("--config", help="a YAML file of parameters; what the command line says goes first")


def parse(argv: Sequence[str]) -> HistoryOptions:
    """The options of a command line and its config file. Raises UsageError for what is unknown or wrong."""
    given = list(argv)
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    early.add_argument("--config")
    try:
        path = early.parse_known_args(given)[0].config
    except argparse.ArgumentError as error:
        raise UsageError(str(error)) from error
    arguments = [*_from_file(path), *given] if path else given
    _check_known(arguments)
    return HistoryOptions(arguments)


def config_of(options: HistoryOptions) -> JobConfig:
    """The job's configuration. Raises UsageError for parameters that don't go together."""
    if not options.output:
        raise UsageError("expected --output (a directory, or s3://bucket/prefix), got none")
    runner = options.get_all_options().get("runner") or "DirectRunner"
    if runner not in RUNNERS:
        raise UsageError(f"expected --runner to be one of {', '.join(RUNNERS)}, got {runner!r}")
    for left, right in (("namespaces", "exclude_namespaces"), ("once", "run_for")):
        if getattr(options, left) and getattr(options, right):
            raise UsageError(f"expected --{left} or --{right}, got both")
    if options.demo and (options.kubeconfig or options.context):
        raise UsageError("expected --demo, or --kubeconfig and --context, got both")
    if options.kubeconfig and not os.path.isfile(options.kubeconfig):
        raise UsageError(f"expected --kubeconfig to be a file, got {options.kubeconfig!r}, which is none")
    try:
        store = StoreConfig(
            options.output, options.s3_endpoint, options.s3_region, options.s3_profile, options.s3_storage_class
        )
    except ValueError as error:
        raise UsageError(f"--output: {error}") from error
    keep = Filter(
        frozenset(options.exclude_namespaces or ()),
        frozenset(options.reasons or ()),
        frozenset(options.types or ()),
        frozenset(options.kinds or ()),
    )
    name = options.cluster or ("demo" if options.demo else "default")
    clusters = (Cluster(name, options.kubeconfig or "", options.context or ""),)
    timing = Timing(resync_s=options.resync_interval, event_ttl_s=options.event_ttl)
    return JobConfig(
        runner=runner,
        clusters=clusters,
        store=store,
        namespaces=tuple(sorted(set(options.namespaces or ()))),
        keep=keep,
        batch_size=options.batch_size,
        batch_interval_s=options.batch_interval,
        snapshot_interval_s=options.snapshot_interval,
        run_for_s=options.run_for,
        once=options.once,
        delivery=options.delivery,
        shards=options.shards,
        debug=options.debug,
        settings=Settings(clusters, store, timing, options.once, keep.selector),
    )


def _from_file(path: str) -> list[str]:
    """A config file's keys as command-line arguments."""
    try:
        with open(path, encoding="utf-8") as file:
            values = yaml.safe_load(file)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"--config {path}: {' '.join(str(error).split())}") from error
    if values is None:
        return []
    if not isinstance(values, Mapping):
        raise UsageError(f"--config {path}: expected keys and values, got {type(values).__name__}")
    arguments = []
    for key, value in values.items():
        text = _argument(value)
        if text is None:
            continue
        arguments += [f"--{key}"] if text is True else [f"--{key}={text}"]
    return arguments


def _argument(value: Any) -> str | bool | None:
    if value is None or value is False:
        return None
    if value is True:
        return True
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _check_known(arguments: Sequence[str]) -> None:
    """Beam takes unknown arguments for another runner's; here they are mistakes."""

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise UsageError(message)

    parser = Parser(prog="python -m pipeline", allow_abbrev=False, description=__doc__)
    parser.add_argument("--runner", default="DirectRunner", help="the Beam runner: " + ", ".join(RUNNERS))
    HistoryOptions._add_argparse_args(parser)
    parser.parse_args(list(arguments))


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise argparse.ArgumentTypeError(f"expected names separated by commas, got {text!r}")
    return names


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of 1 or more, got {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    value = _number(text)
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"expected seconds above 0, got {text!r}")
    return value


def _seconds_or_never(text: str) -> float:
    value = _number(text)
    if not 0 <= value < 1e9:
        raise argparse.ArgumentTypeError(f"expected seconds, or 0 for never, got {text!r}")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return -1.0
