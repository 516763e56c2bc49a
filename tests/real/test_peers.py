"""The scenarios in which tools of this kind lose and repeat events, or slow down: none happens here.

Bounds on time and memory are far from what is measured on a quiet machine (`record_property` has that), so that a busy
one does not fail them; the faults that they are to find are ten times as large.
"""

import re
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.real.conftest import until
from tests.real.job import Job, Jobs, assert_verified
from tests.real.sink import History, LocalSink, assert_written, enrichment_of
from tests.servers import manifests
from tests.servers.api import Api
from tests.servers.control_plane import ControlPlane
from tests.servers.proxy import FaultHttpProxy

pytestmark = pytest.mark.real

Property = Callable[[str, object], None]


def create_events(api: Api, n: int, namespace: str, **content: Any) -> dict[str, int]:
    """Creates Events; returns their counts by UID."""
    return {uid: count for uid, (_, count) in api.create_events(n, namespace=namespace, **content).items()}


def peak_memory_mb(job: Job) -> float:
    """The most memory that a running job has had."""
    status = Path(f"/proc/{job.pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None, status
    return int(found[1]) / 1000


@pytest.mark.parametrize(("events", "pods"), [(5_000, 100), (20_000, 1_000)])
def test_a_storm_is_written_once_as_fast_as_it_comes_however_many_pods_it_is_about(
    jobs: Jobs,
    local: LocalSink,
    control_plane: ControlPlane,
    http: FaultHttpProxy,
    api: Api,
    namespace: str,
    record_property: Property,
    events: int,
    pods: int,
) -> None:
    history = History(local)
    job = jobs.start(local, kubeconfig=control_plane.kubeconfig_for("admin", http.url), batch_interval=2)
    counts = create_events(api, 1, namespace)
    history.wait_for_events(counts)
    before = http.counts()
    counts |= create_events(api, events, namespace, pods=pods)
    began = time.monotonic()
    history.wait_for_events(counts, timeout=120)
    behind, memory = time.monotonic() - began, peak_memory_mb(job)
    requests = sum((http.counts() - before).values())
    job.stop()
    assert_written(local, counts)
    assert_verified(local)
    for name, value in (("seconds behind", behind), ("peak memory in MB", memory), ("requests", requests)):
        record_property(name, round(value, 1))
        print(f"{name}: {value:.1f}")
    assert behind < 2 + 20
    assert memory < 400
    assert requests < 50  # watches that ended in their time; one GET an object would be one a pod


def test_a_restart_loses_and_repeats_nothing(jobs: Jobs, local: LocalSink, api: Api, namespace: str) -> None:
    counts, history = create_events(api, 1_000, namespace), History(local)
    job = jobs.start(local)
    history.wait_for_events(counts)
    job.stop()
    counts |= create_events(api, 100, namespace)
    job = jobs.start(local)
    history.wait_for_events(counts)
    counts |= create_events(api, 100, namespace)
    history.wait_for_events(counts)
    job.stop()
    assert len(assert_written(local, counts).of_kind("EVENT")) == 1_200
    assert_verified(local)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_an_end_in_the_middle_of_a_storm_loses_and_repeats_nothing(
    jobs: Jobs, local: LocalSink, api: Api, namespace: str, number: signal.Signals
) -> None:
    from concurrent.futures import ThreadPoolExecutor

    history, stored = History(local), dict[str, tuple[str, int]]()
    with ThreadPoolExecutor() as pool:
        creating = pool.submit(api.create_events, 3_000, namespace=namespace, rate=500, into=stored)
        job = jobs.start(local)
        history.wait_for("some of them", lambda seen: len(seen.records) > 500)
        job.signal(number)
        assert job.wait() == (0 if number == signal.SIGTERM else -signal.SIGKILL)
        until("some more", lambda: len(stored) > 2_500 or creating.done())
        job = jobs.start(local)
        history.wait_for_events(creating.result())
    job.stop()
    assert len(assert_written(local, dict.fromkeys(stored, 1)).of_kind("EVENT")) == 3_000
    assert_verified(local)


def test_events_about_pods_that_are_gone_are_all_written(
    jobs: Jobs, local: LocalSink, api: Api, namespace: str
) -> None:
    pods = [api.create(manifests.pod(f"short-lived-{i}", namespace)) for i in range(100)]
    api.delete_all("pods", namespace)
    counts = create_events(api, 100, namespace, pods=pods)
    jobs.once(local)
    records = assert_written(local, counts).of_kind("EVENT")
    assert Counter(map(enrichment_of, records)) == {"MISSING": 100}
    assert {record.involved.uid for record in records} == {pod["metadata"]["uid"] for pod in pods}


def test_every_repeat_is_counted(jobs: Jobs, local: LocalSink, api: Api, namespace: str) -> None:
    events = [api.create(manifests.event(pod)) for pod in manifests.made_up_pods(20, namespace)]
    counts, history = {event["metadata"]["uid"]: 6 for event in events}, History(local)
    job = jobs.start(local)
    for count in range(2, 7):
        for event in events:
            api.patch_event_count(event, count)
    history.wait_for_counts(counts)
    job.stop()
    records = assert_written(local, counts).of_kind("EVENT")
    assert sum(record.occurrences for record in records) == 120
    assert_verified(local)


def test_a_first_list_of_many_live_events_is_fast_and_takes_no_more_memory(
    jobs: Jobs, local: LocalSink, tmp_path: Path, api: Api, namespace: str, record_property: Property
) -> None:
    def first_list(sink: LocalSink, counts: dict[str, int]) -> tuple[float, float]:
        began = time.monotonic()
        job = jobs.start(sink)
        History(sink).wait_for_events(counts, timeout=120)
        seconds, memory = time.monotonic() - began, peak_memory_mb(job)
        job.stop()
        assert_written(sink, counts)
        return seconds, memory

    counts = create_events(api, 100, namespace)
    seconds_100, memory_100 = first_list(local, counts)
    counts |= create_events(api, 19_900, namespace, pods=1_000)
    seconds, memory = first_list(LocalSink(tmp_path / "again"), counts)
    measured = {"seconds for 19,900 more": seconds - seconds_100, "MB for 19,900 more": memory - memory_100}
    for name, value in measured.items():
        record_property(name, round(value, 1))
        print(f"{name}: {value:.1f}")
    assert seconds < 30
    assert memory - memory_100 < 150
