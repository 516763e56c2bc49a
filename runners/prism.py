"""`--runner PrismRunner`: the streaming graph on Prism, Beam's own small runner, with an external worker pool.

A vehicle for tests of the portable graph on one machine, not for production: where it is saturated Prism loses batches,
and it keeps no state over a restart. Both processes are started here and end with the job.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import apache_beam
from apache_beam.options.pipeline_options import PipelineOptions, PortableOptions, PrismRunnerOptions
from apache_beam.runners.portability.portable_runner import PortableRunner

from runners import portable
from runners.config import JobConfig
from runners.errors import RunnerError
from runners.portable import Build, brief

_LOG = logging.getLogger(__name__)

PACKAGE = f"github.com/apache/beam/sdks/v2/go/cmd/prism@v{apache_beam.__version__}"
_READY_S = 30.0
_PR_SET_PDEATHSIG = 1  # of sys/prctl.h


def run(config: JobConfig, options: PipelineOptions, build: Build) -> None:
    """Runs the job until it is stopped (SIGTERM, SIGINT) or has run its time."""
    binary = find(options.view_as(PrismRunnerOptions).prism_location)
    portable.write_schema(config)
    external = options.view_as(PortableOptions)
    with contextlib.ExitStack() as stack:
        stopping = stack.enter_context(portable.stopped_by_signals())
        ours = external.environment_type in (None, "EXTERNAL") and not external.environment_config
        pool = stack.enter_context(worker_pool()) if ours else ""
        endpoint = stack.enter_context(prism(binary))
        flags = [*portable.common_flags(options, pool), f"--job_endpoint={endpoint}"]
        result = portable.submit(config, flags, build, PortableRunner())
        _LOG.info("runs on Prism at %s", endpoint)
        portable.wait(result, stopping, config.run_for_s)


# --- the binary -------------------------------------------------------------------------------


def find(location: str | None = None, environment: Mapping[str, str] = os.environ) -> Path:
    """The binary: `location`, else PRISM_BINARY, else on PATH, else the cached one, built now if Go is there."""
    for name, path in (("--prism_location", location), ("PRISM_BINARY", environment.get("PRISM_BINARY"))):
        if path and not os.access(path, os.X_OK):
            raise RunnerError(f"expected {name} to be an executable file, got {path!r}, which is none")
        if path:
            return Path(path)
    found = shutil.which("prism", path=environment.get("PATH"))
    return Path(found) if found else _cached(environment)


def cache_dir(environment: Mapping[str, str] = os.environ) -> Path:
    """Where a binary of Beam's version is kept: outside of the checkout, and never beside another version's."""
    base = environment.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "kube-history" / f"prism-{apache_beam.__version__}"


def _cached(environment: Mapping[str, str]) -> Path:
    folder = cache_dir(environment)
    binary = folder / "prism"
    if binary.is_file():
        return binary
    go = shutil.which("go", path=environment.get("PATH"))
    if go is None:
        raise RunnerError(
            "expected Prism (--prism_location, PRISM_BINARY, or `prism` on PATH) or Go to build it with, got none; "
            f"install Go, or run `go install {PACKAGE}` elsewhere and copy the binary"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not binary.is_file():
            _build(go, binary, environment)
    return binary


def _build(go: str, binary: Path, environment: Mapping[str, str]) -> None:
    _LOG.info("builds Prism with Go, once: about a minute")
    with tempfile.TemporaryDirectory(dir=binary.parent) as scratch:
        go_environment = {**environment, "GOBIN": scratch, "CGO_ENABLED": "0"}
        done = subprocess.run([go, "install", PACKAGE], env=go_environment, capture_output=True, text=True)
        if done.returncode:
            raise RunnerError(f"expected `go install {PACKAGE}` to build Prism, got {brief(done.stderr)}")
        (Path(scratch) / "prism").replace(binary)


# --- the processes ----------------------------------------------------------------------------


@contextlib.contextmanager
def prism(binary: Path, log: Path | None = None) -> Iterator[str]:
    """A running Prism; gives its Job API's address. log: where it writes what it says (nowhere if None)."""
    argv = [str(binary), "--serve_http=false", "--log_kind=text", "--log_level=warn"]
    with _serving(lambda port: [*argv, f"--job_port={port}"], log) as address:
        yield address


@contextlib.contextmanager
def worker_pool(log: Path | None = None) -> Iterator[str]:
    """A running worker pool of this Python; gives its address. The workers that it starts end with it."""
    argv = [sys.executable, "-m", "apache_beam.runners.worker.worker_pool_main"]
    with _serving(lambda port: [*argv, f"--service_port={port}"], log) as address:
        yield address


@contextlib.contextmanager
def _serving(argv: Callable[[int], Sequence[str]], log: Path | None) -> Iterator[str]:
    """A process that serves a free local port, in a process group of its own, which ends with the context."""
    port = _free_port()
    # The pool starts its workers as plain `python`: that has to be the one which has this project's packages.
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")])
    with open(log or os.devnull, "ab") as file:
        process = subprocess.Popen(
            argv(port),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env={**os.environ, "PATH": path},
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )
    try:
        _wait_until_served(process, port)
        yield f"localhost:{port}"
    finally:
        # Until it is waited for, the process keeps its id, and so its group's: no other process can be meant.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _end_with_parent() -> None:
    """In the child: a kill -9 of this process leaves no Prism behind that would go on writing (on Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _wait_until_served(process: subprocess.Popen[bytes], port: int) -> None:
    name, deadline = Path(str(process.args[0])).name, time.monotonic() + _READY_S  # type: ignore[index]
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("localhost", port), timeout=1):
            return
        if process.poll() is not None:
            raise RunnerError(f"expected {name} to serve port {port}, got its end with code {process.returncode}")
        if time.monotonic() > deadline:
            raise RunnerError(f"expected {name} to serve port {port} within {_READY_S:.0f} s, got nothing")
        time.sleep(0.05)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port: int = probe.getsockname()[1]
        return port
