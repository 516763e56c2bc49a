"""Flink: what is checked before a job is submitted, what is submitted, and what is done with the job afterwards.

The REST API is a fake one where a test needs an answer that a healthy cluster does not give, and a real cluster's where
it is marked `real`. Beam's own job server is not in any test here: tests/real/test_flink.py runs where there is one.
"""

import json
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import apache_beam
import pytest

from pipeline.main import main as run_pipeline
from pipeline.options import parse
from runners import flink
from runners.errors import RunnerError
from runners.flink import Flink, check_cluster, flags_of, job_server_jar, main
from tests.servers.build import BuildError
from tests.servers.flink import VERSION, FlinkCluster
from tests.servers.process import ServerError, free_port

JAR = f"beam-runners-flink-1.19-job-server-{apache_beam.__version__}.jar"
OVERVIEW = {"flink-version": "1.19.3", "taskmanagers": 1, "slots-total": 4, "slots-available": 4}


class FakeFlink:
    """A REST API that answers what it was told to, (method, path) by (method, path); the last answer stays."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, Any]] = []
        self._answers: dict[tuple[str, str], list[Callable[[], tuple[int, Any]]]] = {}
        self.answer("/overview", OVERVIEW)
        self.answer("/jobs/overview", {"jobs": []})
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                length = int(self.headers.get("Content-Length", 0))
                body = json.loads(self.rfile.read(length)) if length else None
                status, answer = fake._take(self.command, self.path, body)
                data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PATCH = answer  # noqa: N815

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.master = f"127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "FakeFlink":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str, *answers: Any, method: str = "GET", status: int = 200) -> None:
        """Answers these, one after the other; a callable is asked each time."""
        self._answers[method, path] = [self._maker(answer, status) for answer in answers]

    def job(self, name: str = "kube-history", state: str = "RUNNING", job: str = "a" * 32, began: int = 1) -> Any:
        """A job as the overview lists it."""
        tasks = {"total": 3, "running": 3 if state == "RUNNING" else 0}
        return {"jid": job, "name": name, "state": state, "start-time": began, "tasks": tasks}

    def posted(self) -> list[tuple[str, str, Any]]:
        """The requests that were to change something."""
        return [request for request in self.requests if request[0] != "GET"]

    @staticmethod
    def _maker(answer: Any, status: int) -> Callable[[], tuple[int, Any]]:
        return lambda: (status, answer() if callable(answer) else answer)

    def _take(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        self.requests.append((method, path, body))
        answers = self._answers.get((method, path))
        if not answers:
            return 404, {"errors": ["Not found: " + path]}
        return answers[0]() if len(answers) == 1 else answers.pop(0)()


@pytest.fixture
def fake() -> Iterator[FakeFlink]:
    """A healthy cluster without jobs."""
    with FakeFlink() as server:
        yield server


@pytest.fixture
def jar(tmp_path: Path) -> str:
    """A file with the name and form of the job server."""
    with zipfile.ZipFile(tmp_path / JAR, "w") as file:
        file.writestr("empty", "")
    return str(tmp_path / JAR)


@pytest.fixture(scope="module")
def cluster() -> Iterator[FlinkCluster]:
    """A real Flink cluster with two slots."""
    with ExitStack() as stack:
        try:
            started = stack.enter_context(FlinkCluster(slots=2))
        except (BuildError, ServerError) as error:
            pytest.fail(str(error), pytrace=False)
        yield started


def client(server: FakeFlink | FlinkCluster) -> Flink:
    return Flink(server.master)


# The cluster is checked


def test_a_cluster_that_is_as_it_must_be_passes(fake: FakeFlink) -> None:
    fake.answer("/jobs/overview", {"jobs": [fake.job("other"), fake.job(state="CANCELED")]})
    check_cluster(client(fake), "kube-history", 4, JAR)


@pytest.mark.parametrize(
    ("overview", "parallelism", "jar_name", "said"),
    [
        ({"flink-version": "1.18.1"}, 1, JAR, r"expected Flink 1\.19, 1\.20, 2\.0.*got 1\.18\.1 at"),
        ({"flink-version": "1.20.0"}, 1, JAR, "expected the job server for Flink 1.20, .*got beam-runners-flink-1.19"),
        ({"slots-available": 1}, 2, JAR, "expected 2 free slots .*got 1 of 4 on 1 TaskManagers"),
        ({"slots-available": 0}, -1, "renamed.jar", "expected 1 free slots"),
    ],
)
def test_what_would_fail_later_is_said_before_anything_is_submitted(
    fake: FakeFlink, overview: Any, parallelism: int, jar_name: str, said: str
) -> None:
    fake.answer("/overview", {**OVERVIEW, **overview})
    with pytest.raises(RunnerError, match=said):
        check_cluster(client(fake), "kube-history", parallelism, jar_name)


def test_a_job_of_the_same_name_is_not_joined_by_a_second(fake: FakeFlink) -> None:
    fake.answer("/jobs/overview", {"jobs": [fake.job(state="RESTARTING")]})
    with pytest.raises(RunnerError, match=r"expected no job 'kube-history' .*got a{32} \(RESTARTING\); stop it first"):
        check_cluster(client(fake), "kube-history", 1, JAR)


def test_nobody_there_is_one_line() -> None:
    with pytest.raises(
        RunnerError, match=r"expected a Flink REST API at 127\.0\.0\.1:[0-9]+, got .*refused.*flink_master"
    ):
        Flink(f"127.0.0.1:{free_port()}").overview()


@pytest.mark.parametrize("answer", [b"<html>no Flink</html>", {"hello": "world"}, []])
def test_something_else_there_is_one_line(fake: FakeFlink, answer: Any) -> None:
    fake.answer("/overview", answer)
    with pytest.raises(RunnerError, match=r"expected a Flink REST API at 127\.0\.0\.1"):
        client(fake).overview()


# The jar


def test_the_jar_is_named_by_the_option_or_else_by_the_environment(jar: str) -> None:
    assert job_server_jar(jar, {"FLINK_JOB_SERVER_JAR": "/missing"}) == jar
    assert job_server_jar(None, {"FLINK_JOB_SERVER_JAR": jar}) == jar


def test_without_a_jar_the_error_says_which_artifact_and_where_to_name_it() -> None:
    artifact = f"org.apache.beam:beam-runners-flink-<Flink's version>-job-server:{apache_beam.__version__}"
    with pytest.raises(RunnerError, match=f"{artifact}.*--flink_job_server_jar or FLINK_JOB_SERVER_JAR, got neither"):
        job_server_jar(None, {})


def test_a_jar_that_is_missing_broken_or_of_another_version_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunnerError, match=r"got '/missing\.jar', which is no file"):
        job_server_jar("/missing.jar", {})
    (tmp_path / "broken.jar").write_text("404 not found")
    with pytest.raises(RunnerError, match="which is no jar; get it anew"):
        job_server_jar(str(tmp_path / "broken.jar"), {})
    with zipfile.ZipFile(tmp_path / "beam-runners-flink-1.19-job-server-2.50.0.jar", "w") as file:
        file.writestr("empty", "")
    with pytest.raises(RunnerError, match=r"got one of version 2\.50\.0"):
        job_server_jar(str(tmp_path / "beam-runners-flink-1.19-job-server-2.50.0.jar"), {})


# Submission


def test_checkpoints_are_on_and_kept_whatever_is_left_out() -> None:
    flags = flags_of(parse(["--output=/tmp/x", "--flink_master=flink:8081"]), "/the.jar")
    assert {
        "--streaming",
        "--job_name=kube-history",
        "--flink_master=flink:8081",
        "--flink_job_server_jar=/the.jar",
        "--environment_type=EXTERNAL",
        "--environment_config=localhost:50000",
        "--checkpointing_interval=10000",
        "--externalized_checkpoints_enabled",
        "--retain_externalized_checkpoints_on_cancellation",
        "--number_of_execution_retries=2147483647",
        "--max_bundle_time_mills=1000",
    } <= set(flags)
    assert not any(flag.startswith(("--state_backend", "--savepoint", "--parallelism")) for flag in flags)


def launcher(folder: Path, error: str = "") -> Path:
    """A `java` that starts the fake job server instead of a jar's; what it receives is in `received.json`."""
    server = Path(__file__).with_name("fake_job_server.py")
    script = folder / "java"
    script.write_text(
        "#!/bin/sh\n"
        'while [ $# -gt 0 ]; do [ "$1" = --job-port ] && port=$2; shift; done\n'
        f'exec {sys.executable} {server} {folder}/received.json "$port" {error!r}\n'
    )
    script.chmod(0o755)
    return script


def submission(fake: FakeFlink, tmp_path: Path, jar: str, *more: str) -> list[str]:
    return [
        "--runner=FlinkRunner",
        f"--output={tmp_path}/history",
        f"--flink_master={fake.master}",
        f"--flink_job_server_jar={jar}",
        f"--job_server_java_launcher={tmp_path}/java",
        *more,
    ]


def test_what_was_asked_for_reaches_the_job_server_through_beam(
    fake: FakeFlink, tmp_path: Path, jar: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    launcher(tmp_path)
    received = tmp_path / "received.json"
    fake.answer("/jobs/overview", lambda: {"jobs": [fake.job("history")] if received.exists() else []})
    more = ["--job_name=history", "--parallelism=2", "--savepoint_path=s3://state/savepoint-1", "--cluster=prod"]
    more += ["--checkpointing_interval=5000", "--state_backend=rocksdb", "--state_backend_storage_path=s3://state/c"]
    assert run_pipeline(submission(fake, tmp_path, jar, *more)) == 0, capfd.readouterr().err
    content = json.loads(received.read_text())
    wanted = {
        "streaming": True,
        "job_name": "history",
        "flink_master": f"http://{fake.master}",
        "environment_type": "EXTERNAL",
        "environment_config": "localhost:50000",
        "checkpointing_interval": "5000",
        "externalized_checkpoints_enabled": True,
        "retain_externalized_checkpoints_on_cancellation": True,
        "number_of_execution_retries": "2147483647",
        "execution_retry_delay": "10000",
        "max_bundle_time_mills": "1000",
        "parallelism": "2",
        "savepoint_path": "s3://state/savepoint-1",
        "state_backend": "rocksdb",
        "state_backend_storage_path": "s3://state/c",
    }
    assert {name: content["options"].get(name) for name in wanted} == wanted
    # The flag of an option that is true by default would switch it off; attached is what we rely on.
    assert content["options"].get("attached_mode") in (None, True)
    assert {"WatchResources", "Deduplicate", "Enrich", "BatchByPartition", "WriteBatches"} <= set(content["transforms"])
    assert content["environments"] == ["beam:env:external:v1"]
    assert "localhost:50000" in content["payloads"][0]
    assert content["dependencies"] == 0, "something would be staged, and the workers would have to fetch it"
    assert (tmp_path / "history" / "_schema" / "record.desc").is_file()
    said = capfd.readouterr().err
    assert f"job history ({'a' * 32}) runs on {fake.master}" in said
    assert "Traceback" not in said


def test_a_job_server_that_fails_is_said_with_its_reason(
    fake: FakeFlink, tmp_path: Path, jar: str, capfd: pytest.CaptureFixture[str]
) -> None:
    launcher(tmp_path, error="no such savepoint")
    assert run_pipeline(submission(fake, tmp_path, jar)) == 1
    assert "got no such savepoint" in capfd.readouterr().err.splitlines()[-1]


def test_a_job_that_ends_at_once_is_an_error(
    fake: FakeFlink, tmp_path: Path, jar: str, capfd: pytest.CaptureFixture[str]
) -> None:
    launcher(tmp_path)
    received = tmp_path / "received.json"
    fake.answer("/jobs/overview", lambda: {"jobs": [fake.job(state="FAILED")] if received.exists() else []})
    assert run_pipeline(submission(fake, tmp_path, jar)) == 1
    assert "expected the job to run, got FAILED" in capfd.readouterr().err.splitlines()[-1]


def test_without_java_the_error_names_it(
    fake: FakeFlink, tmp_path: Path, jar: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_pipeline(submission(fake, tmp_path, jar)) == 1
    lines = capfd.readouterr().err.splitlines()
    assert f"{tmp_path}/java" in lines[-1]
    assert "expected the job server" in lines[-1]


# The commands


def test_an_operation_is_polled_to_its_end(fake: FakeFlink, capsys: pytest.CaptureFixture[str]) -> None:
    job = fake.job()
    fake.answer("/jobs/overview", {"jobs": [job]}, {"jobs": [job]}, {"jobs": [fake.job(state="FINISHED")]})
    fake.answer(f"/jobs/{job['jid']}/stop", {"request-id": "r"}, method="POST", status=202)
    done = {"status": {"id": "COMPLETED"}, "operation": {"location": "s3://state/savepoint-7"}}
    fake.answer(f"/jobs/{job['jid']}/savepoints/r", {"status": {"id": "IN_PROGRESS"}}, done)
    assert main(["stop", f"--flink_master={fake.master}", "--savepoint_dir=s3://state"]) == 0
    assert capsys.readouterr().out == "s3://state/savepoint-7\n"
    assert fake.posted() == [("POST", f"/jobs/{job['jid']}/stop", {"drain": False, "targetDirectory": "s3://state"})]


def test_an_operation_that_fails_says_flinks_innermost_reason(
    fake: FakeFlink, capsys: pytest.CaptureFixture[str]
) -> None:
    job = fake.job()
    fake.answer("/jobs/overview", {"jobs": [job]})
    fake.answer(f"/jobs/{job['jid']}/savepoints", {"request-id": "r"}, method="POST", status=202)
    trace = (
        "java.util.CompletionException: outer\n\tat a.b(C.java)\nCaused by: java.io.IOException: disk full\n\tat d\n"
    )
    failed = {"status": {"id": "COMPLETED"}, "operation": {"failure-cause": {"class": "x", "stack-trace": trace}}}
    fake.answer(f"/jobs/{job['jid']}/savepoints/r", failed)
    assert main(["savepoint", f"--flink_master={fake.master}"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "got a failure: java.io.IOException: disk full" in said


def test_an_operation_that_takes_too_long_is_an_error(fake: FakeFlink, capsys: pytest.CaptureFixture[str]) -> None:
    job = fake.job()
    fake.answer("/jobs/overview", {"jobs": [job]})
    fake.answer(f"/jobs/{job['jid']}/savepoints", {"request-id": "r"}, method="POST", status=202)
    fake.answer(f"/jobs/{job['jid']}/savepoints/r", {"status": {"id": "IN_PROGRESS"}})
    assert main(["savepoint", f"--flink_master={fake.master}", "--timeout=0.1"]) == 1
    assert "got none yet; it may still come" in capsys.readouterr().err


def test_of_jobs_with_one_name_the_living_is_meant_and_else_the_newest(fake: FakeFlink) -> None:
    old, new = fake.job(state="FINISHED", job="b" * 32, began=1), fake.job(state="CANCELED", job="c" * 32, began=2)
    fake.answer("/jobs/overview", {"jobs": [old, new]})
    assert client(fake).job("kube-history").id == "c" * 32
    fake.answer("/jobs/overview", {"jobs": [fake.job(job="d" * 32, began=0), old, new]})
    assert client(fake).job("kube-history").id == "d" * 32
    assert client(fake).job("b" * 32).id == "b" * 32


def test_what_has_ended_has_no_savepoint(fake: FakeFlink, capsys: pytest.CaptureFixture[str]) -> None:
    fake.answer("/jobs/overview", {"jobs": [fake.job(state="FAILED")]})
    assert main(["stop", f"--flink_master={fake.master}"]) == 1
    assert "expected kube-history to run, got FAILED" in capsys.readouterr().err
    assert not fake.posted()


@pytest.mark.parametrize("argv", [[], ["start"], ["status"], ["status", "--flink_master=x", "--savepoint_dir=y"]])
def test_a_wrong_command_line_is_2(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2


# On a real cluster


@pytest.mark.real
def test_a_real_clusters_version_and_slots_are_checked(cluster: FlinkCluster) -> None:
    overview = client(cluster).overview()
    assert (overview.version, overview.task_managers, overview.slots) == (VERSION, 1, 2)
    check_cluster(client(cluster), "kube-history", 2, JAR)
    with pytest.raises(RunnerError, match=r"expected 3 free slots .*got 2 of 2 on 1 TaskManagers"):
        check_cluster(client(cluster), "kube-history", 3, JAR)
    with pytest.raises(RunnerError, match=r"expected the job server for Flink 1\.19"):
        check_cluster(client(cluster), "kube-history", 1, JAR.replace("1.19", "2.0"))


@pytest.mark.real
def test_a_real_job_is_shown_saved_and_stopped(cluster: FlinkCluster, capsys: pytest.CaptureFixture[str]) -> None:
    master = f"--flink_master={cluster.master}"
    job = cluster.run_ticks("ticks")
    with pytest.raises(RunnerError, match=f"expected no job 'ticks' .*got {job}"):
        check_cluster(client(cluster), "ticks", 1, JAR)
    until = time.monotonic() + 30
    while not client(cluster).checkpoints(client(cluster).job(job))["counts"]["completed"]:
        assert time.monotonic() < until
        time.sleep(0.2)
    assert main(["status", master, "--job=ticks"]) == 0
    said = capsys.readouterr().out
    assert f"job: ticks ({job})\nstate: RUNNING since" in said
    assert "newest checkpoint: " in said

    assert main(["savepoint", master, "--job=ticks", f"--savepoint_dir={cluster.savepoints}"]) == 0
    first = capsys.readouterr().out.strip()
    assert client(cluster).job(job).running
    assert main(["stop", master, f"--job={job}", f"--savepoint_dir={cluster.savepoints}"]) == 0
    second = capsys.readouterr().out.strip()
    for path in (first, second):
        assert (Path(path.removeprefix("file:")) / "_metadata").is_file()
    assert first != second
    assert client(cluster).job(job).state == "FINISHED"
    assert main(["status", master, "--job=ticks"]) == 3
    assert main(["stop", master, "--job=ticks"]) == 1


@pytest.mark.real
def test_a_real_clusters_refusals_are_one_line(cluster: FlinkCluster, capsys: pytest.CaptureFixture[str]) -> None:
    master = f"--flink_master={cluster.master}"
    assert main(["status", master, "--job=missing"]) == 1
    assert "expected a job 'missing'" in capsys.readouterr().err
    job = cluster.run_ticks("unsaved")
    assert main(["savepoint", master, "--job=unsaved"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "savepoint" in said
    assert "directory" in said
    assert main(["cancel", master, f"--job={job}"]) == 0
    assert client(cluster).job(job).state == "CANCELED"


def test_beams_own_list_of_versions_is_what_is_accepted() -> None:
    assert "1.19" in flink.VERSIONS
    assert "1.18" not in flink.VERSIONS
