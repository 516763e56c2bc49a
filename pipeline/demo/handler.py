"""HTTP: routes requests to lists, watches, objects and discovery, and streams watches in chunks.

One thread a connection, HTTP/1.1 with keep-alive. What is refused is a Status object, as from the API server; only a
path of no resource is answered with 404 in plain text, which is what kube-apiserver v1.36 does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import http.server
import random
import select
import socket
import socketserver
import struct
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from pipeline.demo import discovery, wire
from pipeline.demo.errors import ApiError
from pipeline.demo.faults import Faults, Watch
from pipeline.demo.kinds import Resource
from pipeline.demo.selectors import Selector, parse
from pipeline.demo.store import Change, Store, Subscription, Version, dumps

# How often a watch that has nothing to say looks whether its client is still there.
_TICK_S = 0.25
# apiserver endpoints/handlers/responsewriters/writers.go: smaller bodies are not worth compressing.
_GZIP_FROM_BYTES = 128 * 1024
_BAD_LINE = b'{"type":"MODIFIED","object":{"kind":"Event","apiVersion":"v1","metadata":{"name":"torn\n'


class Request(NamedTuple):
    """One line of the request log; of a parameter that is given twice, `query` holds the last."""

    method: str
    path: str
    query: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Settings:
    """A server's fixed settings; `token` "" lets everyone in."""

    token: str = ""
    bookmark_interval_s: float = 2.0
    compress: bool = True


class HttpServer(socketserver.ThreadingTCPServer):
    """The listening socket and what connection threads share.

    Not http.server's own server class, which asks the resolver for the host's name when it binds.
    """

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], store: Store, settings: Settings) -> None:
        self.store = store
        self.settings = settings
        self.faults = Faults()
        self.requests: list[Request] = []
        self._connections: set[socket.socket] = set()
        self._changed = threading.Condition()
        super().__init__(address, Handler)

    @contextlib.contextmanager
    def connection(self, sock: socket.socket) -> Iterator[None]:
        """Count a connection as open while it is served."""
        with self._changed:
            self._connections.add(sock)
        try:
            yield
        finally:
            with self._changed:
                self._connections.discard(sock)
                self._changed.notify_all()

    def close_connections(self, timeout_s: float) -> bool:
        """Close all connections and wait for their threads; False if some are still at work."""
        for watch in self.faults.watches():
            watch.end("cut")
        with self._changed:
            for sock in self._connections:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            return self._changed.wait_for(lambda: not self._connections, timeout_s)

    def shutdown_request(self, request: Any) -> None:
        """Close, without a FIN of its own first: a connection that is to be reset must end in a RST alone."""
        self.close_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients may hang up at any time; anything else is a bug in this server and goes to stderr."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves one connection."""

    server: HttpServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 64 * 1024

    def handle(self) -> None:
        """All requests of the connection."""
        with self.server.connection(self.connection):
            super().handle()

    def log_message(self, format: str, *args: Any) -> None:
        """The request log is `HttpServer.requests`."""

    def do_GET(self) -> None:
        """Lists, watches, objects and discovery."""
        try:
            self._route()
        except ApiError as error:
            self._refuse(error)

    def _not_allowed(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._log()
        self._refuse(ApiError(405, "the server does not allow this method on the requested resource"))

    do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = do_OPTIONS = _not_allowed  # noqa: N815

    # --- routing

    def _log(self) -> tuple[str, dict[str, str]]:
        path, _, query = self.path.partition("?")
        parameters = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
        self.server.requests.append(Request(self.command, path, parameters))
        return path, parameters

    def _route(self) -> None:
        path, query = self._log()
        failure = self.server.faults.take_failure(path)
        if failure is not None:
            raise failure
        if self.server.settings.token and self.headers.get("Authorization") != f"Bearer {self.server.settings.token}":
            raise ApiError(401, "Unauthorized")
        if path in ("/healthz", "/livez", "/readyz"):
            self._send(200, b"ok", "text/plain; charset=utf-8")
            return
        resource, namespace, name = self._resolve(path)
        if resource is None:
            document = discovery.document(path, self.server.store.resources.values())
            if document is None:
                # As kube-apiserver, whose answer to a path of no resource is not a Status.
                self._send(404, b"404 page not found\n", "text/plain; charset=utf-8")
            else:
                self._send(200, dumps(document))
            return
        watch = query.get("watch", "0") not in ("0", "false")
        verb = "get" if name else "watch" if watch else "list"
        self._authorize(verb, resource, namespace)
        if name:
            self._get(resource, namespace, name)
        elif watch:
            self._watch(resource, namespace, query)
        else:
            self._list(resource, namespace, query)

    def _resolve(self, path: str) -> tuple[Resource | None, str, str]:
        """The resource, namespace and name that a path names; no resource if it is of another sort."""
        match path.strip("/").split("/"):
            case ["api", "v1", *rest]:
                group, version = "", "v1"
            case ["apis", group, version, *rest]:
                pass
            case _:
                return None, "", ""
        match rest:
            case ["namespaces", namespace, plural, *name] if len(name) <= 1:
                namespaced = True
            case [plural, *name] if len(name) <= 1:
                namespace, namespaced = "", False
            case _:
                return None, "", ""
        resource = self.server.store.resources.get(plural)
        if resource is None or (resource.group, resource.version) != (group, version):
            return None, "", ""
        # A cluster-scoped resource has no path below a namespace, and a namespaced object none outside of one.
        if (namespaced and not resource.namespaced) or (name and resource.namespaced and not namespaced):
            return None, "", ""
        return resource, namespace, "".join(name)

    def _authorize(self, verb: str, resource: Resource, namespace: str) -> None:
        if self.server.faults.is_forbidden(resource.plural):
            where = f'in the namespace "{namespace}"' if namespace else "at the cluster scope"
            user = "system:serviceaccount:kube-history:kube-history"
            raise ApiError(
                403,
                f'{resource.plural} is forbidden: User "{user}" cannot {verb} resource "{resource.plural}" '
                f'in API group "{resource.group}" {where}',
            )

    # --- answers

    def _send(self, code: int, body: bytes, content_type: str = "application/json", retry_after_s: int = 0) -> None:
        self.send_response(code)
        self.send_header("Content-Type", content_type)
        self.send_header("Cache-Control", "no-cache, private")
        if retry_after_s:
            self.send_header("Retry-After", str(retry_after_s))
        wants_gzip = "gzip" in self.headers.get("Accept-Encoding", "") and self.server.settings.compress
        if wants_gzip and len(body) >= _GZIP_FROM_BYTES:
            body = gzip.compress(body, compresslevel=1, mtime=0)
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refuse(self, error: ApiError) -> None:
        self._send(error.code, dumps(error.status()), retry_after_s=error.retry_after_s or 0)

    def _get(self, resource: Resource, namespace: str, name: str) -> None:
        form = wire.negotiate(self.headers.get("Accept", ""), of_list=False)
        obj = self.server.store.get(resource.plural, name, namespace)
        version = Version("", 0, dumps({key: value for key, value in obj.items() if key not in ("kind", "apiVersion")}))
        self._send(200, wire.render(resource, version, form))

    def _list(self, resource: Resource, namespace: str, query: Mapping[str, str]) -> None:
        request = wire.ListRequest(
            resource=resource,
            namespace=namespace,
            limit=_integer(query, "limit"),
            continue_token=query.get("continue", ""),
            resource_version=query.get("resourceVersion", ""),
            selector=_selector(resource, query),
            form=wire.negotiate(self.headers.get("Accept", ""), of_list=True),
        )
        self._send(200, wire.list_page(self.server.store, request))

    # --- watches

    def _watch(self, resource: Resource, namespace: str, query: Mapping[str, str]) -> None:
        if query.get("sendInitialEvents") == "true":
            # What a server without streaming lists says; clients then list.
            unless = "unless the WatchList feature gate is enabled"
            raise ApiError(422, f"sendInitialEvents: Forbidden: sendInitialEvents is forbidden for watch {unless}")
        form = wire.negotiate(self.headers.get("Accept", ""), of_list=False)
        selector = _selector(resource, query)
        after = wire.number(query.get("resourceVersion", ""))
        # Without a limit of the client's, apiserver ends a watch after --min-request-timeout (1,800 s) to twice that.
        timeout_s = _integer(query, "timeoutSeconds") or random.randint(1800, 3600)
        stream = _Stream(self, resource, namespace, selector, form, timeout_s)
        self._begin_stream()
        if resource.plural == "events" and self.server.faults.close_at_once:
            self._end_stream()
            return
        store = self.server.store
        try:
            subscription = (
                store.subscribe(resource.plural, after) if after else store.subscribe_with_state(resource.plural)
            )
        except ApiError as error:
            self.write_chunk(wire.error_line(error))
            self._end_stream()
            return
        bookmarks = query.get("allowWatchBookmarks") in ("1", "true") and resource.bookmarks
        with subscription:
            watch = Watch(resource.plural, subscription)
            self.server.faults.opened(watch)
            try:
                stream.run(watch, after, bookmarks)
            finally:
                self.server.faults.closed(watch)
        self._finish(watch)

    def _begin_stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Cache-Control", "no-cache, private")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.flush()

    def write_chunk(self, data: bytes) -> None:
        """One chunk of a streamed body, out at once."""
        self.wfile.write(b"%x\r\n" % len(data) + data + b"\r\n")
        self.wfile.flush()

    def _end_stream(self) -> None:
        self.wfile.write(b"0\r\n\r\n")

    def _finish(self, watch: Watch) -> None:
        if watch.ending in ("cut", "reset"):
            self.close_connection = True
            with contextlib.suppress(OSError):
                if watch.ending == "reset":
                    # Lingering for no time makes close() a RST; see socket(7), SO_LINGER.
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.write_chunk(_BAD_LINE[:40])
        else:
            self._end_stream()

    def client_is_gone(self) -> bool:
        """Whether the client has closed the connection (a client that waits for a watch sends nothing)."""
        readable, _, _ = select.select([self.connection], [], [], 0)
        try:
            return bool(readable) and not self.connection.recv(1, socket.MSG_PEEK)
        except OSError:
            return True


@dataclasses.dataclass
class _Stream:
    """One watch's loop: what it sends, and for how long."""

    handler: Handler
    resource: Resource
    namespace: str
    selector: Selector | None
    form: wire.Form
    timeout_s: float

    def run(self, watch: Watch, after: int, bookmarks: bool) -> None:
        """Send until the time is up, the client is gone, or a fault ends it."""
        faults = self.handler.server.faults
        interval_s = self.handler.server.settings.bookmark_interval_s
        deadline = time.monotonic() + self.timeout_s
        bookmark_at = time.monotonic() + interval_s
        held: list[Change] = []
        while watch.ending is None:
            now = time.monotonic()
            held += watch.subscription.take(max(0.0, min(_TICK_S, deadline - now, bookmark_at - now)))
            if watch.ending is not None:
                # What was stored before the fault was on its way: it arrives before the end.
                if not faults.stalled.is_set():
                    self._send(held)
                return
            if self.handler.client_is_gone():
                watch.ending = "cut"
                return
            if faults.stalled.is_set():
                # A dead watch does not even end: hold on, and deliver when it comes back to life.
                deadline = max(deadline, time.monotonic() + _TICK_S)
                bookmark_at = max(bookmark_at, time.monotonic() + _TICK_S)
                continue
            if faults.take_bad_json(self.resource.plural):
                self.handler.write_chunk(_BAD_LINE)
            self._send(held)
            held = []
            if time.monotonic() >= bookmark_at:
                bookmark_at += interval_s
                if bookmarks:
                    self._bookmark(watch.subscription, after)
            if time.monotonic() >= deadline:
                return

    def _send(self, changes: list[Change]) -> None:
        prefix = f"{self.namespace}/" if self.namespace else ""
        lines = [
            wire.change_line(self.resource, change, self.selector, self.form)
            for change in changes
            if change.now.key.startswith(prefix)
        ]
        if any(lines):
            self.handler.write_chunk(b"".join(lines))

    def _bookmark(self, subscription: Subscription, after: int) -> None:
        version = self.handler.server.store.settled(subscription)
        if version is not None:
            self.handler.write_chunk(wire.bookmark_line(self.resource, max(version, after), self.form))


def _integer(query: Mapping[str, str], name: str) -> int:
    text = query.get(name) or "0"
    if not text.isdecimal():
        raise ApiError(400, f'{name}: Invalid value: "{text}": strconv.ParseInt: invalid syntax')
    return int(text)


def _selector(resource: Resource, query: Mapping[str, str]) -> Selector | None:
    return parse(resource, query.get("fieldSelector", ""), query.get("labelSelector", ""))
