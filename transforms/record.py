"""Records: an event, a Service change or a gap, with what was true of its object then, as serialized protobuf.

Plain functions from news and facts to `Encoded`. Two serialized messages one after the other are their merge (protobuf
encoding, "Last One Wins"), so what was true of an object is serialized once for as long as it held, kept in the Facts
(`Facts.derived`), and put behind each event's own part.
"""

from __future__ import annotations

from functools import lru_cache

from kubehistory import record_pb2 as pb

from transforms import associate
from transforms.endpoints import difference
from transforms.facts import SECOND_US, Facts, Found, History, Moment, NodeFacts, PodFacts, Version, to_us
from transforms.types import (
    Encoded,
    Endpoints,
    EndpointState,
    Event,
    News,
    ObjectReference,
    Service,
    ServicePort,
    Target,
)

_MAX_DERIVED = 50_000  # objects whose enrichment is kept at a time, about 1 kB each
_MAX_REGIONS = 8  # of one object


# --- events -----------------------------------------------------------------------------------


def event_record(cluster: str, news: News[Event], facts: Facts, global_revisions: bool = True) -> Encoded:
    """The record of an Event, enriched as of its last occurrence.

    global_revisions: whether the resourceVersions of Events and of other objects are one sequence, as they are unless
    the API server keeps its Events in an etcd of their own.
    """
    event = news.object
    time_us, precision_us = event_time(event, news.observed_us)
    version = event.metadata.resource_version
    enriched = enrichment(
        facts, event.involved_object, Moment(time_us, precision_us, version if global_revisions else "")
    )
    own = _event_fields(event, news, time_us).SerializeToString()
    data = _head(pb.EVENT, cluster) + own + enriched + _tail(facts.snapshot_time_us)
    return Encoded(time_us, event.metadata.uid, version, data)


def event_time(event: Event, observed_us: int) -> tuple[int, int]:
    """When an Event last occurred, and how precisely that is known: (µs since the epoch, µs).

    events.k8s.io style: series.lastObservedTime once it repeated, else eventTime, in microseconds. core/v1 style:
    lastTimestamp, in whole seconds. Where an event has both, lastTimestamp is a rounded copy of the former or, when a
    writer of the old style counted on, later: then it is the last occurrence. With neither: firstTimestamp, the Event's
    creation, when it was observed.
    """
    exact_us = to_us(event.series.last_observed_time) if event.series else 0
    exact_us = exact_us or to_us(event.event_time)
    last_us = to_us(event.last_timestamp)
    if exact_us and exact_us + SECOND_US > last_us:
        return exact_us, 0
    whole_us = last_us or to_us(event.first_timestamp) or to_us(event.metadata.creation_timestamp)
    return (whole_us, SECOND_US) if whole_us else (observed_us, SECOND_US)


def _event_fields(event: Event, news: News[Event], time_us: int) -> pb.Record:
    """An Event's own fields, as it reports them."""
    metadata, source, series = event.metadata, event.source, event.series
    last_us = to_us(event.last_timestamp)
    if series is not None:
        last_us = to_us(series.last_observed_time) or last_us
    record = pb.Record(
        uid=metadata.uid,
        resource_version=metadata.resource_version,
        time_us=time_us,
        observed_time_us=news.observed_us,
        namespace=metadata.namespace or "",
        name=metadata.name,
        type=event.type,
        reason=event.reason,
        message=event.message,
        action=event.action,
        first_time_us=to_us(event.first_timestamp),
        last_time_us=last_us,
        event_time_us=to_us(event.event_time),
        count=max(1, event.count or 0, (series.count or 0) if series else 0),
        occurrences=news.occurrences,
        component=(source.component if source else "") or event.reporting_component,
        host=(source.host if source else "") or event.reporting_instance,
        reporting_controller=event.reporting_component,
        reporting_instance=event.reporting_instance,
        involved=_reference(event.involved_object),
    )
    if event.related is not None:
        record.related.CopyFrom(_reference(event.related))
    return record


def _reference(ref: ObjectReference) -> pb.Reference:
    return pb.Reference(
        kind=ref.kind,
        namespace=ref.namespace,
        name=ref.name,
        uid=ref.uid,
        api_version=ref.api_version,
        resource_version=ref.resource_version,
        field_path=ref.field_path,
    )


@lru_cache(maxsize=256)
def _head(kind: pb.Kind, cluster: str) -> bytes:
    """The fields that all records of a kind from one cluster begin with."""
    return pb.Record(kind=kind, cluster=cluster).SerializeToString()


@lru_cache(maxsize=256)
def _tail(snapshot_time_us: int) -> bytes:
    return pb.Record(snapshot_time_us=snapshot_time_us).SerializeToString()


# --- enrichment -------------------------------------------------------------------------------


def enrichment(facts: Facts, ref: ObjectReference, moment: Moment) -> bytes:
    """What was true of an object at a moment: the fields `labels` to `enrichment` of a Record, serialized.

    Kept for as long as the facts don't change, for every moment that gets the same answers.
    """
    key = (ref.uid, ref.kind, ref.namespace, ref.name, ref.api_version, moment.precision_us)
    regions = facts.derived.get(key)
    if regions is not None:
        at_us, revision = moment.at_us, moment.revision
        for low_us, high_us, low_revision, high_revision, data in regions:
            if low_us <= at_us < high_us and low_revision <= revision < high_revision:
                return data
    data = _enriched(facts, ref, moment).SerializeToString(deterministic=True)
    if len(facts.derived) >= _MAX_DERIVED:
        facts.derived.clear()
    regions = facts.derived.setdefault(key, [])
    regions.insert(0, (moment.low_us, moment.high_us, moment.low_revision, moment.high_revision, data))
    del regions[_MAX_REGIONS:]
    return data


def _enriched(facts: Facts, ref: ObjectReference, moment: Moment) -> pb.Record:
    record = pb.Record(enrichment=pb.MISSING)
    for service in associate.services(facts, ref, moment):
        record.services.add(namespace=service.namespace, name=service.name, uid=service.uid, how=service.how)
    found = facts.lookup(ref, moment)
    if found is not None:
        _add_facts(record, facts, found, moment)
    return record


def _add_facts(record: pb.Record, facts: Facts, found: Found, moment: Moment) -> None:
    history, version = found
    record.enrichment = pb.FRESH if history.gone is None else pb.TOMBSTONE
    record.labels.update(facts.labels(version))
    record.annotations.update(facts.annotations(version))
    for owner in associate.owners(facts, version, moment):
        record.owners.add(kind=owner.kind, name=owner.name, uid=owner.uid, api_version=owner.api_version)
    if isinstance(version.detail, PodFacts):
        record.pod.CopyFrom(_pod(history, version))
        record.node = version.detail.node
    elif isinstance(version.detail, NodeFacts):
        record.node = history.name
    if record.node:
        _add_addresses(record, facts, moment)


def _add_addresses(record: pb.Record, facts: Facts, moment: Moment) -> None:
    node = facts.named("Node", "v1", "", record.node, moment)
    detail = node.at(moment).detail if node else None
    if isinstance(detail, NodeFacts):
        for kind, address in detail.addresses:
            record.node_addresses.add(type=kind, address=address)


def _pod(history: History, version: Version) -> pb.Pod:
    facts = version.detail if isinstance(version.detail, PodFacts) else PodFacts()
    return pb.Pod(
        uid=history.uid,
        name=history.name,
        namespace=history.namespace,
        ip=facts.ip,
        host_ip=facts.host_ip,
        start_time_us=facts.start_us,
        phase=facts.phase,
        node=facts.node,
        ready=facts.ready,
    )


# --- Services ---------------------------------------------------------------------------------

_CHANGES = {
    "LISTED": pb.ServiceChange.LISTED,
    "ADDED": pb.ServiceChange.ADDED,
    "MODIFIED": pb.ServiceChange.UPDATED,
    "DELETED": pb.ServiceChange.DELETED,
    "UNLISTED": pb.ServiceChange.DELETED,
}
_BY_LIST = ("LISTED", "UNLISTED")


def service_record(cluster: str, news: News[Service], facts: Facts, global_revisions: bool = True) -> Encoded:
    """The record of a Service listed first, added, updated (with what changed) or deleted, with the pods behind it.

    It happened when it was observed; ADDED happened at the Service's creation. A Service that a relist shows with a
    previous state was updated while nobody watched. Raises KeyError for an unknown type of change.
    """
    service, metadata = news.object, news.object.metadata
    change = _CHANGES["MODIFIED" if news.type == "LISTED" and news.previous is not None else news.type]
    time_us = (to_us(metadata.creation_timestamp) if news.type == "ADDED" else 0) or news.observed_us
    deleted = change == pb.ServiceChange.DELETED
    record = pb.Record(
        uid=metadata.uid,
        resource_version=metadata.resource_version,
        time_us=time_us,
        observed_time_us=news.observed_us,
        namespace=metadata.namespace or "",
        name=metadata.name,
        service_change=pb.ServiceChange(
            change=change,
            changed=changed(news.previous, service) if change == pb.ServiceChange.UPDATED else [],
            before=_state(news.previous or service) if deleted or news.previous else None,
            after=None if deleted else _state(service),
            pods=_pods_behind(
                service, facts, Moment(news.observed_us, 0, metadata.resource_version * global_revisions)
            ),
        ),
        snapshot_time_us=facts.snapshot_time_us,
        found_by_list=news.type in _BY_LIST,
    )
    _describe(record, service)
    data = _head(pb.SERVICE_CHANGE, cluster) + record.SerializeToString(deterministic=True)
    return Encoded(time_us, metadata.uid, metadata.resource_version, data)


def changed(before: Service | None, after: Service) -> list[str]:
    """What differs between two states: type, clusterIP, externalName, selector, ports, labels, annotations."""
    if before is None:
        return []
    pairs = {
        "type": (before.spec.type, after.spec.type),
        "clusterIP": (before.spec.cluster_ip, after.spec.cluster_ip),
        "externalName": (before.spec.external_name, after.spec.external_name),
        "selector": (before.spec.selector or {}, after.spec.selector or {}),
        "ports": (before.spec.ports or [], after.spec.ports or []),
        "labels": (before.metadata.labels or {}, after.metadata.labels or {}),
        "annotations": (before.metadata.annotations or {}, after.metadata.annotations or {}),
    }
    return [name for name, (was, now) in pairs.items() if was != now]


def _pods_behind(service: Service, facts: Facts, moment: Moment) -> list[pb.Pod]:
    metadata, spec = service.metadata, service.spec
    selector = {} if spec.type == "ExternalName" else spec.selector or {}
    pods = associate.pods_of(facts, metadata.namespace or "", metadata.name, selector, moment)
    return [_pod(pod, pod.at(moment)) for pod in pods]


def _describe(record: pb.Record, service: Service) -> None:
    """What an event about the Service would carry too, so that one question finds both."""
    metadata = service.metadata
    record.involved.CopyFrom(
        pb.Reference(
            kind="Service",
            namespace=metadata.namespace or "",
            name=metadata.name,
            uid=metadata.uid,
            api_version="v1",
            resource_version=metadata.resource_version,
        )
    )
    record.services.add(namespace=metadata.namespace or "", name=metadata.name, uid=metadata.uid, how="self")
    record.labels.update(metadata.labels or {})


def _state(service: Service) -> pb.ServiceState:
    spec = service.spec
    return pb.ServiceState(
        type=spec.type,
        cluster_ip=spec.cluster_ip,
        external_name=spec.external_name,
        selector=spec.selector or {},
        ports=[_port(port) for port in spec.ports or ()],
        labels=service.metadata.labels or {},
    )


def _port(port: ServicePort) -> pb.Port:
    return pb.Port(
        name=port.name,
        protocol=port.protocol,
        port=port.port,
        target_port="" if port.target_port is None else str(port.target_port),
        node_port=port.node_port or 0,
    )


# --- endpoints --------------------------------------------------------------------------------


def endpoints_record(cluster: str, news: News[Endpoints], facts: Facts, global_revisions: bool = True) -> Encoded:
    """The record of the endpoints of one slice that joined, left, or turned ready or unready, when it was observed.

    Where a slice moved from one Service to another, the record names both.
    """
    before, after = news.previous, None if news.type in ("DELETED", "UNLISTED") else news.object
    change = difference(before, after)
    now = after.endpoints if after is not None and after.service else ()
    service, former = news.object.service, before.service if before is not None else ""
    names = [name for name in dict.fromkeys((service, former)) if name]
    involved = ObjectReference(
        kind="EndpointSlice",
        namespace=news.object.namespace,
        name=news.object.name,
        uid=news.object.uid,
        api_version="discovery.k8s.io/v1",
        resource_version=news.object.resource_version,
    )
    moment = Moment(news.observed_us, 0, involved.resource_version * global_revisions)
    record = pb.Record(
        uid=involved.uid,
        resource_version=involved.resource_version,
        time_us=news.observed_us,
        observed_time_us=news.observed_us,
        namespace=involved.namespace,
        name=involved.name,
        involved=_reference(involved),
        services=[_itself(facts, involved.namespace, name, moment) for name in names],
        endpoints_change=pb.EndpointsChange(
            service=names[0],
            joined=[_endpoint(one) for one in change.joined],
            left=[_endpoint(one) for one in change.left],
            became_ready=[_endpoint(one) for one in change.became_ready],
            became_unready=[_endpoint(one) for one in change.became_unready],
            former_service=former if names[0] != former else "",
            ready=sum(one.ready for one in now),
            total=len(now),
        ),
        snapshot_time_us=facts.snapshot_time_us,
        found_by_list=news.type in _BY_LIST,
    )
    data = _head(pb.ENDPOINTS_CHANGE, cluster) + record.SerializeToString(deterministic=True)
    return Encoded(news.observed_us, involved.uid, involved.resource_version, data)


def _itself(facts: Facts, namespace: str, name: str, moment: Moment) -> pb.ServiceRef:
    found = facts.named("Service", "v1", namespace, name, moment)
    return pb.ServiceRef(namespace=namespace, name=name, uid=found.uid if found else "", how="self")


def _endpoint(one: EndpointState) -> pb.EndpointRef:
    return pb.EndpointRef(
        addresses=one.addresses, kind=one.kind, name=one.name, uid=one.uid, node=one.node, ready=one.ready
    )


# --- gaps, and back ---------------------------------------------------------------------------


def gap_record(
    target: Target, from_us: int, to_us: int, why: str, *, from_version: str = "", to_version: str = ""
) -> Encoded:
    """The record of a span of a target's history that could not be read, from when to when and why.

    It is filed under the end of the span, when it was found; the same span gives the same UID.
    """
    uid = f"gap/{target.resource}/{target.namespace}/{from_us}-{to_us}"
    record = pb.Record(
        uid=uid,
        resource_version=to_version,
        time_us=to_us,
        observed_time_us=to_us,
        namespace=target.namespace,
        gap=pb.Gap(
            from_us=from_us,
            to_us=to_us,
            why=why,
            resource=target.resource,
            namespace=target.namespace,
            from_version=from_version,
            to_version=to_version,
        ),
    )
    return Encoded(to_us, uid, to_version, _head(pb.GAP, target.cluster) + record.SerializeToString())


def decode(data: bytes) -> pb.Record:
    """The Record of serialized bytes. Raises google.protobuf.message.DecodeError for others."""
    return pb.Record.FromString(data)
