from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.transforms.estate import SECOND, START, Estate, at, controlled_by, moment, ref, stamp
from transforms.facts import (
    DEFAULT_RETENTION_US,
    MAX_ANNOTATION_LENGTH,
    MAX_VERSIONS,
    Facts,
    Mark,
    Moment,
    NodeFacts,
    PodFacts,
    ScaleFacts,
    SelectorFacts,
    ServiceFacts,
    revision,
    to_us,
)
from transforms.objects import Meta, Pod, decode_object, object_type
from transforms.types import ObjectReference


def labels(facts: Facts, reference: ObjectReference, when: Moment) -> dict[str, str] | None:
    found = facts.lookup(reference, when)
    return facts.labels(found.version) if found else None


def relabelled(*changes: tuple[float, str]) -> Estate:
    estate = Estate()
    for seconds, value in changes:
        estate.pod("p", seconds, metadata={"labels": {"v": value}})
    return estate


# --- decoding ---


def test_an_object_is_decoded_to_the_struct_of_its_resource_and_others_to_metadata() -> None:
    assert object_type("pods") is Pod
    assert object_type("widgets") is Meta
    pod = decode_object("pods", b'{"metadata":{"name":"p"},"spec":{"nodeName":"n","containers":[{}]},"status":{}}')
    assert isinstance(pod, Pod)
    assert (pod.metadata.name, pod.spec.node_name, pod.status.pod_ip) == ("p", "n", "")
    assert decode_object("widgets", b'{"kind":"Widget","metadata":{"name":"w"}}').metadata.name == "w"


def test_bytes_that_are_no_object_are_an_error() -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_object("pods", b"[]")


def test_times_become_whole_microseconds() -> None:
    assert to_us(None) == 0
    assert to_us(START.replace(microsecond=123456)) == at(0) + 123456


def test_resource_versions_are_compared_as_numbers_and_others_have_none() -> None:
    assert revision("99") < revision("100")
    assert revision("") == revision("a1") == revision("9" * 40) == -1


# --- versions ---


def test_a_heartbeat_makes_no_version() -> None:
    estate = relabelled((0, "a"))
    estate.put("pods", "p", 10, status={"podIP": "10.0.0.1", "phase": "Running", "message": "still here"})
    assert len(estate.facts.by_uid("uid-p").versions) == 1


def test_each_event_gets_the_labels_that_held_at_its_time() -> None:
    facts = relabelled((0, "a"), (10, "b"), (20, "c")).facts
    assert [labels(facts, ref("Pod", "p"), moment(s)) for s in (5, 15, 25)] == [{"v": "a"}, {"v": "b"}, {"v": "c"}]


def test_an_event_before_the_first_known_version_takes_the_first() -> None:
    assert labels(relabelled((0, "a"), (10, "b")).facts, ref("Pod", "p"), moment(-100)) == {"v": "a"}


def test_the_first_version_counts_from_the_creation() -> None:
    estate = Estate()
    estate.pod("p", 500, metadata={"creationTimestamp": stamp(3)})
    assert estate.facts.by_uid("uid-p").versions[0].since.at_us == at(3)


@pytest.mark.parametrize(("version", "expected"), [("101", "a"), ("102", "b"), ("150", "b"), ("", "b")])
def test_within_the_precision_of_the_time_the_resource_version_decides(version: str, expected: str) -> None:
    facts = relabelled((0, "a"), (10.4, "b")).facts  # versions 101 and 102
    assert labels(facts, ref("Pod", "p"), moment(10.5, version, SECOND)) == {"v": expected}


def test_a_change_that_the_watch_delivered_late_is_told_by_the_resource_version() -> None:
    facts = relabelled((0, "a"), (10, "b")).facts
    assert labels(facts, ref("Pod", "p"), moment(9.5, "103")) == {"v": "b"}
    assert labels(facts, ref("Pod", "p"), moment(9.5)) == {"v": "a"}
    assert labels(facts, ref("Pod", "p"), moment(8.5, "103")) == {"v": "a"}


def test_a_change_found_by_a_list_may_have_been_at_any_time_since_the_list_before() -> None:
    estate = relabelled((0, "a"))
    estate.facts.confirm("pods", at(30))
    changed = {"metadata": {"name": "p", "namespace": "shop", "uid": "uid-p", "resourceVersion": "150"}}
    estate.facts.apply("pods", "LISTED", decode_object("pods", msgspec.json.encode(changed)), at(90))
    assert labels(estate.facts, ref("Pod", "p"), moment(60, "160")) == {}
    assert labels(estate.facts, ref("Pod", "p"), moment(60, "140")) == {"v": "a"}
    assert labels(estate.facts, ref("Pod", "p"), moment(20, "160")) == {"v": "a"}


def test_what_is_older_than_what_is_known_is_ignored() -> None:
    estate = relabelled((0, "a"), (10, "b"))
    old = decode_object("pods", b'{"metadata":{"name":"p","namespace":"shop","uid":"uid-p","resourceVersion":"99"}}')
    estate.facts.apply("pods", "MODIFIED", old, at(20))
    assert labels(estate.facts, ref("Pod", "p"), moment(30)) == {"v": "b"}


def test_an_object_has_a_bounded_number_of_versions() -> None:
    estate = relabelled(*[(10.0 * n, str(n)) for n in range(MAX_VERSIONS + 6)])
    assert len(estate.facts.by_uid("uid-p").versions) == MAX_VERSIONS
    assert labels(estate.facts, ref("Pod", "p"), moment(0)) == {"v": "6"}


def test_annotations_that_say_nothing_of_the_object_are_dropped() -> None:
    estate = Estate()
    annotations = {
        "kubectl.kubernetes.io/last-applied-configuration": "{}",
        "big": "x" * (MAX_ANNOTATION_LENGTH + 1),
        "team": "payments",
    }
    estate.pod("p", 0, metadata={"annotations": annotations})
    found = estate.facts.lookup(ref("Pod", "p"), moment(1))
    assert found is not None
    assert estate.facts.annotations(found.version) == {"team": "payments"}


def test_a_pods_facts_are_what_a_record_shows() -> None:
    estate = Estate()
    estate.put(
        "pods",
        "p",
        0,
        spec={
            "nodeName": "node-1",
            "volumes": [
                {"name": "a", "persistentVolumeClaim": {"claimName": "data"}},
                {"name": "b", "ephemeral": {"volumeClaimTemplate": {}}},
                {"name": "c", "emptyDir": {}},
            ],
        },
        status={
            "podIP": "10.0.0.1",
            "hostIP": "192.168.0.1",
            "startTime": stamp(2),
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    )
    detail = estate.facts.by_uid("uid-p").versions[0].detail
    assert detail == PodFacts("node-1", "10.0.0.1", "192.168.0.1", at(2), "Running", True, ("data", "p-b"))


def test_an_external_name_selects_nothing() -> None:
    estate = Estate()
    estate.service("s", 0, app="x", type="ExternalName", externalName="example.com")
    assert estate.facts.by_uid("uid-s").versions[0].detail == ServiceFacts({})


def test_specs_that_lead_to_services_are_kept() -> None:
    estate = Estate()
    target = {"kind": "Deployment", "name": "d", "apiVersion": "apps/v1"}
    estate.put("horizontalpodautoscalers", "hpa", 0, spec={"scaleTargetRef": target})
    selector = {"matchExpressions": [{"key": "app", "operator": "Exists"}]}
    estate.put("poddisruptionbudgets", "pdb", 0, spec={"selector": selector})
    estate.put("poddisruptionbudgets", "none", 0, spec={})
    estate.put("nodes", "n", 0, status={"addresses": [{"type": "Hostname", "address": "h"}]})

    def detail(name: str) -> object:
        return estate.facts.by_uid(f"uid-{name}").versions[0].detail

    assert detail("hpa") == ScaleFacts("Deployment", "d", "apps/v1")
    assert detail("pdb") == SelectorFacts({}, (("app", "Exists", ()),))
    assert detail("none") is None
    assert detail("n") == NodeFacts((("Hostname", "h"),))


# --- lists, tombstones, expiry ---


def listed(facts: Facts, seconds: float, *bodies: bytes, namespace: str = "") -> None:
    facts.begin_list("pods", namespace)
    for body in bodies:
        facts.apply("pods", "LISTED", decode_object("pods", body), at(seconds))
    facts.end_list("pods", at(seconds), namespace, "500")


POD = b'{"metadata":{"name":"p","namespace":"shop","uid":"uid-p","resourceVersion":"10"}}'
OTHER = b'{"metadata":{"name":"o","namespace":"other","uid":"uid-o","resourceVersion":"11"}}'


def test_what_a_list_does_not_show_is_gone_and_keeps_its_facts() -> None:
    facts = Facts()
    listed(facts, 0, POD, OTHER)
    listed(facts, 60, OTHER)
    gone = facts.by_uid("uid-p").gone
    assert gone == Mark(at(60), 60 * SECOND, 500)
    assert facts.lookup(ref("Pod", "p"), moment(90)) is not None
    assert facts.by_uid("uid-o").gone is None


def test_a_list_of_one_namespace_ends_nothing_elsewhere() -> None:
    facts = Facts()
    listed(facts, 0, POD, OTHER)
    listed(facts, 60, namespace="shop")
    assert facts.by_uid("uid-p").gone is not None
    assert facts.by_uid("uid-o").gone is None


def test_what_was_taken_for_gone_lives_when_it_is_seen_again() -> None:
    facts = Facts()
    listed(facts, 0, POD)
    listed(facts, 60)
    listed(facts, 120, POD)
    assert facts.by_uid("uid-p").gone is None


def test_a_list_that_was_not_begun_can_not_end() -> None:
    with pytest.raises(KeyError, match="begin_list"):
        Facts().end_list("pods", at(0))


def test_an_unchanged_object_in_a_list_changes_nothing() -> None:
    facts = Facts()
    listed(facts, 0, POD)
    index = facts.index
    listed(facts, 60, POD)
    assert facts.index is index
    assert facts.snapshot_time_us == at(60)
    assert facts.listed("pods")
    assert not facts.listed("services")


def test_a_tombstone_lasts_for_the_retention() -> None:
    estate = relabelled((0, "a"))
    estate.delete("pods", "p", 10)
    estate.facts.expire(at(10) + DEFAULT_RETENTION_US)
    assert len(estate.facts) == 1
    estate.facts.expire(at(10) + DEFAULT_RETENTION_US + 1)
    assert len(estate.facts) == 0


def test_the_newest_version_of_what_lives_always_stays() -> None:
    estate = relabelled((0, "a"), (10, "b"), (20, "c"))
    estate.facts.expire(at(15) + DEFAULT_RETENTION_US)
    assert labels(estate.facts, ref("Pod", "p"), moment(5)) == {"v": "b"}
    estate.facts.expire(at(10_000) + DEFAULT_RETENTION_US)
    assert labels(estate.facts, ref("Pod", "p"), moment(5)) == {"v": "c"}


def test_what_no_version_shows_any_more_is_let_go() -> None:
    estate = relabelled(*[(10.0 * n, str(n)) for n in range(20)])
    before = len(estate.facts.encode())
    estate.facts.expire(at(10_000) + DEFAULT_RETENTION_US)
    assert len(estate.facts.encode()) < before / 2
    assert labels(estate.facts, ref("Pod", "p"), moment(5)) == {"v": "19"}


def test_endpoints_that_ended_expire() -> None:
    estate = Estate()
    estate.slice("s", ["p"], 0)
    estate.slice("s", [], 10)
    estate.facts.expire(at(11) + DEFAULT_RETENTION_US)
    assert estate.facts.by_uid("uid-s-slice").members == []


# --- identity ---


def test_a_pod_that_replaced_one_of_the_same_name_is_another() -> None:
    estate = Estate()
    estate.pod("db-0", 0, metadata={"uid": "old", "labels": {"v": "old"}})
    estate.delete("pods", "db-0", 10)
    estate.pod("db-0", 12, metadata={"uid": "new", "labels": {"v": "new"}})
    facts = estate.facts
    assert labels(facts, ref("Pod", "db-0", uid="old"), moment(60)) == {"v": "old"}
    assert labels(facts, ref("Pod", "db-0", uid="new"), moment(5)) == {"v": "new"}
    assert labels(facts, ref("Pod", "db-0", uid="never"), moment(5)) is None
    assert labels(facts, ref("Pod", "db-0", uid=""), moment(5)) == {"v": "old"}
    assert labels(facts, ref("Pod", "db-0", uid=""), moment(15)) == {"v": "new"}


def test_a_bearer_of_a_name_whose_end_was_not_seen_ends_when_the_next_was_created() -> None:
    estate = Estate()
    estate.pod("db-0", 0, metadata={"uid": "old", "labels": {"v": "old"}})
    estate.objects.clear()
    estate.pod("db-0", 12, metadata={"uid": "new", "labels": {"v": "new"}})
    assert labels(estate.facts, ref("Pod", "db-0", uid=""), moment(5)) == {"v": "old"}
    assert labels(estate.facts, ref("Pod", "db-0", uid=""), moment(15)) == {"v": "new"}


def test_a_name_is_of_one_group() -> None:
    estate = Estate()
    estate.facts.declare("services.serving.knative.dev", "Service", "serving.knative.dev/v1")
    estate.put("services.serving.knative.dev", "k", 0, metadata={"labels": {"knative": "yes"}})
    estate.service("s", 0)
    facts = estate.facts
    assert facts.named("Service", "v1", "shop", "k", moment(1)) is None
    assert facts.named("Service", "serving.knative.dev/v1beta1", "shop", "k", moment(1)) is not None
    assert facts.named("Service", "", "shop", "k", moment(1)) is not None


def test_a_kubelet_names_nodes_and_static_pods_by_uids_of_its_own() -> None:
    estate = Estate()
    estate.put("nodes", "node-1", 0, metadata={"namespace": "", "uid": "real"})
    estate.pod("etcd", 0, metadata={"annotations": {"kubernetes.io/config.hash": "abc"}})
    node = ObjectReference(kind="Node", name="node-1", uid="node-1")
    assert estate.facts.find(node, moment(1)) is estate.facts.by_uid("real")
    assert estate.facts.find(ref("Pod", "etcd", uid="abc"), moment(1)) is estate.facts.by_uid("uid-etcd")


def test_the_controller_is_the_first_of_the_owners() -> None:
    estate = Estate()
    other = {"apiVersion": "v1", "kind": "ConfigMap", "name": "c", "uid": "uid-c"}
    estate.owned("pods", "p", 0, other, controlled_by("ReplicaSet", "rs"))
    assert [owner.name for owner in estate.facts.owners(estate.facts.by_uid("uid-p").versions[0])] == ["rs", "c"]


# --- algebra ---

CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["p", "q", "r"]),
        st.sampled_from(["put", "delete", "slice"]),
        st.dictionaries(st.sampled_from(["a", "b"]), st.sampled_from(["1", "2"])),
    ),
    max_size=25,
)


def played(changes: list[tuple[str, str, dict[str, str]]]) -> Estate:
    estate = Estate()
    for n, (name, what, values) in enumerate(changes):
        if what == "put":
            estate.pod(name, n * 5, metadata={"labels": values, "annotations": values})
        elif what == "slice":
            estate.slice("s", sorted({name, *values}), n * 5)
        elif ("pods", name) in estate.objects:
            estate.delete("pods", name, n * 5)
    return estate


@given(CHANGES)
def test_facts_come_back_from_their_bytes(changes: list[tuple[str, str, dict[str, str]]]) -> None:
    estate = played(changes)
    data = estate.facts.encode()
    decoded = Facts.decode(data)
    assert decoded.encode() == data
    assert decoded.snapshot_time_us == estate.facts.snapshot_time_us
    estate.facts = decoded
    estate.pod("p", 1000, metadata={"labels": {"v": "later"}})
    assert labels(decoded, ref("Pod", "p"), moment(1010)) == {"v": "later"}


@given(
    st.lists(st.tuples(st.integers(1, 40), st.sampled_from("abc")), min_size=1, max_size=12),
    st.integers(-20, 500),
    st.integers(-1, 14),
)
def test_a_lookup_agrees_with_a_naive_model(steps: list[tuple[int, str]], tenths: int, behind: int) -> None:
    """Times are tenths of a second. Naively: of all versions that may have held, the newest not after it."""
    estate, times, when = Estate(), [], 0
    for gap, value in steps:
        when += gap
        times.append((when, estate.version + 1, value))
        estate.pod("p", when / 10, metadata={"labels": {"v": value}})
    version = 101 + behind if behind >= 0 else -1
    changes = [step for n, step in enumerate(times) if n == 0 or step[2] != times[n - 1][2]]
    expected = changes[0][2]
    for changed, number, value in changes[1:]:
        certain = tenths >= changed + 10
        possible = tenths >= changed - 10 - 10
        told = number <= version if version >= 0 else tenths >= changed
        if certain or (possible and told):
            expected = value
    event_version = str(version) if version >= 0 else ""
    assert labels(estate.facts, ref("Pod", "p"), moment(tenths / 10, event_version, SECOND)) == {"v": expected}


@given(CHANGES, st.lists(st.tuples(st.integers(-5, 140), st.integers(100, 130)), min_size=2, max_size=30))
def test_moments_in_one_region_get_the_same_answers(
    changes: list[tuple[str, str, dict[str, str]]], asked: list[tuple[int, int]]
) -> None:
    facts = played(changes).facts
    regions: list[tuple[Moment, object]] = []
    for seconds, version in asked:
        when = moment(seconds, str(version), SECOND)
        answer = labels(facts, ref("Pod", "p"), when)
        for other, known in regions:
            if other.low_us <= when.at_us < other.high_us and (
                other.low_revision <= when.revision < other.high_revision
            ):
                assert answer == known
        regions.append((when, answer))
