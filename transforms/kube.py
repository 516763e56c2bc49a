"""List and watch over HTTP: the only module that talks to Kubernetes, and the only importer of `kubernetes`.

Transport only: what leaves here are frames of undecoded bytes with the position that holds after them (`decode` reads
them). The loops are nested as in client-go's Reflector: `follow` lists and watches for ever, `_list` reads one list in
pages, `_watch` reads one watch. A `Reader` runs `follow` in a thread, into a buffer that is bounded, so that the API
server's stream waits while the graph works. `Readers` keeps one reader a target, for as long as the process lives.

Sources: client-go tools/cache/reflector.go; https://kubernetes.io/docs/reference/using-api/api-concepts/
"""

from __future__ import annotations

import collections
import dataclasses
import logging
import random
import socket
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import kubernetes.client
import kubernetes.config
import msgspec
import urllib3
from urllib3.connection import HTTPConnection

from transforms.types import Position, Target

_LOG = logging.getLogger(__name__)

METADATA_ONLY = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io,application/json"
# What msgspec raises for bytes that are no JSON, not of the type, not UTF-8, or nested too deep.
UNDECODABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_SMALLEST_PAGE = 50
_PASSING_FAILURES = 3  # in a row that may be a hiccup: nobody gives up to wait for less
_RETRY_AFTER_CAP_S = 300.0  # however long a server asks to be left alone
_METADATA_WATCH = "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io,application/json"


# --- API --------------------------------------------------------------------------------------


class KubeError(Exception):
    """The API server said no. `status` is the HTTP status (0: it did not answer), `reason` the Status reason.

    in_watch: it was said in an event of a watch. Whatever it is, the same watch may end so for ever: a list is next, as
    in client-go. (One such: "etcd event received with PrevKv=nil", of a version that a compaction has just reached.)
    """

    def __init__(self, message: str, status: int = 0, reason: str = "", retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.retry_after_s = retry_after_s
        self.in_watch = False

    @property
    def gone(self) -> bool:
        """The version or the continue token is too old: list again."""
        return self.status == 410 or self.reason in ("Expired", "Gone")

    @property
    def refused(self) -> bool:
        """Not for these credentials, or not there: waiting does not help, another setting does."""
        return self.status in (401, 403, 404)


class ConfigError(Exception):
    """No usable kubeconfig: says what was tried."""


@dataclasses.dataclass(frozen=True)
class Cluster:
    """How to reach one cluster; travels in the job graph, so it names files and contexts and holds no credential."""

    name: str
    kubeconfig: str = ""
    context: str = ""


@dataclasses.dataclass(frozen=True)
class Resource:
    """Where a resource's collection is.

    bookmarks: the API server's watch cache sends some (not for Events). whole: a list is read in one page, for what it
    does not show is gone.
    """

    group_version: str
    plural: str
    namespaced: bool = True
    bookmarks: bool = True
    metadata_only: bool = False
    whole: bool = False

    def path(self, namespace: str) -> str:
        root = f"/apis/{self.group_version}" if "/" in self.group_version else f"/api/{self.group_version}"
        scope = f"/namespaces/{urllib.parse.quote(namespace, safe='')}" if namespace and self.namespaced else ""
        return f"{root}{scope}/{self.plural}"


@dataclasses.dataclass(frozen=True)
class Frame:
    """What one read brought, undecoded.

    kind: "page" (a list response; `items` is [body]), "lines" (watch lines), "gap" (`items` is [why]), "quiet"
    (nothing but a newer position). first/last: the page begins or ends its list.
    position: holds once this frame has been dealt with. received_us: when it came.
    floor: for a page, the version at and below which items are known already ("" when none is).
    """

    kind: str
    items: Sequence[bytes]
    position: Position
    received_us: int
    count: int = 1
    first: bool = False
    last: bool = False
    floor: str = ""
    since_us: int = 0


@dataclasses.dataclass(frozen=True)
class Timing:
    """The retry and time-out policy, in seconds. Bookmarks come once a minute, so silence there is a dead watch."""

    connect_s: float = 10.0
    read_s: float = 60.0
    watch_s: float = 45.0
    bookmarked_watch_s: float = 600.0
    bookmarked_silence_s: float = 90.0
    backoff_s: float = 0.8
    backoff_cap_s: float = 30.0
    healthy_s: float = 120.0
    resync_s: float = 0.0
    event_ttl_s: float = 3600.0


class Connection:
    """One cluster's API server: authenticated GETs, and nothing else.

    Raises ConfigError when no configuration is found, KubeError for every answer that is not 200.
    """

    def __init__(self, cluster: Cluster, timing: Timing = Timing()) -> None:
        self.cluster = cluster
        self.timing = timing
        self.requests = 0
        self._api = kubernetes.client.ApiClient(_configuration(cluster))
        self._lock = threading.Lock()

    @property
    def server(self) -> str:
        """The API server's URL, for messages."""
        return str(self._api.configuration.host)

    def get(
        self,
        path: str,
        query: Mapping[str, str | int] | None = None,
        accept: str = "application/json",
        read_s: float | None = None,
    ) -> urllib3.BaseHTTPResponse:
        """The response, its body unread; raises KubeError unless it is 200."""
        headers = {"Accept": accept, "User-Agent": "kube-history"}
        url = f"{self._api.configuration.host}{path}"
        if query:
            url = f"{url}?{urllib.parse.urlencode(query)}"
        with self._lock:
            self.requests += 1
        try:
            self._api.update_params_for_auth(headers, [], ["BearerToken"], path, "GET", None)
        except Exception as error:  # what an exec plugin or a token file raises
            raise KubeError(f"{self.server}: no credentials: {_root_cause(error)}") from error
        try:
            timeout = urllib3.Timeout(connect=self.timing.connect_s, read=read_s or self.timing.read_s)
            response: urllib3.BaseHTTPResponse = self._api.rest_client.pool_manager.request(
                "GET", url, headers=headers, preload_content=False, retries=False, timeout=timeout
            )
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise KubeError(f"{self.server} did not answer: {_root_cause(error)}") from error
        if response.status != 200:
            raise _error_of(response, self.server, path)
        return response

    def get_json(self, path: str, query: Mapping[str, str | int] | None = None) -> Any:
        """The decoded body of a small response."""
        return msgspec.json.decode(_body(self.get(path, query), self.server))

    def identity(self) -> str:
        """The UID of kube-system, which is a cluster's identity; "" where it may not be read.

        A server that does not answer, or refuses the credentials, is a KubeError.
        """
        try:
            return str(self.get_json("/api/v1/namespaces/kube-system")["metadata"]["uid"])
        except KubeError as error:
            if error.status in (403, 404):
                return ""
            raise


@dataclasses.dataclass
class Follower:
    """Follows one target's history: list, watch, and list again when the API server has forgotten where we were.

    frames() yields for ever (`once`: to the end of the first list). Every change after `position` is in a frame, or is
    superseded by a newer version of its object in one; what the API server itself no longer has is named by a frame of
    kind "gap". Errors of the network and the server are waited out with backoff, and reported the first and then every
    tenth time. One connection error never moves the position.
    """

    connection: Connection
    target: Target
    resource: Resource
    position: Position
    page_size: int = 1000
    once: bool = False
    selector: str = ""
    refusable: bool = False
    failing: bool = False
    stopped: Callable[[], bool] = lambda: False
    clock: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep
    uniform: Callable[[float, float], float] = random.uniform
    report: Callable[[str], None] = _LOG.warning
    response: urllib3.BaseHTTPResponse | None = None

    def frames(self) -> Iterator[Frame]:
        backoff = Backoff(self.connection.timing, self.clock, self.uniform)
        refused = False
        listed_at = self.clock()
        while not self.stopped():
            try:
                if self.position.listing:
                    yield from self._list()
                    listed_at = self.clock()
                    if self.once:
                        return
                else:
                    yield from self._watch(listed_at)
                refused = False
            except KubeError as error:
                if self.stopped():
                    return
                if error.refused and self.refusable:
                    raise
                pause = backoff.after(error)
                self.failing = backoff.failures > _PASSING_FAILURES
                if self.position.listing and not error.status:
                    # a way that breaks off before a page has come lets smaller ones through
                    self.page_size = max(_SMALLEST_PAGE, self.page_size // 2)
                if error.gone or error.in_watch:
                    self.position = relist(self.position)
                elif error.refused and not refused:
                    refused = True
                    yield self._gap(f"{error}", until_us=0)
                    if self.once:
                        return
                if not error.gone and (backoff.failures == 1 or backoff.failures % 10 == 0):
                    self.report(f"{self.target.key}: {error}; try {backoff.failures}, the next in {pause:.0f} s")
                self.sleep(pause)

    def _list(self) -> Iterator[Frame]:
        """The pages of one list from `position` on, all at one version; a token that expired starts the list anew."""
        first = not self.position.continue_token
        while not self.stopped():
            query: dict[str, str | int] = {} if self.resource.whole else {"limit": self.page_size}
            if self.position.continue_token:
                query["continue"] = self.position.continue_token
            elif self.resource.bookmarks:  # from the API server's watch cache: etcd is not asked
                query["resourceVersion"] = 0
                query["resourceVersionMatch"] = "NotOlderThan"
            body, head = self._page(query)
            now_us = self._now_us()
            if first and self._lost_since(now_us):
                yield self._gap(
                    "the outage was longer than the event TTL: what came and expired in it is not known", now_us
                )
            token, version = head.metadata.continue_, head.metadata.resource_version
            if not self.resource.bookmarks and newer(self.position.floor, version):
                yield self._gap(f"the cluster went back from version {self.position.floor} to {version}", now_us)
                self.position = msgspec.structs.replace(self.position, floor="")
            floor = self.position.floor
            if token:
                self.position = msgspec.structs.replace(
                    self.position, listing=True, continue_token=token, list_version=version, time_us=now_us
                )
            else:
                self.position = Position(resource_version=version, listing=False, time_us=now_us)
            yield Frame("page", [body], self.position, now_us, len(head.items or ()), first, not token, floor)
            if not token:
                return
            first = False

    def _page(self, query: Mapping[str, str | int]) -> tuple[bytes, _PageHead]:
        accept = METADATA_ONLY if self.resource.metadata_only else "application/json"
        path = self.resource.path(self.target.namespace)
        body = _body(self.connection.get(path, self._selected(query), accept), self.connection.server)
        self.failing = False
        try:
            return body, _PAGE_HEAD.decode(body)
        except UNDECODABLE as error:
            raise KubeError(f"{path}: expected a list in JSON, got {body[:80]!r} ({error})") from error

    def _watch(self, listed_at: float) -> Iterator[Frame]:
        """One watch, until the server ends it; a bookmark or the end moves the position where nothing else does."""
        timing = self.connection.timing
        seconds = (timing.bookmarked_watch_s if self.resource.bookmarks else timing.watch_s) * self.uniform(0.75, 1.0)
        if timing.resync_s:
            seconds = max(1.0, min(seconds, listed_at + timing.resync_s - self.clock()))
        silence_s = min(seconds + 5.0, timing.bookmarked_silence_s) if self.resource.bookmarks else seconds + 5.0
        query: dict[str, str | int] = {
            "watch": 1,
            "resourceVersion": self.position.resource_version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": round(seconds),
        }
        accept = _METADATA_WATCH if self.resource.metadata_only else "application/json"
        path = self.resource.path(self.target.namespace)
        begun, anything = self.clock(), False
        self.response = response = self.connection.get(path, self._selected(query), accept, silence_s)
        self.failing = False
        try:
            if self.stopped():  # after `response` is there for who stops us to end it: one of both sees the other
                return
            for lines in _lines(response, self.connection.server):
                anything = True
                yield from self._heard(lines)
                if timing.resync_s and self.clock() >= listed_at + timing.resync_s:
                    break
        finally:
            self.response = None
            response.close()
        if not anything and self.clock() - begun < 1.0:
            # kubernetes #104171: where Events have no watch cache, a version that is too old may end so
            raise KubeError("the watch closed at once", 410, "Expired")
        self.position = msgspec.structs.replace(self.position, time_us=self._now_us())
        if timing.resync_s and self.clock() >= listed_at + timing.resync_s:
            self.position = relist(self.position, resync=True)
        yield Frame("quiet", [], self.position, self.position.time_us, 0)

    def _heard(self, lines: list[bytes]) -> Iterator[Frame]:
        """The frame of what one read of a watch brought; an ERROR event is raised after what came before it."""
        items, version, failed = [], self.position.resource_version, None
        for line in lines:
            try:
                head = _LINE_HEAD.decode(line)
            except UNDECODABLE:
                items.append(line)  # a dead letter, once decoding has failed on it too
                continue
            if head.type == "ERROR":
                failed = KubeError(
                    head.object.message or "the watch ended in an error", head.object.code, head.object.reason
                )
                failed.in_watch = True
                break
            version = head.object.metadata.resource_version or version
            if head.type != "BOOKMARK":
                items.append(line)
        if items or not failed:  # else nothing was heard since: how long nothing was known decides about a gap
            self.position = msgspec.structs.replace(self.position, resource_version=version, time_us=self._now_us())
            yield Frame("lines" if items else "quiet", items, self.position, self.position.time_us, len(items))
        if failed:
            raise failed

    def _selected(self, query: Mapping[str, str | int]) -> Mapping[str, str | int]:
        return {**query, "fieldSelector": self.selector} if self.selector else query

    def _lost_since(self, now_us: int) -> bool:
        since_us = self.position.time_us
        return bool(since_us) and now_us - since_us > self.connection.timing.event_ttl_s * 1e6

    def _gap(self, why: str, until_us: int) -> Frame:
        since_us = self.position.time_us or self._now_us()
        return Frame("gap", [why.encode()], self.position, until_us, since_us=since_us)

    def _now_us(self) -> int:
        return int(self.clock() * 1e6)


class Backoff:
    """How long to wait after a failure: 0.8 s doubling to 30 s with jitter, at least what Retry-After asks for.

    Starts over after two healthy minutes. Source: client-go reflector.go.
    """

    def __init__(self, timing: Timing, clock: Callable[[], float], uniform: Callable[[float, float], float]) -> None:
        self.failures = 0
        self._timing, self._clock, self._uniform = timing, clock, uniform
        self._last = float("-inf")

    def after(self, error: KubeError) -> float:
        """Counts the failure and returns the pause, in seconds."""
        now = self._clock()
        self.failures = 1 if now - self._last > self._timing.healthy_s else self.failures + 1
        pause = min(self._timing.backoff_cap_s, self._timing.backoff_s * 2 ** min(self.failures - 1, 16))
        pause = max(pause * self._uniform(0.5, 1.0), min(error.retry_after_s, _RETRY_AFTER_CAP_S))
        self._last = now + pause
        return pause


def relist(position: Position, resync: bool = False) -> Position:
    """Everything is listed again; items at or below what has been read are passed over, unless it is a resync.

    A list that was in progress keeps its floor, and starts at its first page.
    """
    floor = position.floor if position.listing else position.resource_version
    return Position(position.resource_version, True, floor="" if resync else floor, time_us=position.time_us)


def newer(version: str, than: str) -> bool:
    """Whether a resourceVersion is the greater number: by length, then digit by digit (KEP-5504)."""
    return (len(version), version) > (len(than), than)


# --- readers ----------------------------------------------------------------------------------


class Reader:
    """Follows one target in a thread of its own, into a buffer of at most about `limit` objects.

    take() gives frames in order; `next` is the position that holds once all that was taken has been dealt with.
    When the buffer is full the thread stops reading, and the API server waits or, in the end, closes the watch.
    """

    def __init__(self, follower: Follower, limit: int, changed: threading.Condition) -> None:
        self.next = follower.position
        self.done = False
        self.error: Exception | None = None
        self.waiting = 0
        self.caught_up = not follower.position.listing
        self._follower = follower
        self._limit = limit
        self._frames: collections.deque[Frame] = collections.deque()
        self._changed = changed
        self._stopped = False
        follower.stopped = lambda: self._stopped
        follower.sleep = self._sleep
        self._thread = threading.Thread(target=self._run, name=f"watch {follower.target.key}", daemon=True)
        self._thread.start()

    @property
    def failing(self) -> bool:
        """Whether the last requests failed, several in a row."""
        return self._follower.failing

    @property
    def full(self) -> bool:
        return self.waiting >= self._limit

    def take(self, limit: int, wait_s: float = 0.0) -> Iterator[Frame]:
        """Frames that hold about `limit` objects (a page is not divided), one by one as they are asked for.

        Ends sooner when none is there; while a list is in progress, only when none has come for `wait_s`.
        """
        count = 0
        while count < limit:
            with self._changed:
                if not self._frames and not self.caught_up:
                    self._changed.wait_for(lambda: self._frames or self.done, wait_s)
                if not self._frames:
                    return
                frame = self._frames.popleft()
                if self.full:
                    self._changed.notify_all()  # the reader waits for room
                self.waiting -= frame.count
                self.next = frame.position
            count += frame.count
            yield frame

    def close(self) -> None:
        """Stops the thread; does not wait for it where it blocks in a read that cannot be ended."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        response = self._follower.response
        if response is not None:
            try:
                response.shutdown()
            except (ValueError, RuntimeError, OSError):
                _LOG.debug("the watch of %s had ended already", self._follower.target.key)

    def _run(self) -> None:
        try:
            for frame in self._follower.frames():
                with self._changed:
                    while self.waiting >= self._limit and not self._stopped:
                        self._changed.wait()
                    if self._stopped:
                        return
                    # Who waits looks for the first frame, a full buffer, or the end of a list; to wake it for each
                    # line of a busy watch would cost more than to read the line.
                    worth_a_look = not self._frames or not self.caught_up
                    self._frames.append(frame)
                    self.waiting += frame.count
                    self.caught_up = self.caught_up or frame.last or frame.kind == "gap"
                    if worth_a_look or self.full:
                        self._changed.notify_all()
        except Exception as error:
            self.error = error
        finally:
            with self._changed:
                self.done = True
                self._changed.notify_all()

    def _sleep(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._stopped, timeout=seconds)


class Readers:
    """One reader a target, opened where it is first asked for and kept: a watch outlives the epochs that drain it.

    Acquired through Beam's `Shared`, so that all DoFns of one process, and the runner, meet here. Thread-safe.
    """

    def __init__(
        self,
        clusters: Sequence[Cluster],
        timing: Timing = Timing(),
        *,
        limit: int = 20_000,
        page_size: int = 1000,
        once: bool = False,
        selector: str = "",
    ) -> None:
        self._clusters = {cluster.name: cluster for cluster in clusters}
        self._timing, self._limit, self._page_size, self._once, self._selector = (
            timing,
            limit,
            page_size,
            once,
            selector,
        )
        self._changed = threading.Condition()
        self._connections: dict[str, Connection] = {}
        self._readers: dict[str, Reader] = {}

    def connection(self, cluster: str) -> Connection:
        """The cluster's connection; raises ConfigError when it has no usable configuration."""
        with self._changed:
            if cluster not in self._connections:
                self._connections[cluster] = Connection(self._clusters[cluster], self._timing)
            return self._connections[cluster]

    def reader(
        self,
        target: Target,
        resource: Resource,
        position: Position,
        *,
        limit: int = 0,
        page_size: int = 0,
        refusable: bool = False,
    ) -> Reader:
        """The target's reader at `position`; one that stands elsewhere is closed and opened anew.

        limit, page_size: other than these readers' own. refusable: ends with an error where it is refused.
        """
        connection = self.connection(target.cluster)
        reader = self._readers.get(target.key)
        if reader is not None and same_place(reader.next, position) and reader.error is None:
            return reader
        if reader is not None:
            reader.close()
        selector = self._selector if resource.plural == "events" and not target.namespace else ""
        follower = Follower(connection, target, resource, position, page_size or self._page_size, self._once, selector)
        follower.refusable = refusable
        self._readers[target.key] = Reader(follower, limit or self._limit, self._changed)
        return self._readers[target.key]

    def of(self, target: Target) -> Reader | None:
        """The target's reader, if it was opened."""
        return self._readers.get(target.key)

    def wait(self, enough: Callable[[], bool], timeout_s: float) -> bool:
        """Waits until `enough` holds of the readers; False when the time ran out first."""
        timeout = None if timeout_s == float("inf") else max(0.0, timeout_s)
        with self._changed:
            return self._changed.wait_for(enough, timeout)

    def wake(self) -> None:
        """Lets `wait` look again (a signal arrived)."""
        with self._changed:
            self._changed.notify_all()

    @property
    def requests(self) -> int:
        """API requests made so far, over all clusters."""
        return sum(connection.requests for connection in self._connections.values())

    def close(self) -> None:
        for reader in self._readers.values():
            reader.close()


def same_place(one: Position, other: Position) -> bool:
    """Whether two positions go on at the same point, whenever they were reached."""
    return msgspec.structs.replace(one, time_us=0) == msgspec.structs.replace(other, time_us=0)


# --- transport --------------------------------------------------------------------------------


class _ListMeta(msgspec.Struct):
    resource_version: str = msgspec.field(default="", name="resourceVersion")
    continue_: str = msgspec.field(default="", name="continue")


class _PageHead(msgspec.Struct):
    metadata: _ListMeta
    items: list[msgspec.Raw] | None = None  # an empty list of metadata only is null


class _LineObject(msgspec.Struct):
    metadata: _ListMeta = msgspec.field(default_factory=_ListMeta)
    code: int = 0
    reason: str = ""
    message: str = ""


class _LineHead(msgspec.Struct):
    type: str
    object: _LineObject


_PAGE_HEAD = msgspec.json.Decoder(_PageHead)
_LINE_HEAD = msgspec.json.Decoder(_LineHead)


def _configuration(cluster: Cluster) -> Any:
    """The client's configuration: the kubeconfig that was named, else in-cluster, else the default kubeconfig."""
    configuration = kubernetes.client.Configuration()
    named = cluster.kubeconfig or cluster.context
    tried = []
    if not named:
        try:
            kubernetes.config.load_incluster_config(client_configuration=configuration)
            return _with_keepalive(configuration)
        except kubernetes.config.ConfigException as error:
            tried.append(f"in-cluster ({error})")
    where = cluster.kubeconfig or "the default kubeconfig (KUBECONFIG, ~/.kube/config)"
    try:
        kubernetes.config.load_kube_config(
            config_file=cluster.kubeconfig or None,
            context=cluster.context or None,
            client_configuration=configuration,
            persist_config=False,
        )
    except Exception as error:  # the loader raises what YAML, base64, TLS and exec plugins raise
        tried.append(f"{where} ({_root_cause(error)})")
        raise ConfigError(
            f"cluster {cluster.name!r}: expected a usable kubeconfig; tried {'; '.join(tried)}; "
            "give --kubeconfig and --context"
        ) from error
    return _with_keepalive(configuration)


def _with_keepalive(configuration: Any) -> Any:
    """A peer that vanished is noticed by TCP within about a minute, also while a watch is quiet."""
    options = [*HTTPConnection.default_socket_options, (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            options.append((socket.IPPROTO_TCP, getattr(socket, name), value))
    configuration.socket_options = options
    configuration.connection_pool_maxsize = 64
    return configuration


def _body(response: urllib3.BaseHTTPResponse, server: str) -> bytes:
    try:
        return response.read()
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise KubeError(f"{server} broke off its answer: {_root_cause(error)}") from error
    finally:
        response.release_conn()


def _lines(response: urllib3.BaseHTTPResponse, server: str) -> Iterator[list[bytes]]:
    """The whole lines of a watch, as many as came at once; what is behind the last line end is not a line yet."""
    rest = b""
    while True:
        try:
            data = response.read1(1 << 18)
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise KubeError(f"{server} broke off a watch: {_root_cause(error)}") from error
        if not data:
            return
        *lines, rest = (rest + data).split(b"\n")
        lines = [line for line in lines if line]
        if lines:
            yield lines


def _error_of(response: urllib3.BaseHTTPResponse, server: str, path: str) -> KubeError:
    """The answer's Status object as an error that says what was asked, what came, and what to do."""
    try:
        body = response.read()
    except (urllib3.exceptions.HTTPError, OSError):
        body = b""
    response.release_conn()
    try:
        status = msgspec.json.decode(body, type=_LineObject)
    except UNDECODABLE:
        status = _LineObject(message=body[:200].decode(errors="replace"))
    advice = {
        401: "; the credentials are missing, wrong or expired",
        403: "; the credentials need list and watch on it",
    }.get(response.status, "")
    try:
        retry_after = float(response.headers.get("Retry-After", 0))
    except ValueError:
        retry_after = 0.0
    message = f"GET {server}{path}: {response.status} {status.reason} {status.message}{advice}"
    return KubeError(" ".join(message.split()), response.status, status.reason, retry_after)


def _root_cause(error: BaseException) -> str:
    """The last line of an error, without the layers that wrapped it."""
    reason = getattr(error, "reason", None)
    if isinstance(reason, BaseException):
        return _root_cause(reason)
    text = str(error) or type(error).__name__
    return text.splitlines()[0][:300]
