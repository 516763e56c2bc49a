"""Prism is found or built, says what it lacks, and runs the streaming graph with workers of its own."""

import os
import socket
import stat
import time
from pathlib import Path

import apache_beam
import pytest

from runners import prism
from runners.errors import RunnerError
from tests.real.job import Jobs
from tests.real.sink import History, LocalSink, assert_written
from tests.servers.control_plane import ControlPlane
from tests.servers.process import free_port


def executable(path: Path, script: str = "#!/bin/sh\n") -> Path:
    """Writes an executable file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(script)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_what_is_named_goes_before_what_is_on_path_before_what_is_cached(tmp_path: Path) -> None:
    named, variable = executable(tmp_path / "named"), executable(tmp_path / "variable")
    on_path, cache = executable(tmp_path / "bin" / "prism"), tmp_path / "cache"
    environment = {"PRISM_BINARY": str(variable), "PATH": str(on_path.parent), "XDG_CACHE_HOME": str(cache)}
    cached = executable(prism.cache_dir(environment) / "prism")
    assert apache_beam.__version__ in str(cached)
    assert prism.find(str(named), environment) == named
    assert prism.find(None, environment) == variable
    del environment["PRISM_BINARY"]
    assert prism.find(None, environment) == on_path
    environment["PATH"] = str(tmp_path)
    assert prism.find(None, environment) == cached


def test_it_is_built_with_go_and_then_cached(tmp_path: Path) -> None:
    go = executable(tmp_path / "go", '#!/bin/sh\necho "$1 $2" >> "$LOG"\ntouch "$GOBIN/prism"\n')
    log = tmp_path / "log"
    environment = {"PATH": f"{go.parent}:{os.defpath}", "XDG_CACHE_HOME": str(tmp_path / "cache"), "LOG": str(log)}
    assert prism.find(None, environment) == prism.find(None, environment)
    assert log.read_text().splitlines() == [f"install {prism.PACKAGE}"]


def test_without_prism_and_without_go_the_error_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(RunnerError, match=r"PRISM_BINARY.*got none; install Go, or run `go install .*prism@v"):
        prism.find(None, {"PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)})


def test_a_build_that_fails_is_said_in_one_line(tmp_path: Path) -> None:
    executable(tmp_path / "go", "#!/bin/sh\necho one >&2\necho no such module >&2\nexit 1\n")
    with pytest.raises(RunnerError, match=r"to build Prism, got no such module$"):
        prism.find(None, {"PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")})


@pytest.mark.parametrize(("location", "name"), [("missing", "--prism_location"), (None, "PRISM_BINARY")])
def test_a_binary_that_is_named_and_is_not_there_is_an_error(location: str | None, name: str) -> None:
    with pytest.raises(RunnerError, match=f"expected {name} to be an executable file"):
        prism.find(location, {"PRISM_BINARY": "/missing"})


def test_a_process_that_ends_at_once_is_an_error_and_not_a_wait(tmp_path: Path) -> None:
    broken = executable(tmp_path / "prism", "#!/bin/sh\nexit 3\n")
    began = time.monotonic()
    with pytest.raises(RunnerError, match=r"expected prism to serve port .* code 3"), prism.prism(broken):
        pass
    assert time.monotonic() - began < 5


def test_a_worker_pool_serves_until_its_context_ends() -> None:
    with prism.worker_pool() as address:
        port = int(address.rpartition(":")[2])
        socket.create_connection(("localhost", port), timeout=5).close()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("localhost", port), timeout=5)


@pytest.mark.real
def test_a_job_on_prism_writes_each_event_once_and_ends_on_sigterm(
    jobs: Jobs, local: LocalSink, control_plane: ControlPlane, namespace: str
) -> None:
    history = History(local)
    job = jobs.start(local, runner="PrismRunner", batch_interval=1, snapshot_interval=2)
    job.wait_until_it_says("runs on Prism", 180)
    counts = {}
    for _ in range(5):
        created = control_plane.api.create_events(100, namespace=namespace)
        counts |= {uid: count for uid, (_, count) in created.items()}
        time.sleep(0.3)
    history.wait_for_events(counts, 60)
    job.stop()
    assert_written(local, counts)


@pytest.mark.real
def test_a_job_through_any_job_api_uses_the_worker_pool_that_it_is_told(
    jobs: Jobs, local: LocalSink, control_plane: ControlPlane, namespace: str
) -> None:
    created = control_plane.api.create_events(50, namespace=namespace)
    counts = {uid: count for uid, (_, count) in created.items()}
    with prism.worker_pool() as pool, prism.prism(prism.find()) as endpoint:
        job = jobs.start(
            local, runner="PortableRunner", job_endpoint=endpoint, environment_config=pool, batch_interval=1
        )
        History(local).wait_for_events(counts, 60)
        job.stop()
    assert_written(local, counts)


@pytest.mark.real
def test_a_runner_that_goes_away_is_one_line(jobs: Jobs, local: LocalSink, control_plane: ControlPlane) -> None:
    with prism.worker_pool() as pool:
        with prism.prism(prism.find()) as endpoint:
            job = jobs.start(local, runner="PortableRunner", job_endpoint=endpoint, environment_config=pool)
            job.wait_until_it_says("runs at", 60)
        assert job.wait(60) == 1
    assert "expected the runner to answer, got UNAVAILABLE" in job.stderr.splitlines()[-1]


def test_nobody_at_the_job_endpoint_is_one_line(jobs: Jobs, local: LocalSink) -> None:
    job = jobs.start(local, runner="PortableRunner", job_endpoint=f"localhost:{free_port()}", job_server_timeout=1)
    assert job.wait(60) == 1
    assert "expected a Job API at --job_endpoint localhost:" in job.stderr.splitlines()[-1]
