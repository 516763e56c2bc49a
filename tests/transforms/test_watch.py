"""The source: filters and shards, the restriction, and `process` as a runner calls it, without a pipeline."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.io.watermark_estimators import ManualWatermarkEstimator
from apache_beam.utils.timestamp import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from pipeline.demo.server import DemoServer
from pipeline.demo.store import Store
from tests.transforms.fakes import SERVICES, TARGET, cluster_of, event, line, page, service, watching
from transforms.carried import Process, Settings
from transforms.coders import StructCoder
from transforms.decode import Decoder
from transforms.kube import Frame, KubeError, Timing
from transforms.store import StoreConfig
from transforms.types import Changes, Event, Position, Service, Target
from transforms.watch import (
    RESOURCES,
    Filter,
    FrameReader,
    Span,
    SpanTracker,
    WatermarkCoder,
    WatermarkProvider,
    _WatchFn,
    shard_key,
    shard_of,
)

# --- filters and shards -----------------------------------------------------------------------


def decoded(*items: dict[str, Any]) -> list[Event]:
    changes, bad = Decoder(Event).page(page(*items)[0], 5)
    assert bad == []
    return [change.object for change in changes]


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        (Filter(), True),
        (Filter(reasons=frozenset({"BackOff"})), True),
        (Filter(reasons=frozenset({"backoff"})), False),
        (Filter(types=frozenset({"Warning"})), True),
        (Filter(types=frozenset({"Normal"})), False),
        (Filter(kinds=frozenset({"Pod", "Node"})), True),
        (Filter(kinds=frozenset({"Node"})), False),
        (Filter(exclude_namespaces=frozenset({"kube-system"})), True),
        (Filter(exclude_namespaces=frozenset({"shop"})), False),
        (Filter(reasons=frozenset({"BackOff"}), types=frozenset({"Normal"})), False),
    ],
)
def test_a_filter_keeps_what_every_field_names(keep, kept):
    assert keep.keeps(decoded(event("a", 5))[0]) is kept


def test_the_api_server_leaves_out_excluded_namespaces():
    assert Filter().selector == ""
    keep = Filter(exclude_namespaces=frozenset({"b", "a"}), reasons=frozenset({"BackOff"}))
    assert keep.selector == "metadata.namespace!=a,metadata.namespace!=b"


def frame(kind: str, *items: bytes, floor: str = "") -> Frame:
    return Frame(kind, items, Position(), 7, floor=floor)


def test_pages_and_lines_are_filtered_and_what_is_broken_passes():
    reader = FrameReader(TARGET, 1, Filter(reasons=frozenset({"BackOff"})))
    changes, bad = reader.decode(
        frame("page", *page(event("a", 5), event("b", 6, reason="Pulled"), event("c", 9)), floor="5")
    )
    assert [change.object.metadata.name for change in changes] == ["c"]
    assert bad == []
    changes, bad = reader.decode(
        frame("lines", line("ADDED", event("b", 6, reason="Pulled")), b"{", line("ADDED", event("d", 9)))
    )
    assert [(change.type, change.object.metadata.name, change.observed_us) for change in changes] == [("ADDED", "d", 7)]
    assert [item.data for item in bad] == [b"{"]


def test_reasons_are_no_filter_of_services_but_namespaces_are():
    services = Target("prod", "services")
    keep = Filter(reasons=frozenset({"BackOff"}), exclude_namespaces=frozenset({"shop"}))
    body = page(service("web", 5), service("dns", 6) | {"metadata": {"name": "dns", "namespace": "kube-system"}})
    changes, _ = FrameReader(services, 1, keep).decode(frame("page", *body))
    assert [change.object.metadata.name for change in changes] == ["dns"]
    changes, _ = FrameReader(services, 1, Filter(reasons=frozenset({"BackOff"}))).decode(frame("page", *body))
    assert len(changes) == 2


@given(
    st.lists(st.tuples(st.sampled_from(["web-0", "web-1", "db-0"]), st.integers(1, 9)), max_size=12), st.integers(1, 5)
)
def test_all_about_one_object_is_in_one_shard_in_its_order(items, shards):
    events = [event(f"e{n}", v) for n, (_, v) in enumerate(items)]
    for one, (pod, _) in zip(events, items, strict=True):
        one["involvedObject"] = one["involvedObject"] | {"name": pod}
    reader = FrameReader(TARGET, shards, Filter())
    listed = frame("page", *page(*events))
    changes, _ = reader.decode(listed)
    chunks = list(reader.chunks(changes, listed))
    assert len({key for key, _ in chunks}) == len(chunks)
    of_pod: dict[str, set[str]] = {}
    for key, chunk in chunks:
        assert chunk.events
        assert [c for c in changes if c in chunk.events] == chunk.events
        for change in chunk.events:
            of_pod.setdefault(change.object.involved_object.name, set()).add(key)
    assert all(len(keys) == 1 for keys in of_pod.values())
    assert sum(len(chunk.events) for _, chunk in chunks) == len(items)


def test_a_service_and_an_event_about_it_have_one_shard():
    about = {"kind": "Service", "namespace": "shop", "name": "web"}
    (an_event,) = decoded(event("a", 5, involvedObject=about))
    ((change,), _) = Decoder(Service).page(page(service("web", 5))[0], 5)
    assert shard_of(an_event, 16) == shard_of(change.object, 16)


def test_shards_are_the_same_in_every_process():
    pods = decoded(*(event(name, 5, involvedObject={"kind": "Pod", "name": name}) for name in "abcd"))
    assert [shard_of(pod, 16) for pod in pods] == [2, 8, 14, 13]
    assert shard_key("eu/prod", 7) == "eu/prod/07"


# --- the restriction --------------------------------------------------------------------------


def test_a_claim_moves_the_span_and_none_ends_it():
    tracker = SpanTracker(Span(Position()))
    assert tracker.try_claim(watching("5"))
    assert tracker.current_restriction() == Span(watching("5"))
    assert not tracker.is_bounded()
    assert tracker.try_claim(None)
    assert tracker.current_restriction() == Span(watching("5"), True)
    assert not tracker.try_claim(watching("6"))
    assert tracker.is_bounded()
    assert tracker.check_done()


def test_a_split_gives_what_was_not_claimed_to_the_residual_and_nobody_claims_it_twice():
    tracker = SpanTracker(Span(Position()))
    tracker.try_claim(watching("5"))
    assert tracker.try_split(0.5) == (Span(watching("5"), True), Span(watching("5")))
    assert not tracker.try_claim(watching("6"))
    assert tracker.try_split(0.0) is None
    assert tracker.check_done()


def test_a_span_that_was_neither_ended_nor_split_is_not_done():
    tracker = SpanTracker(Span(watching("5")))
    with pytest.raises(ValueError, match="expected the span to be claimed to its end or checkpointed"):
        tracker.check_done()


def test_progress_is_none_until_the_end():
    tracker = SpanTracker(Span(Position()))
    assert (tracker.current_progress().completed_work, tracker.current_progress().remaining_work) == (0.0, 1.0)
    tracker.try_claim(None)
    assert (tracker.current_progress().completed_work, tracker.current_progress().remaining_work) == (1.0, 0.0)


# --- process ----------------------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[DemoServer]:
    with DemoServer(Store(), compress=False) as running:
        yield running


@pytest.fixture
def process(server, tmp_path) -> Iterator[Process]:
    timing = Timing(backoff_s=0.01, backoff_cap_s=0.05, watch_s=2.0)
    settings = Settings((cluster_of(server, tmp_path),), StoreConfig(str(tmp_path / "out")), timing, page_size=5)
    made = Process(settings)
    carried = made.acquire()
    yield made
    carried.readers.close()


class Tracker:
    """What a runner hands to process: the tracker with `defer_remainder`."""

    def __init__(self, span: Span, claims: int = 1_000) -> None:
        self.tracker, self.claims = SpanTracker(span), claims
        self.deferred: list[float] = []

    def current_restriction(self) -> Span:
        return self.tracker.current_restriction()

    def try_claim(self, position: Position | None) -> bool:
        if self.claims == 0 and self.tracker.try_split(0.0):
            self.residual = Span(self.current_restriction().position)
        self.claims -= 1
        return self.tracker.try_claim(position)

    def defer_remainder(self, delay) -> None:
        self.deferred.append(float(delay.micros) / 1e6)


class Run:
    """One call of process, its outputs sorted."""

    def __init__(
        self,
        process: Process,
        span: Span | None = None,
        *,
        bounded=True,
        limit=100,
        watermark=None,
        claims=1_000,
        **settings,
    ):
        shards, keep, target = settings.get("shards", 1), settings.get("keep", Filter()), settings.get("target", TARGET)
        self.watermark = watermark or ManualWatermarkEstimator(None)
        function = _WatchFn(process, shards, keep, bounded, limit)
        function.setup()
        self.tracker = Tracker(span or function.initial_restriction(target), claims)
        self.chunks: list[tuple[str, Changes]] = []
        self.times: list[Timestamp] = []
        self.tagged: dict[str, list[Any]] = {}
        for output in function.process(target, self.tracker, self.watermark):
            if isinstance(output, beam.pvalue.TaggedOutput):
                value = output.value
                if isinstance(value, beam.window.TimestampedValue):
                    self.times.append(value.timestamp)
                    value = value.value
                self.tagged.setdefault(output.tag, []).append(value)
                continue
            if isinstance(output, beam.window.TimestampedValue):
                self.times.append(output.timestamp)
                output = output.value
            self.chunks.append(output)

    @property
    def names(self) -> list[str]:
        return [c.object.metadata.name for _, chunk in self.chunks for c in [*chunk.events, *chunk.services]]

    @property
    def span(self) -> Span:
        return self.tracker.current_restriction()


def put(server: DemoServer, *called: str) -> None:
    about = {"kind": "Pod", "namespace": "shop", "name": "web-0", "apiVersion": "v1"}
    for name in called:
        metadata = {"name": name, "namespace": "shop"}
        server.store.create("events", {"metadata": metadata, "involvedObject": about, "reason": "BackOff"})


def await_waiting(process: Process, target: Target = TARGET, n: int = 1) -> None:
    readers = process.acquire().readers
    assert readers.wait(lambda: readers.of(target).waiting >= n, 5)


def test_a_bounded_call_reads_what_is_there_and_ends(server, process):
    put(server, *"abcdefg")
    run = Run(process)
    assert run.names == list("abcdefg")
    assert run.times == []
    assert run.span.ended
    assert run.tracker.deferred == []
    (progress,) = run.tagged["progress"]
    assert (progress.target, progress.read, progress.kinds) == (TARGET, 7, [("v1", "Pod")])
    assert progress.position == run.span.position == watching(str(server.store.version), progress.position.time_us)


def test_the_next_call_goes_on_where_the_carried_position_is_without_a_request(server, process):
    put(server, *"abc")
    carried = process.acquire()
    carried.positions[TARGET.key] = Run(process).span.position
    server.wait_for_watches(1)
    put(server, "d")
    await_waiting(process)
    requests = len(server.requests)
    assert Run(process).names == ["d"]
    assert len(server.requests) == requests


def test_a_call_that_was_not_committed_is_read_again(server, process):
    put(server, *"abc")
    assert Run(process).names == ["a", "b", "c"]
    assert Run(process).names == ["a", "b", "c"]


def test_about_limit_objects_are_read_and_the_rest_waits(server, process):
    put(server, *"abcdefghijklmno")
    run = Run(process, limit=6)
    assert run.names == list("abcdefghij")
    assert run.span.position.listing
    process.acquire().positions[TARGET.key] = run.span.position
    assert Run(process).names == list("klmno")


def test_what_a_filter_leaves_out_counts_neither_as_read_nor_as_a_kind(server, process):
    put(server, "a")
    run = Run(process, keep=Filter(kinds=frozenset({"Node"})))
    assert run.chunks == []
    assert (run.tagged["progress"][0].read, run.tagged["progress"][0].kinds) == (0, [])


def test_bad_json_goes_out_as_a_dead_letter_with_its_bytes(server, process):
    process.acquire().positions[TARGET.key] = Run(process).span.position
    server.wait_for_watches(1)
    server.send_bad_json_once()
    await_waiting(process)
    run = Run(process)
    (letter,) = run.tagged["dead"]
    assert (letter.cluster, letter.resource) == ("prod", "events")
    assert letter.data.startswith(b'{"type":"MODIFIED","object":')
    assert run.tagged["progress"][0].read == 1


def test_a_list_of_services_tells_every_shard_that_it_is_whole(server, process):
    server.store.create("services", {"metadata": {"name": "web", "namespace": "shop"}})
    run = Run(process, target=Target("prod", "services"), shards=3)
    assert run.names == ["web"]
    assert [chunk.listed.shard for _, chunk in run.chunks] == [0, 1, 2]
    assert {chunk.listed.version for _, chunk in run.chunks} == {run.span.position.resource_version}


def test_a_list_with_what_can_not_be_decoded_says_of_nothing_that_it_is_gone(server, process):
    server.store.create("services", {"metadata": {"name": "web", "namespace": "shop"}})
    server.store.create("services", {"metadata": {"name": "bad", "namespace": "shop"}, "spec": {"ports": 1}})
    run = Run(process, target=Target("prod", "services"), shards=3)
    assert len(run.tagged["dead"]) == 1
    assert [(chunk.services[0].object.metadata.name, chunk.listed) for _, chunk in run.chunks] == [("web", None)]


def test_a_refusal_goes_out_as_a_gap(server, process):
    server.forbid("services")
    services = Target("prod", "services")
    reader = process.acquire().readers.reader(services, RESOURCES["services"], Position())
    deadline = time.monotonic() + 5
    while not reader._frames:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    (gap,) = Run(process, target=services).tagged["gaps"]
    assert (gap.target, gap.to_us) == (services, 0)
    assert gap.from_us > 0
    assert "403 Forbidden" in gap.why


def test_a_reader_s_error_is_raised(server, process):
    server.forbid("services")
    services = Target("prod", "services")
    readers = process.acquire().readers
    reader = readers.reader(services, SERVICES, Position(), refusable=True)
    readers.wait(lambda: reader.done, 5)
    reader_of, readers.reader = readers.reader, lambda *_: reader
    with pytest.raises(KubeError, match="403"):
        Run(process, target=services)
    readers.reader = reader_of


def test_a_stream_defers_the_rest_and_goes_on_there(server, process):
    put(server, *"abc")
    run = Run(process, bounded=False)
    assert run.names == ["a", "b", "c"]
    assert len(run.tracker.deferred) == 1
    assert 0 < run.tracker.deferred[0] <= 1.0
    assert not run.span.ended
    server.wait_for_watches(1)
    put(server, "d")
    await_waiting(process)
    requests = len(server.requests)
    assert Run(process, run.span, bounded=False).names == ["d"]
    assert len(server.requests) == requests


def test_a_stream_with_more_to_read_asks_to_be_called_again_at_once(server, process):
    put(server, *"abcdefghijklmno")
    carried = process.acquire()
    reader = carried.readers.reader(TARGET, RESOURCES["events"], Position())
    assert carried.readers.wait(lambda: reader.caught_up, 5)
    assert Run(process, bounded=False, limit=5).tracker.deferred == [0.0]


def test_the_watermark_follows_the_clock_while_the_cluster_is_quiet_and_never_goes_back(server, process):
    watermark = ManualWatermarkEstimator(None)
    before = Timestamp.now()
    span, seen = None, []
    for name in (None, "a", None, "b"):
        if name:
            put(server, name)
            await_waiting(process)
        run = Run(process, span, bounded=False, watermark=watermark)
        assert all(at >= (seen[-1] if seen else at) for at in run.times)
        span, _ = run.span, seen.append(watermark.current_watermark())
        server.wait_for_watches(1)
    assert before <= seen[0] <= seen[1] <= seen[2] <= seen[3] <= Timestamp.now()


def test_a_watermark_ahead_of_the_clock_stays(server, process):
    ahead = Timestamp.now() + 1000
    watermark = ManualWatermarkEstimator(ahead)
    put(server, "a")
    run = Run(process, bounded=False, watermark=watermark)
    assert run.names == ["a"]
    assert run.times == [ahead]
    assert watermark.current_watermark() == ahead


def test_a_runner_that_splits_in_the_middle_leaves_nothing_out_and_nothing_to_two(server, process):
    put(server, *"abcdefghijkl")
    carried = process.acquire()
    reader = carried.readers.reader(TARGET, RESOURCES["events"], Position())
    assert carried.readers.wait(lambda: reader.caught_up, 5)
    first = Run(process, bounded=False, claims=1)
    assert first.names == list("abcde")
    assert first.tracker.deferred == []
    assert Run(process, first.tracker.residual, bounded=False).names == list("fghijkl")


def test_a_target_that_nobody_read_is_read_from_its_beginning(process):
    function = _WatchFn(process, 1, Filter(), True, 100)
    assert function.initial_restriction(TARGET) == Span(Position())
    assert function.restriction_coder() == StructCoder(Span)
    assert isinstance(function.create_tracker(Span(Position())), SpanTracker)
    assert function.restriction_size(TARGET, Span(Position())) == 1
    assert function.restriction_size(TARGET, Span(Position(), True)) == 0


@given(st.none() | st.integers(-(2**63) + 808, 2**63 - 808))
def test_the_watermark_s_coder_keeps_every_microsecond(micros):
    coder = WatermarkCoder()
    time = None if micros is None else Timestamp(micros=micros)
    assert coder.decode(coder.encode(time)) == time
    assert coder.is_deterministic()
    assert isinstance(WatermarkProvider().estimator_state_coder(), WatermarkCoder)
    assert WatermarkProvider().initial_estimator_state(TARGET, Span(Position())) is None
    assert WatermarkProvider().create_watermark_estimator(time).current_watermark() == time
