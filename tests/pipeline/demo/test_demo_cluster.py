from __future__ import annotations

import json
import pathlib
import threading

import kubernetes.client
import pytest

from pipeline.demo import demo_cluster
from pipeline.demo.kinds import RESOURCES, Resource
from pipeline.demo.server import DemoServer
from pipeline.demo.store import Store
from pipeline.demo.story import Story
from tests.pipeline.demo.client import Client, FakeTime, lines


def test_a_demo_cluster_is_full_when_it_opens_and_goes_on(tmp_path: pathlib.Path) -> None:
    before = set(threading.enumerate())
    with demo_cluster(seed=1, speed=20.0) as cluster:
        client = Client(cluster.server)
        listed = client.json("/api/v1/events")
        assert len(listed["items"]) > 30
        watch = client.watch("/api/v1/events", resourceVersion=listed["metadata"]["resourceVersion"])
        reasons = {json.loads(line)["object"]["reason"] for line, _ in zip(lines(watch), range(200), strict=False)}
        assert len(reasons) > 10
        path = cluster.write_kubeconfig(tmp_path / "kubeconfig")
        assert json.loads(path.read_text()) == cluster.kubeconfig_dict()
        assert cluster.kubeconfig_dict()["clusters"][0]["cluster"]["server"] == cluster.url
        watch.close()
    for thread in set(threading.enumerate()) - before:
        thread.join(2)
    assert set(threading.enumerate()) <= before


def test_the_kubeconfig_carries_the_token() -> None:
    with demo_cluster(token="secret") as cluster:
        assert cluster.kubeconfig_dict()["users"][0]["user"] == {"token": "secret"}
        assert Client(cluster.server).get("/api/v1/pods").status == 401


@pytest.mark.parametrize("resource", RESOURCES.values(), ids=str)
def test_the_official_clients_models_accept_all_that_is_served(resource: Resource) -> None:
    model = "CoreV1Event" if resource.kind == "Event" else f"{resource.version.upper()}{resource.kind}"
    store = Store()
    time = FakeTime(12)
    Story(store, clock=time.clock).run(time.stop, time.sleep)
    with DemoServer(store) as server:
        root = f"/apis/{resource.api_version}" if resource.group else "/api/v1"
        items = Client(server).json(f"{root}/{resource.plural}")["items"]
    for item in items:
        getattr(kubernetes.client, model).from_dict(item)
    assert items or resource.kind == "Job"


def test_a_story_that_fails_is_told_when_the_context_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("lost the plot")

    monkeypatch.setattr(Story, "run", fail)
    with pytest.raises(RuntimeError, match="ended early") as caught, demo_cluster():
        pass
    assert str(caught.value.__cause__) == "lost the plot"
