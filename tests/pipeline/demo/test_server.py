from __future__ import annotations

import http.client
import threading
import urllib.parse

import pytest

from pipeline.demo.errors import ApiError
from pipeline.demo.kinds import RESOURCES, Resource, by_plural
from pipeline.demo.server import DemoServer
from pipeline.demo.store import Store
from tests.pipeline.demo.client import Client, event


def test_a_cluster_has_an_identity_that_follows_from_the_seed(client: Client) -> None:
    obj = client.json("/api/v1/namespaces/kube-system")
    assert (obj["kind"], obj["apiVersion"]) == ("Namespace", "v1")
    uid = obj["metadata"]["uid"]
    assert Store().get("namespaces", "kube-system")["metadata"]["uid"] == uid
    assert Store(seed=2).get("namespaces", "kube-system")["metadata"]["uid"] != uid
    assert Store(cluster_uid="mine").get("namespaces", "kube-system")["metadata"]["uid"] == "mine"


@pytest.mark.parametrize("resource", RESOURCES.values(), ids=str)
def test_each_resource_is_discovered_listed_and_got(
    resource: Resource, server: DemoServer, store: Store, client: Client
) -> None:
    root = f"/apis/{resource.api_version}" if resource.group else "/api/v1"
    found = client.json(root)
    assert found["groupVersion"] == resource.api_version
    (entry,) = (entry for entry in found["resources"] if entry["name"] == resource.plural)
    assert (entry["kind"], entry["namespaced"]) == (resource.kind, resource.namespaced)
    assert {"list", "watch"} <= set(entry["verbs"])
    store.create(resource.plural, event("x"))
    below = f"{root}/namespaces/shop" if resource.namespaced else root
    assert client.json(f"{below}/{resource.plural}/x")["metadata"]["name"] == "x"
    assert "x" in [item["metadata"]["name"] for item in client.json(f"{root}/{resource.plural}")["items"]]


def test_groups_are_discovered(client: Client) -> None:
    assert client.json("/api")["versions"] == ["v1"]
    assert client.json("/version")["major"] == "1"
    groups = {group["name"]: group for group in client.json("/apis")["groups"]}
    assert groups["autoscaling"]["preferredVersion"]["groupVersion"] == "autoscaling/v2"
    assert client.json("/apis/apps")["name"] == "apps"
    assert client.get("/readyz").data == b"ok"


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/nope",
        "/api/v2",
        "/apis/none",
        "/apis/apps/v2",
        "/api/v1/widgets",
        "/apis/apps/v1/pods",
        "/api/v1/pods/without-a-namespace",
        "/api/v1/namespaces/shop/nodes",
        "/api/v1/namespaces/shop/pods/x/log",
    ],
)
def test_a_path_of_no_resource_gets_404_in_plain_text(client: Client, path: str) -> None:
    response = client.get(path)
    assert (response.status, response.data) == (404, b"404 page not found\n")


@pytest.mark.parametrize("path", ["/api/v1/namespaces/shop/pods/gone", "/api/v1/nodes/gone"])
def test_an_object_that_is_not_there_gets_a_404_status(client: Client, path: str) -> None:
    response = client.get(path)
    assert response.status == 404
    assert (response.json()["kind"], response.json()["reason"]) == ("Status", "NotFound")
    assert response.json()["details"]["name"] == "gone"


def test_custom_resources_can_be_served() -> None:
    certificates = Resource("cert-manager.io", "v1", "certificates", "Certificate")
    store = Store(resources={**RESOURCES, **by_plural(certificates)})
    store.create("certificates", {"metadata": {"name": "c"}})
    with DemoServer(store) as server:
        path = "/apis/cert-manager.io/v1/namespaces/default/certificates/c"
        assert Client(server).json(path)["apiVersion"] == "cert-manager.io/v1"


def test_one_connection_serves_many_requests_and_other_methods_get_405(server: DemoServer) -> None:
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(server.url).netloc, timeout=5)
    connection.connect()
    sock = connection.sock
    for method, status in (("GET", 200), ("POST", 405), ("DELETE", 405), ("HEAD", 405), ("GET", 200)):
        connection.request(method, "/api/v1/pods", body=b"{}" if method == "POST" else None)
        response = connection.getresponse()
        response.read()
        assert (response.status, connection.sock) == (status, sock)
    connection.close()


def test_stop_ends_idle_connections_watches_and_all_threads() -> None:
    before = set(threading.enumerate())
    with DemoServer() as server:
        client = Client(server)
        client.get("/version")
        server.stall_watches()
        watch = client.watch("/api/v1/events")
        server.wait_for_watches(1)
    watch.close()
    for thread in set(threading.enumerate()) - before:
        thread.join(2)
    assert set(threading.enumerate()) <= before


def test_waiting_for_a_watch_that_does_not_come_times_out(server: DemoServer) -> None:
    with pytest.raises(TimeoutError, match="0 watches open"):
        server.wait_for_watches(1, timeout_s=0.02)


def test_a_server_that_was_not_started_stops() -> None:
    DemoServer().stop()


def test_the_store_refuses_as_the_api_server_does() -> None:
    store = Store()
    store.create("pods", event("p"))
    with pytest.raises(ApiError, match='pods "p" already exists'):
        store.create("pods", event("p"))
    with pytest.raises(ApiError, match=r'replicasets\.apps "r" not found'):
        store.update("replicasets", event("r"))
    with pytest.raises(ApiError, match='pods "q" not found'):
        store.delete("pods", event("q"))


def test_the_store_shares_no_object_with_its_caller() -> None:
    store, obj = Store(), event("p")
    stored = store.create("pods", obj)
    assert "uid" not in obj["metadata"]
    stored["metadata"]["name"] = "other"
    updated = store.update("pods", event("p", reason="New"))
    assert updated["metadata"]["uid"] == stored["metadata"]["uid"]
    assert int(updated["metadata"]["resourceVersion"]) == int(stored["metadata"]["resourceVersion"]) + 1
