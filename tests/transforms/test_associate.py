from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.transforms.estate import SECOND, Estate, controlled_by, moment, ref
from transforms.associate import ServiceRef, owners, pods_of, services
from transforms.facts import Facts
from transforms.types import ObjectReference

DEPLOYMENT = controlled_by("Deployment", "web")
REPLICA_SET = controlled_by("ReplicaSet", "web-1")


def shop() -> Estate:
    """A Deployment of two pods behind two Services (one of them headless), and a pod that no Service has."""
    estate = Estate()
    estate.put("nodes", "node-1", 0, metadata={"namespace": ""})
    estate.service("checkout", 0, app="checkout")
    estate.service("checkout-peers", 0, app="checkout", clusterIP="None")
    estate.owned("deployments", "web", 0)
    estate.owned("replicasets", "web-1", 0, DEPLOYMENT, labels={"app": "checkout"})
    for name in ("c-1", "c-2"):
        estate.pod(name, 1, metadata={"ownerReferences": [REPLICA_SET]})
    estate.pod("lone", 1, app="lone", spec={"nodeName": "node-2"})
    estate.slice("checkout", ["c-1", "c-2"], 2)
    estate.slice("checkout-peers", ["c-1", "c-2"], 2)
    return estate


def named(facts: Facts, reference: ObjectReference, seconds: float, version: str = "") -> list[tuple[str, str]]:
    """(Service, how) each."""
    return [(service.name, service.how) for service in services(facts, reference, moment(seconds, version))]


def both(how: str) -> list[tuple[str, str]]:
    return [("checkout", how), ("checkout-peers", how)]


# --- pods ---


def test_a_pod_is_behind_the_services_whose_slices_list_it_headless_ones_too() -> None:
    assert services(shop().facts, ref("Pod", "c-1"), moment(60)) == [
        ServiceRef("shop", "checkout", "uid-checkout", "endpointslice"),
        ServiceRef("shop", "checkout-peers", "uid-checkout-peers", "endpointslice"),
    ]


def test_a_pod_without_a_service_has_none() -> None:
    assert named(shop().facts, ref("Pod", "lone"), 60) == []


def test_a_service_without_any_slice_has_the_pods_that_its_selector_matches() -> None:
    estate = shop()
    estate.service("lonely", 5, app="lone")
    assert named(estate.facts, ref("Pod", "lone"), 60) == [("lonely", "selector")]
    estate.slice("lonely", [], 100)
    assert named(estate.facts, ref("Pod", "lone"), 200) == []


def test_a_selector_matches_in_its_own_namespace_only() -> None:
    estate = shop()
    estate.service("lonely", 5, app="lone")
    estate.pod("abroad", 5, app="lone", metadata={"namespace": "other", "labels": {"app": "lone"}})
    assert named(estate.facts, ref("Pod", "abroad", namespace="other"), 60) == []


def test_a_slice_says_more_than_a_selector() -> None:
    estate = shop()
    estate.pod("c-3", 5)
    estate.slice("other", ["c-3"], 6)
    assert named(estate.facts, ref("Pod", "c-3"), 60) == [("other", "endpointslice")]


def test_a_pod_without_an_ip_can_be_in_no_slice_yet_and_counts_by_its_labels() -> None:
    estate = shop()
    estate.pod("c-3", 100, ip="")
    assert named(estate.facts, ref("Pod", "c-3"), 110) == both("selector")


def test_a_pod_is_expected_behind_a_service_before_its_slice_shows_it() -> None:
    estate = shop()
    estate.pod("c-3", 100)
    estate.slice("checkout", ["c-1", "c-2", "c-3"], 120)
    assert named(estate.facts, ref("Pod", "c-3"), 110) == both("selector")
    assert named(estate.facts, ref("Pod", "c-3"), 130) == [("checkout", "endpointslice")]


def test_membership_is_as_of_the_events_time() -> None:
    estate = shop()
    estate.pod("c-1", 100, app="debug")
    estate.slice("checkout", ["c-2"], 100)
    estate.slice("checkout-peers", ["c-2"], 100)
    estate.service("debug", 100, app="debug")
    estate.slice("debug", ["c-1"], 101)
    assert named(estate.facts, ref("Pod", "c-1"), 90) == both("endpointslice")
    assert named(estate.facts, ref("Pod", "c-1"), 110) == [("debug", "endpointslice")]


def test_where_time_can_not_tell_the_resource_version_decides_membership() -> None:
    estate = shop()
    left = estate.slice("checkout", ["c-2"], 100)
    estate.slice("checkout-peers", ["c-2"], 100)
    assert named(estate.facts, ref("Pod", "c-1"), 100.2, str(int(left) - 1)) == both("endpointslice")
    assert named(estate.facts, ref("Pod", "c-1"), 100.2, str(int(left) + 1)) == []


def test_a_living_pod_that_left_its_slices_has_no_service() -> None:
    estate = shop()
    estate.slice("checkout", ["c-2"], 100)
    estate.slice("checkout-peers", ["c-2"], 100)
    assert named(estate.facts, ref("Pod", "c-1"), 200) == []


def test_a_deleted_pod_belongs_to_the_services_that_it_left_last() -> None:
    estate = shop()
    estate.slice("checkout", ["c-2"], 100)
    estate.slice("checkout-peers", ["c-2"], 100.3)
    estate.delete("pods", "c-1", 101)
    assert named(estate.facts, ref("Pod", "c-1"), 102) == both("endpointslice")
    assert named(estate.facts, ref("Pod", "c-1"), 1000) == both("endpointslice")
    assert named(estate.facts, ref("Pod", "c-1"), 50) == both("endpointslice")


@pytest.mark.parametrize(
    "ending",
    [{"metadata": {"deletionTimestamp": "2026-03-01T12:01:40Z"}}, {"status": {"phase": "Failed", "podIP": "10.0.0.1"}}],
)
def test_a_pod_that_ends_belongs_to_the_services_that_it_left(ending: dict[str, Any]) -> None:
    estate = shop()
    estate.put("pods", "c-1", 100, **ending)
    estate.slice("checkout", ["c-2"], 100.5)
    estate.slice("checkout-peers", ["c-2"], 100.5)
    assert named(estate.facts, ref("Pod", "c-1"), 110) == both("endpointslice")


def test_a_deleted_pod_does_not_return_to_services_that_it_was_relabelled_from() -> None:
    estate = shop()
    estate.service("debug", 90, app="debug")
    estate.pod("c-1", 100, app="debug")
    estate.slice("checkout", ["c-2"], 100)
    estate.slice("checkout-peers", ["c-2"], 100)
    estate.slice("debug", ["c-1"], 100)
    estate.slice("debug", [], 120)
    estate.delete("pods", "c-1", 121)
    assert named(estate.facts, ref("Pod", "c-1"), 130) == [("debug", "endpointslice")]


def test_a_service_that_went_together_with_its_pods_is_named_and_one_that_went_long_before_is_not() -> None:
    estate = shop()
    estate.delete("services", "checkout-peers", 50)
    estate.delete("endpointslices", "checkout-peers-slice", 50)
    for seconds, (resource, name) in enumerate(
        [("services", "checkout"), ("endpointslices", "checkout-slice"), ("pods", "c-1")], 200
    ):
        estate.delete(resource, name, seconds)
    assert named(estate.facts, ref("Pod", "c-1"), 204) == [("checkout", "endpointslice")]


def test_a_pod_that_was_never_seen_is_found_in_the_slices_by_its_uid() -> None:
    estate = shop()
    estate.slice("checkout", ["unseen"], 10)
    assert named(estate.facts, ref("Pod", "unseen"), 60) == [("checkout", "endpointslice")]
    assert named(estate.facts, ref("Pod", "unknown"), 60) == []


def test_a_slice_without_uids_lists_pods_by_name() -> None:
    estate = shop()
    labels = {"labels": {"kubernetes.io/service-name": "legacy"}}
    endpoints = [{"targetRef": {"kind": "Pod", "name": "lone"}}, {"addresses": ["192.0.2.1"]}]
    estate.put("endpointslices", "legacy", 10, metadata=labels, endpoints=endpoints)
    assert named(estate.facts, ref("Pod", "lone"), 60) == [("legacy", "endpointslice")]


def test_the_api_servers_own_service_and_external_names_have_no_pods() -> None:
    estate = Estate()
    estate.put("services", "kubernetes", 0, metadata={"namespace": "default"}, spec={"clusterIP": "10.96.0.1"})
    labels = {"namespace": "default", "labels": {"kubernetes.io/service-name": "kubernetes"}}
    estate.put("endpointslices", "kubernetes", 0, metadata=labels, endpoints=[{"nodeName": "node-1"}])
    estate.service("away", 0, app="checkout", type="ExternalName")
    estate.pod("p", 0)
    assert named(estate.facts, ref("Pod", "p"), 60) == []
    assert named(estate.facts, ref("Node", "node-1", namespace=""), 60) == []
    own = ref("Service", "kubernetes", namespace="default")
    assert services(estate.facts, own, moment(60)) == [ServiceRef("default", "kubernetes", "uid-kubernetes", "self")]


# --- what has pods ---


@pytest.mark.parametrize(("kind", "name"), [("ReplicaSet", "web-1"), ("Deployment", "web")])
def test_a_workload_has_the_services_of_the_pods_that_it_owns(kind: str, name: str) -> None:
    assert named(shop().facts, ref(kind, name, "apps/v1"), 60) == both("owned-pods")


def test_a_custom_resource_has_the_services_of_the_pods_that_it_owns_and_else_none() -> None:
    estate = shop()
    estate.owned("deployments", "web", 10, controlled_by("Shop", "everything", "example.com/v1"))
    assert named(estate.facts, ref("Shop", "everything", "example.com/v1"), 60) == both("owned-pods")
    assert named(estate.facts, ref("Shop", "nothing", "example.com/v1"), 60) == []
    assert named(estate.facts, ref("Service", "everything", "serving.knative.dev/v1"), 60) == both("owned-pods")


def test_owners_in_a_circle_end() -> None:
    estate = Estate()
    estate.owned("replicasets", "a", 0, controlled_by("ReplicaSet", "b"))
    estate.owned("replicasets", "b", 0, controlled_by("ReplicaSet", "a"))
    version = estate.facts.by_uid("uid-a").versions[0]
    assert [owner.name for owner in owners(estate.facts, version, moment(1))] == ["b", "a"]
    assert named(estate.facts, ref("ReplicaSet", "a", "apps/v1"), 1) == []


def test_the_owner_chain_goes_up_to_the_top_and_names_an_owner_that_was_never_seen() -> None:
    estate = shop()
    estate.owned("deployments", "web", 10, controlled_by("Shop", "unseen", "example.com/v1"))
    version = estate.facts.by_uid("uid-c-1").versions[0]
    assert [(o.kind, o.name, o.uid, o.api_version) for o in owners(estate.facts, version, moment(60))] == [
        ("ReplicaSet", "web-1", "uid-web-1", "apps/v1"),
        ("Deployment", "web", "uid-web", "apps/v1"),
        ("Shop", "unseen", "uid-unseen", "example.com/v1"),
    ]


def test_a_workload_without_pods_has_the_services_of_those_to_come_or_of_the_last() -> None:
    estate = shop()
    for name in ("c-1", "c-2"):
        estate.delete("pods", name, 100)
    estate.slice("checkout", [], 100)
    estate.slice("checkout-peers", [], 100)
    assert named(estate.facts, ref("Deployment", "web", "apps/v1"), -60) == both("owned-pods")
    assert named(estate.facts, ref("Deployment", "web", "apps/v1"), 300) == both("owned-pods")


def test_a_replica_set_that_can_not_create_pods_has_the_services_that_select_them() -> None:
    estate = shop()
    owner = controlled_by("Deployment", "next")
    estate.owned("replicasets", "next-1", 50, owner, labels={"app": "checkout"})
    assert named(estate.facts, ref("ReplicaSet", "next-1", "apps/v1"), 60) == both("template")
    assert named(estate.facts, ref("Deployment", "next", "apps/v1"), 60) == both("template")


def test_a_pod_counts_for_the_owner_that_it_had_then() -> None:
    estate = shop()
    for name in ("c-1", "c-2"):
        estate.put("pods", name, 100, metadata={"ownerReferences": [controlled_by("ReplicaSet", "adopter")]})
    assert named(estate.facts, ref("ReplicaSet", "adopter", "apps/v1"), 50) == []
    assert named(estate.facts, ref("ReplicaSet", "adopter", "apps/v1"), 150) == both("owned-pods")


def test_an_autoscaler_has_the_services_of_its_target() -> None:
    estate = shop()
    target = {"kind": "Deployment", "name": "web", "apiVersion": "apps/v1"}
    estate.put("horizontalpodautoscalers", "hpa", 5, spec={"scaleTargetRef": target})
    estate.put("horizontalpodautoscalers", "blind", 5, spec={"scaleTargetRef": {**target, "name": "missing"}})
    assert named(estate.facts, ref("HorizontalPodAutoscaler", "hpa", "autoscaling/v2"), 60) == both("scale-target")
    assert named(estate.facts, ref("HorizontalPodAutoscaler", "blind", "autoscaling/v2"), 60) == []
    assert named(estate.facts, ref("HorizontalPodAutoscaler", "unseen", "autoscaling/v2"), 60) == []


@pytest.mark.parametrize(
    ("selector", "matches"),
    [
        ({"matchLabels": {"app": "checkout"}}, True),
        ({"matchLabels": {"app": "checkout", "tier": "x"}}, False),
        ({}, True),
        (None, False),
        ({"matchExpressions": [{"key": "app", "operator": "In", "values": ["checkout", "x"]}]}, True),
        ({"matchExpressions": [{"key": "tier", "operator": "In", "values": ["x"]}]}, False),
        ({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["lone", "checkout"]}]}, False),
        ({"matchExpressions": [{"key": "tier", "operator": "NotIn", "values": ["x"]}]}, True),
        ({"matchExpressions": [{"key": "app", "operator": "Exists"}]}, True),
        ({"matchExpressions": [{"key": "app", "operator": "DoesNotExist"}]}, False),
        ({"matchExpressions": [{"key": "app", "operator": "New"}]}, False),
    ],
)
def test_a_disruption_budget_has_the_services_of_the_pods_that_it_selects(selector: Any, matches: bool) -> None:
    estate = shop()
    estate.put("poddisruptionbudgets", "pdb", 5, spec={"selector": selector} if selector is not None else {})
    found = named(estate.facts, ref("PodDisruptionBudget", "pdb", "policy/v1"), 60)
    assert found == (both("disruption-budget") if matches else [])


def test_a_claim_has_the_services_of_the_pods_that_mount_it() -> None:
    estate = shop()
    volumes = [{"name": "data", "persistentVolumeClaim": {"claimName": "data-1"}}]
    estate.put("pods", "c-2", 5, spec={"nodeName": "node-1", "volumes": volumes})
    assert named(estate.facts, ref("PersistentVolumeClaim", "data-1"), 60) == both("volume")
    assert named(estate.facts, ref("PersistentVolumeClaim", "data-2"), 60) == []


def test_a_node_has_the_services_with_endpoints_on_it_at_that_time() -> None:
    estate = shop()
    estate.slice("checkout", [], 100)
    estate.service("lonely", 5, app="lone")
    assert named(estate.facts, ref("Node", "node-1", uid="node-1", namespace=""), 60) == both("node")
    assert named(estate.facts, ref("Node", "node-1", namespace=""), 110) == [("checkout-peers", "node")]
    assert named(estate.facts, ref("Node", "node-2", namespace=""), 60) == [("lonely", "node")]
    assert named(estate.facts, ref("Node", "node-3", namespace=""), 60) == []


# --- Services and routes ---


def test_a_service_its_endpoints_and_its_slices_are_about_the_service_itself() -> None:
    facts = shop().facts
    itself = [ServiceRef("shop", "checkout", "uid-checkout", "self")]
    assert services(facts, ref("Service", "checkout"), moment(60)) == itself
    assert services(facts, ref("Endpoints", "checkout", uid="uid-endpoints"), moment(60)) == itself
    assert services(facts, ref("EndpointSlice", "checkout-slice", "discovery.k8s.io/v1"), moment(60)) == itself
    unseen = [ServiceRef("shop", "unseen", "uid-unseen", "self")]
    assert services(facts, ref("Service", "unseen"), moment(60)) == unseen
    assert services(facts, ref("EndpointSlice", "unseen", "discovery.k8s.io/v1"), moment(60)) == []


def test_routes_have_their_backends() -> None:
    estate = shop()
    rule = {"http": {"paths": [{"backend": {"service": {"name": "checkout"}}}, {"backend": {"resource": {}}}]}}
    default = {"service": {"name": "checkout-peers"}}
    estate.put("ingresses", "front", 5, spec={"rules": [rule, {}], "defaultBackend": default})
    refs = [
        {"name": "checkout"},
        {"name": "checkout", "namespace": "other"},
        {"name": "checkout-peers", "kind": "ServiceImport", "group": "multicluster.x-k8s.io"},
    ]
    estate.put("httproutes", "route", 5, spec={"rules": [{"backendRefs": refs}]})
    assert named(estate.facts, ref("Ingress", "front", "networking.k8s.io/v1"), 60) == both("backend")
    route = ref("HTTPRoute", "route", "gateway.networking.k8s.io/v1")
    assert [s[:3] for s in services(estate.facts, route, moment(60))] == [
        ("other", "checkout", ""),
        ("shop", "checkout", "uid-checkout"),
    ]
    estate.facts.confirm("services", 0)
    assert named(estate.facts, route, 60) == [("checkout", "backend")]
    assert named(estate.facts, ref("Ingress", "unseen", "networking.k8s.io/v1"), 60) == []


def test_pods_behind_a_service_are_those_of_its_slices_else_of_its_selector() -> None:
    estate = shop()

    def behind(name: str, selector: dict[str, str], seconds: float) -> list[str]:
        return [pod.name for pod in pods_of(estate.facts, "shop", name, selector, moment(seconds))]

    assert behind("checkout", {"app": "lone"}, 60) == ["c-1", "c-2"]
    assert behind("new", {"app": "lone"}, 60) == ["lone"]
    assert behind("new", {}, 60) == []
    estate.delete("endpointslices", "checkout-slice", 100)
    assert behind("checkout", {"app": "checkout"}, 110) == ["c-1", "c-2"]
    assert behind("checkout", {"app": "checkout"}, 300) == []


@given(st.data())
def test_services_kept_for_a_region_of_moments_hold_throughout_it(data: st.DataObject) -> None:
    estate = shop()
    pods, version = ["c-1", "c-2"], estate.version
    for step in range(data.draw(st.integers(0, 6))):
        what = data.draw(st.sampled_from(["slice", "label", "delete"]))
        seconds = 10 + step * data.draw(st.integers(1, 3))
        name = data.draw(st.sampled_from(pods))
        if what == "slice":
            estate.slice("checkout", data.draw(st.lists(st.sampled_from(pods), unique=True)), seconds)
        elif ("pods", name) in estate.objects and what == "label":
            estate.pod(name, seconds, app=data.draw(st.sampled_from(["checkout", "lone"])))
        elif ("pods", name) in estate.objects:
            estate.delete("pods", name, seconds)
        version = estate.version
    reference = data.draw(
        st.sampled_from([ref("Pod", "c-1"), ref("Deployment", "web", "apps/v1"), ref("Node", "node-1")])
    )
    asked = []
    for _ in range(12):
        when = moment(data.draw(st.integers(0, 40)), str(data.draw(st.integers(100, version + 2))), SECOND)
        answer = services(estate.facts, reference, when)
        for other, known in asked:
            if other.low_us <= when.at_us < other.high_us and (
                other.low_revision <= when.revision < other.high_revision
            ):
                assert answer == known
        asked.append((when, answer))
