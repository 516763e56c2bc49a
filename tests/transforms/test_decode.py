"""Bytes to typed changes: what comes out, and what comes out beside it when an object can't be decoded."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.transforms.fakes import event, line, page, service
from transforms.coders import StructCoder
from transforms.decode import Decoder, Undecodable
from transforms.types import (
    Change,
    Changes,
    Event,
    EventSeries,
    EventSource,
    ObjectMeta,
    ObjectReference,
    OwnerReference,
    Service,
    ServicePort,
    ServiceSpec,
)

EVENTS = Decoder(Event)

CORE_STYLE = {
    "kind": "Event",
    "apiVersion": "v1",
    "metadata": {
        "name": "web-0.17f",
        "namespace": "shop",
        "uid": "5f0c",
        "resourceVersion": "1201",
        "creationTimestamp": "2026-03-01T12:00:00Z",
        "managedFields": [{"manager": "kubelet", "fieldsV1": {"f:count": {}}}],
    },
    "involvedObject": {
        "kind": "Pod",
        "namespace": "shop",
        "name": "web-0",
        "uid": "aa",
        "apiVersion": "v1",
        "resourceVersion": "900",
        "fieldPath": "spec.containers{web}",
    },
    "reason": "BackOff",
    "message": "Back-off restarting failed container",
    "source": {"component": "kubelet", "host": "node-1"},
    "firstTimestamp": "2026-03-01T12:00:00Z",
    "lastTimestamp": "2026-03-01T12:05:00Z",
    "count": 7,
    "type": "Warning",
    "eventTime": None,
    "reportingComponent": "kubelet",
    "reportingInstance": "node-1",
}

NEW_STYLE = {
    "metadata": {"name": "web-0.18a", "namespace": "shop", "uid": "60ab", "resourceVersion": "1202"},
    "involvedObject": {"kind": "Pod", "namespace": "shop", "name": "web-0"},
    "related": {"kind": "Node", "name": "node-1"},
    "reason": "Scheduled",
    "action": "Binding",
    "source": {},
    "firstTimestamp": None,
    "lastTimestamp": None,
    "type": "Normal",
    "eventTime": "2026-03-01T12:00:00.123456Z",
    "series": {"count": 3, "lastObservedTime": "2026-03-01T12:01:00.654321Z"},
    "reportingComponent": "default-scheduler",
    "reportingInstance": "scheduler-a",
}


def body(*items: object, **head: object) -> bytes:
    return page(*items, **head)[0]


def test_an_event_of_the_core_style():
    ((change,), bad) = EVENTS.page(body(CORE_STYLE), 5)
    assert bad == []
    assert change == Change(
        "LISTED",
        Event(
            metadata=ObjectMeta(
                name="web-0.17f",
                namespace="shop",
                uid="5f0c",
                resource_version="1201",
                creation_timestamp=datetime(2026, 3, 1, 12, tzinfo=UTC),
            ),
            involved_object=ObjectReference(
                kind="Pod",
                namespace="shop",
                name="web-0",
                uid="aa",
                api_version="v1",
                resource_version="900",
                field_path="spec.containers{web}",
            ),
            reason="BackOff",
            message="Back-off restarting failed container",
            type="Warning",
            source=EventSource(component="kubelet", host="node-1"),
            first_timestamp=datetime(2026, 3, 1, 12, tzinfo=UTC),
            last_timestamp=datetime(2026, 3, 1, 12, 5, tzinfo=UTC),
            count=7,
            reporting_component="kubelet",
            reporting_instance="node-1",
        ),
        5,
    )


def test_an_event_of_the_new_style_has_null_timestamps_and_a_series():
    ((change,), bad) = EVENTS.page(body(NEW_STYLE), 5)
    assert bad == []
    assert change.object.first_timestamp is None
    assert change.object.last_timestamp is None
    assert change.object.event_time == datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)
    assert change.object.series == EventSeries(
        count=3, last_observed_time=datetime(2026, 3, 1, 12, 1, 0, 654321, tzinfo=UTC)
    )
    assert change.object.related == ObjectReference(kind="Node", name="node-1")
    assert (change.object.count, change.object.action) == (None, "Binding")


def test_absent_fields_are_empty():
    ((change,), bad) = EVENTS.page(body({"metadata": {}}), 5)
    assert bad == []
    assert change.object == Event(metadata=ObjectMeta())


def test_unknown_fields_are_passed_over():
    later = CORE_STYLE | {"fromTheFuture": {"deep": [1, {"x": None}]}}
    assert EVENTS.page(body(later), 5) == EVENTS.page(body(CORE_STYLE), 5)


def test_a_list_of_null_is_empty():
    assert EVENTS.page(b'{"metadata":{"resourceVersion":"9"},"items":null}', 5) == ([], [])


def test_what_is_at_or_below_the_floor_is_left_out():
    items = [event(name, version) for name, version in (("a", 9), ("b", 10), ("c", 11), ("d", 100))]
    changes, _ = EVENTS.page(body(*items), 5, floor="10")
    assert [change.object.metadata.name for change in changes] == ["c", "d"]


def test_one_bad_item_of_a_page_comes_beside_the_others_with_its_bytes():
    bad_item = event("b", 11) | {"count": "many"}
    changes, (bad,) = EVENTS.page(body(event("a", 10), bad_item, event("c", 12), event("old", 3)), 5, floor="5")
    assert [change.object.metadata.name for change in changes] == ["a", "c"]
    assert json.loads(bad.data) == bad_item
    assert bad.reason == "a list item: Expected `int | null`, got `str` - at `$.count`"


@pytest.mark.parametrize("broken", [b"", b"{", b"[]", b'{"items":7}', b'{"items":[{"metadata":{}},', b"\xff\xfe"])
def test_a_page_that_is_broken_as_a_whole_comes_back_as_it_was(broken):
    changes, (bad,) = EVENTS.page(broken, 5)
    assert changes == []
    assert bad.data == broken
    assert bad.reason.startswith("a list page: ")


def test_watch_lines_keep_their_type_and_order():
    lines = [line(kind, event("a", version))[:-1] for version, kind in enumerate(("ADDED", "MODIFIED", "DELETED"), 10)]
    changes, bad = EVENTS.lines(lines, 5)
    assert bad == []
    assert [(change.type, change.object.metadata.resource_version) for change in changes] == [
        ("ADDED", "10"),
        ("MODIFIED", "11"),
        ("DELETED", "12"),
    ]
    assert {change.observed_us for change in changes} == {5}


@pytest.mark.parametrize(
    "broken",
    [
        b'{"type":"ADDED","object":{"metadata":{"name":"to',
        b'{"type":"ADDED"}',
        b'{"type":"ADDED","object":{}}',
        b'{"type":"ADDED","object":{"metadata":{},"lastTimestamp":"yesterday"}}',
        b'{"type":"ADDED","object":{"metadata":{},"message":"\xff"}}',
        b'{"type":"ADDED","object":{"metadata":{},"message":' + b"[" * 100_000,
        b"null",
    ],
)
def test_a_broken_line_comes_beside_the_others_with_its_bytes(broken):
    changes, bad = EVENTS.lines([line("ADDED", event("a", 10)), broken, line("ADDED", event("b", 11))], 5)
    assert [change.object.metadata.name for change in changes] == ["a", "b"]
    assert [item.data for item in bad] == [broken]
    assert bad[0].reason.startswith("a watch line: ")


def test_services_are_decoded_by_a_decoder_of_theirs():
    spec = {
        "type": "NodePort",
        "clusterIP": "10.0.0.1",
        "selector": {"app": "web"},
        "ports": [{"port": 80, "targetPort": "http"}, {"port": 81, "targetPort": 8081, "nodePort": 30001}],
    }
    ((change,), bad) = Decoder(Service).page(body(service("web", 10, spec=spec)), 5)
    assert bad == []
    assert change.object.spec == ServiceSpec(
        type="NodePort",
        cluster_ip="10.0.0.1",
        selector={"app": "web"},
        ports=[ServicePort(port=80, target_port="http"), ServicePort(port=81, target_port=8081, node_port=30001)],
    )


@given(st.binary())
def test_any_bytes_are_decoded_or_come_back(data):
    for changes, bad in (EVENTS.page(data, 5), EVENTS.lines([data], 5)):
        assert changes or not bad or bad == [Undecodable(data, bad[0].reason)]


# --- round trips ------------------------------------------------------------------------------

texts = st.text(max_size=12)
maybe_texts = st.none() | texts
moments = st.none() | st.datetimes(
    min_value=datetime(1970, 1, 1), max_value=datetime(2200, 1, 1), timezones=st.just(UTC)
)
labels = st.none() | st.dictionaries(texts, texts, max_size=3)
metadata = st.builds(
    ObjectMeta,
    name=texts,
    namespace=maybe_texts,
    uid=texts,
    resource_version=st.integers(0, 2**64).map(str),
    creation_timestamp=moments,
    deletion_timestamp=moments,
    labels=labels,
    annotations=labels,
    owner_references=st.none()
    | st.lists(st.builds(OwnerReference, kind=texts, name=texts, controller=st.none() | st.booleans()), max_size=2),
)
references = st.builds(ObjectReference, **dict.fromkeys(ObjectReference.__struct_fields__, texts))
counts = st.none() | st.integers(0, 2**31 - 1)
events = st.builds(
    Event,
    metadata=metadata,
    involved_object=references,
    related=st.none() | references,
    reason=texts,
    message=texts,
    type=st.sampled_from(["Normal", "Warning", ""]),
    source=st.none() | st.builds(EventSource, component=texts, host=texts),
    first_timestamp=moments,
    last_timestamp=moments,
    event_time=moments,
    count=counts,
    series=st.none() | st.builds(EventSeries, count=counts, last_observed_time=moments),
    reporting_component=texts,
)


@given(st.lists(events, max_size=3))
def test_json_of_the_types_is_what_they_are_decoded_from(several):
    data = b'{"items":[' + b",".join(map(msgspec.json.encode, several)) + b"]}"
    assert EVENTS.page(data, 5) == ([Change("LISTED", item, 5) for item in several], [])
    lines = [b'{"type":"ADDED","object":' + msgspec.json.encode(item) + b"}" for item in several]
    assert EVENTS.lines(lines, 5) == ([Change("ADDED", item, 5) for item in several], [])


@given(st.lists(events, max_size=3))
def test_what_was_decoded_comes_through_the_coder_as_it_is(several):
    chunk = Changes("prod", [Change("LISTED", item, 5) for item in several])
    coder = StructCoder(Changes)
    assert coder.decode(coder.encode(chunk)) == chunk
