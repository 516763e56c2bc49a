"""What goes over the wire, as pure functions: forms of objects, pages of lists, lines of watches, continue tokens.

Sources: https://kubernetes.io/docs/reference/using-api/api-concepts/ and apiserver `endpoints/handlers/response.go`.
"""

from __future__ import annotations

import base64
import dataclasses
import enum
import json
from collections.abc import Iterable, Sequence

from pipeline.demo.errors import ApiError, token_expired, too_new
from pipeline.demo.kinds import JsonObject, Resource
from pipeline.demo.selectors import Selector
from pipeline.demo.store import Change, Snapshot, Store, Version, dumps

_PARTIAL_KIND = {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1"}


class Form(enum.Enum):
    """How a client wants objects."""

    FULL = "full"
    METADATA = "metadata only"


def negotiate(accept: str, of_list: bool) -> Form:
    """The first form in an Accept header that can be served; `ApiError` 406 if there is none.

    A list has metadata only as PartialObjectMetadataList, an object and a watch as PartialObjectMetadata. (To a watch
    as PartialObjectMetadataList, kube-apiserver v1.36 answers 200 and nothing; that is refused here, to be found.)
    Tables, protobuf, CBOR and aggregated discovery are not served: a client that names JSON after them gets JSON.
    """
    partial = "PartialObjectMetadataList" if of_list else "PartialObjectMetadata"
    for clause in (accept or "*/*").split(","):
        media, *parameters = (part.strip() for part in clause.split(";"))
        if media not in ("application/json", "application/*", "*/*"):
            continue
        named = dict(parameter.partition("=")[::2] for parameter in parameters)
        if "as" not in named:
            return Form.FULL
        if (named["as"], named.get("g"), named.get("v")) == (partial, "meta.k8s.io", "v1"):
            return Form.METADATA
    raise ApiError(406, "only the following media types are accepted: application/json")


# --- objects


def _with_kind(version: Version, head: bytes) -> bytes:
    return b"{" + head + b"," + version.raw[1:]


def _head(resource: Resource) -> bytes:
    return dumps({"kind": resource.kind, "apiVersion": resource.api_version})[1:-1]


def _metadata_only(version: Version) -> bytes:
    return dumps(_PARTIAL_KIND | {"metadata": version.decode()["metadata"]})


def render(resource: Resource, version: Version, form: Form) -> bytes:
    """One object by itself: with kind and apiVersion."""
    return _metadata_only(version) if form is Form.METADATA else _with_kind(version, _head(resource))


# --- lists


@dataclasses.dataclass(frozen=True, slots=True)
class ContinueToken:
    """Where a list goes on: the snapshot's version (-1: the newest, an inconsistent list) and the next key."""

    number: int
    start: str
    generation: int

    def encode(self) -> str:
        """Opaque to clients: unpadded URL-safe base64, as the API server's."""
        return base64.urlsafe_b64encode(dumps(dataclasses.asdict(self))).decode().rstrip("=")

    @staticmethod
    def decode(text: str) -> ContinueToken:
        """The token that `encode` made; `ApiError` 400 for anything else."""
        try:
            fields = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
            return ContinueToken(int(fields["number"]), str(fields["start"]), int(fields["generation"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ApiError(400, f"continue key is not valid: {text}") from error


@dataclasses.dataclass(frozen=True, slots=True)
class ListRequest:
    """A list as asked for; `limit` 0 is no limit, and `resource_version` is the client's text."""

    resource: Resource
    namespace: str
    limit: int
    continue_token: str
    resource_version: str
    selector: Selector | None
    form: Form


def list_page(store: Store, request: ListRequest) -> bytes:
    """One page of a list.

    All pages of one list show the snapshot of its first page. A list at resourceVersion 0 of what is in the watch cache
    (all but Events) ignores the limit, as the API server does: it is one page.
    """
    snapshot, start = _where(store, request)
    prefix = f"{request.namespace}/" if request.namespace else ""
    span = snapshot.span(start, prefix)
    found: Sequence[int] = span
    if request.selector is not None:
        found = [place for place in span if request.selector(snapshot.versions[place].decode())]
    from_cache = request.resource_version == "0" and request.resource.bookmarks
    limit = len(found) if request.limit == 0 or from_cache else request.limit
    page, rest = [snapshot.versions[place] for place in found[:limit]], found[limit:]
    metadata: JsonObject = {"resourceVersion": str(snapshot.number)}
    if rest:
        metadata["continue"] = ContinueToken(snapshot.number, snapshot.keys[rest[0]], store.token_generation).encode()
        if request.selector is None:
            metadata["remainingItemCount"] = len(rest)
    if request.form is Form.METADATA:
        head = {"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": metadata}
        items: Iterable[bytes] = map(_metadata_only, page)
    else:
        kind, api_version = request.resource.kind + "List", request.resource.api_version
        head = {"kind": kind, "apiVersion": api_version, "metadata": metadata}
        items = (version.raw for version in page)
    return dumps(head)[:-1] + b',"items":[' + b",".join(items) + b"]}\n"


def _where(store: Store, request: ListRequest) -> tuple[Snapshot, str]:
    plural = request.resource.plural
    if not request.continue_token:
        snapshot = store.snapshot(plural)
        require_not_newer(number(request.resource_version), snapshot.number)
        return snapshot, ""
    token = ContinueToken.decode(request.continue_token)
    if token.number < 0:
        return store.snapshot(plural), token.start
    inconsistent = ContinueToken(-1, token.start, store.token_generation).encode()
    if token.generation != store.token_generation:
        raise token_expired(inconsistent)
    try:
        return store.snapshot(plural, token.number), token.start
    except ApiError as error:
        raise token_expired(inconsistent) from error


def number(resource_version: str) -> int:
    """A resourceVersion parameter as an integer, 0 if empty; `ApiError` 400 if it is none."""
    if resource_version and not resource_version.isdecimal():
        raise ApiError(400, f'resourceVersion: Invalid value: "{resource_version}": strconv.ParseUint: invalid syntax')
    return int(resource_version or 0)


def require_not_newer(asked: int, current: int) -> None:
    """`ApiError` 504 for a list at a version that is yet to come."""
    if asked > current:
        raise too_new(asked, current)


# --- watches


def _line(kind: str, obj: bytes) -> bytes:
    return b'{"type":"' + kind.encode() + b'","object":' + obj + b"}\n"


def change_line(resource: Resource, change: Change, selector: Selector | None, form: Form) -> bytes:
    """A change as a line; empty if the selector matches neither what was nor what is.

    An object that comes to match is ADDED and one that ceases to is DELETED, as in apiserver `storage/cacher`.
    """
    kind = change.type
    if selector is not None:
        was = change.before is not None and selector(change.before.decode())
        is_now = kind != "DELETED" and selector(change.now.decode())
        if not was and not is_now:
            return b""
        kind = "MODIFIED" if was and is_now else "ADDED" if is_now else "DELETED"
    return _line(kind, render(resource, change.now, form))


def bookmark_line(resource: Resource, version: int, form: Form) -> bytes:
    """A BOOKMARK: an object of the watched kind with nothing but a version."""
    kind = {"kind": resource.kind, "apiVersion": resource.api_version} if form is Form.FULL else _PARTIAL_KIND
    return _line("BOOKMARK", dumps({**kind, "metadata": {"resourceVersion": str(version)}}))


def error_line(error: ApiError) -> bytes:
    """An ERROR: the Status in the stream, under HTTP 200."""
    return _line("ERROR", dumps(error.status()))
