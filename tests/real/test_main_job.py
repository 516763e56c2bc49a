"""The job on a real control plane: what it writes is what was created, once each, where and as it should be."""

import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.real.conftest import until
from tests.real.job import UNPRIVILEGED, Jobs
from tests.real.sink import (
    SEGMENT,
    History,
    LocalSink,
    S3Sink,
    Sink,
    assert_written,
    change_of,
    commits,
    enrichment_of,
    kind_of,
    read,
)
from tests.servers import manifests
from tests.servers.api import Api
from tests.servers.control_plane import ControlPlane
from tests.servers.manifests import Object
from tests.servers.process import free_port
from tests.servers.proxy import FaultHttpProxy, FaultProxy, Request
from tests.servers.s3 import S3Server

pytestmark = pytest.mark.real

READ_EVENTS = {"apiGroups": [""], "resources": ["events"], "verbs": ["list", "get", "watch"]}


def count_of(event: Object) -> int:
    """How often an Event says that it occurred."""
    return int((event.get("series") or {}).get("count") or event.get("count") or 1)


def created(api: Api, namespace: str) -> dict[str, int]:
    """The Events of a namespace as the API server has them: count by UID."""
    return {event["metadata"]["uid"]: count_of(event) for event in api.list("events", namespace)}


def create_events(api: Api, n: int, namespace: str, **content: Any) -> dict[str, int]:
    """Creates Events; returns their counts by UID."""
    return {uid: count for uid, (_, count) in api.create_events(n, namespace=namespace, **content).items()}


def create_event(api: Api, about: Object, name: str = "", **content: Any) -> str:
    """Creates an Event of the old style and returns its UID."""
    return uid_of(api.create(manifests.event(about, name, **content)))


def uid_of(obj: Object) -> str:
    """A stored object's UID."""
    return str(obj["metadata"]["uid"])


# What is there is written


def test_what_is_there_is_written_once_however_often_it_is_read(
    jobs: Jobs, sink: Sink, api: Api, namespace: str
) -> None:
    create_events(api, 250, namespace, pods=30)
    for pod in manifests.made_up_pods(10, namespace):
        api.create(manifests.event_v1(pod))
        api.create(manifests.event_v1(pod, series_count=7))
    counts = created(api, namespace)
    assert len(counts) == 270
    jobs.once(sink, batch_size=100)
    history = assert_written(sink, counts)
    assert [len(records) for records in history.segments.values()] == [100, 100, 70]
    assert all(record.count == count for record in history.events().values() if (count := counts[record.uid]))

    counts |= create_events(api, 20, namespace)
    jobs.once(sink)
    jobs.once(sink)
    again = assert_written(sink, counts)
    assert len(again.of_kind("EVENT")) == 290
    assert {path: len(records) for path, records in history.segments.items()}.items() <= {
        path: len(records) for path, records in again.segments.items()
    }.items()


def test_both_styles_of_events_come_out_right(jobs: Jobs, local: LocalSink, api: Api, namespace: str) -> None:
    (pod,) = manifests.made_up_pods(1, namespace)
    old = api.create(manifests.event(pod, count=3, host="node-7", message="said", time="2026-03-01T10:20:30Z"))
    new = api.create(manifests.event_v1(pod, note="noted", time="2026-03-01T11:20:30.123456Z"))
    repeated = api.create(manifests.event_v1(pod, series_count=9, time="2026-03-01T12:20:30.654321Z"))
    bare = api.create({**manifests.event(pod), "firstTimestamp": None, "lastTimestamp": None, "count": None})
    jobs.once(local)
    events = assert_written(local, {uid_of(old): 3, uid_of(new): 1, uid_of(repeated): 9, uid_of(bare): 1}).events()

    record = events[uid_of(old)]
    assert (record.reason, record.message, record.type, record.count) == ("BackOff", "said", "Warning", 3)
    assert (record.component, record.host, record.event_time_us) == ("kubelet", "node-7", 0)
    assert record.time_us == record.last_time_us == record.first_time_us == us("2026-03-01T10:20:30Z")
    assert record.resource_version == old["metadata"]["resourceVersion"]
    assert (record.namespace, record.name) == (namespace, old["metadata"]["name"])
    involved = record.involved
    assert (involved.kind, involved.namespace, involved.name) == ("Pod", namespace, "pod-0")
    assert (involved.uid, involved.api_version) == (pod["uid"], "v1")

    record = events[uid_of(new)]
    assert record.time_us == record.event_time_us == us("2026-03-01T11:20:30Z") + 123_456
    assert (record.first_time_us, record.last_time_us, record.count, record.message) == (0, 0, 1, "noted")
    assert (record.action, record.reporting_controller) == ("Binding", "default-scheduler")
    assert (record.reporting_instance, record.component) == ("default-scheduler-1", "default-scheduler")

    record = events[uid_of(repeated)]
    assert (record.count, record.occurrences) == (9, 9)
    assert record.time_us == record.last_time_us == us("2026-03-01T12:20:30Z") + 654_321

    record = events[uid_of(bare)]
    assert record.time_us == us(bare["metadata"]["creationTimestamp"])


def us(text: str) -> int:
    """Microseconds since 1970 of a time in UTC, in whole seconds."""
    from datetime import datetime

    return int(datetime.fromisoformat(text).timestamp()) * 1_000_000


def test_files_lie_where_their_records_times_are_in_utc(jobs: Jobs, sink: Sink, api: Api, namespace: str) -> None:
    (pod,) = manifests.made_up_pods(1, namespace)
    times = ["2025-12-31T23:59:59Z", "2026-01-01T00:00:00Z", "2026-01-01T00:59:59Z", "2026-02-28T14:30:00Z"]
    counts = {create_event(api, pod, time=time): 1 for time in times}
    jobs.once(sink, cluster="eu/west 1", environment={"TZ": "Asia/Kolkata"})
    history = read(sink)
    assert [path.rpartition("/")[0] for path in sorted(history.segments)] == [
        "cluster=eu%2Fwest%201/dt=2025-12-31/hour=23",
        "cluster=eu%2Fwest%201/dt=2026-01-01/hour=00",
        "cluster=eu%2Fwest%201/dt=2026-02-28/hour=14",
    ]
    assert {record.uid for record in history.records} == set(counts)
    assert {record.cluster for record in history.records} == {"eu/west 1"}
    others = {path.partition("/")[0] for path in sink.paths() if not SEGMENT.fullmatch(path)} - {"_check"}
    assert others == {"_schema", "_state"}


def test_no_file_has_more_records_than_a_batch(jobs: Jobs, local: LocalSink, api: Api, namespace: str) -> None:
    history = History(local)
    job = jobs.start(local, batch_size=40)
    counts = create_events(api, 500, namespace)
    history.wait_for_events(counts)
    job.stop()
    sizes = Counter(len(records) for records in assert_written(local, counts).segments.values())
    assert max(sizes) == 40
    assert len(sizes) <= 4, f"only the last file of an epoch is smaller: {sizes}"


# What happens is written


def test_what_happens_is_written_once_within_a_batch_interval_or_a_little_more(
    jobs: Jobs, sink: Sink, api: Api, namespace: str
) -> None:
    counts = create_events(api, 10, namespace)
    history = History(sink)
    job = jobs.start(sink, batch_interval=1)
    history.wait_for_events(counts)
    for _ in range(3):
        new = create_events(api, 100, namespace, rate=200)
        began = time.monotonic()
        history.wait_for_events(new)
        assert time.monotonic() - began < 1 + 15  # so long only where the machine is overloaded
        counts |= new
    job.stop()
    assert_written(sink, counts)


def test_counts_that_grow_add_up(jobs: Jobs, sink: Sink, api: Api, namespace: str) -> None:
    pods = manifests.made_up_pods(20, namespace)
    history = History(sink)
    job = jobs.start(sink)
    events = [api.create(manifests.event(pod)) for pod in pods]
    for count in range(2, 7):
        for event in events:
            api.patch_event_count(event, count)
        history.refresh()
    counts = {uid_of(event): 6 for event in events}
    history.wait_for_counts(counts)
    job.stop()
    records = assert_written(sink, counts).of_kind("EVENT")
    assert sum(record.occurrences for record in records) == 120
    assert all(record.occurrences > 0 for record in records)


def test_a_series_that_grows_adds_up(jobs: Jobs, local: LocalSink, api: Api, namespace: str) -> None:
    (pod,) = manifests.made_up_pods(1, namespace)
    history = History(local)
    job = jobs.start(local)
    event = api.create(manifests.event_v1(pod))
    history.wait_for_counts({uid_of(event): 1})
    for count in (2, 5):
        seen = {"count": count, "lastObservedTime": manifests.timestamp(micro=True)}
        api.patch(event, {"series": seen})
        history.wait_for_counts({uid_of(event): count})
    job.stop()
    records = assert_written(local, {uid_of(event): 5}).of_kind("EVENT")
    assert [record.occurrences for record in records] == [1, 1, 3]


def test_events_about_pods_that_are_gone_are_written_with_what_was_known(
    jobs: Jobs, local: LocalSink, api: Api, namespace: str
) -> None:
    pods = [api.create(manifests.pod(f"gone-{i}", namespace, labels={"app": f"app-{i}"})) for i in range(50)]
    history = History(local)
    job = jobs.start(local)
    first = create_event(api, pods[0])
    history.wait_for_events([first])
    assert enrichment_of(history.events()[first]) == "FRESH"
    api.delete_all("pods", namespace)
    seen = {create_event(api, pod): pod for pod in pods}
    never = {create_event(api, pod): pod for pod in manifests.made_up_pods(50, namespace)}
    history.wait_for_events({*seen, *never})
    job.stop()
    events = assert_written(local, dict.fromkeys((first, *seen, *never), 1)).events()
    assert Counter(enrichment_of(events[uid]) for uid in seen) == {"TOMBSTONE": 50}
    assert Counter(enrichment_of(events[uid]) for uid in never) == {"MISSING": 50}
    for uid, pod in seen.items():
        assert dict(events[uid].labels) == pod["metadata"]["labels"]
        assert events[uid].pod.ip == pod["status"]["podIP"]
    assert not any(events[uid].labels for uid in never)


# Filters


def test_only_the_namespaces_that_were_asked_for_are_read(
    jobs: Jobs, local: LocalSink, api: Api, namespace: str
) -> None:
    others = [f"{namespace}-{i}" for i in range(3)]
    for name in others:
        api.create(manifests.namespace(name))
    counts = {name: create_events(api, 5, name) for name in (namespace, *others)}
    jobs.once(local, namespaces=f"{namespace},{others[0]}")
    assert_written(local, counts[namespace] | counts[others[0]])


def test_excluded_namespaces_are_left_out_and_all_others_read(
    jobs: Jobs, local: LocalSink, control_plane: ControlPlane, api: Api, namespace: str
) -> None:
    other = f"{namespace}-left-out"
    api.create(manifests.namespace(other))
    kept, _ = create_events(api, 5, namespace), create_events(api, 5, other)
    history = History(local)
    job = jobs.start(local, namespaces=None, exclude_namespaces=f"{other},kube-system")
    history.wait_for_events(kept)
    create_events(api, 5, other)
    kept |= create_events(api, 5, namespace)
    history.wait_for_events(kept)
    job.stop()
    records = read(local).of_kind("EVENT")
    assert {record.uid for record in records if record.namespace == namespace} == set(kept)
    assert other not in {record.namespace for record in read(local).records}
    control_plane.forget_events(other)


def test_only_the_reasons_types_and_kinds_that_were_asked_for_are_written(
    jobs: Jobs, tmp_path: Path, api: Api, namespace: str
) -> None:
    (pod,) = manifests.made_up_pods(1, namespace)
    job_ = {**pod, "kind": "Job", "apiVersion": "batch/v1"}
    uids = {
        (reason, type_, about["kind"]): create_event(api, about, reason=reason, type_=type_)
        for reason in ("Failed", "Killing")
        for type_ in ("Normal", "Warning")
        for about in (pod, job_)
    }
    for name, value, place in (("reasons", "Failed,Other", 0), ("types", "Warning", 1), ("kinds", "Job", 2)):
        sink = LocalSink(tmp_path / name)
        jobs.once(sink, **{name: value})
        kept = {uid: 1 for key, uid in uids.items() if key[place] in value.split(",")}
        assert len(kept) == 4
        assert_written(sink, kept)


def test_parameters_may_come_from_a_file(jobs: Jobs, local: LocalSink, api: Api, namespace: str) -> None:
    counts = create_events(api, 30, namespace)
    file = local.root.parent / "config.yaml"
    file.write_text("batch_size: 7\nonce: true\nreasons: [BackOff, Other]\n")
    assert jobs.start(local, config=file).wait() == 0
    assert sorted(len(records) for records in assert_written(local, counts).segments.values()) == [2, 7, 7, 7, 7]


# Rights


def test_rights_in_one_namespace_are_enough_for_it(
    jobs: Jobs, local: LocalSink, control_plane: ControlPlane, api: Api, namespace: str
) -> None:
    control_plane.add_user(namespace, [READ_EVENTS], namespace=namespace)
    history = History(local)
    job = jobs.start(local, kubeconfig=control_plane.kubeconfig_for(namespace))
    counts = create_events(api, 10, namespace)
    history.wait_for_events(counts)
    counts |= create_events(api, 10, namespace)
    history.wait_for_events(counts)
    job.stop()
    records = assert_written(local, counts).of_kind("EVENT")
    assert {enrichment_of(record) for record in records} == {"MISSING"}


def test_one_forbidden_namespace_is_a_gap_beside_the_others(
    jobs: Jobs, local: LocalSink, control_plane: ControlPlane, api: Api, namespace: str
) -> None:
    control_plane.add_user(namespace, [READ_EVENTS], namespace=namespace)
    counts = create_events(api, 10, namespace)
    history = History(local)
    kubeconfig = control_plane.kubeconfig_for(namespace)
    job = jobs.start(local, kubeconfig=kubeconfig, namespaces=f"{namespace},kube-public")
    history.wait_for_events(counts)
    history.wait_for("a gap", lambda seen: any(record.gap.namespace == "kube-public" for record in seen.of_kind("GAP")))
    job.stop()
    gaps = [record.gap for record in assert_written(local, counts).of_kind("GAP") if record.gap.resource == "events"]
    assert {gap.namespace for gap in gaps} == {"kube-public"}
    assert "403" in gaps[0].why


# What is wrong is said in one line


def refused(jobs: Jobs, sink: Sink, code: int, *said: str, **options: Any) -> None:
    """The job ends with the code within seconds, and one line that has all of `said`."""
    job = jobs.start(sink, **options)
    assert job.wait(60) == code, job.stderr
    lines = job.stderr.splitlines()
    assert len(lines) == 1, job.stderr
    assert all(text in lines[0] for text in said), job.stderr


def test_a_token_without_rights_is_refused_in_one_line(
    jobs: Jobs, local: LocalSink, control_plane: ControlPlane
) -> None:
    refused(jobs, local, 1, "403", "list", kubeconfig=control_plane.kubeconfig_for("agent"))
    assert read(local).records == []


def test_a_token_that_nobody_knows_is_refused_in_one_line(
    jobs: Jobs, local: LocalSink, control_plane: ControlPlane, tmp_path: Path
) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(control_plane.kubeconfig.read_text().replace("admin-token", "stale-token"))
    refused(jobs, local, 1, "401", "credentials", kubeconfig=kubeconfig)


def test_a_cluster_that_is_not_there_is_an_error_in_one_line(
    jobs: Jobs, local: LocalSink, control_plane: ControlPlane
) -> None:
    nobody = f"https://127.0.0.1:{free_port()}"
    refused(jobs, local, 1, nobody, "refused", kubeconfig=control_plane.kubeconfig_for("admin", nobody))


def test_a_wrong_kubeconfig_or_context_is_an_error_in_one_line(jobs: Jobs, local: LocalSink, tmp_path: Path) -> None:
    refused(jobs, local, 2, "--kubeconfig", "none.yaml", kubeconfig=tmp_path / "none.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("clusters: [{{")
    refused(jobs, local, 1, "kubeconfig", str(broken), kubeconfig=broken)
    refused(jobs, local, 1, "nobodys", context="nobodys")


def test_without_any_kubeconfig_the_error_says_what_was_tried(jobs: Jobs, local: LocalSink, tmp_path: Path) -> None:
    environment = {"HOME": str(tmp_path), "KUBECONFIG": str(tmp_path / "none")}
    refused(jobs, local, 1, "in-cluster", "default kubeconfig", kubeconfig=None, environment=environment)


def test_a_wrong_s3_destination_is_an_error_in_one_line(jobs: Jobs, s3: S3Server, bucket: str) -> None:
    refused(jobs, S3Sink(s3, "no-such-bucket"), 1, "no-such-bucket", "NoSuchBucket")
    nobody = f"http://127.0.0.1:{free_port()}"
    refused(jobs, S3Sink(s3, bucket, endpoint=nobody), 1, nobody)
    forged = S3Sink(s3, bucket)
    forged.environment = {**forged.environment, "AWS_SECRET_ACCESS_KEY": "forged"}
    refused(jobs, forged, 1, bucket, "credentials")
    assert s3.keys(bucket) == []


def test_a_directory_that_cannot_be_written_is_an_error_in_one_line(jobs: Jobs, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(jobs, LocalSink(tmp_path / "file"), 1, "file")
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    refused(jobs, LocalSink(locked / "history"), 1, str(locked), "write", prefix=UNPRIVILEGED)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch_size": 0}, "--batch_size"),
        ({"batch_interval": "soon"}, "--batch_interval"),
        ({"batch_sise": 5}, "--batch_sise"),
        ({"delivery": "twice"}, "--delivery"),
        ({"runner": "SparkRunner"}, "SparkRunner"),
        ({"output": None}, "--output"),
        ({"output": "gs://bucket/prefix"}, "gs://"),
        ({"config": "/no/such/file.yaml"}, "/no/such/file.yaml"),
    ],
    ids=str,
)
def test_a_wrong_parameter_is_an_error_in_one_line(
    jobs: Jobs, local: LocalSink, options: dict[str, Any], said: str
) -> None:
    refused(jobs, local, 2, said, **options)


def test_parameters_that_exclude_each_other_are_an_error_in_one_line(jobs: Jobs, local: LocalSink) -> None:
    refused(jobs, local, 2, "--exclude_namespaces", exclude_namespaces="kube-system")
    refused(jobs, local, 2, "--demo", demo=True)


# Ends and new beginnings


def test_a_job_that_is_ended_and_started_again_loses_and_repeats_nothing(
    jobs: Jobs, sink: Sink, api: Api, namespace: str
) -> None:
    history, counts = History(sink), create_events(api, 100, namespace)
    for _ in range(2):
        job = jobs.start(sink)
        history.wait_for_events(counts)
        counts |= create_events(api, 50, namespace)
        job.stop()  # whether they were read is not known
        counts |= create_events(api, 50, namespace)
    jobs.once(sink)
    assert_written(sink, counts)


def test_counts_that_grew_while_no_job_ran_add_up(jobs: Jobs, local: LocalSink, api: Api, namespace: str) -> None:
    events = [api.create(manifests.event(pod)) for pod in manifests.made_up_pods(10, namespace)]
    jobs.once(local)
    for event in events:
        for count in (2, 4):
            api.patch_event_count(event, count)
    jobs.once(local)
    records = assert_written(local, {uid_of(event): 4 for event in events}).of_kind("EVENT")
    assert Counter(record.occurrences for record in records) == {1: 10, 3: 10}


def test_a_job_ends_by_itself_after_the_time_given(jobs: Jobs, local: LocalSink, api: Api, namespace: str) -> None:
    counts = create_events(api, 20, namespace)
    began = time.monotonic()
    job = jobs.start(local, run_for=2)
    assert job.wait() == 0, job.stderr
    assert time.monotonic() - began >= 2
    assert_written(local, counts)


# Watches that break


def test_compaction_in_the_middle_of_a_watch_loses_and_repeats_nothing(
    jobs: Jobs, sink: Sink, control_plane: ControlPlane, tcp: FaultProxy, api: Api, namespace: str
) -> None:
    history, counts = History(sink), create_events(api, 20, namespace)
    job = jobs.start(sink, kubeconfig=control_plane.kubeconfig_for("admin", tcp.url))
    history.wait_for_events(counts)
    control_plane.compact()  # under a watch that is open and stays so
    counts |= create_events(api, 20, namespace)
    history.wait_for_events(counts)
    tcp.refuse()
    tcp.cut()
    counts |= create_events(api, 20, namespace)
    control_plane.compact()  # the version that the job goes on from is gone when it is back
    counts |= create_events(api, 20, namespace)
    tcp.calm()
    history.wait_for_events(counts)
    counts |= create_events(api, 20, namespace)
    history.wait_for_events(counts)
    job.stop()
    assert read(sink).of_kind("GAP") == []
    assert_written(sink, counts)


def test_a_compaction_that_just_reaches_the_position_is_got_over(
    jobs: Jobs, local: LocalSink, control_plane: ControlPlane, tcp: FaultProxy, api: Api, namespace: str
) -> None:
    event = api.create(manifests.event(manifests.made_up_pods(1, namespace)[0]))
    history = History(local)
    job = jobs.start(local, kubeconfig=control_plane.kubeconfig_for("admin", tcp.url))
    for count in (2, 3):
        history.wait_for_counts({uid_of(event): count - 1})
        tcp.refuse()
        tcp.cut()
        # The next version is there, but what it changed is not: the API server ends the watch with an error that is no
        # 410, however often it is tried.
        api.patch_event_count(event, count)
        control_plane.compact()
        tcp.calm()
    history.wait_for_counts({uid_of(event): 3})
    job.stop()
    assert_written(local, {uid_of(event): 3})


def test_an_api_server_that_restarts_loses_and_repeats_nothing(
    jobs: Jobs, local: LocalSink, control_plane: ControlPlane, api: Api, namespace: str
) -> None:
    history, counts = History(local), create_events(api, 50, namespace)
    job = jobs.start(local)
    for _ in range(2):
        history.wait_for_events(counts)
        counts |= create_events(api, 50, namespace)  # whether they were read when the server ends is not known
        control_plane.kill_apiserver()
        control_plane.start_apiserver()
        counts |= create_events(api, 50, namespace)
    history.wait_for_events(counts)
    job.stop()
    assert_written(local, counts)


@pytest.mark.parametrize("reset", [False, True], ids=["end", "reset"])
def test_watches_that_are_cut_lose_and_repeat_nothing(
    jobs: Jobs, local: LocalSink, control_plane: ControlPlane, tcp: FaultProxy, api: Api, namespace: str, reset: bool
) -> None:
    history, counts = History(local), create_events(api, 20, namespace)
    job = jobs.start(local, kubeconfig=control_plane.kubeconfig_for("admin", tcp.url))
    history.wait_for_events(counts)
    for _ in range(3):
        counts |= create_events(api, 100, namespace)
        tcp.cut(reset)
        counts |= create_events(api, 100, namespace)
    history.wait_for_events(counts)
    job.stop()
    assert_written(local, counts)


def test_responses_that_break_off_lose_and_repeat_nothing(
    jobs: Jobs, local: LocalSink, control_plane: ControlPlane, http: FaultHttpProxy, api: Api, namespace: str
) -> None:
    counts = create_events(api, 100, namespace)
    http.inject("LIST events", times=2, truncate=5_000)
    http.inject("WATCH events", times=3, truncate=20_000)  # within a line, most likely
    history = History(local)
    job = jobs.start(local, kubeconfig=control_plane.kubeconfig_for("admin", http.url))
    until("the list", lambda: http.counts()["WATCH events"] > 0)
    counts |= create_events(api, 200, namespace)
    history.wait_for_events(counts)
    job.stop()
    assert http.counts()["WATCH events"] >= 4
    assert_written(local, counts)


def test_a_watch_that_stalls_is_given_up(
    jobs: Jobs, local: LocalSink, control_plane: ControlPlane, tcp: FaultProxy, api: Api, namespace: str
) -> None:
    history, counts = History(local), create_events(api, 20, namespace)
    job = jobs.start(local, kubeconfig=control_plane.kubeconfig_for("admin", tcp.url), resync_interval=5)
    history.wait_for_events(counts)
    tcp.stall()
    counts |= create_events(api, 20, namespace)
    job.wait_until_it_says("try 1")  # the silence was noticed
    tcp.stall(False)
    history.wait_for_events(counts)
    job.stop()
    assert_written(local, counts)


def test_servers_errors_are_waited_out(
    jobs: Jobs, local: LocalSink, control_plane: ControlPlane, http: FaultHttpProxy, api: Api, namespace: str
) -> None:
    counts = create_events(api, 20, namespace)
    history = History(local)
    job = jobs.start(local, kubeconfig=control_plane.kubeconfig_for("admin", http.url))
    history.wait_for_events(counts)
    http.inject("WATCH events", status=429, headers={"Retry-After": "1"})
    http.inject("WATCH events", times=2, status=500)
    http.cut()
    counts |= create_events(api, 20, namespace)
    history.wait_for_events(counts)
    job.stop()
    assert_written(local, counts)


def test_a_list_whose_token_expires_half_way_is_begun_again(
    jobs: Jobs, local: LocalSink, control_plane: ControlPlane, http: FaultHttpProxy, api: Api, namespace: str
) -> None:
    counts = create_events(api, 2_500, namespace)
    expired: list[str] = []

    def compact_before_the_last_page(request: Request) -> bool:
        following = request.kind == "LIST events" and "continue" in request.query
        if following and counting["pages"] == 1 and not expired:
            expired.append(create_event(api, manifests.made_up_pods(1, namespace)[0]))
            control_plane.compact()
        counting["pages"] += following
        return False

    counting = Counter[str]()
    http.inject(compact_before_the_last_page)
    history = History(local)
    job = jobs.start(local, kubeconfig=control_plane.kubeconfig_for("admin", http.url))
    history.wait_for_events(counts)
    history.wait_for_events(expired)
    job.stop()
    assert len(expired) == 1
    assert (
        sum(r.kind == "LIST events" and "continue" not in r.query and r.query["limit"] != "1" for r in http.requests)
        == 2
    )
    assert_written(local, counts | dict.fromkeys(expired, 1))


def test_a_resync_repeats_nothing(
    jobs: Jobs, local: LocalSink, control_plane: ControlPlane, http: FaultHttpProxy, api: Api, namespace: str
) -> None:
    events = [api.create(manifests.event(pod)) for pod in manifests.made_up_pods(10, namespace)]
    history, counts = History(local), dict.fromkeys(map(uid_of, events), 1)
    job = jobs.start(local, kubeconfig=control_plane.kubeconfig_for("admin", http.url), resync_interval=1)

    def lists() -> int:
        return http.counts()["LIST events"]

    for count in range(2, 5):
        history.wait_for_counts(counts)
        before = lists()
        until("one more list", lambda: lists() > before + 1)  # noqa: B023
        for event in events:
            api.patch_event_count(event, count)
        counts = {**dict.fromkeys(map(uid_of, events), count), **{u: 1 for u in counts if u not in map(uid_of, events)}}
        counts |= create_events(api, 10, namespace)
    history.wait_for_counts(counts)
    job.stop()
    assert_written(local, counts)


def test_a_quiet_watch_goes_on_from_its_bookmark(
    jobs: Jobs, local: LocalSink, control_plane: ControlPlane, http: FaultHttpProxy, api: Api, namespace: str
) -> None:
    http.shorten_watches(3)  # the API server sends a bookmark 2 s before a watch ends
    history = History(local)
    job = jobs.start(local, kubeconfig=control_plane.kubeconfig_for("admin", http.url))
    counts: dict[str, int] = {}

    def moved() -> bool:
        counts.update(create_events(api, 1, namespace, rate=5))  # the version moves on, no Service changes
        watched = [r.query["resourceVersion"] for r in list(http.requests) if r.kind == "WATCH services"]
        return len(set(watched)) >= 3

    until("watches of Services from newer versions", moved)
    history.wait_for_events(counts)
    job.stop()
    assert all(r.query["allowWatchBookmarks"] == "true" for r in http.requests if r.kind.startswith("WATCH"))
    assert http.counts()["LIST services"] <= 2  # the source's and the facts': no bookmark, and they list again
    assert_written(local, counts)


# What it costs the API server


def test_the_number_of_requests_does_not_grow_with_events_or_objects(
    jobs: Jobs, local: LocalSink, control_plane: ControlPlane, http: FaultHttpProxy, api: Api, namespace: str
) -> None:
    history = History(local)
    job = jobs.start(local, kubeconfig=control_plane.kubeconfig_for("admin", http.url))
    counts = create_events(api, 10, namespace, pods=10)
    history.wait_for_events(counts)
    before = http.counts()
    pods = [api.create(manifests.pod(f"pod-{i}", namespace)) for i in range(50)]
    counts |= create_events(api, 1_500, namespace, pods=[*pods, *manifests.made_up_pods(450, namespace)])
    history.wait_for_events(counts)
    more = http.counts() - before
    job.stop()
    assert sum(more.values()) <= 3, more  # a watch that ended in its time
    assert {kind for kind in http.counts() if kind.startswith("GET")} <= {"GET namespaces", "GET /apis/apps/v1"}
    assert_written(local, counts)


# What was true of the object


def test_an_event_about_a_pod_has_all_that_was_true_of_it(
    jobs: Jobs, local: LocalSink, api: Api, namespace: str
) -> None:
    node = api.create(manifests.node(f"node-{namespace}", ip="10.1.0.7"))
    node_name = node["metadata"]["name"]
    top = api.create(manifests.deployment("checkout", namespace))
    owner = api.create(manifests.replica_set("checkout-1", top))
    pod = api.create(
        manifests.pod(
            "checkout-1-a",
            namespace,
            node=node_name,
            ip="10.2.0.7",
            host_ip="10.1.0.7",
            labels={"app": "checkout", "tier": "web"},
            annotations={"example.test/team": "payments"},
            owner=owner,
        )
    )
    listed = api.create(manifests.service("checkout", namespace, {"app": "nobody"}))
    api.create(manifests.endpoint_slice(listed, [pod]))
    selecting = api.create(manifests.service("web", namespace, {"tier": "web"}))
    api.create(manifests.service("other", namespace, {"tier": "data"}))
    about = {
        name: create_event(api, obj)
        for name, obj in (("pod", pod), ("owner", owner), ("top", top), ("service", listed), ("node", node))
    }
    jobs.once(local, namespaces=f"{namespace},default")  # where events about nodes are
    events = read(local).events()
    assert set(about.values()) <= set(events)

    record = events[about["pod"]]
    assert enrichment_of(record) == "FRESH"
    assert dict(record.labels) == {"app": "checkout", "tier": "web"}
    assert dict(record.annotations) == {"example.test/team": "payments"}
    assert [(o.kind, o.name, o.uid) for o in record.owners] == [
        ("ReplicaSet", "checkout-1", uid_of(owner)),
        ("Deployment", "checkout", uid_of(top)),
    ]
    assert record.node == node_name
    assert [(a.type, a.address) for a in record.node_addresses] == [("InternalIP", "10.1.0.7"), ("Hostname", node_name)]
    assert (record.pod.uid, record.pod.name, record.pod.namespace) == (uid_of(pod), "checkout-1-a", namespace)
    assert (record.pod.ip, record.pod.host_ip, record.pod.phase) == ("10.2.0.7", "10.1.0.7", "Running")
    assert (record.pod.start_time_us, record.pod.node) == (us(pod["status"]["startTime"]), node_name)
    assert {(s.name, s.uid, s.how) for s in record.services} == {
        ("checkout", uid_of(listed), "endpointslice"),
        ("web", uid_of(selecting), "selector"),
    }
    assert abs(record.snapshot_time_us - record.observed_time_us) < 60_000_000

    assert {enrichment_of(events[uid]) for uid in about.values()} == {"FRESH"}
    assert [owner.name for owner in events[about["owner"]].owners] == ["checkout"]
    assert "checkout" in {service.name for service in events[about["top"]].services}
    assert "checkout" in {service.name for service in events[about["service"]].services}
    assert "checkout" in {service.name for service in events[about["node"]].services}
    assert events[about["node"]].node == node_name
    api.delete(node)


def test_a_custom_resource_is_found_by_discovery(jobs: Jobs, local: LocalSink, api: Api, namespace: str) -> None:
    api.define(manifests.crd())
    widget = api.create(manifests.custom("left", namespace, labels={"size": "small"}))
    history = History(local)
    job = jobs.start(local)
    counts = {create_event(api, widget): 1}
    history.wait_for_events(counts)
    right = api.create(manifests.custom("right", namespace, labels={"size": "large"}))
    counts[create_event(api, right)] = 1
    history.wait_for_events(counts)
    job.stop()
    events = assert_written(local, counts).events()
    assert {enrichment_of(event) for event in events.values()} == {"FRESH"}
    assert [dict(events[uid].labels) for uid in counts] == [{"size": "small"}, {"size": "large"}]


def test_what_becomes_of_services_is_written(jobs: Jobs, local: LocalSink, api: Api, namespace: str) -> None:
    there = api.create(manifests.service("there", namespace, {"app": "there"}))
    pod = api.create(manifests.pod("a", namespace, labels={"app": "new"}))
    history = History(local)

    def changes(name: str) -> list[str]:
        return [change_of(record) for record in history.refresh().of_kind("SERVICE_CHANGE") if record.name == name]

    job = jobs.start(local)
    until("the Service that is there", lambda: changes("there") == ["LISTED"])
    new = api.create(manifests.service("new", namespace, {"app": "new"}))
    until("the new Service", lambda: changes("new") == ["ADDED"])
    api.patch(new, {"spec": {"selector": {"app": "other"}}})
    until("its update", lambda: changes("new") == ["ADDED", "UPDATED"])
    api.delete(new)
    until("its end", lambda: changes("new") == ["ADDED", "UPDATED", "DELETED"])
    job.stop()
    jobs.once(local)
    records = [r for r in assert_written(local, {}).of_kind("SERVICE_CHANGE") if r.namespace == namespace]
    assert Counter(r.uid for r in records) == {uid_of(there): 1, uid_of(new): 3}
    added, updated, _ = sorted((r for r in records if r.name == "new"), key=lambda r: r.observed_time_us)
    assert [p.name for p in added.service_change.pods] == [pod["metadata"]["name"]]
    assert list(updated.service_change.changed) == ["selector"]
    assert dict(updated.service_change.before.selector) == {"app": "new"}
    assert dict(updated.service_change.after.selector) == {"app": "other"}


def test_records_are_of_known_kinds_and_commits_name_every_segment(
    jobs: Jobs, sink: Sink, api: Api, namespace: str
) -> None:
    api.create(manifests.service("there", namespace, {"app": "there"}))
    counts = create_events(api, 30, namespace)
    jobs.once(sink)
    history = assert_written(sink, counts)
    assert {kind_of(record) for record in history.records} == {"EVENT", "SERVICE_CHANGE"}
    named = {path: count for commit in commits(sink) for path, count, *_ in commit.get("segments", [])}
    assert named == {path: len(records) for path, records in history.segments.items()}


def test_two_clusters_may_share_an_output(jobs: Jobs, sink: Sink, api: Api, namespace: str) -> None:
    counts = create_events(api, 20, namespace)
    running = [jobs.start(sink, cluster=cluster) for cluster in ("one", "two")]
    done = threading.Event()
    history = History(sink)
    history.wait_for("both", lambda seen: Counter(r.cluster for r in seen.of_kind("EVENT")) == {"one": 20, "two": 20})
    done.set()
    for job in running:
        job.stop()
    assert Counter(record.uid for record in read(sink).of_kind("EVENT")) == dict.fromkeys(counts, 2)
