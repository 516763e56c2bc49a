"""The cluster that the story happens in: workloads and their pods, nodes, Services and their endpoints.

An `Estate` writes objects as the controllers would: a pod that becomes ready joins its Services' EndpointSlices, one
that goes leaves them. It says nothing about it: Events are the story's.
"""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import random
from collections.abc import Callable

from pipeline.demo import manifests
from pipeline.demo.kinds import RESOURCES, JsonObject
from pipeline.demo.manifests import App
from pipeline.demo.store import Store, random_uid, timestamp

# What the API server draws generated names from: no vowels, so no words (apimachinery util/rand).
_SAFE = "bcdfghjklmnpqrstvwxz2456789"

RECONCILE = App("payments", "reconcile", "1.4.0", "payments", 8080, "reconcile")
"""What the CronJob runs."""

_PLURALS = {resource.kind: plural for plural, resource in RESOURCES.items()}


@dataclasses.dataclass(eq=False)
class Workload:
    """A Deployment, StatefulSet or DaemonSet, the object that owns its new pods, and its pods, oldest first."""

    app: App
    obj: JsonObject
    owner: JsonObject
    replicas: int
    revision: int = 1
    pods: list[JsonObject] = dataclasses.field(default_factory=list)
    old_owners: list[JsonObject] = dataclasses.field(default_factory=list)
    busy: bool = False
    """An act is about it; others keep off."""


@dataclasses.dataclass(eq=False)
class Exposed:
    """A Service and its EndpointSlice."""

    service: JsonObject
    slice: JsonObject


class Estate:
    """The objects, with what changes them. All randomness is from `rng`, all time from `clock`."""

    def __init__(self, store: Store, rng: random.Random, clock: Callable[[], datetime.datetime]) -> None:
        self._store = store
        self._rng = rng
        self._clock = clock
        self._pod_numbers = itertools.count(10)
        self._service_numbers = itertools.count(10)
        self.nodes: dict[str, JsonObject] = {}
        self.workloads: dict[str, Workload] = {}
        self.services: dict[str, Exposed] = {}
        self.others: dict[str, JsonObject] = {}
        self.cordoned: set[str] = set()

    def now(self) -> datetime.datetime:
        """The clock's time."""
        return self._clock()

    # --- objects

    def create(self, obj: JsonObject, age_s: float = 0.0) -> JsonObject:
        """Store a new object, `age_s` seconds old, with a uid of its own."""
        obj["metadata"].setdefault("uid", random_uid(self._rng))
        obj["metadata"]["creationTimestamp"] = timestamp(self._clock() - datetime.timedelta(seconds=age_s))
        return self._stored(obj, self._store.create(_PLURALS[obj["kind"]], obj))

    def update(self, obj: JsonObject) -> JsonObject:
        """Store what was changed in an object."""
        return self._stored(obj, self._store.update(_PLURALS[obj["kind"]], obj))

    def delete(self, obj: JsonObject) -> None:
        """Delete an object."""
        self._store.delete(_PLURALS[obj["kind"]], obj)

    @staticmethod
    def _stored(obj: JsonObject, stored: JsonObject) -> JsonObject:
        obj["metadata"]["resourceVersion"] = stored["metadata"]["resourceVersion"]
        return obj

    def letters(self, n: int) -> str:
        """A generated name's random part."""
        return "".join(self._rng.choice(_SAFE) for _ in range(n))

    # --- building

    def add_namespace(self, name: str, age_s: float) -> None:
        """Create a Namespace unless it is there."""
        if name not in self._store.snapshot("namespaces").keys:
            self.create(manifests.namespace(name), age_s)

    def add_node(self, name: str, ip: str, zone: str, age_s: float) -> None:
        """Create a Node."""
        self.nodes[name] = self.create(manifests.node(name, ip, zone), age_s)

    def add_workload(self, resource: str, app: App, replicas: int, age_s: float) -> Workload:
        """Create a workload with its pods, running."""
        obj = self.create(manifests.workload(resource, app, replicas), age_s)
        owner = obj
        if resource == "deployments":
            owner = self.create(manifests.replicaset(obj, app, self.letters(10), 1), age_s)
        workload = Workload(app, obj, owner, replicas)
        self.workloads[f"{app.namespace}/{app.name}"] = workload
        nodes = list(self.nodes)
        for number in range(replicas):
            pod = self.create_pod(workload, age_s)
            self.assign(pod, nodes[number % len(nodes)] if resource == "daemonsets" else self.pick_node())
            self.run(pod, age_s)
        return workload

    def add_service(self, workload: Workload, name: str = "", age_s: float = 0.0) -> Exposed:
        """Create a Service over a workload's pods, and its EndpointSlice."""
        service = manifests.service(workload.app, f"10.96.0.{next(self._service_numbers)}", name)
        self.create(service, age_s)
        exposed = Exposed(service, self.create(manifests.endpoint_slice(service, self.letters(5)), age_s))
        self.services[f"{workload.app.namespace}/{service['metadata']['name']}"] = exposed
        self.sync_endpoints()
        return exposed

    def remove_service(self, exposed: Exposed) -> None:
        """Delete a Service, and its EndpointSlice."""
        metadata = exposed.service["metadata"]
        del self.services[f"{metadata['namespace']}/{metadata['name']}"]
        self.delete(exposed.service)
        self.delete(exposed.slice)

    # --- pods

    def pick_node(self) -> str:
        """A node that takes pods: one of those with the fewest."""
        load = dict.fromkeys((name for name in self.nodes if name not in self.cordoned), 0)
        for pod in self.pods():
            if pod["spec"].get("nodeName") in load:
                load[pod["spec"]["nodeName"]] += 1
        return min(load, key=lambda name: (load[name], name))

    def pods(self) -> list[JsonObject]:
        """All pods of workloads."""
        return [pod for workload in self.workloads.values() for pod in workload.pods]

    def pods_on(self, node: str) -> list[tuple[Workload, JsonObject]]:
        """The pods on a node, with their workloads."""
        return [
            (workload, pod)
            for workload in self.workloads.values()
            for pod in workload.pods
            if pod["spec"].get("nodeName") == node
        ]

    def create_pod(self, workload: Workload, age_s: float = 0.0) -> JsonObject:
        """Create a pending pod of a workload."""
        name, app, owner = workload.owner["metadata"]["name"], workload.app, workload.owner
        labels: JsonObject = {}
        if owner["kind"] == "StatefulSet":
            taken = {pod["metadata"]["name"] for pod in workload.pods}
            name = next(f"{name}-{number}" for number in itertools.count() if f"{name}-{number}" not in taken)
            labels["statefulset.kubernetes.io/pod-name"] = name
        else:
            name = f"{name}-{self.letters(5)}"
        if owner["kind"] == "ReplicaSet":
            labels["pod-template-hash"] = owner["metadata"]["labels"]["pod-template-hash"]
        pod = self.create(manifests.pod(owner, app, name, labels), age_s)
        workload.pods.append(pod)
        return pod

    def assign(self, pod: JsonObject, node: str) -> None:
        """Bind a pod to a node."""
        pod["spec"]["nodeName"] = node
        self.update(pod)

    def run(self, pod: JsonObject, age_s: float = 0.0, ready: bool = True) -> None:
        """Give a pod its address, and report it running, and ready if it is."""
        number = next(self._pod_numbers)
        addresses = self.nodes[pod["spec"]["nodeName"]]["status"]["addresses"]
        ip = f"10.244.{number // 250 % 250}.{number % 250}"
        started = timestamp(self._clock() - datetime.timedelta(seconds=age_s))
        pod["status"] |= {"hostIP": addresses[0]["address"], "podIP": ip, "podIPs": [{"ip": ip}], "startTime": started}
        pod["status"]["phase"] = "Running"
        self.set_ready(pod, ready)

    def set_ready(self, pod: JsonObject, ready: bool, waiting: str = "") -> None:
        """Report a pod ready or not, with its container running or waiting for a reason, and restarted if it waited."""
        container = pod["spec"]["containers"][0]
        before = pod["status"].get("containerStatuses", [{"restartCount": 0}])[0]
        state = {"waiting": {"reason": waiting}} if waiting else {"running": {"startedAt": timestamp(self._clock())}}
        pod["status"]["conditions"] = [
            {"type": "Ready", "status": str(ready)},
            {"type": "PodScheduled", "status": "True"},
        ]
        pod["status"]["containerStatuses"] = [
            {
                "name": container["name"],
                "image": container["image"],
                "imageID": f"{container['image']}@sha256:{'5e' * 32}",
                "ready": ready,
                "restartCount": before["restartCount"] + (waiting == "CrashLoopBackOff"),
                "state": state,
            }
        ]
        self.update(pod)
        self.sync_endpoints()

    def remove_pod(self, workload: Workload, pod: JsonObject) -> None:
        """Delete a pod, at once."""
        workload.pods.remove(pod)
        self.delete(pod)
        self.sync_endpoints()

    # --- endpoints

    def sync_endpoints(self) -> None:
        """Bring each EndpointSlice up to date with the pods that its Service selects."""
        for exposed in self.services.values():
            selector = exposed.service["spec"]["selector"].items()
            namespace = exposed.service["metadata"]["namespace"]
            endpoints = [
                manifests.endpoint(pod)
                for pod in self.pods()
                if pod["metadata"]["namespace"] == namespace
                and selector <= pod["metadata"]["labels"].items()
                and "podIP" in pod["status"]
            ]
            ports = [{"name": "http", "protocol": "TCP", "port": exposed.service["spec"]["ports"][0]["targetPort"]}]
            if (endpoints, ports) != (exposed.slice["endpoints"], exposed.slice["ports"]):
                exposed.slice |= {"endpoints": endpoints, "ports": ports}
                self.update(exposed.slice)


def build(estate: Estate) -> None:
    """The estate at the story's beginning, weeks old: three nodes, four namespaces, and what runs there."""
    week_s = 7 * 24 * 3600.0
    for name in ("kube-system", "shop", "payments", "monitoring"):
        estate.add_namespace(name, 8 * week_s)
    for number, zone in enumerate(("eu-west-1a", "eu-west-1b", "eu-west-1c"), start=1):
        estate.add_node(f"worker-{number}", f"10.0.{number}.1{number}", zone, 8 * week_s)
    for resource, app, replicas in (
        ("deployments", App("shop", "storefront", "5.12.1", "web", 8080, "node"), 3),
        ("deployments", App("shop", "checkout", "2.3.7", "checkout", 8080, "java"), 4),
        ("deployments", App("shop", "cart", "1.18.0", "checkout", 8080, "cart"), 2),
        ("deployments", App("payments", "ledger", "3.1.4", "payments", 9000, "java"), 2),
        ("deployments", App("payments", "gateway", "3.0.2", "payments", 8443, "gateway"), 2),
        ("statefulsets", App("payments", "postgres", "16.4", "payments", 5432, "postgres"), 2),
        ("deployments", App("monitoring", "prometheus", "2.54.1", "platform", 9090, "prometheus"), 1),
        ("daemonsets", App("monitoring", "node-exporter", "1.8.2", "platform", 9100, "node_exporter"), 3),
        ("deployments", App("kube-system", "coredns", "1.11.3", "platform", 9153, "coredns"), 2),
        ("daemonsets", App("kube-system", "kube-proxy", "1.34.1", "platform", 10256, "kube-proxy"), 3),
    ):
        age_s = (1 + len(estate.workloads) % 4) * week_s / 2
        workload = estate.add_workload(resource, app, replicas, age_s)
        if app.name != "kube-proxy":
            estate.add_service(workload, age_s=4 * week_s)
    for obj in _others(estate):
        estate.others[f"{obj['kind']}/{obj['metadata']['name']}"] = estate.create(obj, 4 * week_s)


def _others(estate: Estate) -> list[JsonObject]:
    """An autoscaler, a disruption budget, an ingress, a CronJob and the database's volume claims."""
    cart, checkout = estate.workloads["shop/cart"].app, estate.workloads["shop/checkout"].app
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "cart"}
    backend = {"service": {"name": "storefront", "port": {"number": 80}}}
    paths = [{"path": "/", "pathType": "Prefix", "backend": backend}]
    claims = [
        manifests.manifest(
            "persistentvolumeclaims",
            {"name": f"data-postgres-{number}", "namespace": "payments"},
            spec={"accessModes": ["ReadWriteOnce"], "storageClassName": "gp3"},
            status={"phase": "Bound"},
        )
        for number in range(2)
    ]
    return [
        manifests.manifest(
            "horizontalpodautoscalers",
            {"name": "cart", "namespace": "shop", "labels": cart.labels},
            spec={"scaleTargetRef": target, "minReplicas": 2, "maxReplicas": 6},
        ),
        manifests.manifest(
            "poddisruptionbudgets",
            {"name": "checkout", "namespace": "shop", "labels": checkout.labels},
            spec={"minAvailable": 2, "selector": {"matchLabels": checkout.selector}},
        ),
        manifests.manifest(
            "ingresses",
            {"name": "storefront", "namespace": "shop"},
            spec={"ingressClassName": "nginx", "rules": [{"host": "shop.example.com", "http": {"paths": paths}}]},
        ),
        manifests.manifest(
            "cronjobs",
            {"name": "reconcile", "namespace": "payments", "labels": RECONCILE.labels},
            spec={
                "schedule": "*/5 * * * *",
                "jobTemplate": {"spec": {"template": manifests.template(RECONCILE, RECONCILE.labels)}},
            },
        ),
        *claims,
    ]
