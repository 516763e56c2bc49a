"""Builders of Kubernetes objects for tests, and a small cluster whose objects a test changes as time goes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from transforms.facts import Facts, Moment
from transforms.objects import Known, decode_object
from transforms.types import Event, News, ObjectReference

START = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
START_US = 1_772_366_400_000_000
SECOND = 1_000_000


def at(seconds: float) -> int:
    """Microseconds since the epoch, `seconds` after the start."""
    return START_US + round(seconds * SECOND)


def stamp(seconds: float) -> str:
    return (START + timedelta(seconds=seconds)).isoformat().replace("+00:00", "Z")


def controlled_by(kind: str, name: str, api_version: str = "apps/v1") -> dict[str, Any]:
    return {"apiVersion": api_version, "kind": kind, "name": name, "uid": f"uid-{name}", "controller": True}


class Estate:
    """A cluster: every change gets the next resourceVersion, and goes into `facts` as a watch would show it."""

    def __init__(self) -> None:
        self.facts = Facts()
        self.version = 100
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}

    def put(self, resource: str, name: str, seconds: float, **fields: Any) -> str:
        """Creates an object, or changes the top-level fields of one; its resourceVersion."""
        known = (resource, name) in self.objects
        body = self.objects.setdefault((resource, name), {"metadata": {}})
        self.version += 1
        metadata = {"name": name, "namespace": "shop", "uid": f"uid-{name}", "creationTimestamp": stamp(seconds)}
        body["metadata"] = {**metadata, **body["metadata"], **fields.pop("metadata", {})}
        body["metadata"]["resourceVersion"] = str(self.version)
        body.update(fields)
        self.facts.apply(resource, "MODIFIED" if known else "ADDED", _decoded(resource, body), at(seconds))
        return str(self.version)

    def delete(self, resource: str, name: str, seconds: float) -> None:
        body = self.objects.pop((resource, name))
        self.version += 1
        body["metadata"]["resourceVersion"] = str(self.version)
        self.facts.apply(resource, "DELETED", _decoded(resource, body), at(seconds))

    def pod(self, name: str, seconds: float, app: str = "checkout", ip: str = "10.0.0.1", **fields: Any) -> str:
        return self.put(
            "pods",
            name,
            seconds,
            **{
                "metadata": {"labels": {"app": app}, **fields.pop("metadata", {})},
                "spec": {"nodeName": "node-1", **fields.pop("spec", {})},
                "status": {"podIP": ip, "phase": "Running" if ip else "Pending"},
                **fields,
            },
        )

    def service(self, name: str, seconds: float, app: str = "", **spec: Any) -> str:
        return self.put("services", name, seconds, spec={"selector": {"app": app} if app else None, **spec})

    def slice(self, service: str, pods: list[str], seconds: float, node: str = "node-1") -> str:
        endpoints = [{"targetRef": {"kind": "Pod", "name": p, "uid": f"uid-{p}"}, "nodeName": node} for p in pods]
        labels = {"labels": {"kubernetes.io/service-name": service}}
        return self.put("endpointslices", f"{service}-slice", seconds, metadata=labels, endpoints=endpoints)

    def owned(self, resource: str, name: str, seconds: float, *owners: dict[str, Any], **metadata: Any) -> str:
        return self.put(resource, name, seconds, metadata={"ownerReferences": list(owners), **metadata})


def _decoded(resource: str, body: dict[str, Any]) -> Known:
    return decode_object(resource, msgspec.json.encode(body))


def ref(
    kind: str, name: str, api_version: str = "v1", uid: str | None = None, namespace: str = "shop"
) -> ObjectReference:
    uid = f"uid-{name}" if uid is None else uid
    return ObjectReference(kind=kind, name=name, namespace=namespace, uid=uid, api_version=api_version)


def moment(seconds: float, version: str = "", precision_us: int = 0) -> Moment:
    return Moment(at(seconds), precision_us, version)


def event(seconds: float, involved: ObjectReference, version: str = "900", **fields: Any) -> News[Event]:
    """News of a core/v1 Event that occurred once."""
    body = {
        "metadata": {"name": "e.1", "namespace": "shop", "uid": "uid-event", "resourceVersion": version},
        "involvedObject": msgspec.to_builtins(involved),
        "reason": "BackOff",
        "message": "Back-off restarting failed container",
        "type": "Warning",
        "source": {"component": "kubelet", "host": "node-1"},
        "lastTimestamp": stamp(int(seconds)),
        **fields,
    }
    return News("ADDED", msgspec.json.decode(msgspec.json.encode(body), type=Event), at(seconds + 0.1))
