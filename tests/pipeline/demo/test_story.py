from __future__ import annotations

import collections
import random
from typing import Any

import pytest

from pipeline.demo.errors import ApiError
from pipeline.demo.recorder import Occurrence, Recorder
from pipeline.demo.store import Store
from pipeline.demo.story import play
from tests.pipeline.demo.client import BEGIN, FakeTime, Json

History = list[tuple[str, str, Json]]


def played(seed: int, seconds: float, speed: float = 1.0) -> tuple[Store, History]:
    """The store after the story, and all that was written: (resource, type, object) in order."""
    time = FakeTime(seconds)
    store = Store(seed=seed, history=10**6, clock=time.clock)
    begin = store.version
    play(store, seed, time.stop, clock=time.clock, sleep=time.sleep, speed=speed)
    changes = []
    for resource in store.resources:
        with store.subscribe(resource, begin) as subscription:
            changes += [(resource, change.type, change.now) for change in subscription.take(0)]
    changes.sort(key=lambda change: change[2].number)
    return store, [(resource, kind, version.decode()) for resource, kind, version in changes]


@pytest.fixture(scope="module")
def twenty_seconds() -> History:
    return played(seed=1, seconds=20)[1]


def test_a_seed_gives_one_sequence() -> None:
    assert played(seed=3, seconds=30)[1] == played(seed=3, seconds=30)[1]


def test_seeds_give_different_sequences() -> None:
    assert played(seed=3, seconds=1)[1] != played(seed=4, seconds=1)[1]


def test_twice_the_speed_plays_as_much_in_half_the_time(twenty_seconds: History) -> None:
    def told(history: History) -> list[str]:
        return [obj["reason"] for resource, _, obj in history if resource == "events"]

    assert told(played(seed=1, seconds=10, speed=2.0)[1]) == told(twenty_seconds)


def test_twenty_seconds_have_a_few_hundred_events_and_peaks(twenty_seconds: History) -> None:
    told = [obj for resource, kind, obj in twenty_seconds if resource == "events" and kind != "DELETED"]
    assert 300 <= len(told) <= 700
    seconds = collections.Counter(
        (obj.get("series") or {}).get("lastObservedTime", obj["lastTimestamp"] or obj["eventTime"])[:19] for obj in told
    )
    assert 20 <= max(seconds.values()) <= 60


def test_the_story_tells_what_it_promises(twenty_seconds: History) -> None:
    reasons = {obj["reason"] for resource, _, obj in twenty_seconds if resource == "events"}
    assert reasons >= {
        "Scheduled", "Pulling", "Pulled", "Created", "Started", "Killing",
        "ScalingReplicaSet", "SuccessfulCreate", "SuccessfulDelete", "DeploymentRollback",
        "Failed", "BackOff", "Unhealthy", "OOMKilling",
        "NodeNotSchedulable", "NodeNotReady", "NodeReady", "TaintManagerEviction",
        "FailedGetResourceMetric", "FailedComputeMetricsReplicas", "SuccessfulRescale",
        "FailedKillPod", "FailedMount", "SawCompletedJob", "Completed", "LeaderElection",
    }  # fmt: skip
    written = collections.Counter((resource, kind) for resource, kind, _ in twenty_seconds)
    for change in (
        ("events", "DELETED"),
        ("pods", "DELETED"),
        ("services", "MODIFIED"),
        ("services", "DELETED"),
        ("endpointslices", "MODIFIED"),
        ("nodes", "MODIFIED"),
        ("jobs", "DELETED"),
    ):
        assert written[change], change


def test_counts_of_an_event_only_grow(twenty_seconds: History) -> None:
    counts: dict[str, int] = {}
    for resource, kind, obj in twenty_seconds:
        if resource == "events" and kind != "DELETED":
            count = obj["series"]["count"] if "series" in obj else obj.get("count", 1)
            assert count > counts.get(obj["metadata"]["uid"], 0)
            counts[obj["metadata"]["uid"]] = count
    assert max(counts.values()) >= 10


def test_both_styles_of_events_are_told(twenty_seconds: History) -> None:
    told = [obj for resource, _, obj in twenty_seconds if resource == "events"]
    for obj in told:
        if obj["eventTime"]:
            assert obj["firstTimestamp"] is obj["lastTimestamp"] is None
            assert "count" not in obj
            assert obj["reportingComponent"]
        else:
            assert obj["lastTimestamp"] >= obj["firstTimestamp"]
            assert obj["source"]["component"]
    assert any("series" in obj for obj in told)


def test_events_arrive_about_pods_that_are_gone(twenty_seconds: History) -> None:
    gone: set[str] = set()
    late = 0
    for resource, kind, obj in twenty_seconds:
        if (resource, kind) == ("pods", "DELETED"):
            gone.add(obj["metadata"]["uid"])
        late += resource == "events" and kind != "DELETED" and obj["involvedObject"].get("uid") in gone
    assert late >= 5


def test_the_checkout_service_is_changed_and_put_back(twenty_seconds: History) -> None:
    ports = [
        obj["spec"]["ports"][0]["targetPort"]
        for resource, _, obj in twenty_seconds
        if resource == "services" and obj["metadata"]["name"] == "checkout"
    ]
    assert ports == [8080, 9090, 8080]


@pytest.mark.parametrize("seed", range(4))
def test_a_long_story_keeps_the_estate_whole(seed: int) -> None:
    store, history = played(seed, seconds=900)
    pods = _objects(store, "pods")
    by_uid = {pod["metadata"]["uid"]: pod for pod in pods}
    assert 15 <= len(pods) <= 40
    assert len(_objects(store, "events")) <= 2000
    workloads = ("replicasets", "daemonsets", "statefulsets", "jobs")
    owners = {obj["metadata"]["uid"] for plural in workloads for obj in _objects(store, plural)}
    assert all(pod["metadata"]["ownerReferences"][0]["uid"] in owners for pod in pods)
    for obj in _objects(store, "endpointslices"):
        for endpoint in obj["endpoints"]:
            assert by_uid[endpoint["targetRef"]["uid"]]["status"]["podIP"] == endpoint["addresses"][0]
    assert history[-1][2]["metadata"]["creationTimestamp"]


def _objects(store: Store, resource: str) -> list[Json]:
    return [version.decode() for version in store.snapshot(resource).versions]


def test_objects_are_linked_as_a_reader_follows_them(twenty_seconds: History) -> None:
    def by_uid(resource: str) -> dict[str, Json]:
        return {obj["metadata"]["uid"]: obj for kind, _, obj in twenty_seconds if kind == resource}

    replicasets, deployments = by_uid("replicasets"), by_uid("deployments")
    nodes = {obj["metadata"]["name"]: obj for obj in by_uid("nodes").values()}
    for pod in by_uid("pods").values():
        owner = pod["metadata"]["ownerReferences"][0]
        if owner["kind"] == "ReplicaSet":
            deployment = replicasets[owner["uid"]]["metadata"]["ownerReferences"][0]["uid"]
            assert (
                pod["metadata"]["labels"].items() >= deployments[deployment]["spec"]["selector"]["matchLabels"].items()
            )
        if "podIP" in pod["status"]:
            assert pod["status"]["hostIP"] == nodes[pod["spec"]["nodeName"]]["status"]["addresses"][0]["address"]


def recorder(store: Store, live: int = 2000) -> Recorder:
    return Recorder(store, random.Random(1), lambda: BEGIN, live)


ABOUT: dict[str, Any] = {"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "p", "namespace": "n", "uid": "u"}}
SAID = Occurrence("BackOff", "again", "kubelet", "worker-1")


def test_a_repeat_is_the_same_event_until_it_expires() -> None:
    store = Store()
    record = recorder(store)
    record.emit(ABOUT, SAID)
    record.emit(ABOUT, SAID, times=2)
    (obj,) = _objects(store, "events")
    assert obj["count"] == 3
    assert record.expire(5) == 1
    record.emit(ABOUT, SAID)
    (again,) = _objects(store, "events")
    assert again["count"] == 1
    assert again["metadata"]["uid"] != obj["metadata"]["uid"]


def test_no_more_events_live_than_the_bound() -> None:
    store = Store()
    record = recorder(store, live=3)
    for number in range(10):
        record.emit(ABOUT, Occurrence("Pulled", f"{number}", "kubelet"))
    assert [obj["message"] for obj in _objects(store, "events")] == ["7", "8", "9"]


def test_an_event_that_somebody_else_deleted_expires_too() -> None:
    store = Store()
    record = recorder(store)
    record.emit(ABOUT, SAID)
    store.delete("events", _objects(store, "events")[0])
    assert record.expire(1) == 1
    with pytest.raises(ApiError):
        store.get("events", "p", "n")
