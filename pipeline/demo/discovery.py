"""API discovery: what a client asks to learn which resources there are (unaggregated, which every server speaks)."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.demo.kinds import JsonObject, Resource

_VERBS = ["get", "list", "watch"]
_VERSION = {
    "major": "1",
    "minor": "34",
    "gitVersion": "v1.34.1",
    "gitCommit": "93248f9ae092f571eb870b7664c534bfc7d00f03",
    "gitTreeState": "clean",
    "buildDate": "2025-09-09T19:38:29Z",
    "goVersion": "go1.24.6",
    "compiler": "gc",
    "platform": "linux/amd64",
}


def document(path: str, resources: Iterable[Resource]) -> JsonObject | None:
    """The discovery document at a path, None if there is none."""
    resources = list(resources)
    match path.strip("/").split("/"):
        case ["version"]:
            return dict(_VERSION)
        case ["api"]:
            return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}
        case ["apis"]:
            groups = sorted({resource.group for resource in resources} - {""})
            return {
                "kind": "APIGroupList",
                "apiVersion": "v1",
                "groups": [_group(group, resources) for group in groups],
            }
        case ["api", version]:
            return _resource_list("", version, resources)
        case ["apis", group] if any(resource.group == group for resource in resources):
            return {"kind": "APIGroup", "apiVersion": "v1"} | _group(group, resources)
        case ["apis", group, version]:
            return _resource_list(group, version, resources)
    return None


def _group(group: str, resources: Iterable[Resource]) -> JsonObject:
    versions = sorted({resource.version for resource in resources if resource.group == group})
    entries = [{"groupVersion": f"{group}/{version}", "version": version} for version in versions]
    return {"name": group, "versions": entries, "preferredVersion": entries[0]}


def _resource_list(group: str, version: str, resources: Iterable[Resource]) -> JsonObject | None:
    entries: list[JsonObject] = []
    for resource in resources:
        if (resource.group, resource.version) != (group, version):
            continue
        entry = {"singularName": resource.kind.lower(), "namespaced": resource.namespaced, "kind": resource.kind}
        entries.append({"name": resource.plural, **entry, "verbs": _VERBS})
        if resource.kind not in ("Event", "EndpointSlice"):  # subresources are listed too, and can't be watched
            entries.append({"name": f"{resource.plural}/status", **entry, "singularName": "", "verbs": ["get"]})
    if not entries:
        return None
    group_version = f"{group}/{version}" if group else version
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": entries}
