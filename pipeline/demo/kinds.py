"""The resources that the demo cluster serves, and where their collections are."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

JsonObject = dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Resource:
    """One kind of object: its names in JSON and in a path."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        """`v1`, or `<group>/<version>`, as objects and Events spell it."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def bookmarks(self) -> bool:
        """Whether watches carry bookmarks: they come from the watch cache, which Events do not have."""
        return self.kind != "Event"

    def key(self, namespace: str, name: str) -> str:
        """The object's key in its collection; keys sort as in etcd, by namespace, then name."""
        return f"{namespace}/{name}" if self.namespaced else name


def by_plural(*resources: Resource) -> Mapping[str, Resource]:
    """Resources by their plural, which is what the store and the tests call them by."""
    return {resource.plural: resource for resource in resources}


RESOURCES = by_plural(
    Resource("", "v1", "namespaces", "Namespace", namespaced=False),
    Resource("", "v1", "nodes", "Node", namespaced=False),
    Resource("", "v1", "pods", "Pod"),
    Resource("", "v1", "services", "Service"),
    Resource("", "v1", "events", "Event"),
    Resource("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim"),
    Resource("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice"),
    Resource("apps", "v1", "replicasets", "ReplicaSet"),
    Resource("apps", "v1", "deployments", "Deployment"),
    Resource("apps", "v1", "statefulsets", "StatefulSet"),
    Resource("apps", "v1", "daemonsets", "DaemonSet"),
    Resource("batch", "v1", "jobs", "Job"),
    Resource("batch", "v1", "cronjobs", "CronJob"),
    Resource("autoscaling", "v2", "horizontalpodautoscalers", "HorizontalPodAutoscaler"),
    Resource("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget"),
    Resource("networking.k8s.io", "v1", "ingresses", "Ingress"),
)
