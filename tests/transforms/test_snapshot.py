"""The facts about a cluster's objects, kept current over a few watches: what is asked, once, and what is known then."""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.io.watermark_estimators import ManualWatermarkEstimator
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.utils.timestamp import Timestamp

from pipeline.demo.kinds import RESOURCES, Resource
from pipeline.demo.server import DemoServer
from pipeline.demo.store import Store
from tests.transforms import estate
from tests.transforms.fakes import FakeTime, cluster_of, epoch
from transforms import coders
from transforms.carried import Process, Settings
from transforms.coders import StructCoder
from transforms.facts import FULL, METADATA, SPEC, Facts, Moment
from transforms.kube import Connection, Readers, Timing
from transforms.record import decode, event_record
from transforms.snapshot import ObjectSnapshots, Windows, WindowsTracker, _WindowsFn
from transforms.snapshot_reader import SnapshotReader
from transforms.store import StoreConfig
from transforms.types import ObjectReference, Position, Progress, Target

WIDGETS = Resource("acme.dev", "v1", "widgets", "Widget")
GADGETS = Resource("acme.dev", "v1", "gadgets", "Gadget", namespaced=False)
WATCHES = len(FULL) + len(SPEC) + len(METADATA) - 1  # the demo cluster has no HTTPRoutes
TIMING = Timing(backoff_s=0.01, backoff_cap_s=0.05)


@pytest.fixture
def server() -> Iterator[DemoServer]:
    resources = {**RESOURCES, "widgets": WIDGETS, "gadgets": GADGETS}
    with DemoServer(Store(resources=resources), bookmark_interval_s=0.1, compress=False) as running:
        yield running


@pytest.fixture
def readers(server, tmp_path) -> Iterator[Readers]:
    opened = Readers([cluster_of(server, tmp_path)], TIMING)
    yield opened
    opened.close()


@pytest.fixture
def reports() -> list[str]:
    return []


@pytest.fixture
def snapshots(readers, reports) -> SnapshotReader:
    return SnapshotReader("prod", readers, Facts(), report=reports.append)


def put(server: DemoServer, resource: str, name: str, namespace: str = "shop", **fields: Any) -> dict[str, Any]:
    scope = {"namespace": namespace} if server.store.resources[resource].namespaced else {}
    metadata = {"name": name, "uid": f"uid-{name}", **scope, **fields.pop("metadata", {})}
    return server.store.create(resource, {"metadata": metadata, **fields})


def known(facts: Facts) -> set[tuple[str, str]]:
    return {(history.resource, history.name) for history in facts.histories()}


def found(facts: Facts, kind: str, name: str, api_version: str = "v1") -> bool:
    ref = ObjectReference(kind=kind, name=name, namespace="shop", uid=f"uid-{name}", api_version=api_version)
    return facts.lookup(ref, Moment(time.time_ns() // 1000)) is not None


def refreshed(snapshots: SnapshotReader, enough) -> Facts:
    """Refreshes until there is enough: a watch delivers when it does."""
    deadline = time.monotonic() + 5
    while not enough(snapshots.refresh()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return snapshots.facts


def asked(server: DemoServer) -> collections.Counter[tuple[str, bool]]:
    return collections.Counter((request.path, "watch" in request.query) for request in server.requests)


def test_each_resource_is_listed_once_and_then_watched(server, snapshots):
    put(server, "pods", "web-0")
    put(server, "nodes", "node-1")
    put(server, "deployments", "web")
    facts = snapshots.refresh()
    assert known(facts) >= {("pods", "web-0"), ("nodes", "node-1"), ("deployments", "web")}
    server.wait_for_watches(WATCHES)
    counts = asked(server)
    assert set(counts.values()) == {1}
    assert sum(not watched for _, watched in counts) == WATCHES + 1


def test_a_refresh_costs_no_request_and_brings_what_changed(server, snapshots):
    put(server, "pods", "web-0")
    snapshots.refresh()
    server.wait_for_watches(WATCHES)
    requests = len(server.requests)
    for number in range(50):
        put(server, "pods", f"more-{number}")
    facts = refreshed(snapshots, lambda facts: ("pods", "more-49") in known(facts))
    assert len(known(facts)) == 51
    for _ in range(10):
        snapshots.refresh()
    assert len(server.requests) == requests


def test_lists_come_from_the_watch_cache_and_other_kinds_as_metadata_only(server, snapshots):
    put(server, "deployments", "web", spec={"template": {"secret": "x" * 100}})
    snapshots.refresh()
    lists = [request for request in server.requests if "watch" not in request.query]
    assert {request.query["resourceVersion"] for request in lists} == {"0"}
    assert found(snapshots.facts, "Deployment", "web", "apps/v1")


def test_an_object_that_is_gone_is_remembered(server, snapshots):
    labels = {"labels": {"app": "web"}}
    pod = put(server, "pods", "web-0", metadata=labels, status={"podIP": "10.0.0.7", "phase": "Running"})
    snapshots.refresh()
    server.wait_for_watches(WATCHES)
    server.store.delete("pods", pod)
    facts = refreshed(snapshots, lambda facts: all(h.gone is not None for h in facts.histories()))
    news = estate.event(0, estate.ref("Pod", "web-0"), str(server.store.version + 1))
    record = decode(event_record("prod", news, facts).data)
    assert (record.pod.ip, dict(record.labels)) == ("10.0.0.7", {"app": "web"})


def test_what_went_while_nobody_watched_is_gone_after_the_next_list(server, snapshots):
    pod = put(server, "pods", "web-0")
    put(server, "pods", "web-1")
    snapshots.refresh()
    server.wait_for_watches(WATCHES)
    server.stall_watches()
    server.store.delete("pods", pod)
    server.compact()
    server.cut_watches()
    server.stall_watches(False)
    facts = refreshed(snapshots, lambda facts: facts.by_uid("uid-web-0").gone is not None)
    assert facts.by_uid("uid-web-1").gone is None


def test_a_kind_that_an_event_names_is_discovered_once_and_followed(server, snapshots):
    put(server, "widgets", "w")
    put(server, "gadgets", "g")
    for _ in range(3):
        facts = snapshots.refresh([("acme.dev/v1", "Widget"), ("acme.dev/v1", "Gadget")])
    assert found(facts, "Widget", "w", "acme.dev/v1")
    assert found(facts, "Gadget", "g", "acme.dev/v1")
    server.wait_for_watches(WATCHES + 2)
    counts = asked(server)
    assert counts["/apis/acme.dev/v1", False] == 1
    assert counts["/apis/acme.dev/v1/widgets", False] == 1
    assert counts["/apis/acme.dev/v1/gadgets", True] == 1


def test_kinds_that_are_followed_anyway_are_not_asked_for(server, snapshots):
    snapshots.refresh([("v1", "Pod"), ("apps/v1", "Deployment"), ("", ""), ("v1", "")])
    assert {path for path, _ in asked(server)} & {"/api/v1", "/apis/apps/v1"} == set()


def test_a_kind_that_nobody_knows_is_asked_for_once_in_a_while(server, readers, reports):
    clock = FakeTime()
    snapshots = SnapshotReader("prod", readers, Facts(), clock=clock.clock, report=reports.append)
    kinds = [("acme.dev/v1", "Nothing"), ("nope.dev/v1", "Widget")]
    for _ in range(3):
        snapshots.refresh(kinds)
    assert asked(server)["/apis/acme.dev/v1", False] == 1
    assert asked(server)["/apis/nope.dev/v1", False] == 1
    assert len(reports) == 1
    assert reports[0].startswith("prod: the kinds of nope.dev/v1 are not known: GET ")
    clock.now += 601
    snapshots.refresh(kinds)
    assert asked(server)["/apis/nope.dev/v1", False] == 2


def test_two_groups_may_use_one_plural(server, snapshots, monkeypatch):
    other = {"kind": "Pod", "name": "pods", "namespaced": True, "verbs": ["list", "watch"]}
    monkeypatch.setattr(Connection, "get_json", lambda *_: {"resources": [other]})
    put(server, "pods", "web-0")
    facts = snapshots.refresh([("acme.dev/v1", "Pod")])
    assert asked(server)["/apis/acme.dev/v1/pods", False] == 1
    assert found(facts, "Pod", "web-0")


def test_what_may_not_be_read_is_reported_once_and_left_out(server, readers, reports):
    clock = FakeTime()
    snapshots = SnapshotReader("prod", readers, Facts(), clock=clock.clock, report=reports.append)
    server.forbid("nodes")
    put(server, "pods", "web-0")
    for _ in range(3):
        facts = snapshots.refresh()
    assert ("pods", "web-0") in known(facts)
    assert asked(server)["/api/v1/nodes", False] == 1
    assert len(reports) == 1
    assert reports[0].startswith("prod/facts:nodes/: GET ")
    assert reports[0].endswith("; events are enriched without it")
    server.allow("nodes")
    put(server, "nodes", "node-1")
    clock.now += 601
    assert ("nodes", "node-1") in known(snapshots.refresh())


def test_what_is_not_there_is_left_out_without_a_word(server, snapshots, reports):
    for _ in range(3):
        snapshots.refresh()
    assert asked(server)["/apis/gateway.networking.k8s.io/v1/httproutes", False] == 1
    assert reports == []


def test_namespaces_bound_what_is_read(server, readers, reports):
    put(server, "pods", "mine", "shop")
    put(server, "pods", "other", "bank")
    put(server, "pods", "theirs", "kube-system")
    put(server, "nodes", "node-1")
    facts = SnapshotReader("prod", readers, Facts(), ("shop", "bank"), report=reports.append).refresh()
    assert known(facts) == {("pods", "mine"), ("pods", "other"), ("nodes", "node-1")}
    paths = {path for path, _ in asked(server)}
    assert {"/api/v1/namespaces/shop/pods", "/api/v1/namespaces/bank/pods", "/api/v1/nodes"} <= paths
    assert "/api/v1/pods" not in paths


def test_an_object_that_can_t_be_decoded_is_reported_and_the_others_are_known(server, snapshots, reports):
    put(server, "pods", "odd", spec={"nodeName": 7})
    put(server, "pods", "web-0")
    assert known(snapshots.refresh()) == {("pods", "web-0")}
    assert reports[0].startswith("prod/pods: an object can't be decoded and is left out of the facts: a list item: ")


def test_a_list_of_many_pages_is_waited_for(server, snapshots):
    for number in range(1200):
        put(server, "pods", f"p{number:04}")
    assert len(known(snapshots.refresh())) == 1200


def test_what_ended_long_ago_is_forgotten(server, readers, reports):
    clock = FakeTime(time.time())
    facts = Facts(1_000_000)
    snapshots = SnapshotReader("prod", readers, facts, clock=clock.clock, report=reports.append)
    pod = put(server, "pods", "web-0")
    snapshots.refresh()
    server.wait_for_watches(WATCHES)
    server.store.delete("pods", pod)
    refreshed(snapshots, lambda facts: facts.by_uid("uid-web-0").gone is not None)
    clock.now += 3600
    assert known(snapshots.refresh()) == set()


def test_a_refresh_waits_for_first_lists_and_not_for_watches(server, snapshots):
    server.fail_next(3, 503, path="/pods")
    put(server, "pods", "web-0")
    assert ("pods", "web-0") in known(snapshots.refresh())
    server.wait_for_watches(WATCHES)
    server.stall_watches()
    began = time.monotonic()
    snapshots.refresh()
    assert time.monotonic() - began < 1


def test_the_facts_are_written_under_the_lock(server, readers, reports):
    lock = threading.Lock()
    put(server, "pods", "web-0")
    snapshots = SnapshotReader("prod", readers, Facts(), lock=lock, report=reports.append)
    with lock:
        thread = threading.Thread(target=snapshots.refresh)
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
        assert known(snapshots.facts) == set()
    thread.join(5)
    assert known(snapshots.facts) == {("pods", "web-0")}


# --- Beam -------------------------------------------------------------------------------------


@pytest.fixture
def process(server, tmp_path) -> Iterator[Process]:
    made = Process(Settings((cluster_of(server, tmp_path),), StoreConfig(str(tmp_path / "out")), TIMING))
    carried = made.acquire()
    yield made
    carried.readers.close()


def test_the_transform_gives_one_element_when_the_facts_are_current(server, process):
    coders.register()
    put(server, "widgets", "w")
    progress = [
        Progress(Target("prod", "events"), Position(), 1, [("acme.dev/v1", "Widget")]),
        Progress(Target("prod", "services"), Position(), 0, []),
    ]
    for _ in range(2):
        with epoch() as p:
            current = p | beam.Create(progress) | ObjectSnapshots(process)
            assert current.element_type is str
            assert_that(current, equal_to(["refreshed"]))
    assert found(process.acquire().facts("prod"), "Widget", "w", "acme.dev/v1")
    assert asked(server)["/api/v1/pods", False] == 1


def test_windows_are_claimed_in_order_and_the_rest_is_the_residual_s():
    tracker = WindowsTracker(Windows())
    assert tracker.try_claim(7)
    assert not tracker.try_claim(7)
    assert tracker.current_restriction() == Windows(8)
    with pytest.raises(ValueError, match="expected the windows to be checkpointed"):
        tracker.check_done()
    assert tracker.try_split(0.0) == (Windows(8, True), Windows(8))
    assert tracker.try_split(0.0) is None
    assert not tracker.try_claim(8)
    assert tracker.check_done()
    assert tracker.is_bounded()


class Deferring:
    """What a runner hands to process: the tracker with `defer_remainder`."""

    def __init__(self, windows: Windows) -> None:
        self.tracker = WindowsTracker(windows)
        self.deferred: list[float] = []

    def current_restriction(self) -> Windows:
        return self.tracker.current_restriction()

    def try_claim(self, number: int) -> bool:
        return self.tracker.try_claim(number)

    def defer_remainder(self, delay) -> None:
        self.deferred.append(float(delay.micros) / 1e6)


def test_a_stream_gives_a_snapshot_a_window_and_holds_nobody_back_until_the_next(server, process):
    put(server, "pods", "web-0")
    function = _WindowsFn(process, (), 1000.0)
    function.setup()
    watermark = ManualWatermarkEstimator(None)
    tracker = Deferring(function.initial_restriction("prod"))
    (output,) = function.process("prod", tracker, watermark)
    cluster, encoded = output.value
    assert cluster == "prod"
    assert known(Facts.decode(encoded)) == {("pods", "web-0")}
    number = tracker.current_restriction().following
    assert output.timestamp == Timestamp((number - 1) * 1000)
    assert output.timestamp <= Timestamp.now() < watermark.current_watermark() == Timestamp(number * 1000)
    assert 0 <= tracker.deferred[0] <= 1000

    again = Deferring(Windows(number))
    assert list(function.process("prod", again, watermark)) == []
    assert again.current_restriction() == Windows(number)
    assert 0 < again.deferred[0] <= 1000


def test_the_stream_s_source_begins_now_and_its_restriction_travels():
    function = _WindowsFn(None, (), 60.0)
    assert function.initial_restriction("prod") == Windows()
    assert function.create_tracker(Windows(7)).current_restriction() == Windows(7)
    assert function.restriction_coder() == StructCoder(Windows)
    assert function.restriction_size("prod", Windows()) == 1
    progress = WindowsTracker(Windows(7)).current_progress()
    assert (progress.completed_work, progress.remaining_work) == (0.0, 1.0)
