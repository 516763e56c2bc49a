"""Kubernetes objects as plain dicts, as a test wants them: every argument that does not matter has a default.

An object's `status` is what its controller or kubelet would have written; `Api.create` stores it as they do.
"""

import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

Object = dict[str, Any]


def namespace(name: str) -> Object:
    """A namespace."""
    return _object("v1", "Namespace", name)


def node(name: str, ip: str = "10.1.0.1", labels: Mapping[str, str] | None = None) -> Object:
    """A ready node with an internal address and its host name."""
    addresses = [{"type": "InternalIP", "address": ip}, {"type": "Hostname", "address": name}]
    return _object("v1", "Node", name, labels=labels, status={"addresses": addresses})


def pod(
    name: str,
    namespace: str,
    *,
    node: str = "",
    ip: str = "10.2.0.1",
    host_ip: str = "10.1.0.1",
    labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
    owner: Object | None = None,
) -> Object:
    """A running pod; `node` is a node's name, `owner` the stored object that controls it."""
    status = {
        "phase": "Running",
        "podIP": ip,
        "podIPs": [{"ip": ip}],
        "hostIP": host_ip,
        "hostIPs": [{"ip": host_ip}],
        "startTime": timestamp(),
    }
    spec: Object = {"containers": [{"name": "main", "image": "example.test/main:1"}]}
    if node:
        spec["nodeName"] = node
    return _object("v1", "Pod", name, namespace, labels, annotations, owner, spec=spec, status=status)


def service(name: str, namespace: str, selector: Mapping[str, str], labels: Mapping[str, str] | None = None) -> Object:
    """A ClusterIP Service on port 80."""
    spec = {"selector": dict(selector), "ports": [{"name": "http", "port": 80}]}
    return _object("v1", "Service", name, namespace, labels, spec=spec)


def endpoint_slice(service: Object, pods: Sequence[Object], name: str = "") -> Object:
    """The slice that a controller would keep for a stored Service with these stored pods, all ready, behind it."""
    meta = service["metadata"]
    endpoints = [
        {
            "addresses": [pod["status"]["podIP"]],
            "conditions": {"ready": True},
            "targetRef": reference(pod),
            **({"nodeName": pod["spec"]["nodeName"]} if "nodeName" in pod["spec"] else {}),
        }
        for pod in pods
    ]
    labels = {"kubernetes.io/service-name": meta["name"]}
    slice_ = _object(
        "discovery.k8s.io/v1", "EndpointSlice", name or f"{meta['name']}-1", meta["namespace"], labels, owner=service
    )
    return {**slice_, "addressType": "IPv4", "ports": [{"name": "http", "port": 80}], "endpoints": endpoints}


def deployment(name: str, namespace: str, labels: Mapping[str, str] | None = None) -> Object:
    """A Deployment whose pods carry the label app=<name>."""
    return _object("apps/v1", "Deployment", name, namespace, labels, spec=_workload(name))


def replica_set(name: str, owner: Object, labels: Mapping[str, str] | None = None) -> Object:
    """A ReplicaSet of a stored Deployment, in its namespace."""
    meta = owner["metadata"]
    return _object("apps/v1", "ReplicaSet", name, meta["namespace"], labels, owner=owner, spec=_workload(meta["name"]))


def crd(kind: str = "Widget", group: str = "example.test") -> Object:
    """A namespaced custom resource, version v1, that takes any content."""
    plural = f"{kind.lower()}s"
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    spec = {
        "group": group,
        "names": {"kind": kind, "plural": plural, "singular": kind.lower()},
        "scope": "Namespaced",
        "versions": [{"name": "v1", "served": True, "storage": True, "schema": schema}],
    }
    return _object("apiextensions.k8s.io/v1", "CustomResourceDefinition", f"{plural}.{group}", spec=spec)


def custom(
    name: str,
    namespace: str,
    kind: str = "Widget",
    group: str = "example.test",
    labels: Mapping[str, str] | None = None,
) -> Object:
    """An object of the kind that `crd` defines."""
    return _object(f"{group}/v1", kind, name, namespace, labels)


def event(
    about: Object,
    name: str = "",
    *,
    namespace: str = "",
    reason: str = "BackOff",
    message: str = "Back-off restarting failed container",
    type_: str = "Warning",
    count: int = 1,
    host: str = "node-1",
    time: str | None = None,
) -> Object:
    """A core/v1 Event of the old style (count, lastTimestamp, source) about an object or an object reference."""
    now = time or timestamp()
    return {
        **_event_head("v1", about, name, namespace),
        "involvedObject": reference(about),
        "reason": reason,
        "message": message,
        "type": type_,
        "count": count,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "source": {"component": "kubelet", "host": host},
    }


def event_v1(
    about: Object,
    name: str = "",
    *,
    namespace: str = "",
    reason: str = "Scheduled",
    note: str = "Successfully assigned",
    type_: str = "Normal",
    series_count: int = 0,
    time: str | None = None,
) -> Object:
    """An events.k8s.io/v1 Event (eventTime, reportingController, series); as core/v1 its old timestamps are null."""
    now = time or timestamp(micro=True)
    content = {
        **_event_head("events.k8s.io/v1", about, name, namespace),
        "regarding": reference(about),
        "reason": reason,
        "note": note,
        "type": type_,
        "action": "Binding",
        "eventTime": now,
        "reportingController": "default-scheduler",
        "reportingInstance": "default-scheduler-1",
    }
    if series_count:
        content["series"] = {"count": series_count, "lastObservedTime": now}
    return content


def reference(obj: Object) -> Object:
    """An ObjectReference to a stored or made-up object; a reference is returned as it is."""
    if "metadata" not in obj:
        return obj
    meta = obj["metadata"]
    found = {"apiVersion": obj["apiVersion"], "kind": obj["kind"], "name": meta["name"]}
    return found | {key: meta[key] for key in ("namespace", "uid", "resourceVersion") if key in meta}


def made_up_pods(n: int, namespace: str) -> list[Object]:
    """References to `n` pods that do not exist, named pod-0, pod-1, ...; the same names have the same UIDs."""
    return [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "namespace": namespace,
            "name": f"pod-{i}",
            "uid": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{namespace}/pod-{i}")),
        }
        for i in range(n)
    ]


def timestamp(micro: bool = False) -> str:
    """The time now as Kubernetes writes a Time, or a MicroTime."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ" if micro else "%Y-%m-%dT%H:%M:%SZ")


def _event_head(api_version: str, about: Object, name: str, namespace: str) -> Object:
    about = reference(about)
    # As client-go does: an Event about a cluster-scoped object lives in the namespace default.
    namespace = namespace or about.get("namespace", "default")
    return _object(api_version, "Event", name or f"{about['name']}.{uuid.uuid4().hex[:16]}", namespace)


def _workload(name: str) -> Object:
    template = {
        "metadata": {"labels": {"app": name}},
        "spec": {"containers": [{"name": "main", "image": "example.test/main:1"}]},
    }
    return {"replicas": 1, "selector": {"matchLabels": {"app": name}}, "template": template}


def _object(
    api_version: str,
    kind: str,
    name: str,
    namespace: str = "",
    labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
    owner: Object | None = None,
    **content: Object,
) -> Object:
    meta: Object = {"name": name}
    if namespace:
        meta["namespace"] = namespace
    if labels:
        meta["labels"] = dict(labels)
    if annotations:
        meta["annotations"] = dict(annotations)
    if owner:
        found = {"apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": owner["metadata"]["name"]}
        meta["ownerReferences"] = [{**found, "uid": owner["metadata"]["uid"], "controller": True}]
    return {"apiVersion": api_version, "kind": kind, "metadata": meta, **content}
