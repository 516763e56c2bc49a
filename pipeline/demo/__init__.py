"""A demo cluster: a Kubernetes API server over memory in which a seeded story plays. Standard library only."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import threading
from collections.abc import Iterator

from pipeline.demo.kinds import JsonObject
from pipeline.demo.server import DemoServer
from pipeline.demo.store import Store
from pipeline.demo.story import Story

__all__ = ["DemoCluster", "DemoServer", "Store", "demo_cluster"]

# Enough to watch again from minutes ago, at a few megabytes.
_HISTORY = 5_000


@dataclasses.dataclass(frozen=True)
class DemoCluster:
    """A running demo cluster and how to reach it."""

    server: DemoServer
    name: str

    @property
    def url(self) -> str:
        """The API server's base URL."""
        return self.server.url

    def kubeconfig_dict(self) -> JsonObject:
        """A kubeconfig for it."""
        user = {"token": self.server.token} if self.server.token else {}
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": self.name, "cluster": {"server": self.url}}],
            "users": [{"name": self.name, "user": user}],
            "contexts": [{"name": self.name, "context": {"cluster": self.name, "user": self.name}}],
            "current-context": self.name,
        }

    def write_kubeconfig(self, path: str | pathlib.Path) -> pathlib.Path:
        """Write the kubeconfig, as JSON, which is YAML; returns the path."""
        path = pathlib.Path(path)
        path.write_text(json.dumps(self.kubeconfig_dict(), indent=2) + "\n")
        return path


@contextlib.contextmanager
def demo_cluster(seed: int = 1, *, speed: float = 1.0, token: str = "", name: str = "demo") -> Iterator[DemoCluster]:
    """A demo cluster that plays its story for as long as the context is open.

    Its objects are there when the context opens; the story starts then. Leaving stops and joins the story and the
    server. A story that failed raises RuntimeError there, unless another error is already on its way.
    """
    store = Store(seed=seed, history=_HISTORY)
    story = Story(store, seed)
    stop = threading.Event()
    failures: list[Exception] = []

    def play() -> None:
        try:
            story.run(stop, speed=speed)
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=play, name="demo-story", daemon=True)
    with DemoServer(store, token=token) as server:
        thread.start()
        try:
            yield DemoCluster(server, name)
        finally:
            stop.set()
            thread.join()
    if failures:
        raise RuntimeError("the demo cluster's story ended early: its writes after that are missing") from failures[0]
