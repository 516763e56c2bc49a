"""The job's parameters: Beam options with help texts, each also a key of `--config FILE`, read once into a JobConfig.

The parameters of the streaming runners are Beam's own where Beam declares them; they pass through under its names.
"""

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

STREAMING = ("FlinkRunner", "PortableRunner", "PrismRunner")
RUNNERS = ("DirectRunner", *STREAMING)

# Beam declares these, so HistoryOptions must not: argparse refuses an option that is declared twice.
_BEAM_OPTIONS: Mapping[str, str] = {
    "flink_master": "Flink: the JobManager's REST API, host:port",
    "flink_job_server_jar": "Flink: the file of Beam's job server [FLINK_JOB_SERVER_JAR of the environment]",
    "parallelism": "Flink: how many subtasks, each in a slot, a stage has [the cluster's default]",
    "max_parallelism": "Flink: the most that --parallelism can become without losing state [Flink's default]",
    "job_name": "the streaming job's name, one job of which may run [kube-history]",
    "job_endpoint": "PortableRunner: the Job API, host:port",
    "artifact_endpoint": "PortableRunner: the artifact API, host:port [what the Job API names]",
    "job_server_timeout": "PortableRunner: seconds to wait for the Job API [60]",
    "environment_type": "where a streaming runner's workers run: EXTERNAL is a worker pool [EXTERNAL]",
    "environment_config": "the worker pool as the runner's tasks reach it, host:port [localhost:50000; Prism: its own]",
    "job_server_java_launcher": "Flink: the java that runs the job server [java]",
    "prism_location": "Prism: the binary [PRISM_BINARY of the environment, PATH, else built with Go]",
}
_REPEATED = ("cluster",)
_WHOLE_NUMBERS = ("parallelism", "max_parallelism", "job_server_timeout")


class UsageError(Exception):
    """A parameter is wrong: one line that says what was expected and what was given."""


class HistoryOptions(PipelineOptions):
    """Parameters of the job."""

    @classmethod
    def _add_argparse_args(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--output", help="where the history goes: a directory, or s3://bucket/prefix")
        parser.add_argument(
            "--cluster",
            action="append",
            metavar="NAME[=CONTEXT]",
            help="the cluster's name in the history and its context in the kubeconfig; many times for many [default]",
        )
        parser.add_argument(
            "--kubeconfig",
            help="a kubeconfig file, for all clusters [in-cluster if there is one, else the default file]",
        )
        parser.add_argument("--context", help="the kubeconfig's context, for one cluster [its current one]")
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
            help="what is done with events of which it is unknown if they were written [no-loss: they are written]",
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
        parser.add_argument(
            "--heartbeat_file", help="DirectRunner: a file that is touched after each commit, for a liveness probe"
        )
        parser.add_argument(
            "--checkpointing_interval",
            type=_positive,
            default=10_000,
            help="Flink: milliseconds between two checkpoints; Beam's own default is none at all [10000]",
        )
        parser.add_argument("--savepoint_path", help="Flink: go on with the state of this savepoint or checkpoint")
        parser.add_argument(
            "--allow_non_restored_state",
            action="store_true",
            help="Flink: go on although the savepoint has state of steps that are no more",
        )
        parser.add_argument(
            "--number_of_execution_retries",
            type=_positive,
            default=2_147_483_647,
            help="Flink: how often a failed job goes on from its last checkpoint by itself [always]",
        )
        parser.add_argument(
            "--execution_retry_delay",
            type=_positive,
            default=10_000,
            help="Flink: milliseconds before a failed job goes on [10000]",
        )
        parser.add_argument(
            "--state_backend",
            choices=("rocksdb", "filesystem"),
            help="Flink: where state is kept, with --state_backend_storage_path [what the cluster is configured for]",
        )
        parser.add_argument("--state_backend_storage_path", help="Flink: the URI under which checkpoints are kept")
        parser.add_argument(
            "--max_bundle_time_mills",
            type=_positive,
            default=1000,
            help="Flink: most milliseconds that a bundle stays open, which is part of the latency [1000]",
        )
        parser.add_argument("--demo", action="store_true", help="read an embedded demo cluster")
        parser.add_argument("--debug", action="store_true", help="log more, with tracebacks")
        parser.add_argument(
            "--config",
            action="append",
            help="a YAML file of parameters; the command line goes before it, and so does a later file",
        )


def parse(argv: Sequence[str]) -> HistoryOptions:
    """The options of a command line and its config file. Raises UsageError for what is unknown or wrong."""
    given = list(argv)
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in ("config", *_REPEATED):
        early.add_argument(f"--{name}", action="append")
    try:
        known = early.parse_known_args(given)[0]
    except argparse.ArgumentError as error:
        raise UsageError(str(error)) from error
    values: dict[str, Any] = {}
    for path in known.config or ():
        values |= _from_file(path)
    for name in _REPEATED:
        if getattr(known, name):
            values.pop(name, None)  # what is given once more on the command line is not added to the file's
    arguments = [*_arguments(values), *given]
    _check_known(arguments)
    return HistoryOptions(arguments)


def config_of(options: HistoryOptions) -> JobConfig:
    """The job's configuration. Raises UsageError for parameters that don't go together."""
    if not options.output:
        raise UsageError("expected --output (a directory, or s3://bucket/prefix), got none")
    runner = options.get_all_options().get("runner") or "DirectRunner"
    if runner not in RUNNERS:
        raise UsageError(f"expected --runner to be one of {', '.join(RUNNERS)}, got {runner!r}")
    if runner in STREAMING:
        _check_streaming(options, runner)
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
    clusters = _clusters(options)
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
        heartbeat_file=options.heartbeat_file or "",
        settings=Settings(clusters, store, timing, options.once, keep.selector),
    )


def _clusters(options: HistoryOptions) -> tuple[Cluster, ...]:
    """NAME once, or NAME=CONTEXT any number of times."""
    given = options.cluster or ["demo" if options.demo else "default"]
    kubeconfig = options.kubeconfig or ""
    if len(given) == 1 and "=" not in given[0]:
        return (Cluster(given[0], kubeconfig, options.context or ""),)
    pairs = [text.partition("=") for text in given]
    for text, (name, _, context) in zip(given, pairs, strict=True):
        if not name or not context:
            raise UsageError(f"expected --cluster NAME=CONTEXT where there are many or contexts, got {text!r}")
    names = [name for name, _, _ in pairs]
    if len(set(names)) < len(names):
        raise UsageError(f"expected --cluster with a name for each, got one twice: {', '.join(names)}")
    if options.context or options.demo:
        raise UsageError(f"expected --cluster NAME=CONTEXT or --{'demo' if options.demo else 'context'}, got both")
    return tuple(Cluster(name, kubeconfig, context) for name, _, context in pairs)


def _check_streaming(options: HistoryOptions, runner: str) -> None:
    """Raises UsageError for what a stream can't do, or can't do without."""
    given = options.get_all_options()
    needed = {"FlinkRunner": "flink_master", "PortableRunner": "job_endpoint"}.get(runner)
    if needed and (given[needed] or "[auto]").startswith("["):
        raise UsageError(f"expected --{needed} (host:port) with --runner {runner}, got none")
    for name in ("once", "heartbeat_file", *(("run_for", "demo") if runner != "PrismRunner" else ())):
        if given[name]:
            raise UsageError(f"expected --{name} with --runner DirectRunner, got it with {runner}")
    if options.delivery != "no-loss":
        raise UsageError(f"expected --delivery no-loss with --runner {runner}, got {options.delivery!r}")
    if bool(options.state_backend) != bool(options.state_backend_storage_path):
        raise UsageError("expected --state_backend and --state_backend_storage_path together, got one of them")


def _from_file(path: str) -> Mapping[str, Any]:
    """A config file's keys and values."""
    try:
        with open(path, encoding="utf-8") as file:
            values = yaml.safe_load(file)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"--config {path}: {' '.join(str(error).split())}") from error
    if values is None:
        return {}
    if not isinstance(values, Mapping):
        raise UsageError(f"--config {path}: expected keys and values, got {type(values).__name__}")
    for key in ("config", "help", "h"):
        if key in values:
            raise UsageError(f"--config {path}: expected parameters of the job as keys, got {key!r}")
    return values


def _arguments(values: Mapping[str, Any]) -> list[str]:
    """Keys and values as command-line arguments."""
    arguments = []
    for key, value in values.items():
        repeated = value if key in _REPEATED and isinstance(value, list) else [value]
        for text in map(_argument, repeated):
            if text is not None:
                arguments.append(f"--{key}" if text is True else f"--{key}={text}")
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
            raise UsageError(" ".join(message.split()))

    parser = Parser(prog="python -m pipeline", allow_abbrev=False, description=__doc__)
    parser.add_argument("--runner", default="DirectRunner", help="the Beam runner: " + ", ".join(RUNNERS))
    HistoryOptions._add_argparse_args(parser)
    for name, text in _BEAM_OPTIONS.items():
        parser.add_argument(f"--{name}", type=_positive if name in _WHOLE_NUMBERS else str, help=text)
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
