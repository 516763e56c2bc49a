"""The elements that travel through the graph, and the Kubernetes objects as far as we read them.

All are frozen msgspec structs (none can be part of a cycle, so the garbage collector passes them over): their coder
(`transforms.coders`) is msgpack, a field more is a field that old bytes lack, and decoding a Kubernetes object reads
only the fields named here. Times are microseconds since the epoch, UTC.
"""

from __future__ import annotations

from datetime import datetime
from typing import Generic, TypeVar

import msgspec

# --- Kubernetes objects -----------------------------------------------------------------------


class Object(msgspec.Struct, frozen=True, gc=False, rename="camel", omit_defaults=True, kw_only=True):
    """Base of what is decoded from the API server's JSON: unknown fields are skipped, absent and null ones are None."""


class OwnerReference(Object, frozen=True, gc=False):
    api_version: str = ""
    kind: str = ""
    name: str = ""
    uid: str = ""
    controller: bool | None = None


class ObjectMeta(Object, frozen=True, gc=False):
    name: str = ""
    namespace: str | None = None
    uid: str = ""
    resource_version: str = ""
    creation_timestamp: datetime | None = None
    deletion_timestamp: datetime | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    owner_references: list[OwnerReference] | None = None


class ObjectReference(Object, frozen=True, gc=False):
    kind: str = ""
    namespace: str = ""
    name: str = ""
    uid: str = ""
    api_version: str = ""
    resource_version: str = ""
    field_path: str = ""


class EventSource(Object, frozen=True, gc=False):
    component: str = ""
    host: str = ""


class EventSeries(Object, frozen=True, gc=False):
    count: int | None = None
    last_observed_time: datetime | None = None


class Event(Object, frozen=True, gc=False):
    """A core/v1 Event; one written through events.k8s.io/v1 has `event_time`, `series` and null timestamps.

    Source: https://kubernetes.io/docs/reference/kubernetes-api/cluster-resources/event-v1/
    """

    metadata: ObjectMeta
    involved_object: ObjectReference = msgspec.field(default_factory=ObjectReference)
    related: ObjectReference | None = None
    reason: str = ""
    message: str = ""
    type: str = ""
    action: str = ""
    source: EventSource | None = None
    first_timestamp: datetime | None = None
    last_timestamp: datetime | None = None
    event_time: datetime | None = None
    count: int | None = None
    series: EventSeries | None = None
    reporting_component: str = ""
    reporting_instance: str = ""


class ServicePort(Object, frozen=True, gc=False):
    name: str = ""
    protocol: str = ""
    port: int = 0
    target_port: int | str | None = None
    node_port: int | None = None


class ServiceSpec(Object, frozen=True, gc=False):
    type: str = ""
    cluster_ip: str = msgspec.field(default="", name="clusterIP")
    external_name: str = ""
    selector: dict[str, str] | None = None
    ports: list[ServicePort] | None = None


class Service(Object, frozen=True, gc=False):
    metadata: ObjectMeta
    spec: ServiceSpec = msgspec.field(default_factory=ServiceSpec)


class EndpointConditions(Object, frozen=True, gc=False):
    ready: bool | None = None


class Endpoint(Object, frozen=True, gc=False):
    addresses: list[str] | None = None
    conditions: EndpointConditions | None = None
    target_ref: ObjectReference | None = None
    node_name: str | None = None


class EndpointSlice(Object, frozen=True, gc=False):
    """A discovery.k8s.io/v1 EndpointSlice; the label `kubernetes.io/service-name` names its Service."""

    metadata: ObjectMeta
    endpoints: list[Endpoint] | None = None


class EndpointState(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One endpoint of a slice, as far as a change of it is news. A missing condition `ready` counts as true."""

    addresses: tuple[str, ...] = ()
    kind: str = ""
    name: str = ""
    uid: str = ""
    node: str = ""
    ready: bool = True


class Endpoints(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A slice of a Service's endpoints: what is remembered of it, to say who joined and who left."""

    namespace: str
    name: str
    uid: str
    resource_version: str
    service: str
    endpoints: tuple[EndpointState, ...] = ()


# --- what is watched, and how far -------------------------------------------------------------


class Target(msgspec.Struct, frozen=True, array_like=True, gc=False, order=True):
    """One history to follow: `resource` (a key of `kube.RESOURCES`) of one cluster, in one namespace or in all ("")."""

    cluster: str
    resource: str
    namespace: str = ""

    @property
    def key(self) -> str:
        """Identity within a job, stable over restarts: the key of its position in a commit."""
        return f"{self.cluster}/{self.resource}/{self.namespace}"


class Position(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How far a target's history has been read; a saved one means "go on after the last that was read".

    resource_version: every change up to it has been read; "" when nothing has.
    listing: a list is in progress (or is to be started); else a watch goes on from `resource_version`.
    continue_token: the list's next page; "" is the first.
    list_version: the version that the list in progress shows; becomes `resource_version` at its end.
    floor: items of the list at or below this version are known already; "" passes all (a first list, a resync).
    time_us: the wall time up to which the history is known to be complete; 0 before the first read.
    """

    resource_version: str = ""
    listing: bool = True
    continue_token: str = ""
    list_version: str = ""
    floor: str = ""
    time_us: int = 0


# --- elements, in the order of the graph ------------------------------------------------------


T = TypeVar("T")


class Change(msgspec.Struct, Generic[T], frozen=True, array_like=True, gc=False):
    """One object as a list page or a watch showed it. `type` is LISTED, ADDED, MODIFIED or DELETED."""

    type: str
    object: T
    observed_us: int


class News(msgspec.Struct, Generic[T], frozen=True, array_like=True, gc=False):
    """A change that is not a repeat. `type` is a change's, or UNLISTED: a complete list does not show it.

    occurrences: for an Event, by how much its count grew since the last record of its UID; else 1.
    previous: for a Service or Endpoints that were updated or deleted, what they were before (None when unknown).
    """

    type: str
    object: T
    observed_us: int
    occurrences: int = 1
    previous: T | None = None


class Listed(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Says that a chunk holds all that there is of a resource in one shard, so that what it lacks is gone.

    version: the list's. namespace: "" is all but `excluded`.
    """

    resource: str
    namespace: str
    version: str
    observed_us: int
    shard: int
    shards: int
    excluded: tuple[str, ...] = ()


class Changes(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A chunk of one page or one read of a watch: what concerns one shard of one cluster."""

    cluster: str
    events: list[Change[Event]] = []
    services: list[Change[Service]] = []
    slices: list[Change[EndpointSlice]] = []
    listed: Listed | None = None


class NewsChunk(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What of a chunk is news; false when nothing is."""

    cluster: str
    events: list[News[Event]] = []
    services: list[News[Service]] = []
    endpoints: list[News[Endpoints]] = []

    def __bool__(self) -> bool:
        return bool(self.events or self.services or self.endpoints)


class Encoded(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A finished record: its event time, its identity (UID, resourceVersion) and its serialized protobuf."""

    time_us: int
    uid: str
    resource_version: str
    data: bytes


class DeadLetter(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An object that could not be decoded or enriched: where it came from, why, and its bytes as they were received."""

    cluster: str
    resource: str
    reason: str
    data: bytes
    observed_us: int


class Progress(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What one read of a target did: where it ended, what it counted, and the kinds that its events are about."""

    target: Target
    position: Position
    read: int
    kinds: list[tuple[str, str]]  # (apiVersion, kind)


class Segment(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One file in the sink: its path, how many records it holds, the checksum of its bytes and their number."""

    path: str
    count: int
    checksum: str
    size: int


class Gap(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A span of a target's history that could not be had: when, and why. `to_us` 0: it is still open."""

    target: Target
    from_us: int
    to_us: int
    why: str
