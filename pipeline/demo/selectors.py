"""Field and label selectors: the equality forms, which are those that a reader of Events uses.

Supported fields are the API server's for these kinds (registry/core/event/strategy.go, registry/core/pod/strategy.go).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from pipeline.demo.errors import ApiError
from pipeline.demo.kinds import JsonObject, Resource

Selector = Callable[[JsonObject], bool]

_TERM = re.compile(r"^\s*([^=!\s]+)\s*(!=|==|=)\s*(.*?)\s*$")
_FIELDS = {
    "Event": {
        "involvedObject.kind",
        "involvedObject.namespace",
        "involvedObject.name",
        "involvedObject.uid",
        "involvedObject.apiVersion",
        "involvedObject.resourceVersion",
        "involvedObject.fieldPath",
        "reason",
        "reportingComponent",
        "source",
        "type",
    },
    "Pod": {"spec.nodeName", "spec.restartPolicy", "spec.serviceAccountName", "status.phase", "status.podIP"},
}


def _terms(text: str, what: str) -> list[tuple[str, bool, str]]:
    terms = []
    for part in filter(None, text.split(",")):
        match = _TERM.match(part)
        if match is None:
            raise ApiError(400, f"unable to parse requirement of a {what} selector: {part!r}")
        name, operator, value = match.groups()
        terms.append((name, operator != "!=", value))
    return terms


def _field(obj: JsonObject, path: str) -> str:
    if path == "source":
        path = "source.component"
    value: Any = obj
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return "" if value is None else str(value)


def parse(resource: Resource, fields: str, labels: str) -> Selector | None:
    """A predicate for both selectors, None if neither restricts anything; `ApiError` 400 for what is not supported."""
    by_field = _terms(fields, "field")
    by_label = _terms(labels, "label")
    supported = {"metadata.name", "metadata.namespace"} | _FIELDS.get(resource.kind, set())
    for name, _, _ in by_field:
        if name not in supported:
            raise ApiError(400, f"field label not supported: {name}")
    if not by_field and not by_label:
        return None

    def matches(obj: JsonObject) -> bool:
        present = obj["metadata"].get("labels") or {}
        return all((_field(obj, name) == value) is equal for name, equal, value in by_field) and all(
            (present.get(name) == value) is equal for name, equal, value in by_label
        )

    return matches
