"""What stands in for the world in unit tests: a clock, a scripted API server, and the JSON that one sends."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import apache_beam as beam
import urllib3
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from pipeline.demo import DemoCluster
from pipeline.demo.server import DemoServer
from transforms.kube import Cluster, Follower, Frame, KubeError, Resource, Timing
from transforms.types import Position, Target

EVENTS = Resource("v1", "events", bookmarks=False)
SERVICES = Resource("v1", "services")
TARGET = Target("prod", "events")


class FakeTime:
    """A clock that only sleeping, and a response that says so, moves."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now
        self.slept: list[float] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


class FakeResponse:
    """A response of these reads: bytes, an error to raise, or seconds that pass."""

    def __init__(self, time: FakeTime, reads: Sequence[bytes | Exception | float]) -> None:
        self._time, self._reads = time, list(reads)
        self.closed = False

    @property
    def left(self) -> bool:
        return bool(self._reads)

    def read1(self, _: int) -> bytes:
        while self._reads:
            read = self._reads.pop(0)
            if isinstance(read, Exception):
                raise read
            if isinstance(read, bytes):
                return read
            self._time.now += read
        return b""

    def read(self) -> bytes:
        whole = b""
        while part := self.read1(0):
            whole += part
        return whole

    def release_conn(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


class FakeConnection:
    """An API server that gives these answers, one a request: reads of a body, or a KubeError."""

    server = "https://prod"

    def __init__(self, time: FakeTime, answers: Sequence[Any], timing: Timing = Timing()) -> None:
        self.time, self.answers, self.timing = time, list(answers), timing
        self.responses: list[FakeResponse] = []
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.accepted: list[str] = []
        self.read_timeouts: list[float | None] = []

    def get(
        self,
        path: str,
        query: Mapping[str, str | int] | None = None,
        accept: str = "application/json",
        read_s: float | None = None,
    ) -> FakeResponse:
        self.asked.append((path, dict(query or {})))
        self.accepted.append(accept)
        self.read_timeouts.append(read_s)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        self.responses.append(FakeResponse(self.time, answer))
        return self.responses[-1]

    @property
    def spent(self) -> bool:
        """All has been asked for, and read."""
        return not self.answers and not (self.responses and self.responses[-1].left)

    @property
    def lists(self) -> list[dict[str, Any]]:
        return [query for _, query in self.asked if "watch" not in query]

    @property
    def watches(self) -> list[dict[str, Any]]:
        return [query for _, query in self.asked if "watch" in query]


def follower(
    *answers: Any,
    position: Position = Position(),
    resource: Resource = EVENTS,
    timing: Timing = Timing(),
    time: FakeTime | None = None,
    **parameters: Any,
) -> tuple[Follower, FakeConnection, list[str]]:
    """A follower of a scripted server, which stops when the script ends; the connection; and what is reported."""
    time = time or FakeTime()
    connection, reports = FakeConnection(time, answers, timing), []
    made = Follower(
        connection,
        TARGET,
        resource,
        position,
        stopped=lambda: connection.spent,
        clock=time.clock,
        sleep=time.sleep,
        uniform=lambda low, high: high,
        report=reports.append,
        **parameters,
    )
    return made, connection, reports


def watching(version: str, time_us: int = 0) -> Position:
    """The position of a watch that goes on after a version."""
    return Position(version, listing=False, time_us=time_us)


def event(name: str, version: int | str, count: int | None = None, **fields: Any) -> dict[str, Any]:
    """A core/v1 Event as the API server's JSON has it."""
    metadata = {"name": name, "namespace": "shop", "uid": f"uid-{name}", "resourceVersion": str(version)}
    about = {"kind": "Pod", "namespace": "shop", "name": "web-0", "uid": "uid-web-0", "apiVersion": "v1"}
    counted = {} if count is None else {"count": count}
    return {"metadata": metadata, "involvedObject": about, "reason": "BackOff", "type": "Warning"} | counted | fields


def service(name: str, version: int | str, app: str = "web", **fields: Any) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "shop", "uid": f"uid-{name}", "resourceVersion": str(version)}
    return {"metadata": metadata, "spec": {"type": "ClusterIP", "selector": {"app": app}}} | fields


def page(*items: Any, version: int | str = 100, token: str = "") -> list[bytes]:
    """The reads of a list response."""
    metadata = {"resourceVersion": str(version)} | ({"continue": token} if token else {})
    return [json.dumps({"kind": "EventList", "metadata": metadata, "items": list(items)}).encode()]


def line(type_: str, obj: dict[str, Any]) -> bytes:
    return json.dumps({"type": type_, "object": obj}).encode() + b"\n"


def bookmark(version: int | str) -> bytes:
    return line("BOOKMARK", {"kind": "Event", "metadata": {"resourceVersion": str(version)}})


def status_line(code: int, reason: str) -> bytes:
    status = {"kind": "Status", "metadata": {}, "code": code, "reason": reason, "message": f"because {code}"}
    return line("ERROR", status)


def expired() -> KubeError:
    return KubeError("too old", 410, "Expired")


def refused() -> KubeError:
    return KubeError("forbidden", 403, "Forbidden")


def unanswered() -> KubeError:
    return KubeError("connection refused")


def names(frames: Sequence[Frame]) -> list[str]:
    """The names of the objects in frames of pages and lines, in order; "?" for what is no JSON."""
    found = []
    for frame in frames:
        if frame.kind == "page":
            found += [item["metadata"]["name"] for item in json.loads(frame.items[0])["items"]]
        elif frame.kind == "lines":
            for item in frame.items:
                try:
                    found.append(json.loads(item)["object"]["metadata"]["name"])
                except (ValueError, TypeError, KeyError, RecursionError):
                    found.append("?")
    return found


def timed_out() -> Exception:
    return urllib3.exceptions.ReadTimeoutError(None, "", "Read timed out.")  # type: ignore[arg-type]


def epoch() -> beam.Pipeline:
    """A pipeline that runs as an epoch does; Beam's own choice for TestPipeline would be another runner."""
    return beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions([]))


def cluster_of(server: DemoServer, directory: pathlib.Path, name: str = "prod") -> Cluster:
    """How to reach a demo server."""
    path = DemoCluster(server, name).write_kubeconfig(directory / "kubeconfig")
    return Cluster(name, str(path))
