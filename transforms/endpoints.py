"""Endpoints of Services: what a slice holds, and who joined, left or turned (un)ready between two of its states.

Headless Services and `default/kubernetes` are like any other: their slices name them. A slice without the label
`kubernetes.io/service-name` belongs to no Service and is passed over. A slice whose label moved to another Service is
new to that one.
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
    """What changed between two states of a slice; None is a slice that is not there."""
    if before is not None and after is not None and before.service != after.service:
        before = None
    was = {_identity(one): one for one in (before.endpoints if before else ())}
    now = {_identity(one): one for one in (after.endpoints if after else ())}
    stayed = [(was[key], one) for key, one in now.items() if key in was]
    return Difference(
        [one for key, one in now.items() if key not in was],
        [one for key, one in was.items() if key not in now],
        [one for old, one in stayed if one.ready and not old.ready],
        [one for old, one in stayed if old.ready and not one.ready],
    )


def _identity(one: EndpointState) -> tuple[str, tuple[str, ...]]:
    return one.uid or one.name, one.addresses


def _state(endpoint: Endpoint) -> EndpointState:
    target = endpoint.target_ref or ObjectReference()
    ready = endpoint.conditions is None or endpoint.conditions.ready is not False
    addresses = tuple(endpoint.addresses or ())
    return EndpointState(addresses, target.kind, target.name, target.uid, endpoint.node_name or "", ready)
