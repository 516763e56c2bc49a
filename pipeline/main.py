"""The command: reads the options, runs the job, and ends with a line and a code that say how it went."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import gc
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from types import FrameType

import apache_beam as beam

from pipeline.graph import build
from pipeline.options import HistoryOptions, UsageError, config_of, parse
from runners.config import JobConfig
from runners.direct import DirectJob
from runners.errors import RunnerError
from transforms.carried import Process
from transforms.commit import ChainError
from transforms.kube import Cluster, ConfigError, KubeError
from transforms.store import StoreError
from transforms.types import Target

_LOG = logging.getLogger("kube-history")
_M_ARENA_MAX = -8  # of malloc.h


def main(argv: Sequence[str]) -> int:
    """Runs the job. 0: all that was read is written. 1: it could not go on. 2: a parameter is wrong."""
    try:
        options = parse(argv)
        config = config_of(options)
    except UsageError as error:
        print(f"python -m pipeline: {error} (see --help)", file=sys.stderr)
        return 2
    _log_to_stderr(config.debug)
    _settle_memory()
    try:
        with _demo(options, config) as ready:
            _run(options, ready)
    except (ConfigError, KubeError, StoreError, ChainError, RunnerError, OSError) as error:
        _LOG.error("%s", " ".join(str(error).split()), exc_info=config.debug)
        return 1
    except Exception as error:  # nobody is served by a traceback through Beam; --debug shows it
        _LOG.error(
            "unexpected %s: %s; what is not committed is read again at the next start (--debug shows more)",
            type(error).__name__,
            " ".join(str(error).split())[:500],
            exc_info=config.debug,
        )
        return 1
    return 0


def _run(options: HistoryOptions, config: JobConfig) -> None:
    # Beam's portable runners are imported where they are asked for: they cost time and memory.
    match config.runner:
        case "FlinkRunner":
            from runners import flink

            flink.submit(config, options, _build_streaming)
        case "PortableRunner":
            from runners import portable

            portable.run(config, options, _build_streaming)
        case "PrismRunner":
            from runners import prism

            prism.run(config, options, _build_streaming)
        case _:
            _run_direct(config)


def _build_streaming(p: beam.Pipeline, config: JobConfig, process: Process, targets: Sequence[Target]) -> object:
    return build(p, config, process, targets, streaming=True)


def _run_direct(config: JobConfig) -> None:
    job = DirectJob(config, build)

    def on_signal(number: int, _: FrameType | None) -> None:
        # A second signal ends the process where it stands, which is as safe as kill -9.
        for either in (signal.SIGTERM, signal.SIGINT):
            signal.signal(either, lambda again, _: os._exit(128 + again))
        _LOG.warning("%s: ends after this epoch; once more ends at once", signal.Signals(number).name)
        job.stop()

    for either in (signal.SIGTERM, signal.SIGINT):
        signal.signal(either, on_signal)
    job.run()


@contextlib.contextmanager
def _demo(options: HistoryOptions, config: JobConfig) -> Iterator[JobConfig]:
    """The configuration, with the embedded demo cluster's kubeconfig where --demo asks for it."""
    if not options.demo:
        yield config
        return
    from pipeline.demo import demo_cluster

    # Another seed is another cluster: a second demo in the same output adds to it, and repeats nothing.
    with (
        demo_cluster(seed=time.time_ns()) as cluster,
        tempfile.TemporaryDirectory(prefix="kube-history-demo-") as directory,
    ):
        kubeconfig = str(cluster.write_kubeconfig(os.path.join(directory, "kubeconfig")))
        clusters = (Cluster(config.clusters[0].name, kubeconfig),)
        settings = dataclasses.replace(config.settings, clusters=clusters)
        yield dataclasses.replace(config, clusters=clusters, settings=settings)


def _settle_memory() -> None:
    """Takes Beam's modules out of garbage collection, and lets threads share what one of them freed."""
    gc.collect()
    gc.freeze()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").mallopt(_M_ARENA_MAX, 1)


def _log_to_stderr(debug: bool) -> None:
    logging.basicConfig(
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(message)s",
        level=logging.DEBUG if debug else logging.ERROR,  # libraries, some of which log to the root logger
        force=True,
    )
    if debug:
        logging.getLogger("apache_beam").setLevel(logging.INFO)  # its DEBUG is a thousand lines an epoch
    else:
        for name in ("kube-history", "pipeline", "runners", "transforms"):
            logging.getLogger(name).setLevel(logging.INFO)
        logging.getLogger("apache_beam").setLevel(logging.CRITICAL)  # its errors end the epoch, and are reported there
