"""List and watch: what a follower yields, asks and remembers, against a scripted server and the demo cluster."""

from __future__ import annotations

import json
import pickle
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import urllib3
from hypothesis import given
from hypothesis import strategies as st

from pipeline.demo.server import DemoServer
from pipeline.demo.store import Store
from tests.transforms.fakes import (
    EVENTS,
    SERVICES,
    TARGET,
    FakeTime,
    bookmark,
    cluster_of,
    event,
    expired,
    follower,
    line,
    names,
    page,
    refused,
    status_line,
    timed_out,
    unanswered,
    watching,
)
from transforms.carried import Process, Settings
from transforms.kube import (
    METADATA_ONLY,
    Backoff,
    Cluster,
    ConfigError,
    Connection,
    Follower,
    Frame,
    KubeError,
    Reader,
    Readers,
    Resource,
    Timing,
    newer,
    relist,
    same_place,
)
from transforms.store import StoreConfig
from transforms.types import Position, Target

HOUR_US = 3_600_000_000


def positions(frames: list[Frame]) -> list[Position]:
    """The frames' positions, whenever they were reached."""
    return [Position(*(getattr(f.position, name) for name in Position.__struct_fields__[:-1])) for f in frames]


# --- lists ------------------------------------------------------------------------------------


def test_pages_of_one_list_are_at_one_version_and_each_says_where_it_goes_on():
    follow, connection, _ = follower(
        page(event("a", 5), event("b", 6), version=9, token="t1"),
        page(event("c", 7), version=9, token="t2"),
        page(event("d", 8), version=9),
        page_size=2,
        once=True,
    )
    frames = list(follow.frames())
    assert names(frames) == ["a", "b", "c", "d"]
    assert positions(frames) == [
        Position(continue_token="t1", list_version="9"),
        Position(continue_token="t2", list_version="9"),
        watching("9"),
    ]
    assert [(f.first, f.last, f.count) for f in frames] == [(True, False, 2), (False, False, 1), (False, True, 1)]
    assert connection.lists == [{"limit": 2}, {"limit": 2, "continue": "t1"}, {"limit": 2, "continue": "t2"}]


def test_events_are_listed_from_etcd_and_other_resources_from_the_watch_cache():
    cached = {"resourceVersion": 0, "resourceVersionMatch": "NotOlderThan"}
    for resource, version in ((EVENTS, {}), (SERVICES, cached)):
        follow, connection, _ = follower(page(version=9), resource=resource, once=True)
        list(follow.frames())
        assert connection.lists == [{"limit": 1000} | version]


def test_an_empty_list_that_says_null_is_a_page_of_nothing():
    follow, _, _ = follower([b'{"metadata":{"resourceVersion":"9"},"items":null}'], once=True)
    (frame,) = follow.frames()
    assert (frame.count, frame.first, frame.last, frame.position.resource_version) == (0, True, True, "9")


def test_metadata_only_asks_a_list_for_a_list_and_a_watch_for_objects():
    only = Resource("apps/v1", "deployments", metadata_only=True)
    follow, connection, _ = follower(page(version=9), [], resource=only)
    list(follow.frames())
    assert connection.accepted[0] == METADATA_ONLY
    assert "as=PartialObjectMetadata;" in connection.accepted[1]


def test_an_expired_continue_token_starts_the_list_anew_and_keeps_the_floor():
    middle = Position("50", True, "old", "60", floor="50")
    follow, connection, reports = follower(expired(), page(event("a", 70), version=80), position=middle, once=True)
    (frame,) = follow.frames()
    assert connection.lists == [{"limit": 1000, "continue": "old"}, {"limit": 1000}]
    assert (frame.floor, frame.first, frame.position.resource_version) == ("50", True, "80")
    assert reports == []


def test_a_list_in_progress_goes_on_at_its_next_page_after_a_restart():
    middle = Position("", True, "t1", "9")
    follow, connection, _ = follower(page(event("b", 7), version=9), position=middle, once=True)
    (frame,) = follow.frames()
    assert connection.lists == [{"limit": 1000, "continue": "t1"}]
    assert (frame.first, frame.last) == (False, True)


def test_a_list_that_is_no_json_is_asked_for_again_and_reported():
    follow, _, reports = follower([b"<html>busy</html>"], page(event("a", 5), version=9), once=True)
    assert names(list(follow.frames())) == ["a"]
    assert "expected a list in JSON, got b'<html>busy</html>'" in reports[0]


def test_a_list_that_breaks_off_is_asked_for_again_from_the_same_page():
    broken = urllib3.exceptions.ProtocolError("Connection broken")
    middle = Position("", True, "t1", "9")
    follow, connection, _ = follower([b'{"met', broken], page(version=9), position=middle, once=True)
    list(follow.frames())
    # and of fewer objects: what breaks off before a page has come may let a smaller one through
    assert connection.lists == [{"limit": 1000, "continue": "t1"}, {"limit": 500, "continue": "t1"}]


# --- watches ----------------------------------------------------------------------------------


def test_a_watch_goes_on_where_the_list_ended_and_each_read_moves_the_position():
    follow, connection, _ = follower(
        page(version=9),
        [line("ADDED", event("a", 10)) + line("MODIFIED", event("a", 12)), line("DELETED", event("a", 15)), 5.0],
    )
    frames = list(follow.frames())
    assert [(f.kind, f.count) for f in frames] == [("page", 0), ("lines", 2), ("lines", 1), ("quiet", 0)]
    assert [f.position.resource_version for f in frames] == ["9", "12", "15", "15"]
    assert connection.watches == [
        {"watch": 1, "resourceVersion": "9", "allowWatchBookmarks": "true", "timeoutSeconds": 45}
    ]


def test_a_watch_that_ends_after_a_while_is_opened_again_where_it_ended():
    follow, connection, _ = follower([line("ADDED", event("a", 12)), 40.0], [1.0], position=watching("9"))
    list(follow.frames())
    assert [query["resourceVersion"] for query in connection.watches] == ["9", "12"]
    assert connection.lists == []


def test_the_length_of_a_watch_is_jittered_and_its_read_timeout_is_a_little_longer():
    follow, connection, _ = follower([1.0], position=watching("9"))
    follow.uniform = lambda low, high: low
    list(follow.frames())
    assert connection.watches[0]["timeoutSeconds"] == round(45 * 0.75)
    assert connection.read_timeouts == [45 * 0.75 + 5]


def test_where_bookmarks_come_once_a_minute_a_watch_is_long_and_silence_ends_it_sooner():
    follow, connection, _ = follower([1.0], resource=SERVICES, position=watching("9"))
    list(follow.frames())
    assert connection.watches[0]["timeoutSeconds"] == 600
    assert connection.read_timeouts == [90.0]


def test_bookmarks_move_the_position_without_an_object():
    follow, _, _ = follower([bookmark(20), line("ADDED", event("a", 21)) + bookmark(30), 2.0], position=watching("9"))
    frames = list(follow.frames())
    assert [(f.kind, f.count, f.position.resource_version) for f in frames] == [
        ("quiet", 0, "20"),
        ("lines", 1, "30"),
        ("quiet", 0, "30"),
    ]


def test_a_quiet_watch_says_up_to_when_the_history_is_complete():
    clock = FakeTime(1_000.0)
    follow, _, _ = follower([30.0], position=watching("9"), time=clock)
    (frame,) = follow.frames()
    assert frame.kind == "quiet"
    assert frame.position == watching("9", 1_030_000_000)


def test_an_object_that_comes_in_two_reads_is_one_line():
    whole = line("ADDED", event("a", 10)) + line("ADDED", event("b", 11))
    follow, _, _ = follower([whole[:100], whole[100:250], whole[250:], 2.0], position=watching("9"))
    assert names(list(follow.frames())) == ["a", "b"]


def test_a_last_line_that_was_cut_is_not_an_object_and_is_watched_for_again():
    second = line("ADDED", event("b", 11))
    follow, connection, _ = follower(
        [line("ADDED", event("a", 10)) + second[:-9], 2.0], [second, 2.0], position=watching("9")
    )
    assert names(list(follow.frames())) == ["a", "b"]
    assert connection.watches[1]["resourceVersion"] == "10"


@pytest.mark.parametrize(
    "bad",
    [
        b'{"type":"ADDED","obj',
        b'{"type":"ADDED","object":{"metadata":{"resourceVersion":7}}}',
        b'{"type":"ADDED","object":{"message":"\xff"}}',
        b'{"type":"ADDED","object":{"x":' + b"[" * 100_000,
    ],
)
def test_a_line_that_is_no_json_passes_through_and_the_watch_goes_on(bad):
    follow, connection, _ = follower(
        [line("ADDED", event("a", 10)) + bad + b"\n" + line("ADDED", event("b", 11)), 2.0],
        position=watching("9"),
    )
    frames = list(follow.frames())
    assert names(frames) == ["a", "?", "b"]
    assert frames[0].position.resource_version == "11"
    assert len(connection.watches) == 1


def test_a_watch_that_breaks_goes_on_after_its_last_whole_line():
    reset = urllib3.exceptions.ProtocolError("Connection broken", ConnectionResetError(104, "reset by peer"))
    follow, connection, reports = follower(
        [line("ADDED", event("a", 10)) + b'{"ty', reset], [line("ADDED", event("b", 11)), 2.0], position=watching("9")
    )
    assert names(list(follow.frames())) == ["a", "b"]
    assert [query["resourceVersion"] for query in connection.watches] == ["9", "10"]
    assert "broke off a watch" in reports[0]


def test_a_watch_that_is_silent_for_too_long_is_opened_again_without_a_list():
    follow, connection, _ = follower([timed_out()], [line("ADDED", event("a", 10)), 2.0], position=watching("9"))
    assert names(list(follow.frames())) == ["a"]
    assert [query["resourceVersion"] for query in connection.watches] == ["9", "9"]


def test_a_response_is_closed_when_its_watch_ends_or_fails():
    for reads in ([2.0], [timed_out()], [status_line(500, "InternalError")]):
        follow, connection, _ = follower(reads, position=watching("9"))
        list(follow.frames())
        assert connection.responses[0].closed
        assert follow.response is None


def test_a_selector_goes_with_every_request():
    follow, connection, _ = follower(page(version=9), [2.0], selector="metadata.namespace!=kube-system")
    list(follow.frames())
    assert {query["fieldSelector"] for _, query in connection.asked} == {"metadata.namespace!=kube-system"}


# --- 410 --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gone", "at"),
    [
        pytest.param(expired(), "9", id="a status"),
        pytest.param([status_line(410, "Expired")], "9", id="an ERROR in the stream"),
        pytest.param([status_line(0, "Gone")], "9", id="an ERROR without a code"),
        pytest.param(
            [line("ADDED", event("a", 15)) + status_line(410, "Expired")], "15", id="an ERROR after an object"
        ),
        pytest.param([], "9", id="a clean end at once"),
    ],
)
def test_gone_in_each_of_its_forms_relists_and_passes_over_what_is_known(gone, at):
    follow, connection, reports = follower(gone, page(event("b", 20), version=30), [2.0], position=watching("9"))
    frames = list(follow.frames())
    listed = next(f for f in frames if f.kind == "page")
    assert listed.floor == at
    assert connection.lists == [{"limit": 1000}]
    assert connection.watches[-1]["resourceVersion"] == "30"
    assert reports == []
    assert [f for f in frames if f.kind == "gap"] == []


def test_a_watch_that_ends_with_nothing_after_more_than_a_second_is_no_sign_of_gone():
    follow, connection, _ = follower([1.5], [1.5], position=watching("9"))
    list(follow.frames())
    assert connection.lists == []


def test_a_watch_that_brought_something_and_ends_at_once_is_no_sign_of_gone():
    follow, connection, _ = follower([line("ADDED", event("a", 10))], [2.0], position=watching("9"))
    list(follow.frames())
    assert connection.lists == []


def test_another_error_in_the_stream_is_waited_out_and_a_list_is_next_since_a_watch_may_end_so_for_ever():
    follow, connection, reports = follower(
        [line("ADDED", event("a", 10)) + status_line(500, "InternalError")],
        page(event("a", 10), event("b", 11), version=12),
        [2.0],
        position=watching("9"),
    )
    (listed,) = [frame for frame in follow.frames() if frame.kind == "page"]
    assert listed.floor == "10"
    assert [query["resourceVersion"] for query in connection.watches] == ["9", "12"]
    assert "because 500" in reports[0]


def test_relist_keeps_what_is_known_as_the_floor_and_a_resync_has_none():
    assert relist(watching("9", 7)) == Position("9", True, floor="9", time_us=7)
    assert relist(Position("", True, "t", "30", floor="9", time_us=7)) == Position("", True, floor="9", time_us=7)
    assert relist(Position("", True, "t", "30")) == Position()
    assert relist(watching("9", 7), resync=True) == Position("9", True, floor="", time_us=7)


@given(st.integers(min_value=0, max_value=10**30), st.integers(min_value=0, max_value=10**30))
def test_versions_compare_as_integers(one, other):
    assert newer(str(one), str(other)) == (one > other)


# --- resync -----------------------------------------------------------------------------------


def test_a_resync_lists_with_no_floor_so_that_what_a_watch_missed_comes_too():
    timing = Timing(resync_s=100.0)
    follow, connection, _ = follower(
        page(version=9), [45.0], [45.0], [10.0], page(event("missed", 8), version=30), timing=timing
    )
    frames = list(follow.frames())
    assert [query["timeoutSeconds"] for query in connection.watches] == [45, 45, 10]
    assert names(frames) == ["missed"]
    assert frames[-1].floor == ""
    assert frames[-2].position == Position("9", True, time_us=frames[-2].position.time_us)


def test_a_resync_is_not_put_off_by_a_watch_that_is_busy():
    timing = Timing(resync_s=30.0)
    busy = [part for version in range(10, 20) for part in (5.0, line("ADDED", event(f"e{version}", version)))]
    follow, connection, _ = follower(busy, page(version=30), position=watching("9"), timing=timing)
    frames = list(follow.frames())
    assert len(names(frames)) == 6
    assert connection.lists == [{"limit": 1000}]


# --- gaps -------------------------------------------------------------------------------------


def test_an_outage_longer_than_the_event_ttl_is_a_gap_from_when_to_when():
    clock = FakeTime(10_000.0)
    since = int((clock.now - 3_601) * 1e6)
    follow, _, _ = follower(page(version=90), time=clock, position=relist(watching("9", since)), once=True)
    gap, listed = follow.frames()
    assert (gap.kind, gap.since_us, gap.received_us) == ("gap", since, 10_000_000_000)
    assert b"longer than the event TTL" in gap.items[0]
    assert same_place(gap.position, relist(watching("9")))
    assert listed.position == watching("90", 10_000_000_000)


def test_an_outage_shorter_than_the_event_ttl_is_none():
    clock = FakeTime(10_000.0)
    since = int((clock.now - 3_599) * 1e6)
    follow, _, _ = follower(page(version=90), time=clock, position=relist(watching("9", since)), once=True)
    assert [f.kind for f in follow.frames()] == ["page"]


def test_the_gap_of_one_outage_is_told_once():
    clock = FakeTime(10_000.0)
    follow, _, _ = follower(
        page(version=90, token="t"),
        expired(),
        page(version=91),
        time=clock,
        position=relist(watching("9", 1)),
        once=True,
    )
    assert [f.kind for f in follow.frames()] == ["gap", "page", "page"]


def test_a_first_list_is_no_gap():
    follow, _, _ = follower(page(version=90), once=True)
    assert [f.kind for f in follow.frames()] == ["page"]


# --- errors and backoff -----------------------------------------------------------------------


def test_a_connection_that_is_refused_keeps_the_position_and_is_reported_once():
    follow, connection, reports = follower(*[unanswered()] * 5, [2.0], position=watching("9"))
    frames = list(follow.frames())
    assert [query["resourceVersion"] for query in connection.watches] == ["9"] * 6
    assert [f.kind for f in frames] == ["quiet"]
    assert reports == ["prod/events/: connection refused; try 1, the next in 1 s"]


def test_a_failure_that_lasts_is_reported_every_tenth_time():
    follow, _, reports = follower(*[unanswered()] * 25, [2.0], position=watching("9"))
    list(follow.frames())
    assert [report.partition("; ")[2].partition(",")[0] for report in reports] == ["try 1", "try 10", "try 20"]


def test_who_is_refused_tells_one_open_gap_and_goes_on_trying():
    clock = FakeTime()
    began = int(clock.now * 1e6)
    follow, connection, reports = follower(refused(), refused(), refused(), page(version=9), [2.0], time=clock)
    frames = list(follow.frames())
    assert [f.kind for f in frames] == ["gap", "page", "quiet"]
    assert (frames[0].since_us, frames[0].received_us, frames[0].items) == (began, 0, [b"forbidden"])
    assert len(connection.asked) == 5
    assert len(reports) == 1


def test_once_does_not_wait_for_who_refuses():
    follow, connection, _ = follower(refused(), page(version=9), once=True)
    assert [f.kind for f in follow.frames()] == ["gap"]
    assert len(connection.asked) == 1


def test_a_resource_that_is_read_whole_is_asked_for_without_a_limit():
    whole = Resource("v1", "services", whole=True)
    follow, connection, _ = follower(page(version=12), resource=whole, position=relist(watching("9")), once=True)
    list(follow.frames())
    assert connection.lists == [{"resourceVersion": 0, "resourceVersionMatch": "NotOlderThan"}]


def test_who_is_refused_again_after_having_been_let_in_tells_another_gap():
    follow, _, _ = follower(refused(), page(version=9), [200.0], refused(), [2.0])
    assert [f.kind for f in follow.frames()] == ["gap", "page", "quiet", "gap", "quiet"]


def test_who_is_refused_while_watching_goes_on_without_a_list():
    follow, connection, _ = follower([2.0], refused(), [2.0], [200.0], refused(), [2.0], position=watching("9"))
    assert [f.kind for f in follow.frames()] == ["quiet", "gap", "quiet", "quiet", "gap", "quiet"]
    assert connection.lists == []


@pytest.mark.parametrize("status", [401, 403, 404])
def test_who_may_be_refused_is_told_at_once(status):
    follow, connection, _ = follower(KubeError("no", status), page(version=9), refusable=True)
    with pytest.raises(KubeError, match="no"):
        list(follow.frames())
    assert len(connection.asked) == 1


def test_who_may_be_refused_still_waits_out_what_passes():
    follow, _, _ = follower(unanswered(), KubeError("busy", 500), page(version=9), refusable=True, once=True)
    assert [f.kind for f in follow.frames()] == ["page"]


def pauses(*after: float, error: KubeError | None = None, uniform=lambda low, high: high) -> list[float]:
    """The pauses of failures that come so many seconds after the pause before."""
    clock = FakeTime()
    backoff = Backoff(Timing(), clock.clock, uniform)
    found = []
    for seconds in after:
        clock.now += seconds
        found.append(backoff.after(error or unanswered()))
        clock.now += found[-1]
    return found


def test_pauses_double_from_0_8_to_30_seconds():
    assert pauses(*[0] * 8) == pytest.approx([0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30, 30])
    assert pauses(*[0] * 2000)[-1] == 30


def test_pauses_are_jittered_down_to_half():
    assert pauses(0, 0, uniform=lambda low, high: low) == pytest.approx([0.4, 0.8])


def test_two_healthy_minutes_start_the_backoff_over():
    assert pauses(0, 0, 119, 0) == pytest.approx([0.8, 1.6, 3.2, 6.4])
    assert pauses(0, 0, 121, 0) == pytest.approx([0.8, 1.6, 0.8, 1.6])


def test_the_server_s_retry_after_is_waited_for_at_least():
    assert pauses(0, error=KubeError("busy", 429, retry_after_s=17)) == [17]
    assert pauses(*[0] * 7, error=KubeError("busy", 429, retry_after_s=17))[-1] == 30


# --- over HTTP --------------------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[DemoServer]:
    with DemoServer(Store(), bookmark_interval_s=0.05, compress=False) as running:
        yield running


FAST = Timing(backoff_s=0.01, backoff_cap_s=0.05, watch_s=2.0, bookmarked_silence_s=0.3)


@pytest.fixture
def connection(server, tmp_path) -> Connection:
    return Connection(cluster_of(server, tmp_path), FAST)


@pytest.fixture
def readers(server, tmp_path) -> Iterator[Readers]:
    opened = Readers([cluster_of(server, tmp_path)], FAST, limit=100, page_size=5)
    yield opened
    opened.close()


def put(server: DemoServer, *called: str, resource: str = "events") -> None:
    for name in called:
        server.store.create(resource, {"metadata": {"name": name, "namespace": "shop"}, "reason": "Test"})


def taken(readers: Readers, reader: Reader, enough: Callable[[list[str]], bool], limit: int = 100) -> list[str]:
    """Takes frames until there is enough of what they name."""
    frames: list[Frame] = []
    deadline = time.monotonic() + 5
    while not enough(names(frames)):
        assert time.monotonic() < deadline, names(frames)
        readers.wait(lambda: reader.waiting > 0, 0.05)
        frames += reader.take(limit)
    return names(frames)


def test_a_reader_lists_and_watches(server, readers):
    put(server, *"abcdefg")
    reader = readers.reader(TARGET, EVENTS, Position())
    assert taken(readers, reader, lambda found: len(found) == 7) == list("abcdefg")
    server.wait_for_watches(1)
    put(server, "h")
    assert taken(readers, reader, bool) == ["h"]
    assert reader.caught_up
    assert [query.get("limit") for _, _, query in server.requests] == ["5", "5", None]


def test_a_reader_loses_nothing_to_a_server_that_cuts_closes_compacts_and_fails(server, readers):
    reader = readers.reader(TARGET, EVENTS, Position())
    found: list[str] = []
    faults = [
        lambda: server.cut_watches("events"),
        lambda: server.cut_watches("events", reset=True),
        lambda: server.close_watches("events"),
        lambda: (server.compact(), server.close_watches("events")),
        lambda: (server.fail_next(2, 500), server.close_watches("events")),
        lambda: (server.fail_next(1, 429, retry_after=0), server.close_watches("events")),
        lambda: (server.fail_next(1, 410), server.close_watches("events")),
        server.send_bad_json_once,
    ]
    for number, fault in enumerate(faults):
        server.wait_for_watches(1)
        put(server, f"before-{number}")
        fault()
        put(server, f"after-{number}")
        found += taken(readers, reader, lambda found, n=number: f"after-{n}" in found)
    expected = {f"{when}-{number}" for number in range(len(faults)) for when in ("before", "after")}
    assert set(found) == expected | {"?"}
    assert reader.error is None


def test_a_compaction_while_nobody_watches_loses_nothing_and_repeats_nothing_known(server, readers, tmp_path):
    put(server, "a")
    reader = readers.reader(TARGET, EVENTS, Position())
    assert taken(readers, reader, bool) == ["a"]
    readers.close()
    put(server, "b")
    server.compact()
    later = Readers([cluster_of(server, tmp_path)], FAST)
    again = later.reader(TARGET, EVENTS, reader.next)
    assert later.wait(lambda: bool(again.waiting), 5)
    (frame,) = [frame for frame in again.take(10) if frame.kind == "page"]
    assert frame.floor == reader.next.resource_version
    later.close()


def test_a_list_whose_token_expires_starts_anew_and_brings_all(server, tmp_path):
    put(server, *"abcdefghijkl")
    follow = Follower(
        Connection(cluster_of(server, tmp_path), FAST),
        TARGET,
        EVENTS,
        Position(),
        page_size=5,
        once=True,
        sleep=lambda _: None,
    )
    frames = follow.frames()
    first = next(frames)
    server.expire_continue_tokens()
    rest = list(frames)
    assert names([first]) == list("abcde")
    assert names(rest) == list("abcdefghijkl")
    assert rest[0].first


def test_a_watch_that_stalls_is_opened_again_without_loss(server, readers):
    reader = readers.reader(Target("prod", "services"), SERVICES, Position())
    server.wait_for_watches(1)
    server.stall_watches()
    put(server, "a", resource="services")
    opened = len(server.requests)
    deadline = time.monotonic() + 5
    while len(server.requests) == opened:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    server.stall_watches(False)
    assert taken(readers, reader, bool) == ["a"]


def test_bookmarks_of_a_server_move_a_quiet_reader(server, readers):
    services = Target("prod", "services")
    reader = readers.reader(services, SERVICES, Position())
    server.wait_for_watches(1)
    put(server, "elsewhere")
    deadline = time.monotonic() + 5
    while reader.next.resource_version != str(server.store.version):
        assert time.monotonic() < deadline
        assert names(list(reader.take(10))) == []
        time.sleep(0.01)


# --- readers ----------------------------------------------------------------------------------


def test_a_reader_whose_buffer_is_full_stops_reading(server, readers):
    put(server, *(f"e{number:03}" for number in range(100)))
    reader = readers.reader(TARGET, EVENTS, Position(), limit=12)
    readers.wait(lambda: reader.full, 5)
    time.sleep(0.1)
    assert reader.waiting == 15  # the page that fills it is the last
    assert len(server.requests) <= 4  # one more may be on its way
    assert taken(readers, reader, lambda found: len(found) == 100) == [f"e{number:03}" for number in range(100)]


def test_take_gives_whole_frames_until_the_limit_is_reached_and_next_is_the_position_after_each(server, readers):
    put(server, *"abcdefghijkl")
    reader = readers.reader(TARGET, EVENTS, Position())
    readers.wait(lambda: reader.caught_up, 5)
    frames = []
    for frame in reader.take(6):
        frames.append(frame)
        assert reader.next == frame.position
    assert [f.count for f in frames] == [5, 5]  # a page is not divided
    assert reader.waiting == 2
    assert [f.count for f in reader.take(6)] == [2]
    assert not reader.next.listing
    assert list(reader.take(6)) == []


def test_what_was_not_asked_for_of_a_take_stays(server, readers):
    put(server, *"abcdefghij")
    reader = readers.reader(TARGET, EVENTS, Position())
    readers.wait(lambda: reader.caught_up, 5)
    assert names([next(reader.take(10))]) == list("abcde")
    assert names(list(reader.take(10))) == list("fghij")


def test_take_waits_for_the_next_page_while_a_list_is_in_progress_and_not_for_the_next_event(server, readers):
    put(server, *"abcdefghij")
    reader = readers.reader(TARGET, EVENTS, Position())
    assert names(list(reader.take(10, wait_s=5.0))) == list("abcdefghij")
    began = time.monotonic()
    assert list(reader.take(10, wait_s=5.0)) == []
    assert time.monotonic() - began < 1.0


def test_a_reader_is_kept_where_it_stands_and_opened_anew_elsewhere(server, readers):
    put(server, *"abc")
    reader = readers.reader(TARGET, EVENTS, Position())
    assert taken(readers, reader, bool) == ["a", "b", "c"]
    later = reader.next
    assert readers.reader(TARGET, EVENTS, watching(later.resource_version, 5)) is reader
    again = readers.reader(TARGET, EVENTS, Position())
    assert again is not reader
    assert readers.of(TARGET) is again
    assert taken(readers, again, bool) == ["a", "b", "c"]
    readers.wait(lambda: reader.done, 5)
    assert reader.done


def test_frames_that_were_taken_but_not_dealt_with_are_read_again_from_the_position_before(server, readers):
    reader = readers.reader(TARGET, EVENTS, Position())
    server.wait_for_watches(1)
    list(reader.take(1))
    put(server, "a")
    before = reader.next
    assert taken(readers, reader, bool) == ["a"]
    assert taken(readers, readers.reader(TARGET, EVENTS, before), bool) == ["a"]


def test_closing_a_reader_ends_its_thread_also_in_a_quiet_watch(server, readers):
    reader = readers.reader(TARGET, EVENTS, Position())
    server.wait_for_watches(1)
    reader.close()
    assert readers.wait(lambda: reader.done, 5)
    assert reader.error is None
    reader.close()  # once more does no harm


def test_closing_a_reader_whose_watch_is_just_being_opened_ends_it_too(server, readers):
    opening, closed = threading.Event(), threading.Event()
    connection = readers.connection("prod")
    get = connection.get

    def slow(path, query=None, *rest):
        response = get(path, query, *rest)
        if "watch" in query:
            opening.set()
            closed.wait(5)
        return response

    connection.get = slow
    reader = readers.reader(TARGET, EVENTS, Position())
    assert opening.wait(5)
    reader.close()
    closed.set()
    assert readers.wait(lambda: reader.done, 1)


def test_closing_a_reader_ends_its_pause(server, readers):
    server.fail_next(1000, 500)
    slow = Readers([readers._clusters["prod"]], Timing(backoff_s=60.0, backoff_cap_s=60.0))
    reader = slow.reader(TARGET, EVENTS, Position())
    time.sleep(0.1)
    slow.close()
    assert slow.wait(lambda: reader.done, 5)


def test_closing_a_reader_whose_buffer_is_full_ends_it(server, readers):
    put(server, *(f"e{number:03}" for number in range(50)))
    reader = readers.reader(TARGET, EVENTS, Position(), limit=1)
    readers.wait(lambda: reader.full, 5)
    readers.close()
    assert readers.wait(lambda: reader.done, 5)


def test_once_ends_with_the_list(server, tmp_path):
    put(server, *"abc")
    readers = Readers([cluster_of(server, tmp_path)], FAST, once=True)
    reader = readers.reader(TARGET, EVENTS, Position())
    assert readers.wait(lambda: reader.done, 5)
    assert names(list(reader.take(10))) == ["a", "b", "c"]
    assert server.open_watches() == 0


def test_a_reader_s_unexpected_error_is_kept_for_who_takes(server, readers):
    server.forbid("events")
    reader = readers.reader(TARGET, EVENTS, Position(), refusable=True)
    assert readers.wait(lambda: reader.done, 5)
    assert isinstance(reader.error, KubeError)
    assert reader.error.status == 403
    server.allow("events")
    assert readers.reader(TARGET, EVENTS, Position()) is not reader


def test_the_selector_is_for_events_of_all_namespaces_only(server, tmp_path):
    readers = Readers([cluster_of(server, tmp_path)], FAST, once=True, selector="metadata.namespace!=kube-system")
    for target, resource in (
        (TARGET, EVENTS),
        (Target("prod", "events", "shop"), EVENTS),
        (Target("prod", "services"), SERVICES),
    ):
        reader = readers.reader(target, resource, Position())
        assert readers.wait(lambda reader=reader: reader.done, 5)
    assert {path: query.get("fieldSelector") for _, path, query in server.requests} == {
        "/api/v1/events": "metadata.namespace!=kube-system",
        "/api/v1/namespaces/shop/events": None,
        "/api/v1/services": None,
    }


def test_readers_count_requests_and_wake_who_waits(server, readers):
    assert readers.requests == 0
    reader = readers.reader(TARGET, EVENTS, Position())
    readers.wait(lambda: reader.caught_up, 5)
    server.wait_for_watches(1)
    assert readers.requests == len(server.requests) == 2
    flag: list[bool] = []
    threading.Timer(0.05, lambda: (flag.append(True), readers.wake())).start()
    assert readers.wait(lambda: bool(flag), float("inf"))
    assert not readers.wait(lambda: False, -1)


# --- connections ------------------------------------------------------------------------------


def test_the_cluster_s_identity_is_the_uid_of_kube_system(server, connection):
    assert connection.identity() == server.store.get("namespaces", "kube-system")["metadata"]["uid"]


@pytest.mark.parametrize("status", [403, 404])
def test_an_identity_that_may_not_be_read_is_empty(server, connection, status):
    server.fail_next(1, status)
    assert connection.identity() == ""


def test_a_server_that_refuses_the_credentials_is_an_error_that_says_so(server, connection):
    server.fail_next(1, 401)
    with pytest.raises(KubeError, match=r"401 Unauthorized .*credentials are missing, wrong or expired") as caught:
        connection.identity()
    assert caught.value.refused


def test_an_error_says_what_was_asked_what_came_and_what_to_do(server, connection):
    server.forbid("events")
    with pytest.raises(KubeError) as caught:
        connection.get("/api/v1/events")
    assert str(caught.value).startswith(f"GET {server.url}/api/v1/events: 403 Forbidden events is forbidden: User ")
    assert str(caught.value).endswith("; the credentials need list and watch on it")


def test_retry_after_comes_with_the_error(server, connection):
    server.fail_next(1, 429, retry_after=7)
    with pytest.raises(KubeError) as caught:
        connection.get("/api/v1/events")
    assert (caught.value.status, caught.value.retry_after_s) == (429, 7.0)
    assert not caught.value.refused
    assert not caught.value.gone


def test_a_status_410_is_gone(server, connection):
    server.fail_next(1, 410)
    with pytest.raises(KubeError) as caught:
        connection.get("/api/v1/events")
    assert caught.value.gone


def test_a_path_of_no_resource_is_an_error_though_its_answer_is_no_status(connection):
    with pytest.raises(KubeError, match=r"404 404 page not found") as caught:
        connection.get("/apis/nope/v1/things")
    assert caught.value.status == 404


def test_a_server_that_is_not_there_is_a_short_error(server, connection):
    server.stop()
    with pytest.raises(KubeError) as caught:
        connection.get("/api/v1/events")
    assert str(caught.value).startswith(f"{server.url} did not answer: ")
    assert "\n" not in str(caught.value)
    assert caught.value.status == 0


def test_a_token_is_sent_and_not_kept_in_what_travels(tmp_path):
    with DemoServer(Store(), token="s3cr3t") as server:
        cluster = cluster_of(server, tmp_path)
        assert Connection(cluster).identity()
        settings = Settings((cluster,), StoreConfig(str(tmp_path / "out")))
        process = Process(settings)
        process.acquire().readers.connection("prod").identity()
        assert b"s3cr3t" not in pickle.dumps(process)
        assert b"s3cr3t" not in pickle.dumps(settings)


def test_paths_of_resources():
    assert EVENTS.path("") == "/api/v1/events"
    assert EVENTS.path("shop") == "/api/v1/namespaces/shop/events"
    assert Resource("apps/v1", "deployments").path("a/b") == "/apis/apps/v1/namespaces/a%2Fb/deployments"
    assert Resource("v1", "nodes", namespaced=False).path("shop") == "/api/v1/nodes"


# --- configuration ----------------------------------------------------------------------------


@pytest.fixture
def _nowhere(monkeypatch, tmp_path):
    """No cluster around, and no default kubeconfig."""
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))


@pytest.mark.usefixtures("_nowhere")
def test_without_any_configuration_the_error_says_what_was_tried():
    with pytest.raises(ConfigError) as caught:
        Connection(Cluster("prod"))
    message = str(caught.value)
    assert message.startswith("cluster 'prod': expected a usable kubeconfig; tried in-cluster (")
    assert "; the default kubeconfig (KUBECONFIG, ~/.kube/config) (" in message
    assert message.endswith("give --kubeconfig and --context")
    assert "\n" not in message


def kubeconfig(**changes) -> str:
    user = {"name": "u", "user": {"token": "t"}}
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}],
            "users": [user],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "c",
        }
        | changes
    )


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("{", id="no YAML"),
        pytest.param("", id="empty"),
        pytest.param("[1, 2]", id="a list"),
        pytest.param(kubeconfig(contexts=[]), id="no such context"),
        pytest.param(kubeconfig(**{"current-context": ""}), id="no current context"),
        pytest.param(kubeconfig(clusters=[]), id="no such cluster"),
    ],
)
def test_a_kubeconfig_that_is_no_good_is_one_line_that_names_it(tmp_path, text):
    path = tmp_path / "kubeconfig"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        Connection(Cluster("prod", str(path)))
    assert str(path) in str(caught.value)
    assert "in-cluster" not in str(caught.value)  # who names a file means that file
    assert "\n" not in str(caught.value)


def test_a_context_that_is_not_in_the_kubeconfig_is_named(tmp_path):
    path = tmp_path / "kubeconfig"
    path.write_text(kubeconfig())
    assert Connection(Cluster("prod", str(path))).server == "https://127.0.0.1:1"
    with pytest.raises(ConfigError, match="staging"):
        Connection(Cluster("prod", str(path), "staging"))


def test_in_a_cluster_its_service_account_is_used(monkeypatch, tmp_path):
    (tmp_path / "token").write_text("t")
    (tmp_path / "ca.crt").write_text("-")
    monkeypatch.setattr("kubernetes.config.incluster_config.SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr("kubernetes.config.incluster_config.SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    try:
        server = Connection(Cluster("prod")).server
    except OSError:  # the certificate above is none; what counts is that it was asked for
        server = "https://10.0.0.1:443"
    assert server == "https://10.0.0.1:443"
