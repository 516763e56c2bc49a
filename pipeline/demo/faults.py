"""What can go wrong on purpose, and the watches that are open to go wrong.

Thread-safe: tests turn the switches while connection threads read them.
"""

from __future__ import annotations

import dataclasses
import threading
from typing import Literal

from pipeline.demo.errors import ApiError
from pipeline.demo.store import Subscription

Ending = Literal["close", "cut", "reset"]


@dataclasses.dataclass(eq=False, slots=True)
class Watch:
    """An open watch; `ending` says how it is to end, now."""

    resource: str
    subscription: Subscription
    ending: Ending | None = None

    def end(self, how: Ending) -> None:
        """End it, wherever it waits."""
        self.ending = how
        self.subscription.wake()


@dataclasses.dataclass(slots=True)
class _Failure:
    left: int
    error: ApiError
    path: str


class Faults:
    """The switches; `DemoServer` documents each."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failures: list[_Failure] = []
        self._bad_json: list[str] = []
        self._forbidden: set[str] = set()
        self._watches: set[Watch] = set()
        self.stalled = threading.Event()
        self.close_at_once = False

    def fail_next(self, n: int, error: ApiError, path: str) -> None:
        """Queue failures."""
        with self._lock:
            self._failures.append(_Failure(n, error, path))

    def take_failure(self, path: str) -> ApiError | None:
        """The error to answer a request with, if one is due."""
        with self._lock:
            for failure in self._failures:
                if failure.left > 0 and failure.path in path:
                    failure.left -= 1
                    return failure.error
            return None

    def forbid(self, resource: str) -> None:
        """Refuse a resource."""
        with self._lock:
            self._forbidden.add(resource)

    def allow(self, resource: str) -> None:
        """Refuse it no longer."""
        with self._lock:
            self._forbidden.discard(resource)

    def is_forbidden(self, resource: str) -> bool:
        """Whether it is refused."""
        with self._lock:
            return resource in self._forbidden

    def send_bad_json_once(self, resource: str) -> None:
        """Queue one malformed line."""
        with self._lock:
            self._bad_json.append(resource)

    def take_bad_json(self, resource: str) -> bool:
        """Whether a malformed line is due in a watch of the resource."""
        with self._lock:
            if resource not in self._bad_json:
                return False
            self._bad_json.remove(resource)
            return True

    def opened(self, watch: Watch) -> None:
        """A watch begins."""
        with self._lock:
            self._watches.add(watch)

    def closed(self, watch: Watch) -> None:
        """A watch is over."""
        with self._lock:
            self._watches.discard(watch)

    def watches(self, resource: str = "") -> list[Watch]:
        """The watches that are open, of one resource or of all."""
        with self._lock:
            return [watch for watch in self._watches if resource in ("", watch.resource)]
