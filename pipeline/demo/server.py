"""A Kubernetes API server as a client sees it, over memory: list, watch, get and discovery, and faults on demand.

It serves `--demo`, and it is the API server of the fast tests. Only reading is served: what changes, changes through
the `Store`. Behaviours and their sources: `wire` (forms and pages), `handler` (streams), `errors` (refusals).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from types import TracebackType

from pipeline.demo.errors import ApiError
from pipeline.demo.handler import HttpServer, Request, Settings
from pipeline.demo.store import Store

_STOP_TIMEOUT_S = 5.0


class DemoServer:
    """An HTTP server over a store, on a free port of the loopback interface unless told otherwise.

    With a `token`, requests need `Authorization: Bearer <token>`, else 401. Bookmarks go to the watches that ask for
    them every `bookmark_interval_s` seconds, never to watches of Events: those have no watch cache in kube-apiserver.
    Bodies of 128 KiB and more are compressed for clients that accept gzip, as by kube-apiserver, if `compress`.
    `start` returns when the server listens. `stop` returns when it no longer does, connections are closed and their
    threads have ended; it raises RuntimeError if a thread does not end.
    """

    def __init__(
        self,
        store: Store | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        token: str = "",
        bookmark_interval_s: float = 2.0,
        compress: bool = True,
    ) -> None:
        self.store = store if store is not None else Store()
        self.token = token
        self._http = HttpServer((host, port), self.store, Settings(token, bookmark_interval_s, compress))
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), name="demo-server", daemon=True)

    @property
    def url(self) -> str:
        """The base URL, without a slash at its end."""
        host, port = self._http.server_address[:2]
        return f"http://{host!s}:{port}"

    @property
    def requests(self) -> Sequence[Request]:
        """All requests so far, in the order of arrival: (method, path, query)."""
        return tuple(self._http.requests)

    def start(self) -> None:
        """Serve."""
        self._thread.start()

    def stop(self) -> None:
        """Stop serving and close every connection."""
        if self._thread.is_alive():
            self._http.shutdown()
            self._thread.join()
        self._http.server_close()
        if not self._http.close_connections(_STOP_TIMEOUT_S):
            raise RuntimeError(f"connections of the demo server were still open {_STOP_TIMEOUT_S} s after its stop")

    def __enter__(self) -> DemoServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # --- faults

    def compact(self) -> None:
        """Forget the history: from now on older versions get 410, in watches that start and in lists that go on."""
        self.store.compact()

    def expire_continue_tokens(self) -> None:
        """Make every continue token that is out there get 410."""
        self.store.expire_continue_tokens()

    def close_watches(self, resource: str = "") -> None:
        """End the open watches cleanly, of one resource or of all."""
        for watch in self._http.faults.watches(resource):
            watch.end("close")

    def cut_watches(self, resource: str = "", *, reset: bool = False) -> None:
        """Break the open watches in the middle of a line: the connection closes, or with `reset` gets a TCP reset."""
        for watch in self._http.faults.watches(resource):
            watch.end("reset" if reset else "cut")

    def stall_watches(self, stalled: bool = True) -> None:
        """Keep watches open and silent (no event, no bookmark, no end); with False they deliver what was held back."""
        if stalled:
            self._http.faults.stalled.set()
        else:
            self._http.faults.stalled.clear()

    def fail_next(self, n: int, status: int, retry_after: int | None = None, path: str = "") -> None:
        """Answer the next `n` requests whose path contains `path` with a Status of this code."""
        error = ApiError(status, f"the server was told to fail with {status}", retry_after_s=retry_after)
        self._http.faults.fail_next(n, error, path)

    def forbid(self, resource: str) -> None:
        """Refuse a resource with 403, until `allow`."""
        self._http.faults.forbid(resource)

    def allow(self, resource: str) -> None:
        """Undo `forbid`."""
        self._http.faults.allow(resource)

    @property
    def close_at_once(self) -> bool:
        """While true, new watches of Events end cleanly at once with nothing (kubernetes #104171, #137089)."""
        return self._http.faults.close_at_once

    @close_at_once.setter
    def close_at_once(self, value: bool) -> None:
        self._http.faults.close_at_once = value

    def send_bad_json_once(self, resource: str = "events") -> None:
        """Put one malformed line into a watch of the resource, open or next to open; no event is lost by it."""
        self._http.faults.send_bad_json_once(resource)
        for watch in self._http.faults.watches(resource):
            watch.subscription.wake()

    # --- for tests

    def open_watches(self, resource: str = "") -> int:
        """How many watches are open now, of one resource or of all."""
        return len(self._http.faults.watches(resource))

    def wait_for_watches(self, n: int, resource: str = "", timeout_s: float = 5.0) -> None:
        """Wait until at least `n` watches are open; TimeoutError if that takes too long."""
        deadline = time.monotonic() + timeout_s
        while self.open_watches(resource) < n:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.open_watches(resource)} watches open after {timeout_s} s, expected {n}")
            time.sleep(0.005)
