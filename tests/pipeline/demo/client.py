"""What the tests of the demo cluster ask it with: plain HTTP, with nothing of the job's own reader."""

from __future__ import annotations

import datetime
import json
import threading
from collections.abc import Iterator
from typing import Any

import urllib3

from pipeline.demo.server import DemoServer

Json = dict[str, Any]

BEGIN = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


class FakeTime:
    """A clock that only sleeping moves."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.now = BEGIN
        self.stop = threading.Event()
        self._end = BEGIN + datetime.timedelta(seconds=seconds)

    def clock(self) -> datetime.datetime:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += datetime.timedelta(seconds=seconds)
        if self.now >= self._end:
            self.stop.set()


class Client:
    """GETs against a demo server; a watch holds a connection of its own."""

    def __init__(self, server: DemoServer, **headers: str) -> None:
        self._server = server
        self._headers = headers
        self._pool = urllib3.PoolManager(retries=False, timeout=5.0, maxsize=8)

    def get(self, path: str, **query: object) -> urllib3.BaseHTTPResponse:
        return self._pool.request("GET", self._server.url + path, fields=query, headers=self._headers)

    def json(self, path: str, **query: object) -> Json:
        response = self.get(path, **query)
        assert response.status == 200, response.data
        return response.json()

    def pages(self, path: str, limit: int, **query: object) -> Iterator[Json]:
        query |= {"limit": limit}
        while True:
            page = self.json(path, **query)
            yield page
            if not page["metadata"].get("continue"):
                return
            query["continue"] = page["metadata"]["continue"]

    def watch(self, path: str, **query: object) -> urllib3.BaseHTTPResponse:
        query = {"watch": 1, "timeoutSeconds": 4} | query
        url = self._server.url + path
        return self._pool.request("GET", url, fields=query, headers=self._headers, preload_content=False)

    def watch_all(self, path: str, **query: object) -> list[Json]:
        """A watch of one second, to its end."""
        return [json.loads(line) for line in self.watch(path, timeoutSeconds=1, **query).data.splitlines()]

    def close(self) -> None:
        self._pool.clear()


def lines(response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    """The lines of a watch, each as it comes."""
    rest = b""
    for chunk in response.stream(None):
        *whole, rest = (rest + chunk).split(b"\n")
        yield from whole
    if rest:
        yield rest


def event(name: str, namespace: str = "shop", **fields: Any) -> Json:
    return {"metadata": {"name": name, "namespace": namespace}, "type": "Normal", "reason": "Test"} | fields


def names(objects: list[Json]) -> list[str]:
    return [obj["metadata"]["name"] for obj in objects]


def watched(events: list[Json]) -> list[tuple[str, str]]:
    return [(each["type"], each["object"]["metadata"].get("name", "")) for each in events]
