from __future__ import annotations

import json
import threading
import time

import pytest

from pipeline.demo.server import DemoServer
from pipeline.demo.store import Store
from tests.pipeline.demo.client import Client, event, lines, watched

EVENTS = "/api/v1/events"
PODS = "/api/v1/pods"


def test_a_watch_gives_each_change_after_its_version_with_kind_and_version(store: Store, client: Client) -> None:
    store.create("events", event("before"))
    after = store.version
    store.create("events", event("a"))
    store.update("events", event("a", count=2))
    store.delete("events", event("a"))
    seen = client.watch_all(EVENTS, resourceVersion=after)
    assert watched(seen) == [("ADDED", "a"), ("MODIFIED", "a"), ("DELETED", "a")]
    assert [int(each["object"]["metadata"]["resourceVersion"]) for each in seen] == [after + 1, after + 2, after + 3]
    assert {(each["object"]["kind"], each["object"]["apiVersion"]) for each in seen} == {("Event", "v1")}
    assert seen[2]["object"]["count"] == 2, "a deletion shows the last state"


def test_a_watch_without_a_version_begins_with_what_is_there(store: Store, client: Client) -> None:
    store.create("pods", event("p"))
    for query in ({}, {"resourceVersion": "0"}):
        assert watched(client.watch_all(PODS, **query)) == [("ADDED", "p")]


def test_watches_that_resume_lose_and_repeat_nothing_while_a_writer_writes(
    server: DemoServer, store: Store, client: Client
) -> None:
    position, seen = store.version, []

    def write() -> None:
        for number in range(600):
            store.create("events", event(f"e{number}"))
            time.sleep(0.0005)

    writer = threading.Thread(target=write)
    writer.start()
    while len(seen) < 600:
        for line in lines(client.watch(EVENTS, resourceVersion=position)):
            obj = json.loads(line)["object"]
            seen.append(obj["metadata"]["name"])
            position = int(obj["metadata"]["resourceVersion"])
            if len(seen) % 97 == 0:
                server.close_watches()
            if len(seen) == 600:
                server.close_watches()
    writer.join()
    assert seen == [f"e{number}" for number in range(600)]


def test_a_watch_ends_cleanly_after_its_timeout_and_the_connection_serves_on(client: Client) -> None:
    begin = time.monotonic()
    assert client.watch(EVENTS, resourceVersion=10**6, timeoutSeconds=1).data == b""
    assert 0.9 < time.monotonic() - begin < 3
    assert client.get(EVENTS).status == 200


def test_a_version_that_is_too_old_is_an_error_in_the_stream(server: DemoServer, store: Store, client: Client) -> None:
    old = store.version
    store.create("pods", event("p"))
    server.compact()
    response = client.watch(EVENTS, resourceVersion=old)
    assert response.status == 200
    (line,) = response.data.splitlines()
    error = json.loads(line)
    assert error["type"] == "ERROR"
    assert (error["object"]["kind"], error["object"]["code"], error["object"]["reason"]) == ("Status", 410, "Expired")
    assert client.watch_all(EVENTS, resourceVersion=store.version) == []


def test_a_compaction_takes_nothing_from_an_open_watch(server: DemoServer, store: Store, client: Client) -> None:
    watch = client.watch(EVENTS, resourceVersion=store.version, timeoutSeconds=1)
    server.wait_for_watches(1)
    store.create("events", event("a"))
    server.compact()
    assert watched([json.loads(line) for line in lines(watch)]) == [("ADDED", "a")]


def test_bookmarks_carry_the_version_up_to_which_all_was_sent(store: Store, client: Client) -> None:
    store.create("events", event("of another resource"))
    seen = client.watch_all(PODS, resourceVersion=store.version, allowWatchBookmarks="true")
    assert 3 <= len(seen) <= 10
    assert {each["type"] for each in seen} == {"BOOKMARK"}
    assert seen[0]["object"] == {
        "kind": "Pod",
        "apiVersion": "v1",
        "metadata": {"resourceVersion": str(store.version)},
    }


def test_events_and_who_does_not_ask_get_no_bookmarks(store: Store, client: Client) -> None:
    assert client.watch_all(EVENTS, resourceVersion=store.version, allowWatchBookmarks="true") == []
    assert client.watch_all(PODS, resourceVersion=store.version) == []


def test_metadata_only_watches_have_nothing_else(server: DemoServer, store: Store) -> None:
    accept = "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io"
    store.create("replicasets", {"metadata": {"name": "r"}, "spec": {"replicas": 1}})
    client = Client(server, Accept=accept)
    first, bookmark, *_ = client.watch_all("/apis/apps/v1/replicasets", allowWatchBookmarks="true")
    assert set(first["object"]) == {"kind", "apiVersion", "metadata"}
    assert first["object"]["kind"] == bookmark["object"]["kind"] == "PartialObjectMetadata"


def test_a_watch_of_a_namespace_or_with_a_selector_gives_what_matches(store: Store, client: Client) -> None:
    after = store.version
    store.create("events", event("a", "shop", type="Normal"))
    store.create("events", event("b", "payments", type="Warning"))
    store.update("events", event("a", "shop", type="Warning"))
    store.update("events", event("a", "shop", type="Normal"))
    assert watched(client.watch_all("/api/v1/namespaces/payments/events", resourceVersion=after)) == [("ADDED", "b")]
    seen = client.watch_all(EVENTS, resourceVersion=after, fieldSelector="type=Warning")
    assert watched(seen) == [("ADDED", "b"), ("ADDED", "a"), ("DELETED", "a")], "what comes to match is added"


def test_a_client_that_hangs_up_frees_the_watch(server: DemoServer, client: Client) -> None:
    watch = client.watch(EVENTS, resourceVersion=10**6, timeoutSeconds=60)
    server.wait_for_watches(1)
    watch.close()
    deadline = time.monotonic() + 3
    while server.open_watches() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert server.open_watches() == 0


def test_many_clients_see_the_same(server: DemoServer, store: Store) -> None:
    clients = [Client(server) for _ in range(8)]
    watches = [client.watch(EVENTS, resourceVersion=store.version, timeoutSeconds=1) for client in clients]
    server.wait_for_watches(8, "events")
    for number in range(50):
        store.create("events", event(f"e{number}"))
    assert {len(list(lines(watch))) for watch in watches} == {50}


def test_streaming_lists_are_refused_as_by_a_server_without_them(client: Client) -> None:
    assert client.get(EVENTS, watch=1, sendInitialEvents="true").status == 422


@pytest.mark.parametrize("version", ["x", "1.5"])
def test_a_version_that_is_no_number_gets_400(client: Client, version: str) -> None:
    assert client.get(EVENTS, watch=1, resourceVersion=version).status == 400
