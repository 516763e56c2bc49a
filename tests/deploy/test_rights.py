"""The job with exactly the rights of its ServiceAccount as deployed: it lacks nothing, and has nothing to spare."""

import contextlib
import os
import subprocess
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.kustomize import Object, built, containers, of_kind
from tests.real.job import Jobs
from tests.real.sink import History, LocalSink, assert_written, enrichment_of
from tests.servers import manifests
from tests.servers.api import Api, ApiError
from tests.servers.control_plane import ControlPlane
from tests.servers.proxy import FaultHttpProxy, Request

pytestmark = pytest.mark.real

Right = tuple[str, str, str]  # verb, API group, resource

_RBAC = ("ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding")


def rights(roles: Iterable[Object]) -> set[Right]:
    """What the roles give."""
    return {
        (verb, group, resource)
        for role in roles
        for rule in role["rules"]
        for verb in rule["verbs"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }


def used(requests: Iterable[Request]) -> set[Right]:
    """What requests need: as the API server derives attributes from a path. Discovery is open to every account."""
    found = set()
    for request in requests:
        parts = request.path.strip("/").split("/")
        group, rest = ("", parts[2:]) if parts[0] == "api" else (parts[1], parts[3:])
        if not rest:
            continue
        if rest[0] == "namespaces" and len(rest) > 2:
            rest = rest[2:]
        verb = {"GET": "get" if len(rest) > 1 else "list"}.get(request.method, request.method)
        found.add(("watch" if request.query.get("watch") else verb, group, rest[0]))
    return found


@contextlib.contextmanager
def deployed(server: ControlPlane, overlay: str) -> Iterator[str]:
    """Creates an overlay's ServiceAccount and its rights, and nothing else; gives the account's token."""
    objects = of_kind(built(overlay), *_RBAC)
    created = []
    try:
        for obj in objects:
            created.append(server.api.create(obj))
        account = next(obj["metadata"] for obj in objects if obj["kind"] == "ServiceAccount")
        path = f"/api/v1/namespaces/{account['namespace']}/serviceaccounts/{account['name']}/token"
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
        token: str = server.api.request("POST", path, request)["status"]["token"]
        wait_until_allowed(Api(server.url, token, server.ca), objects)
        yield token
    finally:
        for obj in created:
            server.api.delete(obj)


def wait_until_allowed(api: Api, objects: Iterable[Object]) -> None:
    """The authorizer follows roles by a watch, a moment behind them."""
    deadline = time.monotonic() + 10
    for role in objects:
        for rule in role.get("rules", ()):
            if rule.get("resourceNames"):
                continue
            while not api.allowed(rule, role["metadata"].get("namespace", "")):
                assert time.monotonic() < deadline, rule
                time.sleep(0.02)


def kubeconfig(folder: Path, server: str, token: str) -> Path:
    """A kubeconfig with the token, for a server that speaks plain HTTP."""
    content: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": {"server": server}}],
        "users": [{"name": "job", "user": {"token": token}}],
        "contexts": [{"name": "job", "context": {"cluster": "test", "user": "job"}}],
        "current-context": "job",
    }
    path = folder / "kubeconfig"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def shop(server: ControlPlane) -> Iterator[dict[str, int]]:
    """Events about a pod that belongs to a Service, in the namespace shop: their counts by UID."""
    api = server.api
    node = api.create(manifests.node("node-1"))
    deployment = api.create(manifests.deployment("web", "shop"))
    replica_set = api.create(manifests.replica_set("web-1", deployment))
    pod = api.create(manifests.pod("web-1-a", "shop", node="node-1", labels={"app": "web"}, owner=replica_set))
    service = api.create(manifests.service("web", "shop", {"app": "web"}))
    slice_ = api.create(manifests.endpoint_slice(service, [pod]))
    events = [api.create(manifests.event(pod, message=f"number {number}")) for number in range(20)]
    yield {event["metadata"]["uid"]: 1 for event in events}
    for obj in (*events, slice_, service, pod, replica_set, deployment, node):
        api.delete(obj)


@pytest.mark.parametrize(
    ("overlay", "options"),
    [
        ("direct/overlays/s3", {}),
        ("direct/overlays/namespaces", {"namespaces": "shop"}),
        # Without Flink, Prism runs the graph that Flink would: what workers ask the API server for is the same.
        ("flink/overlays/s3", {"runner": "PrismRunner", "batch_interval": 1}),
    ],
)
def test_the_job_lacks_no_right_and_has_none_to_spare(
    server: ControlPlane, local: LocalSink, tmp_path: Path, shop: dict[str, int], overlay: str, options: dict[str, Any]
) -> None:
    heartbeat = tmp_path / "heartbeat" if overlay.startswith("direct") else None
    granted = rights(of_kind(built(overlay), "ClusterRole", "Role"))
    with (
        deployed(server, overlay) as token,
        FaultHttpProxy(server.url, server.ca) as proxy,
        contextlib.closing(Jobs(kubeconfig=kubeconfig(tmp_path, proxy.url, token))) as jobs,
    ):
        job = jobs.start(local, heartbeat_file=heartbeat, **options)
        history = History(local).wait_for_events(shop)
        with contextlib.suppress(AssertionError):  # what is missing is shown below
            job.wait_until("all rights are used", lambda: used(proxy.requests) >= granted, 20)
        job.stop()
    assert used(proxy.requests) == granted
    assert {enrichment_of(record) for record in history.of_kind("EVENT")} == {"FRESH"}
    assert_written(local, shop)
    warnings = [line for line in job.stderr.splitlines() if " WARNING " in line or " ERROR " in line]
    assert [line for line in warnings if "SIGTERM" not in line] == [], job.stderr
    if heartbeat:
        assert probed(overlay, heartbeat) == {"startupProbe": 0, "livenessProbe": 0, "readinessProbe": 0}


def probed(overlay: str, heartbeat: Path) -> dict[str, int]:
    """The exit codes of the deployed probes' own commands, over another heartbeat file."""
    (container,) = containers(built(overlay))
    codes = {}
    for name in ("startupProbe", "livenessProbe", "readinessProbe"):
        command = [part.replace("/tmp/heartbeat", str(heartbeat)) for part in container[name]["exec"]["command"]]
        codes[name] = subprocess.run(command, capture_output=True).returncode
    return codes


def test_a_heartbeat_that_stopped_fails_the_probes_in_their_order(tmp_path: Path) -> None:
    heartbeat = tmp_path / "heartbeat"
    assert set(probed("direct/overlays/s3", heartbeat).values()) == {1}
    heartbeat.touch()
    old = time.time() - 5 * 60
    os.utime(heartbeat, (old, old))
    assert probed("direct/overlays/s3", heartbeat) == {"startupProbe": 0, "livenessProbe": 0, "readinessProbe": 1}
    old = time.time() - 16 * 60
    os.utime(heartbeat, (old, old))
    assert set(probed("direct/overlays/s3", heartbeat).values()) == {1}


def test_the_account_may_do_nothing_else(server: ControlPlane) -> None:
    with deployed(server, "direct/overlays/namespaces") as token:
        api = Api(server.url, token, server.ca)
        for path in ("/api/v1/events", "/api/v1/namespaces/default/pods", "/api/v1/namespaces/shop/secrets"):
            with pytest.raises(ApiError) as refused:
                api.request("GET", path)
            assert refused.value.status == 403
        with pytest.raises(ApiError) as refused:
            api.create(manifests.event(manifests.made_up_pods(1, "shop")[0]))
        assert refused.value.status == 403
