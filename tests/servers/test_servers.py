"""The test servers do what the other tests take for granted."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import urllib3
from botocore.exceptions import ClientError, ConnectionClosedError, EndpointConnectionError
from kubernetes import client, config

from tests.servers import build, manifests
from tests.servers.api import Api, ApiError
from tests.servers.control_plane import ControlPlane
from tests.servers.proxy import FaultHttpProxy, FaultProxy, kube_request, s3_request
from tests.servers.s3 import S3Server

BROKEN = (urllib3.exceptions.HTTPError, ConnectionError)
LIST_EVENTS = {"apiGroups": [""], "resources": ["events"], "verbs": ["list"]}


@pytest.fixture
def api(control_plane: ControlPlane, namespace: str) -> Api:
    return control_plane.api


@pytest.fixture
def tcp(control_plane: ControlPlane, namespace: str) -> Iterator[FaultProxy]:
    with FaultProxy(control_plane.url, control_plane.ca) as proxy:
        yield proxy


@pytest.fixture
def http(control_plane: ControlPlane, namespace: str) -> Iterator[FaultHttpProxy]:
    with FaultHttpProxy(control_plane.url, control_plane.ca) as proxy:
        yield proxy


@pytest.fixture
def s3_proxy(s3: S3Server, bucket: str) -> Iterator[FaultHttpProxy]:
    with FaultHttpProxy(s3.endpoint, classify=s3_request) as proxy:
        yield proxy


def through(proxy: FaultProxy, control_plane: ControlPlane) -> Api:
    """An admin's client behind the proxy."""
    return Api(proxy.url, control_plane.token())


# The builds


def test_without_go_the_error_is_one_line_that_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    assert build.main() == 1
    error = capsys.readouterr().err
    assert error.startswith("error: expected Go on PATH to build etcd; there is none; install Go 1.")
    assert error.count("\n") == 1


def test_ready_made_binaries_come_from_kubebuilder_assets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path))
    (tmp_path / "etcd").touch()
    assert build.binary("etcd") == tmp_path / "etcd"
    with pytest.raises(build.BuildError, match="expected kube-apiserver in KUBEBUILDER_ASSETS"):
        build.binary("kube-apiserver")


# The processes


def test_a_server_dies_with_the_tests_that_started_it(tmp_path: Path) -> None:
    program = f"""
import os, pathlib, signal
from tests.servers.process import Process
process = Process(["sleep", "60"], pathlib.Path({str(tmp_path / "log")!r}))
process.wait_until(lambda: pathlib.Path(f"/proc/{{process.pid}}/comm").read_text() == "sleep\\n")
print(process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    pid = int(subprocess.run([sys.executable, "-c", program], capture_output=True, check=False).stdout)
    deadline = time.monotonic() + 5
    while _runs(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _runs(pid: int) -> bool:
    # One that ended and that nobody has waited for is a zombie (Z).
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


# The control plane


@pytest.mark.real
def test_the_api_server_is_the_pinned_version(api: Api) -> None:
    assert (
        f"require k8s.io/kubernetes {api.request('GET', '/version')['gitVersion']}\n"
        in (Path(build.__file__).parent / "go" / "kube" / "go.mod").read_text()
    )


@pytest.mark.real
def test_an_events_watch_from_before_a_compaction_is_gone(
    control_plane: ControlPlane, api: Api, namespace: str
) -> None:
    before = str(control_plane.revision())
    api.create_events(3, namespace=namespace)
    assert [m["type"] for m in api.watch("events", namespace, resource_version=before, seconds=1)] == ["ADDED"] * 3
    control_plane.compact()
    (message,) = api.watch("events", namespace, resource_version=before, seconds=5)
    assert (message["type"], message["object"]["code"]) == ("ERROR", 410)


@pytest.mark.real
@pytest.mark.parametrize("graceful", [True, False])
def test_a_restart_keeps_port_identity_and_data(
    control_plane: ControlPlane, api: Api, namespace: str, graceful: bool
) -> None:
    stored, url = api.create_events(5, namespace=namespace), control_plane.url
    cluster = api.get({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kube-system"}})["metadata"]["uid"]
    control_plane.stop_apiserver() if graceful else control_plane.kill_apiserver()
    with pytest.raises(BROKEN):
        api.list("events", namespace)
    control_plane.start_apiserver()
    assert control_plane.url == url
    assert {event["metadata"]["uid"] for event in api.list("events", namespace)} == set(stored)
    kube_system = api.get({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kube-system"}})
    assert kube_system["metadata"]["uid"] == cluster


@pytest.mark.real
def test_users_may_do_what_they_were_granted_and_nothing_else(control_plane: ControlPlane, namespace: str) -> None:
    control_plane.add_user(namespace, [LIST_EVENTS])
    assert control_plane.api_as(namespace).list("events", namespace) == []
    assert control_plane.api_as("reader").list("pods", namespace) == []
    for user, resource in (("agent", "events"), (namespace, "pods")):
        with pytest.raises(ApiError, match="forbidden") as error:
            control_plane.api_as(user).list(resource, namespace)
        assert error.value.status == 403


@pytest.mark.real
def test_a_kubeconfig_serves_the_official_client_directly_and_through_a_proxy(
    control_plane: ControlPlane, tcp: FaultProxy, namespace: str
) -> None:
    for server in (None, tcp.url):
        path = control_plane.kubeconfig_for("reader", server)
        core = client.CoreV1Api(config.new_client_from_config(str(path)))  # type: ignore[no-untyped-call]
        assert core.list_namespaced_event(namespace).items == []


# The API client


@pytest.mark.real
def test_objects_are_stored_with_owner_and_status(api: Api, namespace: str) -> None:
    node = api.create(manifests.node(f"node-{namespace}", ip="10.1.0.7"))
    owner = api.create(manifests.deployment("web", namespace))
    owner = api.create(manifests.replica_set("web-1", owner))
    node_name = node["metadata"]["name"]
    pod = api.create(
        manifests.pod("web-1-a", namespace, node=node_name, ip="10.2.0.7", labels={"app": "web"}, owner=owner)
    )
    service = api.create(manifests.service("web", namespace, {"app": "web"}))
    slice_ = api.create(manifests.endpoint_slice(service, [pod]))
    api.define(manifests.crd())
    widget = api.create(manifests.custom("w", namespace))
    about_widget = api.create(manifests.event(widget))

    assert node["status"]["addresses"][0] == {"type": "InternalIP", "address": "10.1.0.7"}
    assert (pod["status"]["phase"], pod["status"]["podIP"]) == ("Running", "10.2.0.7")
    assert pod["metadata"]["ownerReferences"][0]["uid"] == owner["metadata"]["uid"]
    assert slice_["endpoints"][0]["targetRef"]["uid"] == pod["metadata"]["uid"]
    assert about_widget["involvedObject"]["uid"] == widget["metadata"]["uid"]
    api.delete(pod)
    assert api.list("pods", namespace) == []


@pytest.mark.real
def test_both_styles_of_events_are_one_storage(api: Api, namespace: str) -> None:
    (pod,) = manifests.made_up_pods(1, namespace)
    new = api.create(manifests.event_v1(pod, series_count=3))
    old = api.patch_event_count(api.create(manifests.event(pod)), 6)
    events = {event["metadata"]["uid"]: event for event in api.list("events", namespace)}
    assert events[new["metadata"]["uid"]]["series"]["count"] == 3
    assert events[new["metadata"]["uid"]]["lastTimestamp"] is None
    assert events[old["metadata"]["uid"]]["count"] == 6
    assert events[old["metadata"]["uid"]]["eventTime"] is None


@pytest.mark.real
def test_thousands_of_events_are_created_fast_and_answered_for(
    control_plane: ControlPlane, api: Api, namespace: str, record_property: Callable[[str, object], None]
) -> None:
    started = time.monotonic()
    stored = api.create_events(3000, namespace=namespace, pods=10)
    rate = 3000 / (time.monotonic() - started)
    record_property("event creates a second", round(rate))
    print(f"{rate:.0f} event creates a second")
    found = api.list("events", namespace, limit="1000")
    assert stored == {e["metadata"]["uid"]: (e["metadata"]["resourceVersion"], e["count"]) for e in found}
    assert len({event["involvedObject"]["uid"] for event in found}) == 10
    control_plane.forget_events(namespace)
    assert api.list("events", namespace) == []


@pytest.mark.real
def test_events_are_created_at_the_rate_asked_for(api: Api, namespace: str) -> None:
    started = time.monotonic()
    api.create_events(50, namespace=namespace, rate=100)
    assert time.monotonic() - started >= 0.49


@pytest.mark.real
def test_what_was_answered_before_an_outage_is_there_after_it(control_plane: ControlPlane, namespace: str) -> None:
    answered: dict[str, tuple[str, int]] = {}
    with ThreadPoolExecutor() as pool:
        creating = pool.submit(control_plane.api.create_events, 100_000, namespace=namespace, into=answered)
        while len(answered) < 100:
            time.sleep(0.01)
        control_plane.kill_apiserver()
        assert creating.exception() is not None
    control_plane.start_apiserver()
    found = {event["metadata"]["uid"] for event in control_plane.api.list("events", namespace)}
    assert set(answered) <= found


# The S3 server


@pytest.mark.real
def test_s3_refuses_to_write_over_an_object_on_condition(s3: S3Server, bucket: str) -> None:
    s3.client.put_object(Bucket=bucket, Key="a/b", Body=b"first", IfNoneMatch="*")
    with pytest.raises(ClientError) as error:
        s3.client.put_object(Bucket=bucket, Key="a/b", Body=b"second", IfNoneMatch="*")
    assert error.value.response["ResponseMetadata"]["HTTPStatusCode"] == 412
    assert s3.read_all(bucket, "a/") == {"a/b": b"first"}


@pytest.mark.real
def test_s3_keeps_its_objects_over_an_outage(s3: S3Server, bucket: str) -> None:
    s3.client.put_object(Bucket=bucket, Key="k", Body=b"v")
    s3.stop()
    with pytest.raises(EndpointConnectionError):
        s3.keys(bucket)
    s3.start()
    assert s3.read(bucket, "k") == b"v"


# The proxies


@pytest.mark.real
@pytest.mark.parametrize("reset", [False, True])
def test_a_cut_breaks_an_open_watch_and_no_later_one(
    control_plane: ControlPlane, tcp: FaultProxy, namespace: str, reset: bool
) -> None:
    api = through(tcp, control_plane)
    watch = api.watch("events", namespace, seconds=20)
    control_plane.api.create_events(1, namespace=namespace)
    assert next(watch)["type"] == "ADDED"
    tcp.cut(reset)
    assert tcp.connections() == 0
    with pytest.raises(BROKEN):
        next(watch)
    assert len(api.list("events", namespace)) == 1


@pytest.mark.real
def test_a_refusing_proxy_refuses_connections_until_it_is_told_otherwise(
    control_plane: ControlPlane, tcp: FaultProxy, namespace: str
) -> None:
    tcp.refuse()
    with pytest.raises(urllib3.exceptions.NewConnectionError, match="refused"):
        through(tcp, control_plane).list("events", namespace)
    tcp.refuse(False)
    assert through(tcp, control_plane).list("events", namespace) == []


@pytest.mark.real
def test_a_stalled_connection_is_silent_and_open(control_plane: ControlPlane, tcp: FaultProxy, namespace: str) -> None:
    api = through(tcp, control_plane)
    tcp.stall()
    with pytest.raises(urllib3.exceptions.ReadTimeoutError):
        api.request("GET", "/version", timeout=0.3)
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(api.request, "GET", "/version")
        time.sleep(0.2)
        assert not answer.done()
        assert tcp.connections() > 0
        tcp.stall(False)
        assert "gitVersion" in answer.result()


@pytest.mark.real
def test_a_truncated_response_ends_after_the_given_bytes(
    control_plane: ControlPlane, tcp: FaultProxy, namespace: str
) -> None:
    control_plane.api.create_events(10, namespace=namespace)
    tcp.truncate_after(1500)
    api = through(tcp, control_plane)
    with pytest.raises(urllib3.exceptions.ProtocolError, match="IncompleteRead"):
        api.list("events", namespace)
    assert len(api.list("events", namespace)) == 10


@pytest.mark.real
def test_a_flaky_proxy_with_the_same_seed_breaks_the_same_requests(
    control_plane: ControlPlane, tcp: FaultProxy, namespace: str
) -> None:
    control_plane.api.create_events(10, namespace=namespace)
    size = len(str(control_plane.api.list("events", namespace)))

    def broken(seed: int) -> list[bool]:
        tcp.flaky(seed, 100, 2 * size)
        return [not _lists(Api(tcp.url, control_plane.token()), namespace) for _ in range(12)]

    first = broken(seed=1)
    assert set(first) == {True, False}
    assert broken(seed=1) == first
    assert broken(seed=2) != first
    tcp.calm()
    assert _lists(through(tcp, control_plane), namespace)


def _lists(api: Api, namespace: str) -> bool:
    try:
        api.list("events", namespace)
    except BROKEN:
        return False
    return True


@pytest.mark.real
def test_the_http_proxy_answers_in_the_servers_place_and_counts(
    control_plane: ControlPlane, http: FaultHttpProxy, namespace: str
) -> None:
    api = through(http, control_plane)
    http.inject("LIST events", times=2, status=429, headers={"Retry-After": "1"})
    assert api.list("pods", namespace) == []
    for _ in range(2):
        with pytest.raises(ApiError) as error:
            api.list("events", namespace)
        assert error.value.status == 429
    assert api.list("events", namespace) == []
    assert list(api.watch("events", namespace, seconds=1)) == []
    assert http.counts() == {"LIST pods": 1, "LIST events": 3, "WATCH events": 1}


@pytest.mark.real
def test_the_http_proxy_cuts_a_chosen_response_short(
    control_plane: ControlPlane, http: FaultHttpProxy, namespace: str
) -> None:
    control_plane.api.create_events(20, namespace=namespace)
    http.inject("WATCH events", truncate=12_000)
    api = through(http, control_plane)
    seen: list[str] = []
    with pytest.raises(urllib3.exceptions.ProtocolError):
        seen.extend(message["type"] for message in api.watch("events", namespace, seconds=5))
    assert 0 < len(seen) < 20
    assert len(list(api.watch("events", namespace, seconds=1))) == 20


@pytest.mark.real
def test_a_dropped_answer_is_to_a_request_that_was_executed(
    s3: S3Server, s3_proxy: FaultHttpProxy, bucket: str
) -> None:
    behind = s3.client_for(s3_proxy.url)
    s3_proxy.inject("PUT object", drop=True)
    with pytest.raises(ConnectionClosedError):
        behind.put_object(Bucket=bucket, Key="k", Body=b"v" * 100_000, IfNoneMatch="*")
    assert s3.read(bucket, "k") == b"v" * 100_000
    assert s3_proxy.counts() == {"PUT object": 1}


@pytest.mark.real
@pytest.mark.parametrize("status", [500, 503])
def test_a_refused_put_writes_nothing(s3: S3Server, s3_proxy: FaultHttpProxy, bucket: str, status: int) -> None:
    behind = s3.client_for(s3_proxy.url)
    s3_proxy.inject(lambda request: request.path.endswith("/k"), status=status)
    with pytest.raises(ClientError) as error:
        behind.put_object(Bucket=bucket, Key="k", Body=b"v" * 1_000_000)
    assert error.value.response["ResponseMetadata"]["HTTPStatusCode"] == status
    assert s3.keys(bucket) == []
    behind.put_object(Bucket=bucket, Key="k", Body=b"v")
    assert s3.read(bucket, "k") == b"v"


@pytest.mark.real
def test_a_delayed_answer_comes_late_to_a_request_that_was_executed(
    s3: S3Server, s3_proxy: FaultHttpProxy, bucket: str
) -> None:
    s3_proxy.inject("PUT object", delay=0.5)
    with ThreadPoolExecutor() as pool:
        put = pool.submit(s3.client_for(s3_proxy.url).put_object, Bucket=bucket, Key="k", Body=b"v")
        deadline = time.monotonic() + 5
        while s3.keys(bucket) != ["k"]:
            assert time.monotonic() < deadline
        assert not put.done()
        assert put.result()["ResponseMetadata"]["HTTPStatusCode"] == 200


@pytest.mark.parametrize(
    ("method", "target", "query", "kind"),
    [
        ("GET", "/api/v1/events", {}, "LIST events"),
        ("GET", "/api/v1/namespaces/a/events", {"watch": "true"}, "WATCH events"),
        ("GET", "/apis/discovery.k8s.io/v1/endpointslices", {}, "LIST endpointslices"),
        ("GET", "/api/v1/namespaces/a/pods/p", {}, "GET pods"),
        ("PATCH", "/api/v1/namespaces/a/pods/p/status", {}, "PATCH pods/status"),
        ("GET", "/api/v1/namespaces/kube-system", {}, "GET namespaces"),
        ("GET", "/api/v1/namespaces", {}, "LIST namespaces"),
        ("GET", "/version", {}, "GET /version"),
    ],
)
def test_requests_to_the_api_server_are_named_by_verb_and_resource(
    method: str, target: str, query: dict[str, str], kind: str
) -> None:
    assert kube_request(method, target, query) == kind


@pytest.mark.parametrize(
    ("method", "target", "query", "kind"),
    [
        ("PUT", "/bucket/a/b", {}, "PUT object"),
        ("GET", "/bucket", {"list-type": "2"}, "LIST objects"),
        ("PUT", "/bucket", {}, "PUT bucket"),
    ],
)
def test_requests_to_s3_are_named_by_verb_and_what_they_are_about(
    method: str, target: str, query: dict[str, str], kind: str
) -> None:
    assert s3_request(method, target, query) == kind
