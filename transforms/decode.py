"""Bytes of a list page or a watch line → typed changes, apart from transport: pure functions.

What can't be decoded is not an error of the stream: it comes back beside the rest, with its bytes and the reason.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Generic, TypeVar

import msgspec

from transforms.kube import UNDECODABLE, newer
from transforms.types import Change, Object

T = TypeVar("T", bound=Object)


@dataclasses.dataclass(frozen=True)
class Undecodable:
    """The bytes of an object and why they could not be decoded."""

    data: bytes
    reason: str


class _List(msgspec.Struct, Generic[T]):
    items: list[T] | None = None


class _RawList(msgspec.Struct):
    items: list[msgspec.Raw] | None = None


class _Line(msgspec.Struct, Generic[T]):
    type: str
    object: T


class Decoder(Generic[T]):
    """Decodes pages and lines of one type; `kind` is a subclass of types.Object with `metadata`."""

    def __init__(self, kind: type[T]) -> None:
        self._page = msgspec.json.Decoder(_List[kind])  # type: ignore[valid-type]
        self._raw_page = msgspec.json.Decoder(_RawList)
        self._line = msgspec.json.Decoder(_Line[kind])  # type: ignore[valid-type]
        self._object = msgspec.json.Decoder(kind)

    def page(self, body: bytes, observed_us: int, floor: str = "") -> tuple[list[Change[T]], list[Undecodable]]:
        """The objects of a list response as LISTED changes; those at or below `floor` are left out."""
        bad: list[Undecodable] = []
        try:
            objects = self._page.decode(body).items or []
        except UNDECODABLE:
            objects, bad = self._one_by_one(body)
        changes = [Change("LISTED", item, observed_us) for item in objects]
        if floor:
            changes = [change for change in changes if newer(change.object.metadata.resource_version, floor)]  # type: ignore[attr-defined]
        return changes, bad

    def lines(self, lines: Sequence[bytes], observed_us: int) -> tuple[list[Change[T]], list[Undecodable]]:
        """Watch lines (ADDED, MODIFIED, DELETED) as changes."""
        changes: list[Change[T]] = []
        bad: list[Undecodable] = []
        for line in lines:
            try:
                event = self._line.decode(line)
            except UNDECODABLE as error:
                bad.append(Undecodable(line, f"a watch line: {error}"))
                continue
            changes.append(Change(event.type, event.object, observed_us))
        return changes, bad

    def _one_by_one(self, body: bytes) -> tuple[list[T], list[Undecodable]]:
        try:
            raw = self._raw_page.decode(body).items or []
        except UNDECODABLE as error:
            return [], [Undecodable(body, f"a list page: {error}")]
        objects: list[T] = []
        bad: list[Undecodable] = []
        for item in raw:
            try:
                objects.append(self._object.decode(item))
            except UNDECODABLE as error:
                bad.append(Undecodable(bytes(item), f"a list item: {error}"))
        return objects, bad
