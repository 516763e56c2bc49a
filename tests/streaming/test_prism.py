"""The streaming graph on a real portable runner through Beam's Job API, with EXTERNAL workers, on a real control plane.

The runner is Prism, well below saturation. Its known faults are kept out of what is asserted: it gives no side input of
a window whose end the main watermark has not passed (the worker's own facts stand in), and it loses batches when it is
saturated.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
import yaml
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.portable_runner import PortableRunner
from apache_beam.transforms.window import FixedWindows

from pipeline.graph import build
from pipeline.options import config_of, parse
from runners import portable, prism
from tests.real.sink import SEGMENT, LocalSink
from tests.servers import manifests
from tests.servers.api import Api
from tests.servers.control_plane import ControlPlane
from tests.servers.process import free_port
from transforms import coders
from transforms.carried import Process
from transforms.elements import Elements
from transforms.read import read_segment
from transforms.store import open_store
from transforms.types import Target
from transforms.watch import WatchResources

pytestmark = pytest.mark.real

INTERVAL_S = 2.0
RATE = 500.0
SECONDS = 60
SLACK_S = 20.0  # what a busy machine may add before a test fails


@pytest.fixture(scope="module")
def endpoints(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """A running Prism and worker pool: the addresses of the Job API and of the pool."""
    logs = tmp_path_factory.mktemp("logs")
    with prism.prism(prism.find(), logs / "prism.log") as jobs, prism.worker_pool(logs / "pool.log") as pool:
        yield jobs, pool


@pytest.fixture
def submit(endpoints: tuple[str, str]) -> Iterator[Callable[[Callable[[beam.Pipeline], Any]], Any]]:
    """Submits the graph that a function wires, as a streaming job; the jobs are cancelled when the test ends."""
    jobs, pool = endpoints
    flags = ["--streaming", f"--job_endpoint={jobs}", "--environment_type=EXTERNAL", f"--environment_config={pool}"]
    with contextlib.ExitStack() as stack:

        def submitted(wire: Callable[[beam.Pipeline], Any]) -> Any:
            pipeline = beam.Pipeline(
                runner=PortableRunner(),
                options=PipelineOptions([*flags, "--experiments=disable_logging_submission_environment"]),
            )
            wire(pipeline)
            result = pipeline.run()
            stack.callback(cancelled, result)
            return result

        yield submitted


@pytest.fixture
def sink(tmp_path: Path) -> LocalSink:
    return LocalSink(tmp_path / "history")


def cancelled(result: Any, timeout: float = 30.0) -> str:
    """Cancels a job, and returns the state that it ended in."""
    if result.state == "CANCELLED":
        return "CANCELLED"
    result.cancel()
    wait_until(lambda: beam.runners.runner.PipelineState.is_terminal(result.state), "the job has ended", timeout)
    return str(result.state)


def history_job(kubeconfig: Path, sink: LocalSink, *more: str) -> Callable[[beam.Pipeline], Any]:
    """Wires the streaming graph, as `python -m pipeline` with these parameters does."""
    argv = [f"--kubeconfig={kubeconfig}", f"--output={sink.output}", f"--batch_interval={INTERVAL_S}", *more]
    config = config_of(parse([*argv, "--snapshot_interval=10"]))
    return lambda p: build(p, config, Process(config.settings), portable.targets_of(config), streaming=True)


def wait_until(holds: Callable[[], bool], what: str, timeout: float) -> float:
    """Returns after how many seconds it held; fails when it has not within `timeout`."""
    begun = time.monotonic()
    while not holds():
        assert time.monotonic() - begun < timeout, f"not within {timeout:.0f} s: {what}"
        time.sleep(0.1)
    return time.monotonic() - begun


class Reading:
    """What is in a sink so far: each segment is read once."""

    def __init__(self, sink: LocalSink, cluster: str = "") -> None:
        self._sink, self._cluster, self._read = sink, cluster, set[str]()
        self.times: Counter[str] = Counter()  # how often a UID was written
        self.enrichments: Counter[int] = Counter()
        self.written_at: dict[str, float] = {}  # an Event's name → when its file was there

    def has(self, *uids: str) -> bool:
        if not self._sink.root.exists():
            return not uids
        store = open_store(self._sink.output)
        for path in self._sink.paths():
            match = SEGMENT.fullmatch(path)
            if match and match[1] == (self._cluster or match[1]) and path not in self._read:
                self._read.add(path)
                at = (self._sink.root / path).stat().st_mtime
                for record in read_segment(store, path):
                    self.times[record.uid] += 1
                    self.enrichments[record.enrichment] += 1
                    self.written_at[record.name] = at
        return all(uid in self.times for uid in uids)


def create(api: Api, namespace: str, name: str) -> str:
    """An Event's UID."""
    (pod,) = manifests.made_up_pods(1, namespace)
    return str(api.create(manifests.event(pod, name, namespace=namespace))["metadata"]["uid"])


def descendants(pid: int) -> dict[int, str]:
    """The processes that a process has started, directly or not, with their command lines."""
    found: dict[int, str] = {}
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, task.read_text().split()):
                command = Path(f"/proc/{child}/cmdline").read_text().replace("\0", " ")
                found |= {child: command} | descendants(child)
    return found


def workers() -> dict[int, str]:
    """The SDK workers that the pool has started for jobs."""
    return {pid: command for pid, command in descendants(os.getpid()).items() if "sdk_worker" in command}


def cpu_s(pid: int) -> float:
    """The processor time that a process has used, in seconds; 0 when it is gone."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


# --- the load ---------------------------------------------------------------------------------


def test_500_events_a_second_for_a_minute_are_all_written_once_and_soon(control_plane, namespace, submit, sink, capsys):
    pods = [control_plane.api.create(manifests.pod(f"pod-{i}", namespace)) for i in range(100)]
    result = submit(history_job(control_plane.kubeconfig, sink, "--cluster=load", f"--namespaces={namespace}"))
    reading = Reading(sink)
    first = create(control_plane.api, namespace, "first")
    wait_until(lambda: reading.has(first), "the job runs", 60)

    n = int(RATE * SECONDS)
    used, begun = {pid: cpu_s(pid) for pid in workers()}, time.time()
    made = control_plane.api.create_events(n, namespace=namespace, pods=pods, rate=RATE)
    created_s = time.time() - begun
    wait_until(lambda: reading.has(*made), "all Events are written", SLACK_S)
    used_s = sum(cpu_s(pid) - before for pid, before in used.items())

    assert len(made) == n
    assert not [uid for uid in made if reading.times[uid] != 1]
    # An Event's name ends in its number, by which it was due; that it was created later counts as ours.
    latencies = sorted(
        at - begun - int(name[-8:], 16) / RATE for name, at in reading.written_at.items() if name.startswith("pod-")
    )
    p50, p95 = statistics.median(latencies), latencies[int(0.95 * n)]
    segments = sum(bool(SEGMENT.fullmatch(path)) for path in sink.paths())
    with capsys.disabled():
        print(
            f"\nPrism: {n} Events in {created_s:.1f} s, file after p50 {p50:.2f} s, p95 {p95:.2f} s, most"
            f" {latencies[-1]:.2f} s; worker {1e6 * used_s / n:.0f} µs of processor time an Event; {segments} segments;"
            f" enriched {dict(reading.enrichments)}"
        )
    assert created_s < 1.5 * SECONDS, "the API server did not take the load"
    assert p50 < INTERVAL_S + 60  # measured above; what a busy machine does to it is no fault
    assert cancelled(result) == "CANCELLED"


# --- a quiet cluster --------------------------------------------------------------------------


def test_one_event_and_then_nothing_is_in_a_file_within_the_batch_interval(control_plane, namespace, submit, sink):
    submit(history_job(control_plane.kubeconfig, sink, "--cluster=quiet", f"--namespaces={namespace}"))
    reading = Reading(sink)
    first = create(control_plane.api, namespace, "first")
    wait_until(lambda: reading.has(first), "the job runs", 60)
    time.sleep(2 * INTERVAL_S)
    lonely = create(control_plane.api, namespace, "lonely")
    took = wait_until(lambda: reading.has(lonely), "the Event is written", 60)
    assert took < INTERVAL_S + SLACK_S
    assert set(reading.times.values()) == {1}


class _MarkFn(beam.DoFn):
    def __init__(self, directory: str) -> None:
        self._directory = directory

    def process(self, element: tuple[str, Any]) -> None:
        (Path(self._directory) / "closed").touch()


def test_the_watermark_advances_while_nothing_happens(control_plane, namespace, submit, tmp_path):
    """A GroupByKey has no timer: the window of one Event closes only when the watermark has passed its end."""
    config = config_of(parse([f"--kubeconfig={control_plane.kubeconfig}", f"--output={tmp_path}", "--cluster=quiet"]))

    def wire(p: beam.Pipeline) -> None:
        coders.register()
        targets = p | "Targets" >> Elements([Target("quiet", "events", namespace)], Target)
        changes = (targets | "WatchResources" >> WatchResources(Process(config.settings), bounded=False)).changes
        grouped = changes | "Window" >> beam.WindowInto(FixedWindows(INTERVAL_S)) | "Group" >> beam.GroupByKey()
        _ = grouped | "Mark" >> beam.ParDo(_MarkFn(str(tmp_path)))

    create(control_plane.api, namespace, "lonely")
    submit(wire)
    wait_until((tmp_path / "closed").exists, "the window of the one Event has closed", 60)


# --- many clusters ----------------------------------------------------------------------------


def with_a_cluster_that_is_down(control_plane: ControlPlane, path: Path) -> Path:
    """The control plane's kubeconfig with one more context, `down`, where nobody listens."""
    content = yaml.safe_load(control_plane.kubeconfig.read_text())
    content["clusters"].append({"name": "down", "cluster": {"server": f"https://127.0.0.1:{free_port()}"}})
    content["contexts"].append({"name": "down", "context": {"cluster": "down", "user": "admin"}})
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_cluster_that_is_down_holds_no_other_back(control_plane, namespace, submit, sink, tmp_path):
    kubeconfig = with_a_cluster_that_is_down(control_plane, tmp_path / "kubeconfig")
    submit(
        history_job(kubeconfig, sink, "--cluster=down=down", "--cluster=up=admin", f"--namespaces={namespace}"),
    )
    reading = Reading(sink, "up")
    first = create(control_plane.api, namespace, "first")
    wait_until(lambda: reading.has(first), "the first Event of the other cluster is written", 60)
    for number in range(5):
        uid = create(control_plane.api, namespace, f"event-{number}")
        took = wait_until(lambda uid=uid: reading.has(uid), "the Event of the other cluster is written", 60)
        assert took < INTERVAL_S + SLACK_S
    assert set(reading.times.values()) == {1}


# --- the end ----------------------------------------------------------------------------------


def test_cancel_ends_the_job_and_its_workers(control_plane, namespace, submit, sink):
    before = workers()
    result = submit(history_job(control_plane.kubeconfig, sink, "--cluster=ends", f"--namespaces={namespace}"))
    reading = Reading(sink)
    uid = create(control_plane.api, namespace, "before")
    wait_until(lambda: reading.has(uid), "the Event is written", 60)
    assert set(workers()) - set(before)
    assert cancelled(result) == "CANCELLED"
    wait_until(lambda: not set(workers()) - set(before), "the job's workers have ended", 30)
    files = sink.paths()
    create(control_plane.api, namespace, "after")
    time.sleep(2 * INTERVAL_S)
    assert sink.paths() == files


def test_nothing_is_left_running_when_prism_and_the_pool_are_stopped(control_plane, namespace, sink, tmp_path):
    with prism.prism(prism.find()) as jobs, prism.worker_pool() as pool:
        options = PipelineOptions(
            ["--streaming", f"--job_endpoint={jobs}", "--environment_type=EXTERNAL", f"--environment_config={pool}"]
        )
        pipeline = beam.Pipeline(runner=PortableRunner(), options=options)
        history_job(control_plane.kubeconfig, sink, "--cluster=ends", f"--namespaces={namespace}")(pipeline)
        pipeline.run()
        ours = f"--service_port={pool.rpartition(':')[2]}"
        started = descendants(os.getpid())
        (pool_pid,) = [pid for pid, command in started.items() if ours in command]
        wait_until(lambda: any("sdk_worker" in c for c in descendants(pool_pid).values()), "a worker runs", 60)
        running = descendants(pool_pid)
    wait_until(lambda: not [pid for pid in (pool_pid, *running) if Path(f"/proc/{pid}").exists()], "all ended", 10)
