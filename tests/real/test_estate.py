"""Services under impact, on a real API server: every association and every value of a small estate, as of each event.

Two Deployments behind three Services, a StatefulSet behind a headless one, a DaemonSet behind none, a node that is
drained, a pod that is replaced by one of its name, a label that changes between two events, a custom resource. There
are no controllers: the test plays them.
"""

import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.real.job import Job, Jobs, assert_verified
from tests.real.sink import History, LocalSink, change_of, enrichment_of
from tests.servers import manifests
from tests.servers.api import Api
from tests.servers.manifests import Object

pytestmark = pytest.mark.real


@dataclass
class Estate:
    """The stored objects by a short name, and what each event about them must say."""

    api: Api
    namespace: str
    objects: dict[str, Object] = field(default_factory=dict)
    expected: dict[str, tuple[str, set[str]]] = field(default_factory=dict)

    def create(self, key: str, obj: Object) -> Object:
        self.objects[key] = self.api.create(obj)
        return self.objects[key]

    def happens(self, about: Object, what: str, *services: str) -> str:
        """An Event about an object, that must name these Services of the namespace; returns its UID."""
        uid = str(self.api.create(manifests.event(about, reason=what.title().replace(" ", "")))["metadata"]["uid"])
        self.expected[uid] = (what, set(services))
        return uid


def owned(kind: str, name: str, namespace: str, owner: Object | None = None, **content: Any) -> Object:
    """A workload object of apps/v1 that `manifests` has no function for."""
    template = manifests.deployment(name, namespace)["spec"]["template"]
    spec = {"selector": {"matchLabels": {"app": name}}, "template": template, **content}
    return {"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name, "namespace": namespace}, "spec": spec}


@pytest.fixture
def estate(api: Api, namespace: str) -> Iterator[Estate]:
    it = Estate(api, namespace)
    nodes = [it.create(f"node{n}", manifests.node(f"{namespace}-{n}", f"10.1.0.{n}")) for n in (1, 2)]
    names = [node["metadata"]["name"] for node in nodes]
    for app, tier in (("web", "front"), ("api", "back")):
        deployment = it.create(app, manifests.deployment(app, namespace, {"app": app}))
        replicas = it.create(f"{app}-rs", manifests.replica_set(f"{app}-6d", deployment, {"app": app}))
        for n, node in enumerate(names, 1):
            labels = {"app": app, "tier": tier, "version": "1"}
            pod = manifests.pod(
                f"{app}-6d-{n}", namespace, node=node, ip=f"10.2.{len(it.objects)}.{n}", labels=labels, owner=replicas
            )
            it.create(f"{app}-{n}", pod)
            if app == "api":
                break  # one pod only, on the first node
    stateful = it.create("db", owned("StatefulSet", "db", namespace, serviceName="db"))
    it.create("db-0", manifests.pod("db-0", namespace, node=names[1], labels={"app": "db"}, owner=stateful))
    daemon = it.create("agent", owned("DaemonSet", "agent", namespace))
    it.create("agent-1", manifests.pod("agent-1", namespace, node=names[0], labels={"app": "agent"}, owner=daemon))
    for name, selector, pods in (
        ("web-svc", {"app": "web"}, ("web-1", "web-2")),
        ("edge-svc", {"tier": "front"}, ("web-1", "web-2")),
        ("api-svc", {"app": "api"}, ("api-1",)),
    ):
        service = it.create(name, manifests.service(name, namespace, selector))
        it.create(f"{name}-slice", manifests.endpoint_slice(service, [it.objects[pod] for pod in pods]))
    headless = manifests.service("db", namespace, {"app": "db"})
    headless["spec"]["clusterIP"] = "None"
    it.create("db-svc", headless)
    it.create("db-slice", manifests.endpoint_slice(it.objects["db-svc"], [it.objects["db-0"]]))
    api.define(manifests.crd())
    it.create("widget", manifests.custom("gear", namespace, labels={"size": "small"}))
    yield it
    for node in nodes:
        api.delete(node)


@pytest.fixture
def running(estate: Estate, jobs: Jobs, local: LocalSink) -> tuple[Job, History]:
    """A job that has seen the estate."""
    job = jobs.start(local, namespaces=f"{estate.namespace},default")
    history = History(local).wait_for("the Services", lambda h: len(h.of_kind("SERVICE_CHANGE")) >= 4)
    return job, history


def services_of(record: Any) -> set[str]:
    return {service.name for service in record.services}


def test_every_event_names_exactly_the_services_that_it_hit(
    estate: Estate, running: tuple[Job, History], local: LocalSink
) -> None:
    job, history = running
    of = estate.objects
    estate.happens(of["web-1"], "a pod behind two services", "web-svc", "edge-svc")
    estate.happens(of["web-rs"], "a replica set", "web-svc", "edge-svc")
    estate.happens(of["web"], "a deployment", "web-svc", "edge-svc")
    estate.happens(of["api-1"], "a pod behind one service", "api-svc")
    estate.happens(of["api"], "another deployment", "api-svc")
    estate.happens(of["db"], "a stateful set", "db")
    estate.happens(of["db-0"], "a pod behind a headless service", "db")
    estate.happens(of["agent"], "a daemon set behind none")
    estate.happens(of["agent-1"], "a pod behind none")
    estate.happens(of["widget"], "a custom resource that owns nothing")
    estate.happens(of["web-svc"], "a service", "web-svc")
    estate.happens(of["api-svc-slice"], "a slice", "api-svc")
    estate.happens(of["node1"], "the node of two", "web-svc", "edge-svc", "api-svc")
    estate.happens(of["node2"], "the other node", "web-svc", "edge-svc", "db")
    history.wait_for_events(estate.expected)
    job.stop()
    events = history.events()
    found = {uid: (what, services_of(events[uid])) for uid, (what, _) in estate.expected.items()}
    assert found == estate.expected
    assert {enrichment_of(events[uid]) for uid in estate.expected} == {"FRESH"}
    by_what = {what: events[uid] for uid, (what, _) in estate.expected.items()}
    owners = by_what["a pod behind two services"].owners
    assert [(owner.kind, owner.name) for owner in owners] == [("ReplicaSet", "web-6d"), ("Deployment", "web")]
    assert owners[1].uid == of["web"]["metadata"]["uid"]
    assert {one.how for one in by_what["a deployment"].services} == {"owned-pods"}
    assert {one.how for one in by_what["the other node"].services} == {"node"}
    assert dict(by_what["a custom resource that owns nothing"].labels) == {"size": "small"}
    assert by_what["a pod behind one service"].pod.ip == of["api-1"]["status"]["podIP"]
    assert_verified(local)


def test_labels_are_those_of_the_events_time(estate: Estate, running: tuple[Job, History]) -> None:
    job, history = running
    pod = estate.objects["web-1"]
    before = estate.happens(pod, "before", "web-svc", "edge-svc")
    time.sleep(2.1)  # event times have a precision of a second
    estate.api.patch(pod, {"metadata": {"labels": {"version": "2"}}})
    time.sleep(2.1)
    after = estate.happens(pod, "after", "web-svc", "edge-svc")
    late = manifests.timestamp()
    estate.api.patch(pod, {"metadata": {"labels": {"version": "3"}}})
    past = estate.api.create(manifests.event(pod, reason="Late", time=late.replace(late, _before(late, 3))))
    history.wait_for_events([before, after, past["metadata"]["uid"]])
    job.stop()
    events = history.events()
    assert events[before].labels["version"] == "1"
    assert events[after].labels["version"] == "2"
    assert events[past["metadata"]["uid"]].labels["version"] in ("1", "2")  # it says three seconds ago


def _before(timestamp: str, seconds: int) -> str:
    parsed = time.strptime(timestamp, "%Y-%m-%dT%H:%M:%SZ")
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.mktime(parsed) - time.timezone - seconds))


def test_a_pod_that_replaces_one_of_its_name_is_another(estate: Estate, running: tuple[Job, History]) -> None:
    job, history = running
    old = estate.objects["db-0"]
    estate.api.delete(old)
    fresh = manifests.pod("db-0", estate.namespace, labels={"app": "db", "generation": "2"}, ip="10.2.9.9")
    new = estate.api.create(fresh)
    endpoints = manifests.endpoint_slice(estate.objects["db-svc"], [new])["endpoints"]
    estate.api.patch(estate.objects["db-slice"], {"endpoints": endpoints})
    of_old = estate.happens(old, "about the old one", "db")
    of_new = estate.happens(new, "about the new one", "db")
    history.wait_for_events([of_old, of_new])
    job.stop()
    events = history.events()
    assert (enrichment_of(events[of_old]), events[of_old].labels.get("generation")) == ("TOMBSTONE", None)
    assert (enrichment_of(events[of_new]), events[of_new].labels["generation"]) == ("FRESH", "2")
    assert services_of(events[of_old]) == services_of(events[of_new]) == {"db"}


def test_a_drained_node_and_what_left_it_still_name_their_services(
    estate: Estate, running: tuple[Job, History], local: LocalSink
) -> None:
    job, history = running
    pod, node = estate.objects["api-1"], estate.objects["node1"]
    empty = copy.deepcopy(estate.objects["api-svc-slice"])
    cordoned = estate.happens(node, "cordoned", "web-svc", "edge-svc", "api-svc")
    estate.api.patch(empty, {"endpoints": None})
    estate.api.delete(pod)
    killed = estate.happens(pod, "killed", "api-svc")
    history.wait_for_events([cordoned, killed])
    history.wait_for(
        "the endpoint that left", lambda h: any(r.endpoints_change.left for r in h.of_kind("ENDPOINTS_CHANGE"))
    )
    job.stop()
    events = history.events()
    assert services_of(events[cordoned]) == {"web-svc", "edge-svc", "api-svc"}
    assert (services_of(events[killed]), enrichment_of(events[killed])) == ({"api-svc"}, "TOMBSTONE")
    (left,) = _left(history)
    assert left.endpoints_change.service == "api-svc"
    assert [one.name for one in left.endpoints_change.left] == [pod["metadata"]["name"]]
    assert_verified(local)


def _left(history: History) -> list[Any]:
    return [record for record in history.of_kind("ENDPOINTS_CHANGE") if record.endpoints_change.left]


def test_a_service_that_was_deleted_while_no_job_ran_is_found_gone(
    estate: Estate, running: tuple[Job, History], jobs: Jobs, local: LocalSink
) -> None:
    job, history = running
    job.stop()
    estate.api.delete(estate.objects["edge-svc"])
    jobs.once(local, namespaces=f"{estate.namespace},default")
    changes = [record for record in history.refresh().of_kind("SERVICE_CHANGE") if record.name == "edge-svc"]
    assert [change_of(record) for record in changes] == ["LISTED", "DELETED"]
    assert_verified(local)
