"""Whatever is killed, cut or refused: what was created is in the sink, once each, and `verify` finds the chain whole.

Repeatable as far as a test of real processes can be: every random choice comes from a seeded generator. SEED, KILLS and
RATE of the environment make it another test, or a longer one.
"""

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.real.conftest import until
from tests.real.job import UNPRIVILEGED, Job, Jobs, assert_verified
from tests.real.load import Load
from tests.real.sink import History, LocalSink, S3Sink, Sink, assert_written, read
from tests.servers import manifests
from tests.servers.api import Api
from tests.servers.control_plane import ControlPlane
from tests.servers.proxy import FaultHttpProxy, FaultProxy, Request
from tests.servers.s3 import S3Server

pytestmark = pytest.mark.real

SEED = os.environ.get("SEED", "1")
KILLS = int(os.environ.get("KILLS", "18"))  # at random instants, of each sink
RATE = float(os.environ.get("RATE", "150"))  # requests a second meanwhile
POINTS = 6  # writes of a run, at each of which it is killed


def drain(jobs: Jobs, sink: Sink, counts: dict[str, int], **options: Any) -> History:
    """Runs a job until all is written, ends it well, and finds what was created, once each, in a whole chain."""
    job = jobs.start(sink, **options)
    job.wait_until_it_says("the history of")
    History(sink).wait_for_counts(counts)
    job.stop()
    assert_verified(sink)
    return assert_written(sink, counts)


def written(job: Job, history: History, load: Load) -> None:
    """Returns when the job is at work and all that the load had created by then is written."""
    job.wait_until_it_says("the history of")
    history.wait_for_counts(dict(load.counts), timeout=90)


def create_events(api: Api, n: int, namespace: str) -> dict[str, int]:
    """Creates Events; returns their counts by UID."""
    return {uid: count for uid, (_, count) in api.create_events(n, namespace=namespace).items()}


# Kills


def test_kills_at_random_instants_lose_and_repeat_nothing(jobs: Jobs, sink: Sink, api: Api, namespace: str) -> None:
    random_ = random.Random(f"{SEED} kills {type(sink).__name__}")
    with Load(api, namespace, f"{SEED} kills", rate=RATE, hours=2) as load:
        for number in range(KILLS):
            files = len(sink.paths())
            job = jobs.start(sink, batch_interval=0.3, batch_size=40)
            if number % 3:  # shortly after it has written, when what it wrote is committed or not
                more = random_.randint(1, 6)
                job.wait_until("objects written", lambda at_least=files + more: len(sink.paths()) >= at_least)  # type: ignore[misc]
                time.sleep(random_.uniform(0, 0.05))
            else:
                time.sleep(random_.uniform(0.3, 3.0))
            job.kill()
    history = drain(jobs, sink, load.counts)
    assert len(history.of_kind("EVENT")) >= len(load.counts) > KILLS * 20


@pytest.mark.parametrize("executed", [False, True], ids=["before", "after"])
def test_a_kill_at_any_write_loses_and_repeats_nothing(
    jobs: Jobs, s3: S3Server, bucket: str, s3_proxy: FaultHttpProxy, api: Api, namespace: str, executed: bool
) -> None:
    sink = S3Sink(s3, bucket, endpoint=s3_proxy.url)
    with Load(api, namespace, f"{SEED} writes {executed}", rate=100, hours=2) as load:
        for point in range(1, POINTS + 1):
            left = point

            def is_the_one(request: Request) -> bool:
                nonlocal left
                left -= request.kind == "PUT object" and "_check" not in request.path
                return left == 0

            fault = s3_proxy.inject(is_the_one, delay=60, status=None if executed else 503)
            job = jobs.start(sink, batch_interval=0.3, batch_size=20)
            job.wait_until("the write", fault.reached.is_set)
            job.kill()
            s3_proxy.calm()
    drain(jobs, sink, load.counts)


def test_a_kill_between_two_segments_keeps_counts_right(
    jobs: Jobs, s3: S3Server, bucket: str, s3_proxy: FaultHttpProxy, api: Api, namespace: str
) -> None:
    sink, history = S3Sink(s3, bucket, endpoint=s3_proxy.url), History(S3Sink(s3, bucket))
    early, late = (f"2026-01-01T{hour}:00:00Z" for hour in ("08", "09"))
    pods = manifests.made_up_pods(20, namespace)
    counts = {api.create(manifests.event(pod))["metadata"]["uid"]: 1 for pod in pods[:1]}
    job = jobs.start(sink, batch_interval=5)
    history.wait_for_counts(counts)
    writes: list[str] = []

    def second(request: Request) -> bool:
        if request.method == "PUT" and request.path.endswith(".pb.gz"):
            writes.append(request.path)
        return len(writes) == 2

    fault = s3_proxy.inject(second, status=503, delay=60)
    for pod, times in zip(pods, [(early, late), (late, early)] * 10, strict=True):  # whichever hour is written first
        event = api.create(manifests.event(pod, time=times[0]))
        api.patch(event, {"count": 3, "lastTimestamp": times[1]})
        counts[event["metadata"]["uid"]] = 3
    job.wait_until("the second segment", fault.reached.is_set)
    job.kill()
    s3_proxy.calm()
    drain(jobs, sink, counts)


def test_kills_while_the_way_to_the_api_server_breaks_lose_and_repeat_nothing(
    jobs: Jobs, sink: Sink, control_plane: ControlPlane, tcp: FaultProxy, api: Api, namespace: str
) -> None:
    random_ = random.Random(f"{SEED} ways {type(sink).__name__}")

    def be_away_during_a_compaction() -> None:
        tcp.refuse()
        tcp.cut()
        control_plane.compact()

    faults: list[Callable[[], object]] = [
        tcp.cut,
        lambda: tcp.cut(reset=True),
        lambda: tcp.truncate_after(random_.randint(1, 100_000), connections=20),
        tcp.stall,
        be_away_during_a_compaction,
        control_plane.compact,
    ]
    history = History(sink)
    kubeconfig = control_plane.kubeconfig_for("admin", tcp.url)
    with Load(api, namespace, f"{SEED} ways", rate=80) as load:
        for fault in random_.sample(faults, len(faults)):
            job = jobs.start(sink, kubeconfig=kubeconfig, batch_interval=0.3)
            written(job, history, load)
            fault()
            time.sleep(random_.uniform(0, 1))
            tcp.calm()
            time.sleep(random_.uniform(0, 1))
            job.kill()
    drain(jobs, sink, load.counts, kubeconfig=kubeconfig)


def test_an_api_server_that_is_killed_with_the_job_loses_and_repeats_nothing(
    jobs: Jobs, sink: Sink, control_plane: ControlPlane, api: Api, namespace: str
) -> None:
    with Load(api, namespace, "servers", rate=80) as load:
        history, job = History(sink), jobs.start(sink, batch_interval=0.3)
        written(job, history, load)
        control_plane.kill_apiserver()
        job.kill()
        control_plane.start_apiserver()
        job = jobs.start(sink, batch_interval=0.3)
        written(job, history, load)
        control_plane.kill_apiserver()
        control_plane.start_apiserver()
        control_plane.compact()
        written(job, history, load)
        job.kill()
    drain(jobs, sink, load.counts)


def test_a_flaky_way_to_the_api_server_loses_and_repeats_nothing(
    jobs: Jobs, local: LocalSink, control_plane: ControlPlane, tcp: FaultProxy, api: Api, namespace: str
) -> None:
    history = History(local)
    with Load(api, namespace, "flaky", rate=150) as load:
        job = jobs.start(local, kubeconfig=control_plane.kubeconfig_for("admin", tcp.url), batch_interval=0.3)
        written(job, history, load)
        tcp.flaky(7, 2_000, 300_000)  # bytes until a connection ends
        tcp.cut()
        some = len(history.records)
        history.wait_for("500 events more", lambda seen: len(seen.records) > some + 500, timeout=120)
        tcp.calm()
    history.wait_for_counts(load.counts, timeout=120)
    job.stop()
    assert_verified(local)
    assert_written(local, load.counts)


# Ends


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=str)
def test_a_signal_ends_the_job_in_time_with_everything_committed(
    jobs: Jobs, sink: Sink, api: Api, namespace: str, number: int
) -> None:
    with Load(api, namespace, "signals", rate=150) as load:
        for _ in range(3):
            job = jobs.start(sink, batch_interval=1)
            written(job, History(sink), load)
            began = time.monotonic()
            job.signal(number)
            assert job.wait() == 0, job.stderr
            assert time.monotonic() - began < 1 + 5
            assert_verified(sink)
    drain(jobs, sink, load.counts)


def test_a_second_signal_ends_the_job_at_once_and_loses_nothing(
    jobs: Jobs, s3: S3Server, bucket: str, s3_proxy: FaultHttpProxy, api: Api, namespace: str
) -> None:
    sink, counts = S3Sink(s3, bucket, endpoint=s3_proxy.url), create_events(api, 50, namespace)
    for part in (".pb.gz", "/commits/"):  # while it writes the first segment, and the commit
        fault = s3_proxy.inject(lambda request, of=part: request.method == "PUT" and of in request.path, delay=60)  # type: ignore[misc]
        job = jobs.start(sink, batch_interval=30)
        job.wait_until("the write", fault.reached.is_set)
        job.signal(signal.SIGTERM)
        job.wait_until_it_says("once more ends at once")
        job.signal(signal.SIGTERM)
        began = time.monotonic()
        assert job.wait() == 128 + signal.SIGTERM, job.stderr
        assert time.monotonic() - began < 5
        s3_proxy.calm()
        counts |= create_events(api, 50, namespace)
    drain(jobs, sink, counts)


def test_a_signal_while_the_sink_is_down_ends_the_job_in_time(
    jobs: Jobs, s3: S3Server, bucket: str, api: Api, namespace: str
) -> None:
    sink, counts = S3Sink(s3, bucket), create_events(api, 50, namespace)
    job = jobs.start(sink, batch_interval=1)
    History(sink).wait_for_counts(counts)
    s3.stop()
    counts |= create_events(api, 50, namespace)
    job.wait_until_it_says("trying again")
    began = time.monotonic()
    job.signal(signal.SIGTERM)
    assert job.wait() == 1, "what was read is not written, so it has not ended well"
    assert time.monotonic() - began < 1 + 5 + 5
    assert "Traceback" not in job.stderr
    s3.start()
    drain(jobs, sink, counts)


# The sink


def test_an_s3_server_that_refuses_is_waited_for(
    jobs: Jobs, s3: S3Server, bucket: str, s3_proxy: FaultHttpProxy, api: Api, namespace: str
) -> None:
    sink = S3Sink(s3, bucket, endpoint=s3_proxy.url)
    random_ = random.Random(f"{SEED} refusals")
    history = History(sink)
    with Load(api, namespace, "refusals", rate=100) as load:
        job = jobs.start(sink, batch_interval=0.3, batch_size=50)
        written(job, history, load)

        def sometimes(request: Request) -> bool:
            return request.method == "PUT" and random_.random() < 0.3

        s3_proxy.inject(sometimes, times=2, status=503)
        s3_proxy.inject(sometimes, times=2, status=500)
        s3_proxy.inject(sometimes, times=2, status=429)
        s3_proxy.inject(sometimes, times=4, drop=True)  # it is done, and nobody says so
        s3_proxy.inject(sometimes, times=2, delay=1)
        spoilt = s3_proxy.inject(sometimes, times=2, status=403)
        until("all refusals used up", lambda: spoilt.times == 0)
        written(job, history, load)
        job.stop()
    assert "trying again" in job.stderr
    assert "works again" in job.stderr
    drain(jobs, sink, load.counts)


def test_an_s3_server_that_is_down_is_waited_for(
    jobs: Jobs, s3: S3Server, bucket: str, api: Api, namespace: str
) -> None:
    sink = S3Sink(s3, bucket)
    with Load(api, namespace, "down", rate=100) as load:
        job = jobs.start(sink, batch_interval=0.3)
        for end in (s3.stop, s3.kill):
            written(job, History(sink), load)
            end()
            said = job.stderr.count("trying again")
            job.wait_until("an error", lambda known=said: job.stderr.count("trying again") > known)  # type: ignore[misc]
            time.sleep(1)
            s3.start()
        written(job, History(sink), load)
        job.stop()
    drain(jobs, sink, load.counts)


def test_an_s3_server_that_is_down_at_a_kill_has_it_all_in_the_end(
    jobs: Jobs, s3: S3Server, bucket: str, api: Api, namespace: str
) -> None:
    sink = S3Sink(s3, bucket)
    with Load(api, namespace, "down and killed", rate=100) as load:
        job = jobs.start(sink, batch_interval=0.3)
        written(job, History(sink), load)
        s3.kill()
        job.wait_until_it_says("trying again")
        job.kill()
        assert jobs.start(sink).wait() == 1  # at a start it is said at once
        s3.start()
    drain(jobs, sink, load.counts)


def blocked(sink: LocalSink, job: Job, load: Load, unblock: Callable[[], object]) -> None:
    """A job that waits because its directory can't be written goes on when it can, and so does one that was killed."""
    job.wait_until_it_says("trying again")
    seen = len(read(sink).records)
    time.sleep(1)
    assert len(read(sink).records) == seen
    unblock()
    written(job, History(sink), load)
    assert "works again" in job.stderr


def test_files_that_cannot_grow_are_waited_for(jobs: Jobs, local: LocalSink, api: Api, namespace: str) -> None:
    with Load(api, namespace, "limit", rate=100) as load:
        job = jobs.start(local, batch_interval=0.3)
        written(job, History(local), load)
        job.limit_file_size(200)  # less than any segment: a write of it ends half way
        blocked(local, job, load, lambda: job.limit_file_size(-1))
        job.limit_file_size(200)
        job.wait_until("an error", lambda: job.stderr.count("trying again") > 1)
        job.kill()
    drain(jobs, local, load.counts)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB, where the tests may mount one."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(path)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("a small file system can't be mounted here: that takes root with CAP_SYS_ADMIN")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def test_a_full_disk_is_waited_for(jobs: Jobs, small_disk: Path, api: Api, namespace: str) -> None:
    sink = LocalSink(small_disk / "history")
    with Load(api, namespace, "disk", rate=100) as load:
        job = jobs.start(sink, batch_interval=0.3)
        written(job, History(sink), load)
        filler = small_disk / "filler"
        with filler.open("wb", buffering=0) as file:
            while True:
                try:
                    file.write(b"0" * 4096)
                except OSError:
                    break
        blocked(sink, job, load, filler.unlink)
        job.kill()
    drain(jobs, sink, load.counts)


def test_a_permission_that_is_taken_away_is_waited_for(jobs: Jobs, local: LocalSink, api: Api, namespace: str) -> None:
    def allow(mode: int) -> None:
        for path in [local.root, *local.root.rglob("*")]:
            if path.is_dir():
                path.chmod(mode)

    with Load(api, namespace, "permission", rate=100) as load:
        job = jobs.start(local, batch_interval=0.3, prefix=UNPRIVILEGED)
        written(job, History(local), load)
        allow(0o500)
        try:
            blocked(local, job, load, lambda: allow(0o700))
        finally:
            allow(0o700)
        job.stop()
    drain(jobs, local, load.counts)


# Two jobs, two clusters


def test_of_two_jobs_on_one_output_one_stops_and_nothing_is_twice(
    jobs: Jobs, sink: Sink, api: Api, namespace: str
) -> None:
    with Load(api, namespace, "two", rate=100) as load:
        first = jobs.start(sink)
        written(first, History(sink), load)
        second = jobs.start(sink)
        until("one to stop", lambda: not (first.alive() and second.alive()))
        loser, winner = (second, first) if first.alive() else (first, second)
        assert loser.wait() == 1
        assert "only job" in loser.stderr
        assert "Traceback" not in loser.stderr
        written(winner, History(sink), load)
        winner.stop()
    drain(jobs, sink, load.counts)


def test_two_jobs_that_start_at_once_write_nothing_twice(jobs: Jobs, sink: Sink, api: Api, namespace: str) -> None:
    counts = create_events(api, 200, namespace)
    running = [jobs.start(sink, batch_size=20) for _ in range(2)]
    until("one to stop", lambda: not all(job.alive() for job in running), timeout=30)
    for job in running:
        if job.alive():
            History(sink).wait_for_counts(counts)
            job.stop()
        else:
            assert job.wait() == 1, job.stderr
    drain(jobs, sink, counts)


@pytest.mark.parametrize("compacted", [False, True], ids=["remembered", "compacted"])
def test_an_outage_longer_than_the_event_ttl_is_a_gap_unless_etcd_remembers(tmp_path: Path, compacted: bool) -> None:
    sink, ttl = LocalSink(tmp_path / "history"), 3
    with ControlPlane(event_ttl=f"{ttl}s") as control_plane:
        jobs, api = Jobs(kubeconfig=control_plane.kubeconfig, namespaces="default", event_ttl=ttl), control_plane.api
        try:
            counts = create_events(api, 20, "default")
            job = jobs.start(sink)
            History(sink).wait_for_counts(counts)
            job.stop()
            assert_verified(sink)
            assert read(sink).of_kind("GAP") == []
            expired = create_events(api, 20, "default")
            at_us = time.time_ns() // 1000
            until("the Events to expire", lambda: not api.list("events", "default"), timeout=120)
            if compacted:
                control_plane.compact()  # as happens every 5 minutes
                job = jobs.start(sink)
                History(sink).wait_for("a gap", lambda seen: bool(seen.of_kind("GAP")))
            else:  # their beginning and their end are in etcd's history, and a watch tells of it
                counts |= expired
                job = jobs.start(sink)
                History(sink).wait_for_counts(counts)
            new = create_events(api, 20, "default")
            History(sink).wait_for_counts(new)
            job.stop()
        finally:
            jobs.close()
    history = assert_written(sink, counts | new)
    gaps = [record.gap for record in history.of_kind("GAP") if record.gap.resource == "events"]
    assert len(gaps) == compacted
    for gap in gaps:
        assert gap.from_us <= at_us <= gap.to_us
        assert "TTL" in gap.why
        assert gap.why in assert_verified(sink)


def test_a_cluster_with_the_name_of_another_begins_anew(
    jobs: Jobs, sink: Sink, control_plane: ControlPlane, api: Api, namespace: str
) -> None:
    counts = create_events(api, 100, namespace)
    history, job = History(sink), jobs.start(sink)
    history.wait_for_counts(counts)
    job.stop()
    with ControlPlane() as other:
        other.api.create(manifests.namespace(namespace))
        counts |= create_events(other.api, 100, namespace)
        for _ in range(2):
            job = jobs.start(sink, kubeconfig=other.kubeconfig)
            history.wait_for_counts(counts)
            job.stop()
            counts |= create_events(other.api, 50, namespace)
        drain(jobs, sink, counts, kubeconfig=other.kubeconfig)
    assert_written(sink, counts)


def test_a_commit_that_is_damaged_is_passed_over_and_repeats_nothing(
    jobs: Jobs, local: LocalSink, api: Api, namespace: str
) -> None:
    counts = create_events(api, 60, namespace)
    jobs.once(local, batch_size=25)
    jobs.once(local)
    newest = sorted((local.root / "_state").rglob("*.json.gz"))[-1]
    newest.write_bytes(newest.read_bytes()[:20])
    counts |= create_events(api, 20, namespace)
    jobs.once(local)
    assert_written(local, counts)


def test_a_sink_without_its_state_is_read_before_it_is_written_to(
    jobs: Jobs, local: LocalSink, api: Api, namespace: str
) -> None:
    counts = create_events(api, 60, namespace)
    jobs.once(local, batch_size=25)
    shutil.rmtree(local.root / "_state")
    counts |= create_events(api, 20, namespace)
    jobs.once(local)
    assert_written(local, counts)
