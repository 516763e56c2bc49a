"""Services under impact: which Services an event's object belongs to, as of the event's time, and who owns it.

The rules, by the object's kind, with the `how` that a record shows:

- Pod: the Services of the EndpointSlices that list it by UID (endpointslice). By selector, in its namespace, where
  slices can't tell: a Service that has no slice at all, or a pod that is no endpoint yet (without an IP no slice can
  list it, or the slice came later) (selector). A pod that ends has often left its slices before its last events: it
  keeps those that it left last.
- Workloads (ReplicaSet, Deployment, StatefulSet, DaemonSet, Job, CronJob) and any other kind, custom resources too:
  those of the pods that they own over any number of owners (owned-pods). While there is no pod: those of the pods that
  came next or were last; a ReplicaSet of a Deployment that never got one carries its pods' labels itself (template).
- HorizontalPodAutoscaler: those of its target's pods (scale-target). PodDisruptionBudget: of the pods that it selects
  (disruption-budget). PersistentVolumeClaim: of the pods that mount it (volume).
- Node: the Services that have endpoints on it (node).
- Service, Endpoints, EndpointSlice: itself (self). Ingress, HTTPRoute: its backends (backend).

Headless Services count. `default/kubernetes` and ExternalName Services have no pods: only their own events name them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from transforms.facts import (
    SECOND_US,
    BackendFacts,
    Facts,
    History,
    Mark,
    Member,
    Moment,
    Owner,
    PodFacts,
    ScaleFacts,
    SelectorFacts,
    ServiceFacts,
    SliceFacts,
    Version,
    group_of,
)
from transforms.types import ObjectReference

# Of the slices that an ending pod left, those left within this time of the last one were left together; and a Service
# that went within this time before the event went with its pods.
SETTLE_US = 60 * SECOND_US

_API_SERVER = ("default", "kubernetes")


class ServiceRef(NamedTuple):
    """A Service under impact; `uid` is "" when the Service itself was never seen."""

    namespace: str
    name: str
    uid: str
    how: str


def services(facts: Facts, ref: ObjectReference, moment: Moment) -> list[ServiceRef]:
    """The Services that an object belongs to as of a moment, each once, in the order of namespace and name."""
    gather = _Gather(facts, moment)
    group, rule = _RULES.get(ref.kind, ("", _of_owner))
    if ref.kind in _RULES and ref.api_version and group_of(ref.api_version) != group:
        rule = _of_owner
    rule(gather, ref, facts.find(ref, moment))
    return sorted(gather.found.values())


def owners(facts: Facts, version: Version, moment: Moment) -> list[Owner]:
    """The chain of owners from the direct one up to the top, as far as known; at each step the controller leads on."""
    chain: list[Owner] = []
    references = facts.owners(version)
    while references and references[0] not in chain:
        owner = references[0]
        chain.append(owner)
        history = facts.by_uid(owner.uid)
        references = facts.owners(history.at(moment)) if history else ()
    return chain


def pods_of(facts: Facts, namespace: str, name: str, selector: dict[str, str], moment: Moment) -> list[History]:
    """The pods behind a Service as of a moment, in the order of their names.

    Those of its slices; without a slice, those that `selector` matches; when it has none, those that left in the minute
    before (a Service's slices go with it).
    """
    members = facts.index.service_members.get((namespace, name), [])
    present = [member for member in members if member.present(moment)]
    if not present and not _sliced(facts, namespace, name, moment):
        present = [m for m in members if m.end is not None and 0 <= moment.at_us - m.end.at_us <= SETTLE_US]
    pods = [facts.by_uid(member.uid) for member in present]
    if not members and selector and not _sliced(facts, namespace, name, moment):
        pods = [
            pod
            for pod in facts.index.pods.get(namespace, [])
            if pod.existed(moment) and selector.items() <= facts.labels(pod.at(moment)).items()
        ]
    return sorted({pod.uid: pod for pod in pods if pod is not None}.values(), key=lambda pod: pod.name)


# --- gathering --------------------------------------------------------------------------------


class _Gather:
    """The Services found so far. A pod all of whose Services were found already is not looked at again."""

    def __init__(self, facts: Facts, moment: Moment) -> None:
        self.facts = facts
        self.moment = moment
        self.found: dict[tuple[str, str], ServiceRef] = {}
        self._matched: set[tuple[str, int, bool]] = set()

    def service(self, namespace: str, name: str, how: str, settle_us: int = 0) -> None:
        """Adds a Service that slices or a route name, unless it is known to have gone `settle_us` before the moment."""
        if (namespace, name) in self.found:
            return
        history = self.facts.named("Service", "v1", namespace, name, self.moment)
        if history is None:
            self.found[namespace, name] = ServiceRef(namespace, name, "", how)
        elif not history.had_gone(self.moment) or _settling(history.gone, self.moment, settle_us):
            self.found[namespace, name] = ServiceRef(namespace, name, history.uid, how)

    def itself(self, namespace: str, name: str, uid: str = "") -> None:
        """Adds a Service that the event is about, gone or not."""
        history = None if uid else self.facts.named("Service", "v1", namespace, name, self.moment)
        self.found[namespace, name] = ServiceRef(namespace, name, history.uid if history else uid, "self")

    def pod(self, uid: str, pod: History | None, by_slice: str, by_selector: str) -> None:
        """Adds the Services of a pod; `by_slice` and `by_selector` say how."""
        members = self._members(uid, pod)
        new = [member for member in members if (member.namespace, member.service) not in self.found]
        present = [member for member in new if member.present(self.moment)]
        for member in present:
            self.service(member.namespace, member.service, by_slice)
        if pod is None:
            return
        version = pod.at(self.moment)
        if not present and len(new) == len(members):
            self._absent(pod, version, members, by_slice, by_selector)
        if self.facts.index.unsliced:
            self.selecting(pod.namespace, version.labels, by_selector, sliced=False)

    def _members(self, uid: str, pod: History | None) -> list[Member]:
        index = self.facts.index
        members = index.members.get(pod.uid if pod else uid, [])
        unnamed = index.members.get(f"{pod.namespace}/{pod.name}", []) if pod else []
        return [m for m in (*members, *unnamed) if (m.namespace, m.service) != _API_SERVER]

    def _absent(self, pod: History, version: Version, members: list[Member], by_slice: str, by_selector: str) -> None:
        """A pod that no slice lists: it has left, or it is not there yet."""
        left = [m for m in members if m.end is not None and self.moment.reached(m.end)]
        if version.leaving or pod.had_gone(self.moment):
            for member in self._last(left, version):
                self.service(member.namespace, member.service, by_slice, SETTLE_US)
        elif not left and (members or not _has_ip(version)):
            self.selecting(pod.namespace, version.labels, by_selector, sliced=True)

    def _last(self, left: list[Member], version: Version) -> Iterator[Member]:
        """Of the endpoints that a pod was, the last ones; not those that it left because its labels changed."""
        last_us = max((member.end.at_us for member in left if member.end), default=0)
        for member in left:
            selector = self._selector(member)
            fits = not selector or selector.items() <= self.facts.labels(version).items()
            if fits and member.end is not None and member.end.at_us >= last_us - SETTLE_US:
                yield member

    def _selector(self, member: Member) -> dict[str, str]:
        service = self.facts.named("Service", "v1", member.namespace, member.service, self.moment)
        detail = service.at(self.moment).detail if service else None
        return detail.selector if isinstance(detail, ServiceFacts) else {}

    def selecting(self, namespace: str, labels: int, how: str, sliced: bool) -> None:
        """Adds the Services whose selector matches labels (by their position); those with slices only if `sliced`."""
        if (namespace, labels, sliced) in self._matched:
            return
        self._matched.add((namespace, labels, sliced))
        pairs = self.facts.shared_labels(labels).items()
        for key, value in pairs:
            for history in self.facts.index.selectors.get((namespace, key, value), ()):
                if (namespace, history.name) not in self.found and self._selects(history, pairs, sliced):
                    self.found[namespace, history.name] = ServiceRef(namespace, history.name, history.uid, how)

    def _selects(self, service: History, pairs: Iterable[tuple[str, str]], sliced: bool) -> bool:
        if not sliced and _sliced(self.facts, service.namespace, service.name, self.moment):
            return False
        detail = service.at(self.moment).detail
        selector = detail.selector if isinstance(detail, ServiceFacts) else {}
        return bool(selector) and selector.items() <= set(pairs) and not service.had_gone(self.moment)

    def pods(self, pods: Iterable[History], how: str) -> bool:
        """Adds the Services of the pods that existed, else of those that came next or were last; False without any."""
        pods = list(pods)
        existing = [pod for pod in pods if pod.existed(self.moment)]
        for pod in existing or _nearest(pods, self.moment):
            self.pod(pod.uid, pod, how, how)
        return bool(pods)


def _has_ip(version: Version) -> bool:
    return isinstance(version.detail, PodFacts) and bool(version.detail.ip)


def _settling(gone: Mark | None, moment: Moment, settle_us: int) -> bool:
    if gone is None or not settle_us:
        return False
    return not moment.reached(Mark(gone.at_us + settle_us))


def _sliced(facts: Facts, namespace: str, name: str, moment: Moment) -> bool:
    """Whether a Service has a slice. One that lives answers for all times before: it came right after its Service."""
    slices = facts.index.slices.get((namespace, name), ())
    return any(history.gone is None for history in slices) or any(history.existed(moment) for history in slices)


def _nearest(pods: list[History], moment: Moment) -> list[History]:
    """Of pods none of which existed: those that came after, if any, else the one that was last."""
    later = [pod for pod in pods if not moment.reached(Mark(pod.created_us))]
    return later or sorted(pods, key=lambda pod: pod.gone.at_us if pod.gone else 0)[-1:]


# --- rules ------------------------------------------------------------------------------------


def _of_pod(gather: _Gather, ref: ObjectReference, pod: History | None) -> None:
    gather.pod(ref.uid, pod, "endpointslice", "selector")


def _of_node(gather: _Gather, ref: ObjectReference, node: History | None) -> None:
    """By the slices' endpoints on it; by its pods' labels for Services without slices."""
    index, moment = gather.facts.index, gather.moment
    name = node.name if node else ref.name
    for member in index.node_members.get(name, ()):
        place = member.namespace, member.service
        if place not in gather.found and place != _API_SERVER and member.present(moment):
            gather.service(*place, "node")
    for pod in index.on_node.get(name, ()) if index.unsliced else ():
        version = pod.at(moment)
        if pod.existed(moment) and not version.leaving:
            gather.selecting(pod.namespace, version.labels, "node", sliced=False)


def _of_owner(gather: _Gather, ref: ObjectReference, history: History | None, how: str = "owned-pods") -> None:
    uid = history.uid if history else ref.uid
    if uid:
        for member in gather.facts.index.members.get(uid, ()):
            if member.present(gather.moment):
                gather.service(member.namespace, member.service, "endpointslice")
    owned = list(_owned(gather.facts, uid, gather.moment)) if uid else []
    pods = [child for child in owned if isinstance(child.versions[-1].detail, PodFacts)]
    if not gather.pods(pods, how):
        for child in (*((history,) if history else ()), *owned):
            _by_template(gather, child)


def _by_template(gather: _Gather, history: History) -> None:
    """A Deployment's controller gives a ReplicaSet the labels of its pods."""
    version = history.at(gather.moment)
    controllers = gather.facts.owners(version)
    if history.resource == "replicasets" and controllers and controllers[0].kind == "Deployment":
        gather.selecting(history.namespace, version.labels, "template", sliced=True)


def _owned(facts: Facts, uid: str, moment: Moment) -> Iterator[History]:
    """All that an object owns, over any number of owners, each once."""
    seen, queue = {uid}, [uid]
    for owner in queue:
        for child in facts.index.owned.get(owner, ()):
            if child.uid not in seen and _owned_by(facts, child, owner, moment):
                seen.add(child.uid)
                queue.append(child.uid)
                yield child


def _owned_by(facts: Facts, child: History, uid: str, moment: Moment) -> bool:
    """Whether an object that some version says is owned was owned then; most never change hands."""
    if all(version.owners == child.versions[0].owners for version in child.versions):
        return True
    return any(owner.uid == uid for owner in facts.owners(child.at(moment)))


def _of_autoscaler(gather: _Gather, ref: ObjectReference, history: History | None) -> None:
    del ref
    detail = history.at(gather.moment).detail if history else None
    if history is None or not isinstance(detail, ScaleFacts):
        return
    target = gather.facts.named(detail.kind, detail.api_version, history.namespace, detail.name, gather.moment)
    if target is not None:
        _of_owner(gather, ObjectReference(uid=target.uid), target, "scale-target")


def _of_budget(gather: _Gather, ref: ObjectReference, history: History | None) -> None:
    del ref
    detail = history.at(gather.moment).detail if history else None
    if history is None or not isinstance(detail, SelectorFacts):
        return
    selected: dict[int, bool] = {}
    for pod in gather.facts.index.pods.get(history.namespace, ()):
        if pod.existed(gather.moment):
            labels = pod.at(gather.moment).labels
            if labels not in selected:
                selected[labels] = _matches(detail, gather.facts.shared_labels(labels))
            if selected[labels]:
                gather.pod(pod.uid, pod, "disruption-budget", "disruption-budget")


def _matches(selector: SelectorFacts, labels: dict[str, str]) -> bool:
    """Whether a label selector matches; an empty one matches all (policy/v1)."""
    return selector.labels.items() <= labels.items() and all(
        _meets(labels.get(key), operator, values) for key, operator, values in selector.expressions
    )


def _meets(value: str | None, operator: str, values: tuple[str, ...]) -> bool:
    match operator:
        case "In":
            return value is not None and value in values
        case "NotIn":
            return value is None or value not in values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case _:
            return False


def _of_claim(gather: _Gather, ref: ObjectReference, history: History | None) -> None:
    del history
    gather.pods(gather.facts.index.mounting.get((ref.namespace, ref.name), ()), "volume")


def _of_service(gather: _Gather, ref: ObjectReference, history: History | None) -> None:
    gather.itself(ref.namespace, ref.name, history.uid if history else ref.uid)


def _of_endpoints(gather: _Gather, ref: ObjectReference, history: History | None) -> None:
    """The Endpoints object has its Service's name."""
    del history
    gather.itself(ref.namespace, ref.name)


def _of_slice(gather: _Gather, ref: ObjectReference, history: History | None) -> None:
    del ref
    detail = history.at(gather.moment).detail if history else None
    if history is not None and isinstance(detail, SliceFacts) and detail.service:
        gather.itself(history.namespace, detail.service)


def _of_route(gather: _Gather, ref: ObjectReference, history: History | None) -> None:
    """Its backends, of those that exist once Services have been listed."""
    del ref
    detail = history.at(gather.moment).detail if history else None
    if not isinstance(detail, BackendFacts):
        return
    for namespace, name in detail.services:
        known = gather.facts.named("Service", "v1", namespace, name, gather.moment)
        if known is not None or not gather.facts.listed("services"):
            gather.service(namespace, name, "backend")


_Rule = Callable[[_Gather, ObjectReference, History | None], None]
_RULES: dict[str, tuple[str, _Rule]] = {
    "Pod": ("", _of_pod),
    "Node": ("", _of_node),
    "Service": ("", _of_service),
    "Endpoints": ("", _of_endpoints),
    "EndpointSlice": ("discovery.k8s.io", _of_slice),
    "HorizontalPodAutoscaler": ("autoscaling", _of_autoscaler),
    "PodDisruptionBudget": ("policy", _of_budget),
    "PersistentVolumeClaim": ("", _of_claim),
    "Ingress": ("networking.k8s.io", _of_route),
    "HTTPRoute": ("gateway.networking.k8s.io", _of_route),
}
