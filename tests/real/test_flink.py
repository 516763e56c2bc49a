"""The job on a real Flink cluster, through Beam's own job server: what dies is made good from a checkpoint.

Runs where FLINK_JOB_SERVER_JAR names the jar (for the Flink of tests/servers/flink.py), and elsewhere says that it did
not run.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.real.job import ROOT, Jobs, clean_environment
from tests.real.sink import History, LocalSink, assert_written
from tests.servers.api import Stored
from tests.servers.control_plane import ControlPlane
from tests.servers.flink import VERSION, FlinkCluster
from tests.servers.process import Process, on_free_port

JAR = os.environ.get("FLINK_JOB_SERVER_JAR")

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        not JAR,
        reason="NOT RUN: the job on a real Flink cluster. Beam's job server is needed: FLINK_JOB_SERVER_JAR=<file of "
        f"org.apache.beam:beam-runners-flink-{'.'.join(VERSION.split('.')[:2])}-job-server>",
    ),
]

EVENTS = 25_000
RATE = 600.0


class WorkerPool:
    """The pool that Flink's tasks ask for workers, on a port of its own."""

    def __init__(self, log: Path) -> None:
        self._log = log

    def __enter__(self) -> "WorkerPool":
        on_free_port(self._start_on)
        return self

    def __exit__(self, *_: object) -> None:
        workers = self.workers()
        self._process.kill()
        for worker in workers:
            _kill(worker)

    def workers(self) -> list[int]:
        """The ids of the workers that the pool has started, whichever of its threads it was."""
        lists = Path(f"/proc/{self._process.pid}/task").glob("*/children")
        return [int(child) for path in lists for child in path.read_text().split()]

    def kill_a_worker(self) -> None:
        """kill -9 of one of the pool's workers."""
        _kill(self.workers()[0])

    def _start_on(self, port: int) -> None:
        self.address = f"localhost:{port}"
        path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
        argv = [sys.executable, "-m", "apache_beam.runners.worker.worker_pool_main", f"--service_port={port}"]
        self._process = Process(argv, self._log, clean_environment({"PATH": path}))
        self._process.wait_until(lambda: "Listening for workers" in self._log.read_text())


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def cluster() -> Iterator[FlinkCluster]:
    """A Flink cluster of this test's own: it loses its TaskManager."""
    with FlinkCluster(slots=2) as started:
        yield started


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[WorkerPool]:
    """The workers."""
    with WorkerPool(tmp_path / "pool.log") as started:
        yield started


def wait_until(what: str, holds: Callable[[], bool], timeout: float = 120.0) -> None:
    """Returns when `holds()`."""
    deadline = time.monotonic() + timeout
    while not holds():
        assert time.monotonic() < deadline, f"not within {timeout:.0f} s: {what}"
        time.sleep(0.2)


def flink(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m runners.flink`."""
    return subprocess.run(
        [sys.executable, "-m", "runners.flink", *arguments],
        cwd=ROOT,
        env=clean_environment({}),
        capture_output=True,
        text=True,
        timeout=300,
    )


def stop(cluster: FlinkCluster) -> str:
    """Stops the job with a savepoint and returns its path."""
    done = flink("stop", f"--flink_master={cluster.master}", f"--savepoint_dir={cluster.savepoints}")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@pytest.mark.timeout(900)
def test_what_dies_is_made_good_and_a_savepoint_goes_on(
    control_plane: ControlPlane,
    namespace: str,
    jobs: Jobs,
    local: LocalSink,
    cluster: FlinkCluster,
    pool: WorkerPool,
) -> None:
    stored: dict[str, Stored] = {}

    def create() -> None:
        control_plane.api.create_events(EVENTS, namespace=namespace, rate=RATE, into=stored)

    def submit(savepoint: str | None = None) -> None:
        job = jobs.start(
            local,
            runner="FlinkRunner",
            flink_master=cluster.master,
            environment_config=pool.address,
            parallelism=2,
            checkpointing_interval=1000,
            execution_retry_delay=1000,
            batch_interval=1,
            savepoint_path=savepoint,
        )
        assert job.wait(240) == 0, job.stderr

    master = f"--flink_master={cluster.master}"
    with ExitStack() as stack:
        submit()
        creator = threading.Thread(target=create, daemon=True)
        creator.start()
        stack.callback(creator.join)
        history = History(local)
        history.wait_for("events written", lambda seen: len(seen.records) > 1000, 120)

        wait_until("5,000 events created", lambda: len(stored) >= 5_000)
        pool.kill_a_worker()
        wait_until("12,000 events created", lambda: len(stored) >= 12_000)
        cluster.kill_task_manager()
        cluster.start_task_manager()
        wait_until("18,000 events created", lambda: len(stored) >= 18_000)
        wait_until("the job runs again", lambda: flink("status", master).returncode == 0)
        submit(stop(cluster))

    counts = {uid: count for uid, (_, count) in stored.items()}
    assert len(counts) == EVENTS
    history.wait_for_events(counts, 240)
    stop(cluster)
    assert_written(local, counts)
