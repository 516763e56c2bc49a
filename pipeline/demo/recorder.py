"""Writes Events as a cluster's components do: a repeat updates the Event that is there, and its count grows.

Sources: client-go `tools/record/events_cache.go` (core/v1 style) and `tools/events/event_broadcaster.go` (events.k8s.io
style, of which core/v1 shows eventTime and series, with null first and last timestamps).
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import datetime
import random
from collections.abc import Callable

from pipeline.demo.errors import ApiError
from pipeline.demo.kinds import JsonObject
from pipeline.demo.store import Store, random_uid, timestamp

_FIELDS_V1: JsonObject = {
    "f:count": {},
    "f:firstTimestamp": {},
    "f:involvedObject": {},
    "f:lastTimestamp": {},
    "f:message": {},
    "f:reason": {},
    "f:reportingComponent": {},
    "f:reportingInstance": {},
    "f:source": {"f:component": {}, "f:host": {}},
    "f:type": {},
}


@dataclasses.dataclass(frozen=True, slots=True)
class Occurrence:
    """Something that a component says about an object; equal ones are one Event with a count."""

    reason: str
    message: str
    component: str
    host: str = ""
    type: str = "Normal"
    field_path: str = ""
    action: str = ""
    """Not empty: written in the style of events.k8s.io."""


def reference(obj: JsonObject) -> JsonObject:
    """An ObjectReference to an object, as an Event's involvedObject."""
    metadata = obj["metadata"]
    found = {"kind": obj["kind"], "namespace": metadata.get("namespace"), "name": metadata["name"]}
    found |= {
        "uid": metadata["uid"],
        "apiVersion": obj["apiVersion"],
        "resourceVersion": metadata.get("resourceVersion"),
    }
    return {key: value for key, value in found.items() if value}


def micro_time(moment: datetime.datetime) -> str:
    """A `metav1.MicroTime`."""
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def event(
    involved: JsonObject, what: Occurrence, *, name: str, uid: str, moment: datetime.datetime, count: int = 1
) -> JsonObject:
    """A core/v1 Event object about `involved` (an ObjectReference), of either style, as of its `count`-th time."""
    second = timestamp(moment)
    legacy = not what.action
    entry = {"manager": what.component, "operation": "Update", "apiVersion": "v1" if legacy else "events.k8s.io/v1"}
    managed = entry | {"time": second, "fieldsType": "FieldsV1", "fieldsV1": _FIELDS_V1}
    obj: JsonObject = {
        "metadata": {
            "name": name,
            "namespace": involved.get("namespace", "default"),
            "uid": uid,
            "creationTimestamp": second,
            "managedFields": [managed],
        },
        "involvedObject": involved | ({"fieldPath": what.field_path} if what.field_path else {}),
        "reason": what.reason,
        "message": what.message,
        "source": {},
        "firstTimestamp": None,
        "lastTimestamp": None,
        "type": what.type,
        "eventTime": None,
        "reportingComponent": what.component,
        "reportingInstance": what.host or f"{what.component}-control-plane-1",
    }
    if legacy:
        source = {"component": what.component} | ({"host": what.host} if what.host else {})
        times = {"firstTimestamp": second, "lastTimestamp": second}
        return obj | {"source": source, **times, "count": count, "reportingInstance": what.host}
    return obj | {"eventTime": micro_time(moment), "action": what.action}


class Recorder:
    """All components' event recorders at once.

    At most `live` Events are kept: older ones go, as by their time to live. Names are `<object>.<hex>`, the hex made
    from the time and a sequence number so that no two are equal.
    """

    def __init__(
        self, store: Store, rng: random.Random, clock: Callable[[], datetime.datetime], live: int = 2000
    ) -> None:
        self._store = store
        self._rng = rng
        self._clock = clock
        self._live = live
        self._written = 0
        self._known: collections.OrderedDict[tuple[str, Occurrence], JsonObject] = collections.OrderedDict()

    def emit(self, about: JsonObject, what: Occurrence, ago_s: float = 0.0, times: int = 1) -> None:
        """Say it `times` times at once, `ago_s` seconds in the past, about an object or what is left of it."""
        moment = self._clock() - datetime.timedelta(seconds=ago_s)
        involved = reference(about)
        key = (involved["uid"], what)
        known = self._known.get(key)
        if known is not None:
            self._repeat(known, moment, times)
            return
        self._written += 1
        suffix = int(moment.timestamp() * 1_000_000) * 1000 + self._written % 1000
        name, uid = f"{involved['name']}.{suffix:016x}", random_uid(self._rng)
        obj = event(involved, what, name=name, uid=uid, moment=moment, count=times)
        if what.action and times > 1:
            obj["series"] = {"count": times, "lastObservedTime": micro_time(moment)}
        self._known[key] = obj
        self._store.create("events", obj)
        if len(self._known) > self._live:
            self.expire(1)

    def expire(self, n: int) -> int:
        """Delete the `n` oldest Events, as their lease in etcd does; returns how many there were to delete."""
        gone = 0
        while gone < n and self._known:
            _, obj = self._known.popitem(last=False)
            with contextlib.suppress(ApiError):  # somebody else has deleted it
                self._store.delete("events", obj)
            gone += 1
        return gone

    def _repeat(self, obj: JsonObject, moment: datetime.datetime, times: int) -> None:
        if obj.get("action"):
            count = obj.get("series", {"count": 1})["count"] + times
            obj["series"] = {"count": count, "lastObservedTime": micro_time(moment)}
        else:
            obj["count"] += times
            obj["lastTimestamp"] = timestamp(moment)
        self._store.update("events", obj)
