"""Proxies that break, on command, the way to a server: connections for `FaultProxy`, requests for `FaultHttpProxy`.

A proxy speaks plain HTTP or TCP to its client and, to an https upstream, TLS: so what it cuts off is HTTP, in the
middle of a line if need be, and not a TLS record.
"""

import asyncio
import random
import re
import socket
import ssl
import struct
import threading
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import parse_qsl, urlsplit

from tests.servers.process import PortTakenError, on_free_port

_T = TypeVar("_T")
_LIMIT = 1 << 20  # the longest head of a message, in bytes


class FaultProxy:
    """A TCP proxy on a free loopback port before `upstream`, an http or https URL; without a fault it is transparent.

    Its methods may be called from any thread and have taken effect when they return. A fault stays until it is used up,
    switched off, or `calm` is called. While the upstream is down a connection is accepted and closed.

    Args:
        upstream: the server's URL.
        ca: the certificate file by which an https upstream is verified.
    """

    def __init__(self, upstream: str, ca: Path | None = None) -> None:
        parts = urlsplit(upstream)
        self._host, self._port = parts.hostname, parts.port
        self._tls = ssl.create_default_context(cafile=ca) if parts.scheme == "https" else None
        self._links: set[_Link] = set()
        self._server: asyncio.Server | None = None
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._budgets: deque[int] = deque()
        self._draw_budget: Callable[[], int | None] = lambda: None

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        try:
            on_free_port(self._open_on)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def url(self) -> str:
        """The URL to give to clients, http://127.0.0.1:PORT."""
        return f"http://127.0.0.1:{self.port}"

    def connections(self) -> int:
        """How many connections are open now."""
        return len(self._links)

    def cut(self, reset: bool = False) -> None:
        """Drops every open connection at once: its client sees an end of file, or a reset."""
        self._run(self._cut(reset))

    def refuse(self, on: bool = True) -> None:
        """New connections are refused (or no longer); open ones stay."""
        self._run(self._listen(not on))

    def stall(self, on: bool = True) -> None:
        """Connections stay open and take requests, but no byte of a response comes through until it is switched off."""
        self._run(self._set_flowing(not on))

    def truncate_after(self, n_bytes: int, connections: int = 1) -> None:
        """Ends each of the next connections on which response bytes come, after `n_bytes` of them."""
        self._budgets.extend([n_bytes] * connections)

    def flaky(self, seed: int, shortest: int, longest: int) -> None:
        """Ends every connection after a number of response bytes that a generator with this seed draws."""
        generator = random.Random(seed)
        self._draw_budget = lambda: generator.randint(shortest, longest)

    def calm(self) -> None:
        """Ends all faults; connections that have been told when to end still do."""
        self._budgets.clear()
        self._draw_budget = lambda: None
        self.stall(False)
        self.refuse(False)

    async def _serve(self, link: "_Link") -> None:
        """Serves one connection, to its end."""
        await link.connect(self._host, self._port, self._tls)
        await link.exchange()

    def _budget(self) -> int | None:
        return self._budgets.popleft() if self._budgets else self._draw_budget()

    def _run(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def _open_on(self, port: int) -> None:
        self.port = port
        try:
            self._run(self._listen(True))
        except OSError as error:
            raise PortTakenError(f"expected port {port} to be free; {error}; try another") from error

    async def _close(self) -> None:
        await self._listen(False)
        await self._cut(reset=False)

    async def _listen(self, on: bool) -> None:
        if on and self._server is None:
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port, limit=_LIMIT)
        elif not on and self._server is not None:
            self._server.close()
            self._server = None

    async def _set_flowing(self, on: bool) -> None:
        if on:
            self._flowing.set()
        else:
            self._flowing.clear()

    async def _cut(self, reset: bool) -> None:
        links = list(self._links)
        for link in links:
            link.abort(reset)
        await asyncio.gather(*(link.task for link in links), return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        link = _Link(reader, writer, self._flowing, self._budget, task)
        self._links.add(link)
        # Whatever goes wrong on one side, the other side is told by the end of its connection.
        with suppress(OSError, EOFError, asyncio.LimitOverrunError, asyncio.CancelledError):
            await self._serve(link)
        self._links.discard(link)
        link.close()


@dataclass(eq=False)
class _Link:
    """A client's connection and, once connected, the upstream's; lives in the proxy's event loop."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    flowing: asyncio.Event
    take_budget: Callable[[], int | None]
    task: asyncio.Task[Any]
    up_reader: asyncio.StreamReader = field(init=False)
    up_writer: asyncio.StreamWriter | None = None
    left: int | None = None  # response bytes until the connection ends

    async def connect(self, host: str | None, port: int | None, tls: ssl.SSLContext | None) -> None:
        self.up_reader, self.up_writer = await asyncio.open_connection(host, port, ssl=tls, limit=_LIMIT)

    async def exchange(self) -> None:
        """Copies both ways until one side ends."""
        await self.while_requesting(self._copy_response())

    async def while_requesting(self, responding: Coroutine[Any, Any, None]) -> None:
        """Runs `responding` while what the client sends is copied to the upstream; ends when either ends."""
        tasks = [asyncio.ensure_future(responding), asyncio.ensure_future(self._copy_request())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def send(self, data: bytes) -> None:
        """Sends response bytes to the client, as the faults allow."""
        await self.flowing.wait()
        if self.left is None:
            self.left = self.take_budget()
        if self.left is not None:
            data = data[: self.left]
            self.left -= len(data)
        self.writer.write(data)
        await self.writer.drain()
        if self.left == 0:
            raise EOFError

    async def send_up(self, data: bytes) -> None:
        assert self.up_writer is not None
        self.up_writer.write(data)
        await self.up_writer.drain()

    async def _copy_response(self) -> None:
        while data := await self.up_reader.read(65536):
            await self.send(data)

    async def _copy_request(self) -> None:
        while data := await self.reader.read(65536):
            await self.send_up(data)

    def abort(self, reset: bool) -> None:
        """Ends both connections now, without what is still to be sent."""
        if reset:
            linger = struct.pack("ii", 1, 0)  # on, for 0 seconds: the close sends RST
            self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.writer.transport.abort()
        self.task.cancel()

    def close(self) -> None:
        """Ends both connections; the client gets what was sent to it."""
        self.writer.close()
        if self.up_writer is not None:
            self.up_writer.transport.abort()


@dataclass(frozen=True)
class Request:
    """A request that came to a `FaultHttpProxy`."""

    method: str
    path: str
    query: dict[str, str]
    kind: str  # its class, as `kube_request` or `s3_request` names it


When = Callable[[Request], bool]


@dataclass
class Fault:
    """What is done to requests, as `FaultHttpProxy.inject` describes it.

    reached: set when the first of them is there and, unless the proxy answers itself, was executed by the upstream.
    """

    when: When
    times: int
    status: int | None
    headers: Mapping[str, str]
    body: bytes
    delay: float
    drop: bool
    truncate: int | None
    reached: threading.Event = field(default_factory=threading.Event)


def kube_request(method: str, path: str, query: Mapping[str, str]) -> str:
    """The kind of an API server's request: its verb and resource, such as "LIST events" or "PATCH pods/status"."""
    parts = path.strip("/").split("/")
    root = {"api": 2, "apis": 3}.get(parts[0])
    if root is None or len(parts) <= root:
        return f"{method} {path}"
    rest = parts[root:]
    if rest[0] == "namespaces" and len(rest) > 2:
        rest = rest[2:]
    resource, name, subresource = (*rest, "", "")[:3]
    if method == "GET" and not name:
        method = "WATCH" if query.get("watch") in ("1", "true", "True") else "LIST"
    return f"{method} {resource}" + (f"/{subresource}" if subresource else "")


def s3_request(method: str, path: str, query: Mapping[str, str]) -> str:
    """The kind of an S3 request with its bucket in the path: "PUT object", "LIST objects", "PUT bucket" and so on."""
    _, _, key = path.strip("/").partition("/")
    if key:
        return f"{method} object"
    return "LIST objects" if method == "GET" and "list-type" in query else f"{method} bucket"


class FaultHttpProxy(FaultProxy):
    """A `FaultProxy` that understands HTTP/1.1: it counts requests and can spoil chosen ones.

    Every request has a connection of its own: the proxy asks the server to close it, and so the client sees.

    Args:
        upstream: the server's URL.
        ca: the certificate file by which an https upstream is verified.
        classify: names a request's kind from its method, path and query.
    """

    def __init__(
        self,
        upstream: str,
        ca: Path | None = None,
        classify: Callable[[str, str, Mapping[str, str]], str] = kube_request,
    ) -> None:
        super().__init__(upstream, ca)
        self._classify = classify
        self._faults: list[Fault] = []
        self._watch_seconds = 0
        self.requests: list[Request] = []

    def counts(self) -> Counter[str]:
        """How many requests of each kind came, the spoilt ones included."""
        return Counter(request.kind for request in list(self.requests))

    def inject(
        self,
        when: When | str,
        times: int = 1,
        *,
        status: int | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        delay: float = 0.0,
        drop: bool = False,
        truncate: int | None = None,
    ) -> Fault:
        """Spoils the next `times` requests that `when` (a predicate, or a kind) holds for.

        Args:
            when: which requests.
            times: how many of them.
            status: answer with this status, `headers` and `body`; the upstream never hears of the request.
            headers: for `status`, such as Retry-After.
            body: for `status`.
            delay: answer this many seconds later; the upstream has executed the request by then.
            drop: the upstream executes the request, and the client gets no answer but the end of the connection.
            truncate: end the connection after this many bytes of the response's body, its chunks' sizes included.
        """
        match = (lambda request: request.kind == when) if isinstance(when, str) else when
        fault = Fault(match, times, status, headers or {}, body, delay, drop, truncate)
        self._faults.append(fault)
        return fault

    def shorten_watches(self, seconds: int) -> None:
        """Asks the API server to end each watch after so many seconds, whatever the client asks for."""
        self._watch_seconds = seconds

    def calm(self) -> None:
        """Ends all faults."""
        self._faults.clear()
        self._watch_seconds = 0
        super().calm()

    async def _serve(self, link: _Link) -> None:
        head = await link.reader.readuntil(b"\r\n\r\n")
        request = self._parse(head)
        self.requests.append(request)
        fault = self._fault_for(request)
        if fault is not None and fault.status is not None:
            return await self._answer(link, fault, fault.status)
        if self._watch_seconds:
            head = re.sub(rb"timeoutSeconds=\d+", b"timeoutSeconds=%d" % self._watch_seconds, head, count=1)
        await link.connect(self._host, self._port, self._tls)
        await link.send_up(_with_connection_close(head))
        return await (link.exchange() if fault is None else link.while_requesting(self._respond(link, fault)))

    async def _answer(self, link: _Link, fault: Fault, status: int) -> None:
        fault.reached.set()
        await asyncio.sleep(fault.delay)
        fields = {**fault.headers, "Content-Length": str(len(fault.body)), "Connection": "close"}
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", *(f"{name}: {fields[name]}" for name in fields)]
        await link.send("\r\n".join(lines).encode() + b"\r\n\r\n" + fault.body)
        # A request body left unread would make the close a reset, and the client might lose the answer.
        link.writer.write_eof()
        async with asyncio.timeout(5):
            while await link.reader.read(65536):
                pass

    async def _respond(self, link: _Link, fault: Fault) -> None:
        """Relays the response to a request as the fault has it."""
        head = await link.up_reader.readuntil(b"\r\n\r\n")
        while head.split(b" ", 2)[1].startswith(b"1"):  # 100 Continue: the client is to send its body
            await link.send(head)
            head = await link.up_reader.readuntil(b"\r\n\r\n")
        fault.reached.set()
        await asyncio.sleep(fault.delay)
        if fault.drop:
            return
        await link.send(head)
        left = fault.truncate
        while left != 0 and (data := await link.up_reader.read(min(65536, left or 65536))):
            await link.send(data)
            left = None if left is None else left - len(data)

    def _parse(self, head: bytes) -> Request:
        method, target, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
        parts = urlsplit(target)
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        return Request(method, parts.path, query, self._classify(method, parts.path, query))

    def _fault_for(self, request: Request) -> Fault | None:
        for fault in self._faults:
            if fault.times > 0 and fault.when(request):
                fault.times -= 1
                return fault
        return None


def _with_connection_close(head: bytes) -> bytes:
    lines = [line for line in head[:-4].split(b"\r\n") if not line.lower().startswith(b"connection:")]
    return b"\r\n".join([*lines, b"Connection: close"]) + b"\r\n\r\n"
