"""The Kubernetes objects that enrichment reads, beside those in `transforms.types`, and how their JSON is decoded.

Only what facts and associations need is named; the decoder skips the rest, so a Pod of 10 kB becomes a few strings.
"""

from __future__ import annotations

from datetime import datetime
from typing import TypeAlias

import msgspec

from transforms.types import EndpointSlice, Object, ObjectMeta, Service


class Condition(Object, frozen=True):
    type: str = ""
    status: str = ""


class ClaimSource(Object, frozen=True):
    claim_name: str = ""


class Ephemeral(Object, frozen=True):
    """Marks a generic ephemeral volume: its claim is named "<pod>-<volume>"."""


class Volume(Object, frozen=True):
    name: str = ""
    persistent_volume_claim: ClaimSource | None = None
    ephemeral: Ephemeral | None = None


class PodSpec(Object, frozen=True):
    node_name: str = ""
    volumes: list[Volume] | None = None


class PodStatus(Object, frozen=True):
    phase: str = ""
    pod_ip: str = msgspec.field(default="", name="podIP")
    host_ip: str = msgspec.field(default="", name="hostIP")
    start_time: datetime | None = None
    conditions: list[Condition] | None = None


class Pod(Object, frozen=True):
    metadata: ObjectMeta
    spec: PodSpec = msgspec.field(default_factory=PodSpec)
    status: PodStatus = msgspec.field(default_factory=PodStatus)


class NodeAddress(Object, frozen=True):
    type: str = ""
    address: str = ""


class NodeStatus(Object, frozen=True):
    addresses: list[NodeAddress] | None = None
    conditions: list[Condition] | None = None


class Node(Object, frozen=True):
    metadata: ObjectMeta
    status: NodeStatus = msgspec.field(default_factory=NodeStatus)


class ScaleTarget(Object, frozen=True):
    kind: str = ""
    name: str = ""
    api_version: str = ""


class HorizontalPodAutoscalerSpec(Object, frozen=True):
    scale_target_ref: ScaleTarget = msgspec.field(default_factory=ScaleTarget)


class HorizontalPodAutoscaler(Object, frozen=True):
    metadata: ObjectMeta
    spec: HorizontalPodAutoscalerSpec = msgspec.field(default_factory=HorizontalPodAutoscalerSpec)


class SelectorRequirement(Object, frozen=True):
    key: str = ""
    operator: str = ""
    values: list[str] | None = None


class LabelSelector(Object, frozen=True):
    match_labels: dict[str, str] | None = None
    match_expressions: list[SelectorRequirement] | None = None


class PodDisruptionBudgetSpec(Object, frozen=True):
    selector: LabelSelector | None = None


class PodDisruptionBudget(Object, frozen=True):
    metadata: ObjectMeta
    spec: PodDisruptionBudgetSpec = msgspec.field(default_factory=PodDisruptionBudgetSpec)


class IngressServiceBackend(Object, frozen=True):
    name: str = ""


class IngressBackend(Object, frozen=True):
    service: IngressServiceBackend | None = None


class IngressPath(Object, frozen=True):
    backend: IngressBackend = msgspec.field(default_factory=IngressBackend)


class IngressHTTP(Object, frozen=True):
    paths: list[IngressPath] | None = None


class IngressRule(Object, frozen=True):
    http: IngressHTTP | None = None


class IngressSpec(Object, frozen=True):
    default_backend: IngressBackend | None = None
    rules: list[IngressRule] | None = None


class Ingress(Object, frozen=True):
    metadata: ObjectMeta
    spec: IngressSpec = msgspec.field(default_factory=IngressSpec)


class BackendRef(Object, frozen=True):
    """A backend of an HTTPRoute: kind Service of the core group, in the route's own namespace, unless it says else."""

    group: str = ""
    kind: str = "Service"
    name: str = ""
    namespace: str | None = None


class HTTPRouteRule(Object, frozen=True):
    backend_refs: list[BackendRef] | None = None


class HTTPRouteSpec(Object, frozen=True):
    rules: list[HTTPRouteRule] | None = None


class HTTPRoute(Object, frozen=True):
    metadata: ObjectMeta
    spec: HTTPRouteSpec = msgspec.field(default_factory=HTTPRouteSpec)


class Meta(Object, frozen=True):
    """Any object as metadata only. In a PartialObjectMetadata, `kind` and `api_version` are that type's own."""

    metadata: ObjectMeta
    kind: str = ""
    api_version: str = ""


Known: TypeAlias = (
    Pod | Node | Service | EndpointSlice | HorizontalPodAutoscaler | PodDisruptionBudget | Ingress | HTTPRoute | Meta
)

_TYPES: dict[str, type[Known]] = {
    "pods": Pod,
    "nodes": Node,
    "services": Service,
    "endpointslices": EndpointSlice,
    "horizontalpodautoscalers": HorizontalPodAutoscaler,
    "poddisruptionbudgets": PodDisruptionBudget,
    "ingresses": Ingress,
    "httproutes": HTTPRoute,
}
_DECODERS: dict[type[Known], msgspec.json.Decoder[Known]] = {
    kind: msgspec.json.Decoder(kind) for kind in (*_TYPES.values(), Meta)
}


def object_type(resource: str) -> type[Known]:
    """The struct that an object of a resource (its plural, such as "pods") is decoded to; `Meta` for most."""
    return _TYPES.get(resource, Meta)


def decode_object(resource: str, data: bytes) -> Known:
    """One object of a resource from the API server's JSON. Raises msgspec.DecodeError for what is none."""
    return _DECODERS[object_type(resource)].decode(data)


def is_ready(conditions: list[Condition] | None) -> bool:
    """Whether the condition Ready is True."""
    return any(condition.type == "Ready" and condition.status == "True" for condition in conditions or ())
