from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest
import urllib3

from pipeline.demo.server import DemoServer
from pipeline.demo.store import Store
from tests.pipeline.demo.client import Client, event, lines, watched

EVENTS = "/api/v1/events"


@pytest.fixture
def watch(server: DemoServer, store: Store, client: Client) -> Iterator[urllib3.BaseHTTPResponse]:
    watch = client.watch(EVENTS, resourceVersion=store.version, timeoutSeconds=30)
    server.wait_for_watches(1, "events")
    yield watch
    watch.close()


def test_close_watches_ends_them_after_what_was_stored(
    server: DemoServer, store: Store, watch: urllib3.BaseHTTPResponse
) -> None:
    store.create("events", event("a"))
    server.close_watches("pods")
    assert server.open_watches() == 1
    server.close_watches("events")
    assert watched([json.loads(line) for line in lines(watch)]) == [("ADDED", "a")]


@pytest.mark.parametrize("reset", [False, True])
def test_cut_watches_break_off(server: DemoServer, watch: urllib3.BaseHTTPResponse, reset: bool) -> None:
    server.cut_watches(reset=reset)
    with pytest.raises(urllib3.exceptions.ProtocolError):
        watch.read()


def test_a_cut_is_in_the_middle_of_a_line(server: DemoServer, watch: urllib3.BaseHTTPResponse) -> None:
    server.cut_watches()
    assert not watch.read1().endswith(b"\n")


def test_stalled_watches_are_silent_beyond_their_timeout_and_lose_nothing(
    server: DemoServer, store: Store, client: Client
) -> None:
    watch = client.watch("/api/v1/pods", resourceVersion=store.version, timeoutSeconds=1, allowWatchBookmarks="true")
    server.wait_for_watches(1)
    server.stall_watches()
    store.create("pods", event("a"))
    time.sleep(1.5)
    assert server.open_watches() == 1
    server.stall_watches(False)
    assert ("ADDED", "a") in watched([json.loads(line) for line in lines(watch)])


def test_fail_next_fails_that_often_with_a_status(server: DemoServer, client: Client) -> None:
    server.fail_next(2, 429, retry_after=7, path="/events")
    assert client.get("/api/v1/pods").status == 200
    responses = [client.get(EVENTS) for _ in range(3)]
    assert [response.status for response in responses] == [429, 429, 200]
    assert responses[0].headers["Retry-After"] == "7"
    assert responses[0].json()["reason"] == "TooManyRequests"
    assert responses[0].json()["details"] == {"retryAfterSeconds": 7}


def test_close_at_once_ends_new_watches_of_events_only(server: DemoServer, store: Store, client: Client) -> None:
    after = store.version
    store.create("events", event("a"))
    server.close_at_once = True
    assert server.close_at_once
    begin = time.monotonic()
    response = client.watch(EVENTS, resourceVersion=after)
    assert (response.status, response.data) == (200, b"")
    assert time.monotonic() - begin < 1
    server.close_at_once = False
    assert len(client.watch_all(EVENTS, resourceVersion=after)) == 1


def test_bad_json_is_one_line_more(server: DemoServer, store: Store, watch: urllib3.BaseHTTPResponse) -> None:
    server.send_bad_json_once()
    store.create("events", event("a"))
    got = lines(watch)
    with pytest.raises(json.JSONDecodeError):
        json.loads(next(got))
    assert json.loads(next(got))["object"]["metadata"]["name"] == "a"
    server.close_watches()
    assert list(got) == []


def test_a_token_is_asked_for(store: Store) -> None:
    with DemoServer(store, token="secret") as server:
        refused = Client(server).get(EVENTS)
        assert (refused.status, refused.json()["reason"]) == (401, "Unauthorized")
        assert Client(server, Authorization="Bearer other").get(EVENTS).status == 401
        assert Client(server, Authorization="Bearer secret").get(EVENTS).status == 200


def test_a_forbidden_resource_gets_403_until_it_is_allowed(server: DemoServer, client: Client) -> None:
    server.forbid("events")
    response = client.get(EVENTS)
    assert (response.status, response.json()["reason"]) == (403, "Forbidden")
    assert 'cannot list resource "events" in API group "" at the cluster scope' in response.json()["message"]
    assert client.get("/api/v1/pods").status == 200
    server.allow("events")
    assert client.get(EVENTS).status == 200


def test_requests_are_logged(server: DemoServer, client: Client) -> None:
    client.get(EVENTS, limit=5)
    client.get("/nope")
    assert server.requests == (("GET", EVENTS, {"limit": "5"}), ("GET", "/nope", {}))
