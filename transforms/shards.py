"""Which shard an object belongs to: all about one involved object has one, and so do a Service and its endpoints."""

from __future__ import annotations

import zlib

from transforms.endpoints import service_name
from transforms.types import Endpoints, EndpointSlice, Event, ObjectMeta, Service


def shard_of(item: Event | Service | EndpointSlice | Endpoints, shards: int) -> int:
    """The shard of an object, the same in every process: an Event's is that of the object it is about."""
    return zlib.crc32(_identity(item).encode()) % shards


def shard_key(cluster: str, shard: int) -> str:
    """The key of a shard in the graph."""
    return f"{cluster}/{shard:02d}"


def _identity(item: Event | Service | EndpointSlice | Endpoints) -> str:
    if isinstance(item, Event):
        involved = item.involved_object
        return f"{involved.kind}/{involved.namespace}/{involved.name}"
    if isinstance(item, Endpoints):
        return _of_service(item.namespace, item.service)
    metadata: ObjectMeta = item.metadata
    name = service_name(item) if isinstance(item, EndpointSlice) else metadata.name
    return _of_service(metadata.namespace or "", name)


def _of_service(namespace: str, name: str) -> str:
    return f"Service/{namespace}/{name}"
