"""What is known of a cluster's objects over time: facts, the intervals in which they held, and lookups as of a moment.

An object is a `History`, known by its UID: a pod that replaced one of the same name is another object. A history is a
list of `Version`s; each holds from its mark until the mark of the next. The first one counts from the creation, and
answers for any time before. Nothing that we don't keep (a heartbeat, a status field) makes a version.

How a moment is matched to a version: by time where time can tell. Event times have a precision of a second (core/v1)
or a microsecond (eventTime); a change is known to be between two times (a watch delivers late, a list shows what
happened since the list before); clocks differ. Where these intervals overlap, resourceVersions decide: in one etcd they
are one sequence over all resources (compared as integers, KEP-5504), and an event was written after the changes with a
smaller number. A cluster that keeps its Events in an etcd of its own (`--etcd-servers-overrides`) has no such order:
give no resourceVersion there, and the time alone decides.

Memory is bounded: `expire` drops what ended longer ago than the retention, and an object has at most MAX_VERSIONS.
Times are microseconds since the Unix epoch, UTC.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from functools import cached_property
from itertools import pairwise
from typing import Generic, NamedTuple, TypeVar

import msgspec

from transforms import objects
from transforms.objects import Known
from transforms.types import EndpointSlice, ObjectMeta, ObjectReference, Service

# --- what is watched --------------------------------------------------------------------------


class Kind(NamedTuple):
    """What a resource's objects are called where an event or an owner reference names them."""

    kind: str
    api_version: str


# Read in full (as far as `objects` names their fields).
FULL = {
    "pods": Kind("Pod", "v1"),
    "nodes": Kind("Node", "v1"),
    "services": Kind("Service", "v1"),
    "endpointslices": Kind("EndpointSlice", "discovery.k8s.io/v1"),
}
# Read in full for the few fields of their spec that lead to Services.
SPEC = {
    "horizontalpodautoscalers": Kind("HorizontalPodAutoscaler", "autoscaling/v2"),
    "poddisruptionbudgets": Kind("PodDisruptionBudget", "policy/v1"),
    "ingresses": Kind("Ingress", "networking.k8s.io/v1"),
    "httproutes": Kind("HTTPRoute", "gateway.networking.k8s.io/v1"),
}
# Read as metadata only; so is any other kind that events name (`Facts.declare`).
METADATA = {
    "replicasets": Kind("ReplicaSet", "apps/v1"),
    "deployments": Kind("Deployment", "apps/v1"),
    "statefulsets": Kind("StatefulSet", "apps/v1"),
    "daemonsets": Kind("DaemonSet", "apps/v1"),
    "jobs": Kind("Job", "batch/v1"),
    "cronjobs": Kind("CronJob", "batch/v1"),
    "persistentvolumeclaims": Kind("PersistentVolumeClaim", "v1"),
}

SECOND_US = 1_000_000
DEFAULT_RETENTION_US = 2 * 3600 * SECOND_US  # events live for an hour by default, and arrive a while after
CLOCK_SLACK_US = SECOND_US  # how late a watch delivers, and how far the clocks of a cluster differ
MAX_VERSIONS = 64  # of one object: what flaps for longer keeps its newest
MAX_ANNOTATION_LENGTH = 4096  # characters; a longer value is data, not a note, and is left out
# Left out: a copy of the whole object, and what changes every few seconds without telling anything.
DROPPED_ANNOTATIONS = frozenset(
    {
        "kubectl.kubernetes.io/last-applied-configuration",
        "control-plane.alpha.kubernetes.io/leader",
        "endpoints.kubernetes.io/last-change-trigger-time",
        "cluster-autoscaler.kubernetes.io/last-updated",
    }
)
SERVICE_NAME_LABEL = "kubernetes.io/service-name"
_MIRROR_ANNOTATIONS = ("kubernetes.io/config.mirror", "kubernetes.io/config.hash")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FOREVER = 1 << 100


def to_us(time: datetime | None) -> int:
    """A time in microseconds since the epoch; 0 for None."""
    if time is None:
        return 0
    delta = time - _EPOCH
    return (delta.days * 86_400 + delta.seconds) * SECOND_US + delta.microseconds


# --- moments ----------------------------------------------------------------------------------


class Mark(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """When something changed: in the `lag_us` before `at_us`, and by which `revision` (-1 when unknown)."""

    at_us: int
    lag_us: int = 0
    revision: int = -1


class Moment:
    """The time of an event, against which marks are compared; it collects how far the answers would stay the same.

    Every comparison narrows the region [low_us, high_us) × [low_revision, high_revision): any moment of the same
    precision within it gets the same answers. So what is derived from facts can be kept and used again.
    """

    __slots__ = ("at_us", "high_revision", "high_us", "low_revision", "low_us", "precision_us", "revision")

    def __init__(self, at_us: int, precision_us: int = 0, resource_version: str = "") -> None:
        self.at_us = at_us
        self.precision_us = precision_us
        self.revision = revision(resource_version)  # -1: unknown
        self.low_us, self.high_us = -_FOREVER, _FOREVER
        known = self.revision >= 0
        self.low_revision, self.high_revision = (0, _FOREVER) if known else (-1, 0)

    def reached(self, mark: Mark) -> bool:
        """Whether the change had happened by this moment."""
        at_us = self.at_us
        latest = mark.at_us + CLOCK_SLACK_US
        if at_us >= latest:
            self.low_us = max(self.low_us, latest)
            return True
        earliest = mark.at_us - max(mark.lag_us, CLOCK_SLACK_US) - self.precision_us
        if at_us < earliest:
            self.high_us = min(self.high_us, earliest)
            return False
        self.low_us, self.high_us = max(self.low_us, earliest), min(self.high_us, latest)
        return self._reached_by_revision(mark)

    def _reached_by_revision(self, mark: Mark) -> bool:
        if self.revision < 0 or mark.revision < 0:
            return self._reached_by_time(mark)
        if self.revision >= mark.revision:
            self.low_revision = max(self.low_revision, mark.revision)
            return True
        self.high_revision = min(self.high_revision, mark.revision)
        return False

    def _reached_by_time(self, mark: Mark) -> bool:
        if self.at_us >= mark.at_us:
            self.low_us = max(self.low_us, mark.at_us)
            return True
        self.high_us = min(self.high_us, mark.at_us)
        return False


def revision(resource_version: str) -> int:
    """A resourceVersion as a number, whose order is theirs (KEP-5504); -1 when it is none that etcd could give."""
    return int(resource_version) if resource_version.isdecimal() and len(resource_version) < 19 else -1


# --- facts ------------------------------------------------------------------------------------


class Owner(msgspec.Struct, frozen=True, array_like=True, gc=False):
    kind: str
    name: str
    uid: str
    api_version: str


class PodFacts(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="pod"):
    """`claims`: the names of the PersistentVolumeClaims that it mounts."""

    node: str = ""
    ip: str = ""
    host_ip: str = ""
    start_us: int = 0
    phase: str = ""
    ready: bool = False
    claims: tuple[str, ...] = ()


class NodeFacts(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="node"):
    """(type, address) each."""

    addresses: tuple[tuple[str, str], ...] = ()


class ServiceFacts(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="service"):
    """`selector` is empty where it selects nothing: none was given, or the type is ExternalName."""

    selector: dict[str, str] = {}


class SliceFacts(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="slice"):
    service: str = ""


class ScaleFacts(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="scale"):
    kind: str = ""
    name: str = ""
    api_version: str = ""


class SelectorFacts(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="selector"):
    """A label selector; `expressions` are (key, operator, values)."""

    labels: dict[str, str] = {}
    expressions: tuple[tuple[str, str, tuple[str, ...]], ...] = ()


class BackendFacts(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="backends"):
    """(namespace, name) of the Services behind a route."""

    services: tuple[tuple[str, str], ...] = ()


Detail = PodFacts | NodeFacts | ServiceFacts | SliceFacts | ScaleFacts | SelectorFacts | BackendFacts


class Version(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The facts of an object from `since` on; `labels`, `annotations`, `owners` are positions in the Facts' pools."""

    since: Mark
    labels: int
    annotations: int
    owners: int
    leaving: bool  # it has a deletionTimestamp, or is a pod that ended
    detail: Detail | None


class Member(msgspec.Struct, array_like=True, eq=False):
    """An endpoint of a Service, as one slice showed it from `start` to `end` (None: it still does)."""

    namespace: str
    service: str
    uid: str  # of the endpoint's target
    name: str
    node: str
    start: Mark
    end: Mark | None = None

    def present(self, moment: Moment) -> bool:
        return moment.reached(self.start) and not (self.end is not None and moment.reached(self.end))


class History(msgspec.Struct, array_like=True, eq=False):
    """One object: what it was, from when to when. `seen` is the newest resourceVersion that was taken in."""

    resource: str
    namespace: str
    name: str
    uid: str
    created_us: int
    seen: str
    versions: list[Version]
    gone: Mark | None = None
    members: list[Member] = []  # of an EndpointSlice

    def at(self, moment: Moment) -> Version:
        """The version that held; the first one for any time before."""
        versions = self.versions
        for index in range(len(versions) - 1, 0, -1):
            if moment.reached(versions[index].since):
                return versions[index]
        return versions[0]

    def existed(self, moment: Moment) -> bool:
        return moment.reached(Mark(self.created_us)) and not self.had_gone(moment)

    def had_gone(self, moment: Moment) -> bool:
        return self.gone is not None and moment.reached(self.gone)


class Found(NamedTuple):
    """An object that a reference means, and what was true of it."""

    history: History
    version: Version


# --- the store --------------------------------------------------------------------------------

T = TypeVar("T")


class Pool(Generic[T]):
    """Values that many versions share, each kept once and named by its position; position 0 is the empty one."""

    def __init__(self, empty: T, key: Callable[[T], int], items: list[T] | None = None) -> None:
        self._key = key
        self._positions: dict[int, int] | None = None
        self.items = items or [empty]

    def add(self, value: T) -> int:
        """The position of a value, which is taken in where it is new."""
        if not value:
            return 0
        positions = self._positions
        if positions is None:
            positions = self._positions = {self._key(item): at for at, item in enumerate(self.items)}
        key = self._key(value)
        at = positions.get(key, 0)
        if at and self.items[at] == value:
            return at
        positions[key] = len(self.items)
        self.items.append(value)
        return len(self.items) - 1


def _maps(items: list[dict[str, str]] | None = None) -> Pool[dict[str, str]]:
    return Pool({}, lambda value: hash(frozenset(value.items())), items)


def _owners(items: list[tuple[Owner, ...]] | None = None) -> Pool[tuple[Owner, ...]]:
    return Pool((), hash, items)


class _Wire(msgspec.Struct, array_like=True):
    """What `Facts.encode` writes: a field more goes to the end, with a default."""

    retention_us: int
    snapshot_time_us: int
    synced: dict[str, int]
    kinds: dict[str, tuple[str, str]]
    maps: list[dict[str, str]]
    owners: list[tuple[Owner, ...]]
    histories: list[History]


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(_Wire)


class Facts:
    """The objects of one cluster over time.

    Written by one reader: `begin_list`, `apply` LISTED, `end_list`, then `apply` as the watch goes. Read by `lookup`,
    `index` and `associate`; indexes are built on first use and dropped by the next change. A list that is in progress
    is not part of `encode`. Not for use by two threads at once.

    derived: what readers made of these facts and keep until the next change: (low_us, high_us, low_revision,
    high_revision, bytes) of the regions in which it holds.
    """

    def __init__(self, retention_us: int = DEFAULT_RETENTION_US) -> None:
        self.retention_us = retention_us
        self.snapshot_time_us = 0  # of the newest change, list or `confirm`: these facts were current then
        self._synced: dict[str, int] = {}
        self._lists: dict[str, set[str]] = {}
        self._kinds: dict[str, Kind] = {**FULL, **SPEC, **METADATA}
        self._maps = _maps()
        self._owners = _owners()
        self._objects: dict[str, History] = {}
        self._index: Index | None = None
        self.derived: dict[tuple[object, ...], list[tuple[int, int, int, int, bytes]]] = {}

    def __len__(self) -> int:
        """How many objects are known, tombstones too."""
        return len(self._objects)

    # --- writing ---

    def declare(self, resource: str, kind: str, api_version: str) -> None:
        """Says what the objects of a resource are called; those of FULL, SPEC and METADATA are known."""
        self._kinds[resource] = Kind(kind, api_version)
        self._drop_index()

    def begin_list(self, resource: str, namespace: str = "") -> None:
        """A list of a resource begins, of one namespace or of all ("")."""
        self._lists[_place(resource, namespace)] = set()

    def end_list(self, resource: str, at_us: int, namespace: str = "", resource_version: str = "") -> None:
        """A list is complete: objects that it did not show are gone. `resource_version` is the list's.

        Raises KeyError when the list was not begun.
        """
        place = _place(resource, namespace)
        if place not in self._lists:
            raise KeyError(f"expected begin_list({resource!r}, {namespace!r}) before its end_list, there was none")
        listed = self._lists.pop(place)
        mark = Mark(at_us, self._lag(resource, namespace, at_us), revision(resource_version))
        for history in self._objects.values():
            if history.resource == resource and history.uid not in listed and namespace in ("", history.namespace):
                self._end(history, mark)
        self._synced[place] = at_us
        self._advance(at_us)

    def confirm(self, resource: str, at_us: int, namespace: str = "") -> None:
        """Nothing of a resource changed up to `at_us`: a bookmark, or a watch that is quiet and alive."""
        self._synced[_place(resource, namespace)] = at_us
        self._advance(at_us)

    def apply(self, resource: str, change_type: str, obj: Known, at_us: int) -> None:
        """Takes in an object as a list (LISTED) or a watch (ADDED, MODIFIED, DELETED) showed it at `at_us`.

        What is older than what is known of its UID (by resourceVersion) is ignored.
        """
        meta = obj.metadata
        for place in (_place(resource, ""), _place(resource, meta.namespace or "")):
            if place in self._lists and change_type != "DELETED":
                self._lists[place].add(meta.uid)
        if change_type != "LISTED":
            self._advance(at_us)
        history = self._objects.get(meta.uid)
        if history is not None and not _is_news(history, meta, change_type):
            return
        lag_us = self._lag(resource, meta.namespace or "", at_us) if change_type == "LISTED" else 0
        mark = Mark(at_us, lag_us, revision(meta.resource_version))
        if history is None:
            mark = Mark(to_us(meta.creation_timestamp) or at_us, 0, mark.revision)
            history = self._objects[meta.uid] = _new_history(resource, meta, mark)
        if history.gone is not None:
            history.gone = None
            self._drop_index()
        self._update(history, obj, mark)
        history.seen = meta.resource_version
        if change_type == "DELETED":
            self._end(history, Mark(at_us, 0, mark.revision))

    def expire(self, now_us: int) -> None:
        """Drops tombstones, versions and endpoints that ended before `now_us` - `retention_us`.

        The newest version of a living object always stays.
        """
        horizon = now_us - self.retention_us
        for uid in [h.uid for h in self._objects.values() if h.gone is not None and h.gone.at_us < horizon]:
            del self._objects[uid]
        for history in self._objects.values():
            ended = sum(1 for version in history.versions[1:] if version.since.at_us < horizon)
            if ended:
                del history.versions[:ended]
            if history.members:
                history.members = [m for m in history.members if m.end is None or m.end.at_us >= horizon]
        self._shrink_pools()
        self._drop_index()

    def _update(self, history: History, obj: Known, mark: Mark) -> None:
        version = self._version(obj, mark)
        last = history.versions[-1] if history.versions else None
        if last is None or not _same(last, version):
            history.versions.append(version)
            del history.versions[:-MAX_VERSIONS]
            self.derived.clear()
            if last is None or _leads_elsewhere(last, version):
                self._drop_index()
        if isinstance(obj, EndpointSlice) and _update_members(history, obj, mark):
            self._drop_index()

    def _end(self, history: History, mark: Mark) -> None:
        if history.gone is None:
            history.gone = mark
            for member in history.members:
                member.end = member.end or mark
            self._drop_index()

    def _version(self, obj: Known, mark: Mark) -> Version:
        meta = obj.metadata
        return Version(
            mark,
            self._maps.add(meta.labels or {}),
            self._maps.add(_kept_annotations(meta.annotations)),
            self._owners.add(_owners_of(meta)),
            meta.deletion_timestamp is not None or (isinstance(obj, objects.Pod) and _ended(obj)),
            _detail(obj),
        )

    def _lag(self, resource: str, namespace: str, at_us: int) -> int:
        """How long before `at_us` this resource was last known."""
        synced = max(self._synced.get(_place(resource, ""), 0), self._synced.get(_place(resource, namespace), 0))
        return max(0, at_us - synced) if synced else 0

    def _advance(self, at_us: int) -> None:
        self.snapshot_time_us = max(self.snapshot_time_us, at_us)

    def _drop_index(self) -> None:
        self._index = None
        self.derived.clear()

    def _shrink_pools(self) -> None:
        """Builds the pools anew when less than half of one is in use."""
        versions = [version for history in self._objects.values() for version in history.versions]
        maps = {version.labels for version in versions} | {version.annotations for version in versions}
        owners = {version.owners for version in versions}
        if 2 * len(maps) >= len(self._maps.items) and 2 * len(owners) >= len(self._owners.items):
            return
        old_maps, old_owners = self._maps.items, self._owners.items
        self._maps, self._owners = _maps(), _owners()
        for history in self._objects.values():
            history.versions = [
                msgspec.structs.replace(
                    version,
                    labels=self._maps.add(old_maps[version.labels]),
                    annotations=self._maps.add(old_maps[version.annotations]),
                    owners=self._owners.add(old_owners[version.owners]),
                )
                for version in history.versions
            ]

    # --- reading ---

    @property
    def index(self) -> Index:
        """The indexes over these facts, valid until the next change."""
        if self._index is None:
            self._index = Index(self)
        return self._index

    def histories(self) -> Iterable[History]:
        return self._objects.values()

    def by_uid(self, uid: str) -> History | None:
        return self._objects.get(uid)

    def kind(self, history: History) -> Kind:
        """What an object is called: as declared, else the name of its resource."""
        return self._kinds.get(history.resource) or Kind(history.resource, "")

    def listed(self, resource: str) -> bool:
        """Whether a list of a resource, in any namespace, was ever complete."""
        return any(place.split("/", 1)[0] == resource for place in self._synced)

    def labels(self, version: Version) -> dict[str, str]:
        return self._maps.items[version.labels]

    def shared_labels(self, position: int) -> dict[str, str]:
        """The labels at a position that versions (`Version.labels`) share."""
        return self._maps.items[position]

    def annotations(self, version: Version) -> dict[str, str]:
        return self._maps.items[version.annotations]

    def owners(self, version: Version) -> tuple[Owner, ...]:
        """The object's ownerReferences; the controller, or else the first, comes first."""
        return self._owners.items[version.owners]

    def lookup(self, ref: ObjectReference, moment: Moment) -> Found | None:
        """The object that a reference means, as of a moment; None when it was never seen.

        By UID when one is given. A kubelet gives UIDs that are none of the API server's: a node's name, and for a
        static pod the hash that its mirror pod carries as an annotation. Without a UID: by kind, group (when given),
        namespace and name, the object that had the name at that time.
        """
        history = self.find(ref, moment)
        return Found(history, history.at(moment)) if history else None

    def find(self, ref: ObjectReference, moment: Moment) -> History | None:
        """As `lookup`, without the version."""
        if not ref.uid or (ref.kind == "Node" and ref.uid == ref.name):
            return self.named(ref.kind, ref.api_version, ref.namespace, ref.name, moment)
        history = self._objects.get(ref.uid)
        if history is None and ref.kind == "Pod":
            history = self.index.mirrors.get(ref.uid)
        return history

    def named(self, kind: str, api_version: str, namespace: str, name: str, moment: Moment) -> History | None:
        """The object that had a name at a moment: the first of its bearers that was not yet gone, or the last."""
        bearers = self.index.names.get((kind, namespace, name)) or self.index.names.get((kind, "", name)) or []
        if api_version:
            bearers = [h for h in bearers if group_of(self.kind(h).api_version) == group_of(api_version)]
        for history, successor in pairwise(bearers):
            if not moment.reached(history.gone or Mark(successor.created_us)):
                return history
        return bearers[-1] if bearers else None

    # --- travelling ---

    def encode(self) -> bytes:
        """These facts as bytes: 0.6 kB for a pod, and 0.1 kB for each of its versions more."""
        return _ENCODER.encode(
            _Wire(
                self.retention_us,
                self.snapshot_time_us,
                self._synced,
                {resource: (kind.kind, kind.api_version) for resource, kind in self._kinds.items()},
                self._maps.items,
                self._owners.items,
                list(self._objects.values()),
            )
        )

    @classmethod
    def decode(cls, data: bytes) -> Facts:
        """The facts that `encode` wrote. Raises msgspec.DecodeError for other bytes."""
        wire = _DECODER.decode(data)
        facts = cls(wire.retention_us)
        facts.snapshot_time_us = wire.snapshot_time_us
        facts._synced = wire.synced
        facts._kinds = {resource: Kind(*kind) for resource, kind in wire.kinds.items()}
        facts._maps = _maps(wire.maps)
        facts._owners = _owners(wire.owners)
        facts._objects = {history.uid: history for history in wire.histories}
        return facts


class Index:
    """Ways into the facts, each built when it is first used."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts

    @cached_property
    def names(self) -> dict[tuple[str, str, str], list[History]]:
        """(kind, namespace, name) → the objects that bore it, oldest first."""
        names: defaultdict[tuple[str, str, str], list[History]] = defaultdict(list)
        for history in self._facts.histories():
            names[self._facts.kind(history).kind, history.namespace, history.name].append(history)
        for bearers in names.values():
            if len(bearers) > 1:
                bearers.sort(key=lambda h: (h.created_us, h.gone is None, h.gone.at_us if h.gone else 0, h.uid))
        return dict(names)

    @cached_property
    def mirrors(self) -> dict[str, History]:
        """The UID that a kubelet gives a static pod → its mirror pod."""
        return {
            annotations[key]: history
            for history in self._of("pods")
            for annotations in (self._facts.annotations(history.versions[-1]),)
            for key in _MIRROR_ANNOTATIONS
            if key in annotations
        }

    @cached_property
    def owned(self) -> dict[str, list[History]]:
        """Owner's UID → the objects that it owns or owned, oldest first."""
        owned: defaultdict[str, dict[str, History]] = defaultdict(dict)
        for history in self._facts.histories():
            for version in {version.owners: version for version in history.versions}.values():
                for owner in self._facts.owners(version):
                    owned[owner.uid][history.uid] = history
        return {uid: _oldest_first(children.values()) for uid, children in owned.items()}

    @cached_property
    def pods(self) -> dict[str, list[History]]:
        """Namespace → its pods, oldest first."""
        return _grouped((pod.namespace, pod) for pod in self._of("pods"))

    @cached_property
    def mounting(self) -> dict[tuple[str, str], list[History]]:
        """(namespace, claim) → the pods that mount it, oldest first."""
        return _grouped(
            ((pod.namespace, claim), pod)
            for pod in self._of("pods")
            if isinstance(pod.versions[-1].detail, PodFacts)
            for claim in pod.versions[-1].detail.claims
        )

    @cached_property
    def on_node(self) -> dict[str, list[History]]:
        """Node → the pods that were bound to it, oldest first."""
        return _grouped(
            (pod.versions[-1].detail.node, pod)
            for pod in self._of("pods")
            if isinstance(pod.versions[-1].detail, PodFacts)
        )

    @cached_property
    def members(self) -> dict[str, list[Member]]:
        """Target's UID (or "namespace/name" where a slice gives none) → what it is or was an endpoint of."""
        members: defaultdict[str, list[Member]] = defaultdict(list)
        for member in self._members():
            members[member.uid or f"{member.namespace}/{member.name}"].append(member)
        return dict(members)

    @cached_property
    def node_members(self) -> dict[str, list[Member]]:
        """Node → the endpoints on it."""
        members: defaultdict[str, list[Member]] = defaultdict(list)
        for member in self._members():
            members[member.node].append(member)
        return dict(members)

    @cached_property
    def service_members(self) -> dict[tuple[str, str], list[Member]]:
        """(namespace, Service) → its endpoints."""
        members: defaultdict[tuple[str, str], list[Member]] = defaultdict(list)
        for member in self._members():
            members[member.namespace, member.service].append(member)
        return dict(members)

    @cached_property
    def slices(self) -> dict[tuple[str, str], list[History]]:
        """(namespace, Service) → its slices."""
        return _grouped(
            ((history.namespace, history.versions[-1].detail.service), history)
            for history in self._of("endpointslices")
            if isinstance(history.versions[-1].detail, SliceFacts)
        )

    @cached_property
    def selectors(self) -> dict[tuple[str, str, str], list[History]]:
        """(namespace, key, value) → the Services whose selector, in some version, has that pair as its first."""
        found: defaultdict[tuple[str, str, str], dict[str, History]] = defaultdict(dict)
        for history in self._of("services"):
            for version in history.versions:
                if isinstance(version.detail, ServiceFacts) and version.detail.selector:
                    key, value = min(version.detail.selector.items())
                    found[history.namespace, key, value][history.uid] = history
        return {key: list(histories.values()) for key, histories in found.items()}

    @cached_property
    def unsliced(self) -> bool:
        """Whether some Service with a selector may have been without a slice: it has none that lives."""
        sliced = {place for place, slices in self.slices.items() if any(history.gone is None for history in slices)}
        return any((h.namespace, h.name) not in sliced for found in self.selectors.values() for h in found)

    def _of(self, resource: str) -> Iterator[History]:
        return (history for history in self._facts.histories() if history.resource == resource)

    def _members(self) -> Iterator[Member]:
        return (member for history in self._of("endpointslices") for member in history.members)


K = TypeVar("K")


def _grouped(pairs: Iterable[tuple[K, History]]) -> dict[K, list[History]]:
    groups: defaultdict[K, list[History]] = defaultdict(list)
    for key, history in pairs:
        groups[key].append(history)
    return {key: _oldest_first(histories) for key, histories in groups.items()}


def _oldest_first(histories: Iterable[History]) -> list[History]:
    return sorted(histories, key=lambda history: (history.created_us, history.uid))


def group_of(api_version: str) -> str:
    """The API group of an apiVersion: "" for the core's."""
    return api_version.rpartition("/")[0]


# --- from objects to facts --------------------------------------------------------------------


def _place(resource: str, namespace: str) -> str:
    return f"{resource}/{namespace}"


def _is_news(history: History, meta: ObjectMeta, change_type: str) -> bool:
    """Whether a change says more than is known: it is newer, or it ends what lives."""
    if meta.resource_version == history.seen:
        return history.gone is not None if change_type != "DELETED" else history.gone is None
    return not 0 <= revision(meta.resource_version) < revision(history.seen)


def _new_history(resource: str, meta: ObjectMeta, mark: Mark) -> History:
    return History(resource, meta.namespace or "", meta.name, meta.uid, mark.at_us, "", [])


def _leads_elsewhere(one: Version, other: Version) -> bool:
    """Whether an index would have to change: not for labels, nor for what a pod reports of itself."""
    if isinstance(one.detail, PodFacts) and isinstance(other.detail, PodFacts):
        moved = one.detail.node != other.detail.node or one.detail.claims != other.detail.claims
    else:
        moved = one.detail != other.detail
    return moved or one.owners != other.owners


def _same(one: Version, other: Version) -> bool:
    return (
        one.labels == other.labels
        and one.annotations == other.annotations
        and one.owners == other.owners
        and one.leaving == other.leaving
        and one.detail == other.detail
    )


def _kept_annotations(annotations: dict[str, str] | None) -> dict[str, str]:
    if not annotations:
        return {}
    return {
        key: value
        for key, value in annotations.items()
        if key not in DROPPED_ANNOTATIONS and len(value) <= MAX_ANNOTATION_LENGTH
    }


def _owners_of(meta: ObjectMeta) -> tuple[Owner, ...]:
    references = sorted(meta.owner_references or (), key=lambda reference: not reference.controller)
    return tuple(Owner(r.kind, r.name, r.uid, r.api_version) for r in references)


def _ended(pod: objects.Pod) -> bool:
    return pod.status.phase in ("Succeeded", "Failed")


def _detail(obj: Known) -> Detail | None:
    match obj:
        case objects.Pod():
            return _pod_facts(obj)
        case objects.Node():
            return NodeFacts(tuple((a.type, a.address) for a in obj.status.addresses or ()))
        case Service():
            external = obj.spec.type == "ExternalName"
            return ServiceFacts({} if external else obj.spec.selector or {})
        case EndpointSlice():
            return SliceFacts((obj.metadata.labels or {}).get(SERVICE_NAME_LABEL, ""))
        case objects.HorizontalPodAutoscaler():
            target = obj.spec.scale_target_ref
            return ScaleFacts(target.kind, target.name, target.api_version)
        case objects.PodDisruptionBudget():
            return _selector_facts(obj.spec.selector)
        case objects.Ingress() | objects.HTTPRoute():
            return BackendFacts(tuple(sorted(set(_backends(obj)))))
        case objects.Meta():
            return None


def _pod_facts(pod: objects.Pod) -> PodFacts:
    spec, status = pod.spec, pod.status
    return PodFacts(
        spec.node_name,
        status.pod_ip,
        status.host_ip,
        to_us(status.start_time),
        status.phase,
        objects.is_ready(status.conditions),
        tuple(_claims(pod)) if spec.volumes else (),
    )


def _claims(pod: objects.Pod) -> Iterator[str]:
    for volume in pod.spec.volumes or ():
        if volume.persistent_volume_claim is not None:
            yield volume.persistent_volume_claim.claim_name
        elif volume.ephemeral is not None:
            yield f"{pod.metadata.name}-{volume.name}"


def _selector_facts(selector: objects.LabelSelector | None) -> SelectorFacts | None:
    if selector is None:
        return None
    expressions = tuple((e.key, e.operator, tuple(e.values or ())) for e in selector.match_expressions or ())
    return SelectorFacts(selector.match_labels or {}, expressions)


def _backends(route: objects.Ingress | objects.HTTPRoute) -> Iterator[tuple[str, str]]:
    namespace = route.metadata.namespace or ""
    if isinstance(route, objects.HTTPRoute):
        for http_rule in route.spec.rules or ():
            for ref in http_rule.backend_refs or ():
                if ref.kind == "Service" and not ref.group:
                    yield ref.namespace or namespace, ref.name
        return
    backends = [path.backend for rule in route.spec.rules or () if rule.http for path in rule.http.paths or ()]
    for backend in (*backends, route.spec.default_backend):
        if backend is not None and backend.service is not None:
            yield namespace, backend.service.name


def _update_members(history: History, obj: EndpointSlice, mark: Mark) -> bool:
    """Ends the endpoints that a slice no longer has, and begins those that are new in it; whether there were such."""
    service = (obj.metadata.labels or {}).get(SERVICE_NAME_LABEL, "")
    now = dict.fromkeys(
        (service, target.uid, target.name, endpoint.node_name or "")
        for endpoint in (obj.endpoints or () if service else ())
        for target in (endpoint.target_ref or ObjectReference(),)
    )
    ended = False
    for member in history.members:
        if member.end is not None:
            continue
        key = (member.service, member.uid, member.name, member.node)
        if key in now:
            del now[key]
        else:
            member.end, ended = mark, True
    history.members += [Member(history.namespace, service, uid, name, node, mark) for _, uid, name, node in now]
    return ended or bool(now)
