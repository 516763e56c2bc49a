"""Keeps the facts about a cluster's objects current, with as few requests as can be. No Beam.

Each resource is listed once and then followed by a watch that stays open, through the same readers as the source: to
bring the facts up to date costs no request while the watches are healthy. What may not be read, or is not there, is
reported once and left out. A kind that events name and that nobody follows yet is found by discovery and followed from
then on.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

from transforms.decode import Decoder
from transforms.facts import FULL, METADATA, SPEC, Facts
from transforms.kube import Connection, Frame, KubeError, Reader, Readers, Resource
from transforms.objects import object_type
from transforms.types import Position, Target

_LOG = logging.getLogger(__name__)

_CLUSTER_SCOPED = frozenset({"nodes"})
_FIRST_LIST_S = 60.0  # how long the first snapshot may take; what has not come by then comes with a later one
_READER_LIMIT = 2_000  # objects a reader buffers: they are taken in as they come
_PAGE_SIZE = 500
# A Lease is renewed every few seconds: to follow it costs the cluster more than its labels are worth.
_NOT_FOLLOWED = frozenset({("coordination.k8s.io/v1", "Lease")})
_AGAIN_S = 600.0  # when a resource that was refused or not there is asked for again


def _resources() -> dict[str, Resource]:
    found = {}
    for group, metadata_only in ((FULL, False), (SPEC, False), (METADATA, True)):
        for plural, kind in group.items():
            namespaced = plural not in _CLUSTER_SCOPED
            found[plural] = Resource(kind.api_version, plural, namespaced, metadata_only=metadata_only)
    return found


class SnapshotReader:
    """Keeps the facts of one cluster current.

    namespaces: where namespaced objects are read; () is everywhere. lock: held while the facts are written.
    """

    def __init__(
        self,
        cluster: str,
        readers: Readers,
        facts: Facts,
        namespaces: tuple[str, ...] = (),
        *,
        lock: contextlib.AbstractContextManager[Any] | None = None,
        clock: Callable[[], float] = time.time,
        report: Callable[[str], None] = _LOG.warning,
    ) -> None:
        self.facts = facts
        self._lock = lock or contextlib.nullcontext()
        self._cluster, self._readers, self._namespaces = cluster, readers, namespaces or ("",)
        self._clock, self._report = clock, report
        self._resources = _resources()
        self._followed: dict[Target, Reader] = {}
        self._decoders: dict[str, Decoder[Any]] = {}
        self._refused: dict[Target, float] = {}
        self._kinds = {(kind.api_version, kind.kind) for kind in (*FULL.values(), *SPEC.values(), *METADATA.values())}
        self._discovered: dict[str, tuple[float, dict[str, Resource]]] = {}
        self._expired_at = clock()

    def refresh(self, kinds: Iterable[tuple[str, str]] = (), first_list_s: float = _FIRST_LIST_S) -> Facts:
        """Takes in what changed, and follows the kinds (apiVersion, kind) that are new; waits for first lists only.

        first_list_s: how long it waits for them.
        """
        for api_version, kind in sorted(set(kinds) - self._kinds):
            self._discover(api_version, kind)
        for resource in self._resources:
            for target in self._targets(resource):
                self._follow(target)
        until = self._clock() + first_list_s
        while True:
            for target, reader in list(self._followed.items()):
                self._take(target, reader)
            missing = [
                reader
                for reader in self._followed.values()
                if reader.waiting or not (reader.caught_up or reader.failing)
            ]
            if not missing or self._clock() >= until:
                break
            # a reader that fails wakes nobody, so it is looked at again now and then
            self._readers.wait(functools.partial(self._moved, missing), min(0.5, until - self._clock()))
        if self._clock() - self._expired_at > 60.0:
            self._expired_at = self._clock()
            with self._lock:
                self.facts.expire(int(self._clock() * 1e6))
        return self.facts

    @staticmethod
    def _moved(readers: list[Reader]) -> bool:
        return any(reader.waiting or reader.done or reader.caught_up for reader in readers)  # a list may be empty

    def _targets(self, resource: str) -> list[Target]:
        namespaces = self._namespaces if self._resources[resource].namespaced else ("",)
        return [Target(self._cluster, f"facts:{resource}", namespace) for namespace in namespaces]

    def _follow(self, target: Target) -> None:
        if target in self._followed or self._clock() < self._refused.get(target, 0.0):
            return
        resource = self._resources[_plural(target)]
        self._followed[target] = self._readers.reader(
            target, resource, Position(), limit=_READER_LIMIT, page_size=_PAGE_SIZE, refusable=True
        )

    def _take(self, target: Target, reader: Reader) -> None:
        for frame in reader.take(_READER_LIMIT):
            with self._lock:
                self._apply(_plural(target), target.namespace, frame)
        if reader.error is not None:
            del self._followed[target]
            self._refused[target] = self._clock() + _AGAIN_S
            if isinstance(reader.error, KubeError) and reader.error.status == 404:
                return  # this API server has no such resource
            self._report(f"{target.key}: {reader.error}; events are enriched without it")

    def _apply(self, plural: str, namespace: str, frame: Frame) -> None:
        facts, at_us = self.facts, frame.received_us
        if plural not in self._decoders:
            self._decoders[plural] = Decoder(object_type(plural))
        decoder = self._decoders[plural]
        if frame.kind == "page":
            if frame.first:
                facts.begin_list(plural, namespace)
            changes, bad = decoder.page(frame.items[0], at_us)
        elif frame.kind == "lines":
            changes, bad = decoder.lines(frame.items, at_us)
        else:
            facts.confirm(plural, at_us, namespace)
            return
        for change in changes:
            facts.apply(plural, change.type, change.object, at_us)
        for item in bad:
            self._report(
                f"{self._cluster}/{plural}: an object can't be decoded and is left out of the facts: {item.reason}"
            )
        if frame.kind == "page" and frame.last:
            facts.end_list(plural, at_us, namespace, frame.position.resource_version)

    def _discover(self, api_version: str, kind: str) -> None:
        """Finds where a kind's objects are; asks at most once per group and version in a while."""
        if not api_version or not kind or (api_version, kind) in _NOT_FOLLOWED:
            return
        asked_at, resources = self._discovered.get(api_version, (0.0, {}))
        if kind not in resources and self._clock() - asked_at > _AGAIN_S:
            resources = self._discovery(self._readers.connection(self._cluster), api_version)
            self._discovered[api_version] = (self._clock(), resources)
        if kind in resources:
            resource = resources[kind]
            self._kinds.add((api_version, kind))
            # two groups may use one plural: the group tells the second from the first
            name = resource.plural if resource.plural not in self._resources else f"{resource.plural}.{api_version}"
            self._resources[name] = resource
            self.facts.declare(name, kind, api_version)

    def _discovery(self, connection: Connection, api_version: str) -> dict[str, Resource]:
        root = f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"
        try:
            listed = connection.get_json(root)["resources"]
        except (KubeError, KeyError, TypeError) as error:
            self._report(f"{self._cluster}: the kinds of {api_version} are not known: {error}")
            return {}
        return {
            item["kind"]: Resource(api_version, item["name"], bool(item.get("namespaced")), metadata_only=True)
            for item in listed
            if "/" not in item["name"] and {"list", "watch"} <= set(item.get("verbs", ()))
        }


def _plural(target: Target) -> str:
    return target.resource.removeprefix("facts:")
