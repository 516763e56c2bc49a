"""Fixtures of the job on the real servers."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.real.job import Jobs
from tests.real.sink import LocalSink, S3Sink, Sink
from tests.servers.api import Api
from tests.servers.control_plane import ControlPlane
from tests.servers.proxy import FaultHttpProxy, FaultProxy, s3_request
from tests.servers.s3 import S3Server


def until(what: str, holds: Callable[[], bool], timeout: float = 60.0) -> None:
    """Returns when `holds()`; fails with `what` after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not holds():
        assert time.monotonic() < deadline, f"not within {timeout:.0f} s: {what}"
        time.sleep(0.02)


@pytest.fixture
def api(control_plane: ControlPlane, namespace: str) -> Api:
    """A client with all rights."""
    return control_plane.api


@pytest.fixture
def jobs(control_plane: ControlPlane, namespace: str) -> Iterator[Jobs]:
    """Starts jobs on the shared control plane that read the test's namespace."""
    started = Jobs(kubeconfig=control_plane.kubeconfig, namespaces=namespace)
    yield started
    started.close()


@pytest.fixture
def local(tmp_path: Path) -> LocalSink:
    """An empty directory."""
    return LocalSink(tmp_path / "history")


@pytest.fixture(params=["local", "s3"])
def sink(request: pytest.FixtureRequest, tmp_path: Path) -> Sink:
    """An empty directory, and an empty prefix of a bucket: the test runs for each."""
    if request.param == "local":
        return LocalSink(tmp_path / "history")
    return S3Sink(request.getfixturevalue("s3"), request.getfixturevalue("bucket"))


@pytest.fixture
def tcp(control_plane: ControlPlane, namespace: str) -> Iterator[FaultProxy]:
    """A proxy before the API server that breaks connections."""
    with FaultProxy(control_plane.url, control_plane.ca) as proxy:
        yield proxy


@pytest.fixture
def http(control_plane: ControlPlane, namespace: str) -> Iterator[FaultHttpProxy]:
    """A proxy before the API server that counts and spoils requests."""
    with FaultHttpProxy(control_plane.url, control_plane.ca) as proxy:
        yield proxy


@pytest.fixture
def s3_proxy(s3: S3Server, bucket: str) -> Iterator[FaultHttpProxy]:
    """A proxy before the S3 server that counts and spoils requests."""
    with FaultHttpProxy(s3.endpoint, classify=s3_request) as proxy:
        yield proxy
