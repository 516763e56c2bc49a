"""Micro-batches: what a job in this process writes and commits, over a demo server that misbehaves."""

from __future__ import annotations

import base64
import collections
import dataclasses
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from kubehistory import record_pb2

from pipeline.demo.server import DemoServer
from pipeline.demo.store import Store
from pipeline.graph import build
from runners.config import JobConfig
from runners.direct import DirectJob
from tests.transforms.fakes import cluster_of
from transforms import codec, commit
from transforms.carried import Settings
from transforms.commit import Link
from transforms.kube import KubeError, Timing
from transforms.record import decode
from transforms.store import LocalStore, Retrying, StoreConfig, StoreError

TIMING = Timing(backoff_s=0.01, backoff_cap_s=0.05, watch_s=2.0)
Put = Callable[..., dict[str, Any]]


@pytest.fixture
def server() -> Iterator[DemoServer]:
    with DemoServer(Store(), compress=False) as running:
        yield running


@pytest.fixture
def put(server) -> Put:
    def put(name: str, count: int = 1, namespace: str = "shop", **fields: Any) -> dict[str, Any]:
        about = {"kind": "Pod", "namespace": namespace, "name": "web-0", "uid": "uid-web-0", "apiVersion": "v1"}
        event = {
            "metadata": {"name": name, "namespace": namespace},
            "involvedObject": about,
            "reason": "BackOff",
            "type": "Warning",
            "count": count,
            **fields,
        }
        known = (f"{namespace}/{name}") in server.store.snapshot("events").keys
        return (server.store.update if known else server.store.create)("events", event)

    return put


class Output:
    """What is in the sink, read without the job."""

    def __init__(self, root: Path) -> None:
        self.root, self.store = root, LocalStore(root)

    @property
    def files(self) -> list[Path]:
        return sorted(self.root.glob("cluster=*/**/*.pb.gz"))

    @property
    def records(self) -> list[record_pb2.Record]:
        return [decode(data) for path in self.files for data in codec.unpack(path.read_bytes())]

    @property
    def events(self) -> list[record_pb2.Record]:
        return [record for record in self.records if record.kind == record_pb2.EVENT]

    @property
    def occurrences(self) -> dict[str, int]:
        found: collections.Counter[str] = collections.Counter()
        for record in self.events:
            found[record.name] += record.occurrences
        return dict(found)

    @property
    def commits(self) -> list[Link]:
        return list(commit.links(self.store, "prod", pytest.fail))

    @property
    def dead(self) -> list[dict[str, Any]]:
        return [json.loads(line) for path in self.root.glob("_dead/**/*.jsonl") for line in path.open()]


@pytest.fixture
def output(tmp_path) -> Output:
    return Output(tmp_path / "out")


@pytest.fixture
def config(server, tmp_path) -> Callable[..., JobConfig]:
    def config(buffer: int = 15_000, page_size: int = 1000, timing: Timing = TIMING, **changes: Any) -> JobConfig:
        clusters, store = (cluster_of(server, tmp_path),), StoreConfig(str(tmp_path / "out"))
        once = changes.get("once", False)
        settings = Settings(clusters, store, timing, once, buffer=buffer, page_size=page_size)
        made = JobConfig("DirectRunner", clusters, store, batch_interval_s=0.1, settings=settings)
        return dataclasses.replace(made, **changes)

    return config


@contextmanager
def running(config: JobConfig) -> Iterator[DirectJob]:
    """A job in a thread, stopped at the end; its error, if any, is raised there."""
    job, errors = DirectJob(config, build), []

    def run() -> None:
        try:
            job.run()
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield job
    finally:
        job.stop()
        thread.join(20)
        assert not thread.is_alive()
    if errors:
        raise errors[0]


def until(condition: Callable[[], Any], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


# --- once -------------------------------------------------------------------------------------


def test_once_writes_what_is_there_commits_it_and_ends(server, config, put, output):
    for number in range(25):
        put(f"e{number}", number + 1)
    server.store.create("services", {"metadata": {"name": "web", "namespace": "shop"}, "spec": {}})
    DirectJob(config(once=True), build).run()
    assert output.occurrences == {f"e{number}": number + 1 for number in range(25)}
    assert [r.name for r in output.records if r.kind == record_pb2.SERVICE_CHANGE] == ["web"]
    (link,) = output.commits
    assert link.after["prod/events/"].resource_version == str(server.store.version)
    assert sum(segment.count for segment in link.segments) == 26
    assert link.identity == server.store.get("namespaces", "kube-system")["metadata"]["uid"]
    assert server.open_watches() == 0


def test_once_on_an_empty_cluster_commits_where_it_is(config, output):
    DirectJob(config(once=True), build).run()
    assert output.files == []
    assert len(output.commits) == 1


def test_once_more_writes_only_what_came_since(config, put, output):
    put("a", 2)
    DirectJob(config(once=True), build).run()
    put("a", 5)
    put("b")
    DirectJob(config(once=True), build).run()
    assert output.occurrences == {"a": 5, "b": 1}
    assert len(output.events) == 3
    DirectJob(config(once=True), build).run()
    assert len(output.events) == 3


def test_an_epoch_takes_about_the_limit_and_the_next_goes_on(config, put, output):
    for number in range(60):
        put(f"e{number:02}")
    DirectJob(config(once=True, epoch_limit=20, page_size=10, buffer=30), build).run()
    assert output.occurrences == dict.fromkeys((f"e{number:02}" for number in range(60)), 1)
    sizes = [sum(segment.count for segment in link.segments) for link in output.commits]
    assert len(sizes) >= 3
    assert max(sizes) <= 20
    for one, other in itertools.pairwise(output.commits):
        assert one.after == other.before


def test_once_ends_where_a_resource_may_not_be_read_and_says_so(server, config, put, output):
    put("a")
    server.forbid("services")
    job = DirectJob(config(once=True), build)
    thread = threading.Thread(target=job.run, daemon=True)
    thread.start()
    try:
        thread.join(5)
        assert output.occurrences == {"a": 1}
        assert not thread.is_alive()
        (gap,) = [r for r in output.records if r.kind == record_pb2.GAP]
        assert (gap.gap.resource, "403" in gap.gap.why) == ("services", True)
    finally:
        job.stop()
        thread.join(5)


# --- epochs -----------------------------------------------------------------------------------


def test_state_and_cursors_go_from_epoch_to_epoch(server, config, put, output):
    put("a", 3)
    with running(config()):
        until(lambda: output.occurrences == {"a": 3})
        server.wait_for_watches(1, "events")
        requests = len(server.requests)
        put("a", 5)
        put("b")
        until(lambda: output.occurrences == {"a": 5, "b": 1})
        assert [r.path for r in server.requests[requests:] if r.path.endswith("events")] == []
    commits = output.commits
    assert [link.number for link in commits] == list(range(1, len(commits) + 1))
    for one, other in itertools.pairwise(commits):
        assert one.after == other.before
    assert [r.occurrences for r in output.events if r.name == "a"] == [3, 2]


def test_a_relist_between_epochs_repeats_nothing_and_loses_nothing(server, config, put, output):
    put("a", 1)
    with running(config()):
        until(lambda: output.occurrences == {"a": 1})
        server.wait_for_watches(1, "events")
        server.stall_watches()
        put("a", 4)
        put("b", 2)
        server.compact()
        server.cut_watches()
        server.stall_watches(False)
        until(lambda: output.occurrences == {"a": 4, "b": 2})
    assert len(output.events) == 3


def test_bad_json_goes_to_the_dead_letters_and_the_job_goes_on(server, config, put, output):
    with running(config()):
        server.wait_for_watches(1, "events")
        server.send_bad_json_once()
        put("a")
        until(lambda: output.occurrences == {"a": 1} and output.dead)
        put("b")
        until(lambda: output.occurrences == {"a": 1, "b": 1})
    (letter,) = output.dead
    assert (letter["cluster"], letter["resource"]) == ("prod", "events")
    assert letter["reason"].startswith("a watch line: ")
    assert base64.b64decode(letter["data_base64"]).startswith(b'{"type":"MODIFIED"')
    assert sum(sum(link.dead.values()) for link in output.commits) == 1


def test_an_item_that_can_t_be_decoded_is_a_dead_letter_once(config, put, output):
    put("a")
    put("odd", reason=7)
    DirectJob(config(once=True), build).run()
    DirectJob(config(once=True), build).run()
    assert output.occurrences == {"a": 1}
    assert len(output.dead) == 1


def test_a_job_that_is_stopped_commits_what_it_has_read(server, config, put, output):
    with running(config(batch_interval_s=60.0)) as job:
        until(lambda: output.commits)
        server.wait_for_watches(1, "events")
        put("a")
        until(lambda: job._anything())
        assert output.events == []
    assert output.occurrences == {"a": 1}


def test_run_for_ends_the_job(config, put, output):
    put("a")
    began = time.monotonic()
    DirectJob(config(run_for_s=0.7), build).run()
    assert 0.6 < time.monotonic() - began < 5
    assert output.occurrences == {"a": 1}


def test_a_quiet_cluster_costs_no_epoch_until_a_minute_is_over(config, output):
    with running(config()):
        until(lambda: output.commits)
        time.sleep(0.5)
        assert len(output.commits) == 1


def test_a_quiet_cluster_s_cursor_is_committed_after_a_while(config, output):
    with running(config(snapshot_interval_s=0.2)):
        until(lambda: len(output.commits) >= 3)
    assert output.files == []


def test_a_cluster_that_refuses_services_is_read_without_them(server, config, put, output):
    put("a")
    server.forbid("services")
    with running(config()):
        until(lambda: output.occurrences == {"a": 1}, 5)


def test_a_pod_that_went_while_the_job_was_down_is_still_known(server, config, put, output):
    metadata = {"name": "web-0", "namespace": "shop", "uid": "uid-web-0", "labels": {"app": "web"}}
    pod = server.store.create("pods", {"metadata": metadata, "spec": {}, "status": {"podIP": "10.0.0.7"}})
    put("before")
    DirectJob(config(once=True), build).run()
    server.store.delete("pods", pod)
    put("after")
    DirectJob(config(once=True), build).run()
    (after,) = [record for record in output.events if record.name == "after"]
    assert (after.pod.ip, after.labels["app"]) == ("10.0.0.7", "web")
    assert after.enrichment == record_pb2.TOMBSTONE


def test_a_heartbeat_tells_of_commits_of_this_run_only(config, output, tmp_path):
    heartbeat = tmp_path / "heartbeat"
    heartbeat.touch()
    seen = []
    job = DirectJob(config(once=True, heartbeat_file=str(heartbeat)), build)
    epoch = job._epoch
    job._epoch = lambda: (seen.append(heartbeat.exists()), epoch())
    job.run()
    assert seen == [False]
    assert heartbeat.exists()


# --- errors -----------------------------------------------------------------------------------


def test_a_cluster_whose_events_may_not_be_read_is_an_error_at_the_start(server, config, output):
    server.forbid("events")
    with pytest.raises(KubeError, match=r"403 Forbidden .*the credentials need list and watch on it"):
        DirectJob(config(), build).run()
    assert output.commits == []


def test_one_namespace_that_may_be_read_is_enough(server, config, put, output):
    put("a")
    put("b", namespace="bank")
    server.fail_next(100, 403, path="/namespaces/bank/events")
    with running(config(namespaces=("bank", "shop"))):
        until(lambda: output.occurrences == {"a": 1}, 5)


def test_a_cluster_that_does_not_answer_is_an_error_at_the_start(server, config):
    made = config()
    server.stop()
    with pytest.raises(KubeError, match="did not answer"):
        DirectJob(made, build).run()


class FullStore(LocalStore):
    """A sink that has no space for segments."""

    def create(self, path: str, data: bytes) -> bool:
        if path.endswith(codec.SUFFIX):
            raise StoreError(f"{path}: no space left on device")
        return super().create(path, data)


def test_a_sink_that_fails_ends_the_job_with_its_own_error_and_no_commit(config, put, output, monkeypatch):
    put("a")
    monkeypatch.setattr(StoreConfig, "open", lambda self: FullStore(self.output))
    with pytest.raises(StoreError, match=r"\.pb\.gz: no space left on device") as caught:
        DirectJob(config(once=True), build).run()
    assert "\n" not in str(caught.value)
    assert output.commits == []
    monkeypatch.undo()
    DirectJob(config(once=True), build).run()
    assert output.occurrences == {"a": 1}


def test_what_a_dead_run_wrote_and_did_not_commit_is_taken_in_and_not_written_twice(config, put, output, monkeypatch):
    put("a", 3)
    DirectJob(config(once=True), build).run()
    put("a", 5)
    put("b", 1)

    def dies(*_: Any) -> str:
        raise StoreError("killed")

    with monkeypatch.context() as patched:
        patched.setattr(commit, "append", dies)
        with pytest.raises(StoreError, match="killed"):
            DirectJob(config(once=True), build).run()
    put("b", 4)
    DirectJob(config(once=True), build).run()
    assert output.occurrences == {"a": 5, "b": 4}
    identities = [(record.uid, record.resource_version) for record in output.events]
    assert len(identities) == len(set(identities))


def test_stores_are_asked_again_before_a_job_gives_up(config):
    assert isinstance(DirectJob(config(), build)._carried.store, Retrying)
