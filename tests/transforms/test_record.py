"""Run as a program (`python -m tests.transforms.test_record`), this measures enrichment on a cluster of 10,000 pods."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import pytest
from google.protobuf.message import DecodeError
from kubehistory import record_pb2 as pb

from tests.transforms.estate import SECOND, Estate, at, controlled_by, event, moment, ref, stamp
from transforms.facts import Facts
from transforms.record import (
    changed,
    decode,
    enrichment,
    event_record,
    event_time,
    gap_record,
    service_record,
)
from transforms.types import Encoded, News, ObjectReference, Service, Target

POD = ObjectReference(
    kind="Pod", namespace="shop", name="c-1", uid="uid-c-1", api_version="v1", resource_version="7", field_path="spec"
)


def shop(pods: int = 1) -> Estate:
    """A Deployment's pods on a node, behind a Service."""
    estate = Estate()
    addresses = [{"type": "InternalIP", "address": "192.168.0.1"}, {"type": "Hostname", "address": "node-1"}]
    estate.put("nodes", "node-1", 0, metadata={"namespace": ""}, status={"addresses": addresses})
    estate.service("checkout", 0, app="checkout")
    estate.owned("deployments", "web", 0)
    estate.owned("replicasets", "web-1", 0, controlled_by("Deployment", "web"))
    names = [f"c-{n}" for n in range(1, pods + 1)]
    for name in names:
        metadata = {
            "labels": {"app": "checkout", "tier": "web"},
            "annotations": {"team": "payments"},
            "ownerReferences": [controlled_by("ReplicaSet", "web-1")],
        }
        estate.pod(name, 1, metadata=metadata)
        status = {
            "podIP": "10.0.0.1",
            "hostIP": "192.168.0.1",
            "startTime": stamp(2),
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": "True"}],
        }
        estate.put("pods", name, 3, status=status)
    estate.slice("checkout", names, 4)
    return estate


def record(facts: Facts, seconds: float = 60, involved: ObjectReference = POD, **fields: Any) -> pb.Record:
    return decode(event_record("prod", event(seconds, involved, **fields), facts).data)


# --- events ---


def test_an_event_and_all_that_was_true_of_its_object_are_in_the_record() -> None:
    facts = shop().facts
    news = event(60, POD, firstTimestamp=stamp(10), count=7, type="Warning", action="Restart")
    encoded = event_record("prod", msgspec.structs.replace(news, occurrences=3), facts)
    assert encoded == Encoded(at(60), "uid-event", "900", encoded.data)
    assert decode(encoded.data) == pb.Record(
        kind=pb.EVENT,
        cluster="prod",
        uid="uid-event",
        resource_version="900",
        time_us=at(60),
        observed_time_us=at(60.1),
        namespace="shop",
        name="e.1",
        type="Warning",
        reason="BackOff",
        message="Back-off restarting failed container",
        action="Restart",
        first_time_us=at(10),
        last_time_us=at(60),
        count=7,
        occurrences=3,
        component="kubelet",
        host="node-1",
        involved=pb.Reference(
            kind="Pod",
            namespace="shop",
            name="c-1",
            uid="uid-c-1",
            api_version="v1",
            resource_version="7",
            field_path="spec",
        ),
        labels={"app": "checkout", "tier": "web"},
        annotations={"team": "payments"},
        owners=[
            pb.Owner(kind="ReplicaSet", name="web-1", uid="uid-web-1", api_version="apps/v1"),
            pb.Owner(kind="Deployment", name="web", uid="uid-web", api_version="apps/v1"),
        ],
        node="node-1",
        node_addresses=[
            pb.Address(type="InternalIP", address="192.168.0.1"),
            pb.Address(type="Hostname", address="node-1"),
        ],
        pod=pb.Pod(
            uid="uid-c-1",
            name="c-1",
            namespace="shop",
            ip="10.0.0.1",
            host_ip="192.168.0.1",
            start_time_us=at(2),
            phase="Running",
            node="node-1",
            ready=True,
        ),
        services=[pb.ServiceRef(namespace="shop", name="checkout", uid="uid-checkout", how="endpointslice")],
        enrichment=pb.FRESH,
        snapshot_time_us=at(4),
    )


def test_an_event_of_the_new_style_comes_out_right() -> None:
    found = record(
        shop().facts,
        source=None,
        lastTimestamp=None,
        firstTimestamp=None,
        eventTime="2026-03-01T12:00:10.123456Z",
        series={"count": 4, "lastObservedTime": "2026-03-01T12:00:40.5Z"},
        reportingComponent="default-scheduler",
        reportingInstance="scheduler-0",
        related=msgspec.to_builtins(ref("Node", "node-1")),
    )
    assert found.time_us == found.last_time_us == at(40.5)
    assert (found.event_time_us, found.first_time_us, found.count) == (at(10) + 123456, 0, 4)
    assert (found.component, found.host) == ("default-scheduler", "scheduler-0")
    assert (found.reporting_controller, found.reporting_instance) == ("default-scheduler", "scheduler-0")
    assert found.related.name == "node-1"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"series": {"lastObservedTime": stamp(30)}, "eventTime": stamp(10), "lastTimestamp": None}, (30, 0)),
        ({"eventTime": "2026-03-01T12:00:10.7Z", "lastTimestamp": stamp(10)}, (10.7, 0)),
        ({"eventTime": stamp(10), "series": {"count": 2}, "lastTimestamp": None}, (10, 0)),
        ({"eventTime": stamp(10), "lastTimestamp": stamp(50)}, (50, SECOND)),
        ({"lastTimestamp": stamp(20), "firstTimestamp": stamp(10)}, (20, SECOND)),
        ({"lastTimestamp": None, "firstTimestamp": stamp(10)}, (10, SECOND)),
        ({"lastTimestamp": None, "metadata": {"creationTimestamp": stamp(5)}}, (5, SECOND)),
        ({"lastTimestamp": None}, (60.1, SECOND)),
    ],
)
def test_an_events_time_is_its_last_occurrence(fields: dict[str, Any], expected: tuple[float, int]) -> None:
    news = event(60, POD, **fields)
    assert event_time(news.object, news.observed_us) == (at(expected[0]), expected[1])


def test_an_event_that_says_no_count_occurred_once() -> None:
    assert record(shop().facts).count == 1


def test_the_record_shows_the_labels_of_the_events_time_however_often_it_is_asked() -> None:
    estate = shop()
    estate.put("pods", "c-1", 100, metadata={"labels": {"app": "changed"}})
    for _ in range(2):
        assert record(estate.facts, 90).labels["app"] == "checkout"
        assert record(estate.facts, 110).labels["app"] == "changed"


def test_where_the_time_can_not_tell_the_events_version_decides_unless_events_have_an_etcd_of_their_own() -> None:
    estate = shop()
    changed_by = int(estate.put("pods", "c-1", 100.5, metadata={"labels": {"app": "changed"}}))
    before, after = event(100, POD, str(changed_by - 1)), event(100, POD, str(changed_by + 1))
    assert decode(event_record("prod", before, estate.facts).data).labels["app"] == "checkout"
    assert decode(event_record("prod", after, estate.facts).data).labels["app"] == "changed"
    apart = decode(event_record("prod", after, estate.facts, global_revisions=False).data)
    assert apart.labels["app"] == "checkout"


def test_a_deleted_pod_keeps_its_last_facts_as_a_tombstone() -> None:
    estate = shop()
    estate.slice("checkout", [], 99)
    estate.delete("pods", "c-1", 100)
    found = record(estate.facts, 110)
    assert found.enrichment == pb.TOMBSTONE
    assert found.labels["app"] == "checkout"
    assert [service.name for service in found.services] == ["checkout"]


def test_an_object_that_was_never_seen_is_missing_and_its_event_is_written() -> None:
    found = record(shop().facts, involved=ref("Pod", "unknown"))
    assert found.enrichment == pb.MISSING
    assert found.reason == "BackOff"
    assert not found.HasField("pod")
    assert found.snapshot_time_us == at(4)


def test_an_event_about_a_node_shows_the_node() -> None:
    found = record(shop().facts, involved=ref("Node", "node-1", uid="node-1", namespace=""))
    assert (found.node, [address.address for address in found.node_addresses]) == (
        "node-1",
        ["192.168.0.1", "node-1"],
    )
    assert [service.how for service in found.services] == ["node"]


def test_the_same_event_gives_the_same_bytes() -> None:
    first, second = (event_record("prod", event(60, POD), shop().facts) for _ in range(2))
    assert first == second


def test_an_enrichment_is_made_once_for_as_long_as_it_holds() -> None:
    estate = shop()
    first = enrichment(estate.facts, POD, moment(60, "900"))
    assert enrichment(estate.facts, POD, moment(90, "950")) is first
    estate.facts.confirm("pods", at(100))
    assert enrichment(estate.facts, POD, moment(90, "950")) is first
    assert record(estate.facts, 90).snapshot_time_us == at(100)
    estate.put("pods", "c-1", 120, metadata={"labels": {"app": "changed"}})
    assert enrichment(estate.facts, POD, moment(60, "900")) == first
    assert enrichment(estate.facts, POD, moment(130, "950")) != first


def test_the_kept_enrichments_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transforms.record._MAX_DERIVED", 2)
    facts = shop(4).facts
    for n in range(1, 5):
        enrichment(facts, ref("Pod", f"c-{n}"), moment(60))
    assert len(facts.derived) <= 2


# --- Services ---


def service(version: str = "200", **fields: Any) -> Service:
    metadata = {
        "name": "checkout",
        "namespace": "shop",
        "uid": "uid-checkout",
        "resourceVersion": version,
        "creationTimestamp": stamp(0),
        "labels": {"team": "payments"},
    }
    spec = {"type": "ClusterIP", "clusterIP": "10.96.0.7", "selector": {"app": "checkout"}, **fields}
    return msgspec.json.decode(msgspec.json.encode({"metadata": metadata, "spec": spec}), type=Service)


def change(kind: str, after: Service, before: Service | None = None) -> Encoded:
    return service_record("prod", News(kind, after, at(60), 1, before), shop().facts)


def test_an_updated_service_says_what_changed_and_which_pods_are_behind_it() -> None:
    before = service()
    ports = [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": "web"}, {"port": 81, "targetPort": 8081}]
    after = service("201", selector={"app": "checkout", "tier": "web"}, ports=ports)
    encoded = change("MODIFIED", after, before)
    found = decode(encoded.data)
    assert (encoded.time_us, encoded.uid, encoded.resource_version) == (at(60), "uid-checkout", "201")
    assert (found.kind, found.cluster, found.name) == (pb.SERVICE_CHANGE, "prod", "checkout")
    assert found.service_change.change == pb.ServiceChange.UPDATED
    assert found.service_change.changed == ["selector", "ports"]
    assert found.service_change.before.selector == {"app": "checkout"}
    assert [port.target_port for port in found.service_change.after.ports] == ["web", "8081"]
    assert [(pod.name, pod.ip, pod.ready) for pod in found.service_change.pods] == [("c-1", "10.0.0.1", True)]
    assert [(s.name, s.how) for s in found.services] == [("checkout", "self")]
    assert found.labels == {"team": "payments"}


@pytest.mark.parametrize(
    ("kind", "expected", "seconds"),
    [("LISTED", pb.ServiceChange.LISTED, 60), ("ADDED", pb.ServiceChange.ADDED, 0)],
)
def test_a_service_that_is_new_has_no_before(kind: str, expected: int, seconds: int) -> None:
    encoded = change(kind, service())
    found = decode(encoded.data).service_change
    assert encoded.time_us == at(seconds)
    assert found.change == expected
    assert not found.HasField("before")
    assert found.after.cluster_ip == "10.96.0.7"


def test_a_deleted_service_has_only_a_before() -> None:
    record = decode(change("DELETED", service()).data)
    found = record.service_change
    assert found.change == pb.ServiceChange.DELETED
    assert found.before.cluster_ip == "10.96.0.7"
    assert not found.HasField("after")
    assert not record.found_by_list


def test_a_service_that_a_list_no_longer_shows_was_deleted_some_time_before() -> None:
    record = decode(change("UNLISTED", service(), service()).data)
    assert record.service_change.change == pb.ServiceChange.DELETED
    assert record.service_change.before.cluster_ip == "10.96.0.7"
    assert record.found_by_list


def test_a_listed_service_that_was_known_otherwise_was_updated() -> None:
    record = decode(change("LISTED", service("201", type="NodePort"), service()).data)
    found = record.service_change
    assert record.found_by_list
    assert found.change == pb.ServiceChange.UPDATED
    assert found.changed == ["type"]


def test_an_external_name_has_no_pods() -> None:
    external = msgspec.structs.replace(service(type="ExternalName", externalName="example.com"))
    facts = shop().facts
    news = News("ADDED", msgspec.structs.replace(external, metadata=_named("away", external)), at(60))
    assert list(decode(service_record("prod", news, facts).data).service_change.pods) == []


def _named(name: str, other: Service) -> Any:
    return msgspec.structs.replace(other.metadata, name=name)


def test_what_was_unknown_before_did_not_change_in_any_known_way() -> None:
    assert changed(None, service()) == []
    assert changed(service(), service("201")) == []


# --- gaps ---


def test_a_gap_says_from_when_to_when_and_why() -> None:
    encoded = gap_record(Target("prod", "events", "shop"), at(0), at(90), "410 Gone", from_version="5", to_version="9")
    found = decode(encoded.data)
    assert encoded == gap_record(
        Target("prod", "events", "shop"), at(0), at(90), "410 Gone", from_version="5", to_version="9"
    )
    assert (encoded.time_us, encoded.uid, encoded.resource_version) == (at(90), found.uid, "9")
    assert (found.kind, found.cluster, found.namespace) == (pb.GAP, "prod", "shop")
    assert found.gap == pb.Gap(
        from_us=at(0),
        to_us=at(90),
        why="410 Gone",
        resource="events",
        namespace="shop",
        from_version="5",
        to_version="9",
    )


def test_other_bytes_are_no_record() -> None:
    with pytest.raises(DecodeError):
        decode(b"\xff")


# --- measured by hand ---


def measure(pods: int = 10_000, events: int = 20_000) -> None:
    """Prints what facts and records cost, in CPU time."""
    facts = shop(pods).facts
    started = time.process_time()
    data = facts.encode()
    encoded = time.process_time()
    facts = Facts.decode(data)
    decoded = time.process_time()
    print(
        f"{pods} pods: encode {(encoded - started) * 1e3:.1f} ms, decode {(decoded - encoded) * 1e3:.1f} ms", end=", "
    )
    print(f"{len(data) / 1e6:.1f} MB")
    for about in (1_000, pods):
        news = [event(60 + n // 1_000, ref("Pod", f"c-{n % about + 1}"), str(100_000 + n)) for n in range(events)]
        facts.derived.clear()
        for name in ("first", "again"):
            started = time.process_time()
            for item in news:
                event_record("prod", item, facts)
            print(
                f"event_record, {about} pods, {name}: {(time.process_time() - started) / events * 1e6:.2f} µs an event"
            )


if __name__ == "__main__":
    measure()
