from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.demo import wire
from pipeline.demo.errors import ApiError
from pipeline.demo.server import DemoServer
from pipeline.demo.store import Store
from tests.pipeline.demo.client import Client, event, names

EVENTS = "/api/v1/events"
METADATA_LIST = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"


def test_a_list_has_items_without_a_kind_and_the_stores_version(store: Store, client: Client) -> None:
    store.create("events", event("a"))
    page = client.json(EVENTS)
    assert (page["kind"], page["apiVersion"]) == ("EventList", "v1")
    assert page["metadata"] == {"resourceVersion": str(store.version)}
    assert "kind" not in page["items"][0]
    assert page["items"][0]["metadata"]["resourceVersion"] == str(store.version)


def test_all_pages_of_a_list_show_the_snapshot_of_the_first_while_the_store_changes(
    store: Store, client: Client
) -> None:
    for number in range(10):
        store.create("events", event(f"e{number}"))
    version = store.version
    seen, versions = [], set()
    for page in client.pages(EVENTS, limit=3):
        seen += page["items"]
        versions.add(page["metadata"]["resourceVersion"])
        store.create("events", event(f"e{len(seen)}-later"))
        store.update("events", event("e9", reason="Changed"))
        if len(seen) == 3:
            store.delete("events", event("e5"))
    assert names(seen) == [f"e{number}" for number in range(10)]
    assert {item["reason"] for item in seen} == {"Test"}
    assert versions == {str(version)}


@given(before=st.integers(0, 12), limit=st.integers(1, 5), writes=st.lists(st.integers(0, 12), max_size=30))
def test_pages_under_any_writes_are_the_snapshot(before: int, limit: int, writes: list[int]) -> None:
    store = Store()
    for number in range(before):
        store.create("events", event(f"e{number:02}"))
    expected = [version.raw for version in store.snapshot("events").versions]
    first = store.version
    todo = iter(writes)
    for number in todo:
        _write(store, number)
    assert [version.raw for version in store.snapshot("events", first).versions] == expected


def _write(store: Store, number: int) -> None:
    obj = event(f"e{number:02}")
    try:
        store.create("events", obj)
    except ApiError:
        if number % 2:
            store.delete("events", obj)
        else:
            store.update("events", obj)


def test_a_namespaces_list_has_what_is_in_it_only(store: Store, client: Client) -> None:
    for namespace in ("shop", "shop-2", "payments"):
        store.create("events", event("e", namespace))
        store.create("events", event("f", namespace))
    pages = list(client.pages("/api/v1/namespaces/shop/events", limit=1))
    assert [item["metadata"]["namespace"] for page in pages for item in page["items"]] == ["shop", "shop"]


def test_remaining_items_are_counted(store: Store, client: Client) -> None:
    for number in range(5):
        store.create("events", event(f"e{number}"))
    assert client.json(EVENTS, limit=2)["metadata"]["remainingItemCount"] == 3


def test_an_expired_token_gets_410_and_may_go_on_inconsistently(
    server: DemoServer, store: Store, client: Client
) -> None:
    for number in range(4):
        store.create("events", event(f"e{number}"))
    token = client.json(EVENTS, limit=2)["metadata"]["continue"]
    server.expire_continue_tokens()
    response = client.get(EVENTS, limit=2, **{"continue": token})
    status = response.json()
    assert response.status == status["code"] == 410
    assert (status["kind"], status["reason"]) == ("Status", "Expired")
    rest = client.json(EVENTS, **{"continue": status["metadata"]["continue"]})
    assert names(rest["items"]) == ["e2", "e3"]
    assert len(list(client.pages(EVENTS, limit=2))) == 2, "a list that starts afterwards is whole"


def test_compaction_expires_the_tokens_of_older_versions_only(server: DemoServer, store: Store, client: Client) -> None:
    for number in range(4):
        store.create("events", event(f"e{number}"))
    old = client.json(EVENTS, limit=2)["metadata"]["continue"]
    store.create("events", event("later"))
    new = client.json(EVENTS, limit=2)["metadata"]["continue"]
    server.compact()
    assert client.get(EVENTS, limit=2, **{"continue": old}).status == 410
    assert client.get(EVENTS, limit=2, **{"continue": new}).status == 200


@pytest.mark.parametrize("token", ["nonsense", "e30", "!!"])
def test_a_token_that_is_none_gets_400(client: Client, token: str) -> None:
    assert client.get(EVENTS, **{"continue": token}).status == 400


def test_version_0_of_what_is_cached_ignores_the_limit_and_of_events_does_not(store: Store, client: Client) -> None:
    for number in range(3):
        store.create("events", event(f"e{number}"))
        store.create("pods", event(f"p{number}"))
    assert len(client.json("/api/v1/pods", limit=2, resourceVersion=0)["items"]) == 3
    assert len(client.json(EVENTS, limit=2, resourceVersion=0)["items"]) == 2


def test_a_version_yet_to_come_gets_504(store: Store, client: Client) -> None:
    assert client.get(EVENTS, resourceVersion=store.version).status == 200
    response = client.get(EVENTS, resourceVersion=store.version + 1)
    assert (response.status, response.headers["Retry-After"]) == (504, "1")


@pytest.mark.parametrize("query", [{"limit": "x"}, {"resourceVersion": "-1"}, {"fieldSelector": "spec.color=red"}])
def test_a_parameter_that_is_wrong_gets_400(client: Client, query: dict[str, str]) -> None:
    assert client.get(EVENTS, **query).status == 400


def test_selectors_filter_before_the_limit_counts(store: Store, client: Client) -> None:
    for number in range(6):
        kind = "Warning" if number % 2 else "Normal"
        store.create("events", event(f"e{number}", f"ns{number % 3}", type=kind, source={"component": "kubelet"}))
    store.create("pods", {"metadata": {"name": "p", "labels": {"team": "web"}}})
    pages = list(client.pages(EVENTS, limit=1, fieldSelector="type=Warning,metadata.namespace!=ns0,source=kubelet"))
    assert names([item for page in pages for item in page["items"]]) == ["e1", "e5"]
    assert names(client.json("/api/v1/pods", labelSelector="team=web")["items"]) == ["p"]
    assert client.json("/api/v1/pods", labelSelector="team==api")["items"] == []
    assert client.get("/api/v1/pods", labelSelector="team in (web)").status == 400


def test_metadata_only_lists_have_nothing_else(server: DemoServer, store: Store) -> None:
    store.create("deployments", {"metadata": {"name": "d", "labels": {"a": "b"}}, "spec": {"replicas": 3}})
    page = Client(server, Accept=METADATA_LIST + ",application/json").json("/apis/apps/v1/deployments")
    assert (page["kind"], page["apiVersion"]) == ("PartialObjectMetadataList", "meta.k8s.io/v1")
    (item,) = page["items"]
    assert set(item) == {"kind", "apiVersion", "metadata"}
    assert (item["kind"], item["metadata"]["labels"]) == ("PartialObjectMetadata", {"a": "b"})


@pytest.mark.parametrize(
    ("accept", "of_list", "form"),
    [
        ("", True, wire.Form.FULL),
        ("*/*", False, wire.Form.FULL),
        (METADATA_LIST, True, wire.Form.METADATA),
        ("application/json;as=Table;v=v1;g=meta.k8s.io, application/json", True, wire.Form.FULL),
        ("application/vnd.kubernetes.protobuf,application/json", True, wire.Form.FULL),
        ("application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1", False, wire.Form.METADATA),
    ],
)
def test_the_first_form_that_is_served_wins(accept: str, of_list: bool, form: wire.Form) -> None:
    assert wire.negotiate(accept, of_list) is form


@pytest.mark.parametrize("accept", ["application/vnd.kubernetes.protobuf", METADATA_LIST])
def test_a_form_that_is_not_served_gets_406(server: DemoServer, accept: str) -> None:
    assert Client(server, Accept=accept).get("/api/v1/namespaces/kube-system").status == 406


def test_large_bodies_are_compressed_for_who_accepts_gzip(server: DemoServer, store: Store) -> None:
    store.create("events", event("large", message="x" * 200_000))
    response = Client(server, **{"Accept-Encoding": "gzip"}).get(EVENTS, decode_content=False)
    assert response.headers["Content-Encoding"] == "gzip"
    assert "Content-Encoding" not in Client(server).get(EVENTS).headers
    assert len(response.json()["items"][0]["message"]) == 200_000


def test_the_history_that_lists_and_watches_reach_back_to_is_bounded() -> None:
    store = Store(history=5)
    first = store.version
    for number in range(30):
        store.create("events", event(f"e{number}"))
    with pytest.raises(ApiError, match="too old"):
        store.snapshot("events", first)
    with pytest.raises(ApiError, match="too old"):
        store.subscribe("events", first)
    assert len(store.snapshot("events", store.version - 4).keys) == 26
