"""A control plane of its own: what is deployed is not confined to a namespace."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.deploy.kustomize import built
from tests.real.conftest import local
from tests.servers import manifests
from tests.servers.build import BuildError
from tests.servers.control_plane import ControlPlane
from tests.servers.process import ServerError

__all__ = ["local"]

_APPROVED = {"api-approved.kubernetes.io": "unapproved, for a test"}  # a group of k8s.io asks for it


@pytest.fixture(scope="session")
def server() -> Iterator[ControlPlane]:
    """A control plane with the namespaces kube-history (as deployed) and shop, and the Gateway API's HTTPRoute."""
    with ExitStack() as stack:
        try:
            plane = stack.enter_context(ControlPlane())
        except (BuildError, ServerError) as error:
            pytest.fail(str(error), pytrace=False)
        plane.api.create(next(obj for obj in built("direct/overlays/s3") if obj["kind"] == "Namespace"))
        plane.api.create(manifests.namespace("shop"))
        routes = manifests.crd("HTTPRoute", "gateway.networking.k8s.io")
        routes["metadata"]["annotations"] = _APPROVED
        plane.api.define(routes)
        yield plane
