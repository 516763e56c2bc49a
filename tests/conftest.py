"""Fixtures of the real servers. They are built on first use; a test that cannot have them fails, and never skips."""

import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from typing import TypeVar

import pytest

from tests.servers import manifests
from tests.servers.build import BuildError
from tests.servers.control_plane import ControlPlane
from tests.servers.process import ServerError
from tests.servers.s3 import S3Server

_T = TypeVar("_T")


def _start(stack: ExitStack, server: AbstractContextManager[_T]) -> _T:
    try:
        return stack.enter_context(server)
    except (BuildError, ServerError) as error:
        reason = str(error)
    pytest.fail(reason, pytrace=False)


@pytest.fixture(scope="session")
def control_plane() -> Iterator[ControlPlane]:
    """The control plane that tests share: keep to your `namespace`; to break more, take a ControlPlane of your own."""
    with ExitStack() as stack:
        yield _start(stack, ControlPlane())


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """The S3 server that tests share: keep to your `bucket`."""
    with ExitStack() as stack:
        yield _start(stack, S3Server())


@pytest.fixture
def namespace(control_plane: ControlPlane) -> Iterator[str]:
    """The name of a new, empty namespace in the shared control plane, which runs."""
    control_plane.start_apiserver()
    name = f"test-{uuid.uuid4().hex[:10]}"
    control_plane.api.create(manifests.namespace(name))
    yield name
    # Without a controller a namespace is never emptied, and what stays would slow down later tests.
    control_plane.start_apiserver()
    control_plane.forget_events(name)
    for api_version, resource in (
        ("v1", "pods"),
        ("v1", "services"),
        ("discovery.k8s.io/v1", "endpointslices"),
        ("apps/v1", "deployments"),
        ("apps/v1", "replicasets"),
    ):
        control_plane.api.delete_all(resource, name, api_version)


@pytest.fixture
def bucket(s3: S3Server) -> str:
    """The name of a new, empty bucket in the shared S3 server, which runs."""
    s3.start()
    name = f"test-{uuid.uuid4().hex[:10]}"
    s3.create_bucket(name)
    return name
