"""Endpoints of Services: what a slice holds, and who joined, left or turned (un)ready between two of its states.

Headless Services and `default/kubernetes` are like any other: their slices name them. A slice without the label
`kubernetes.io/service-name` belongs to no Service and is passed over; of one that lost the label all have left. A slice
whose label moved to another Service has left the one and joined the other, endpoint by endpoint. Slices that mirror an
Endpoints object, or that somebody writes for a Service without a selector, are like any other; what has no target is
known by its addresses. With `publishNotReadyAddresses` a slice says of every endpoint that it is ready, and so do we.
"""

from __future__ import annotations

from typing import NamedTuple

from transforms.facts import SERVICE_NAME_LABEL
from transforms.types import Endpoint, Endpoints, EndpointSlice, EndpointState, ObjectReference


class Difference(NamedTuple):
    """Endpoints by what became of them; false when nothing did."""

    joined: list[EndpointState]
    left: list[EndpointState]
    became_ready: list[EndpointState]
    became_unready: list[EndpointState]

    def __bool__(self) -> bool:
        return any(self)


def service_name(item: EndpointSlice) -> str:
    """The Service that a slice belongs to; "" for none."""
    return (item.metadata.labels or {}).get(SERVICE_NAME_LABEL, "")


def endpoints_of(item: EndpointSlice) -> Endpoints:
    """A slice as it is remembered."""
    metadata = item.metadata
    return Endpoints(
        metadata.namespace or "",
        metadata.name,
        metadata.uid,
        metadata.resource_version,
        service_name(item),
        tuple(_state(endpoint) for endpoint in item.endpoints or ()),
    )


def difference(before: Endpoints | None, after: Endpoints | None) -> Difference:
    """What changed between two states of a slice; None is a slice that is not there, nor is one of no Service.

    An endpoint that has other addresses is another: it left, and joined.
    """
    was = {_identity(one): one for one in (before.endpoints if before and before.service else ())}
    now = {_identity(one): one for one in (after.endpoints if after and after.service else ())}
    if before is not None and after is not None and before.service != after.service:
        return Difference(list(now.values()), list(was.values()), [], [])
    stayed = [(was[key], one) for key, one in now.items() if key in was]
    return Difference(
        [one for key, one in now.items() if key not in was],
        [one for key, one in was.items() if key not in now],
        [one for old, one in stayed if one.ready and not old.ready],
        [one for old, one in stayed if old.ready and not one.ready],
    )


def _identity(one: EndpointState) -> tuple[str, str, tuple[str, ...]]:
    return one.kind, one.uid or one.name, one.addresses


def _state(endpoint: Endpoint) -> EndpointState:
    target = endpoint.target_ref or ObjectReference()
    ready = endpoint.conditions is None or endpoint.conditions.ready is not False
    addresses = tuple(endpoint.addresses or ())
    return EndpointState(addresses, target.kind, target.name, target.uid, endpoint.node_name or "", ready)
