"""`--runner FlinkRunner`: submits the streaming job to a Flink cluster; and what is done with it there afterwards.

    python -m runners.flink status|savepoint|stop|cancel --flink_master HOST:PORT [--job NAME_OR_ID]

Submission checks the cluster first, through its REST API, and then hands the job to Beam's job server, a Java program
that is started here for as long as that takes. A job that runs belongs to the cluster: the submission ends, the job
goes on, and is stopped with a savepoint from which the next submission goes on (`--savepoint_path`).

REST API: https://nightlies.apache.org/flink/flink-docs-release-1.19/docs/ops/rest_api/
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import re
import signal
import sys
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import apache_beam
import urllib3
from apache_beam.options.pipeline_options import FlinkRunnerOptions, JobServerOptions, PipelineOptions
from apache_beam.runners.portability.flink_runner import FlinkRunner
from apache_beam.runners.runner import PipelineState

from runners import portable
from runners.config import JobConfig
from runners.errors import RunnerError
from runners.portable import Build, brief

_LOG = logging.getLogger(__name__)

VERSIONS: Sequence[str] = FlinkRunnerOptions.PUBLISHED_FLINK_VERSIONS  # those that Beam has a job server for
ENDED = frozenset({"FINISHED", "CANCELED", "FAILED"})
_JAR_NAME = re.compile(r"beam-runners-flink-(\d+\.\d+)-job-server-(\d[\w.-]*)\.jar")
_POLL_S = 0.5
_START_S = 180.0  # for the job server to start, translate the graph and have its tasks run


# --- the cluster ------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Overview:
    """What a cluster is and has."""

    version: str
    task_managers: int
    slots: int
    free_slots: int


@dataclasses.dataclass(frozen=True)
class FlinkJob:
    """One job of a cluster. tasks: how many of its tasks are in which state; began_ms: since the epoch."""

    id: str
    name: str
    state: str
    began_ms: int
    tasks: Mapping[str, int]

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    @property
    def running(self) -> bool:
        """Whether it runs with all its tasks, and none has only been scheduled."""
        return self.state == "RUNNING" and 0 < self.tasks.get("running", 0) == self.tasks.get("total", 0)


class Flink:
    """A Flink cluster by its REST API. Every method raises RunnerError, in one line, for what is not as it must be."""

    def __init__(self, master: str, timeout_s: float = 10.0, sleep: Callable[[float], None] = time.sleep) -> None:
        self.master = master.strip().rstrip("/")
        self._root = self.master if re.match("https?://", self.master) else f"http://{self.master}"
        self._http = urllib3.PoolManager(retries=False, timeout=timeout_s)
        self._sleep = sleep

    def overview(self) -> Overview:
        found = self._call("GET", "/overview")
        try:
            return Overview(
                found["flink-version"], found["taskmanagers"], found["slots-total"], found["slots-available"]
            )
        except (KeyError, TypeError) as error:
            raise RunnerError(f"expected a Flink REST API at {self.master}, got {brief(json.dumps(found))}") from error

    def jobs(self) -> list[FlinkJob]:
        """All jobs that the cluster remembers, the newest first."""
        found = self._call("GET", "/jobs/overview")["jobs"]
        jobs = [FlinkJob(job["jid"], job["name"], job["state"], job["start-time"], job["tasks"]) for job in found]
        return sorted(jobs, key=lambda job: job.began_ms, reverse=True)

    def job(self, name_or_id: str) -> FlinkJob:
        """The job with that id, or the newest of that name: one that has not ended before those that have."""
        jobs = self.jobs()
        named = [job for job in jobs if name_or_id in (job.id, job.name)]
        if not named:
            there = ", ".join(f"{job.name} ({job.state})" for job in jobs) or "none"
            raise RunnerError(f"expected a job {name_or_id!r} on {self.master}, got none of that name; jobs: {there}")
        return next((job for job in named if not job.ended), named[0])

    def checkpoints(self, job: FlinkJob) -> Mapping[str, Any]:
        """The job's checkpoint statistics, as Flink gives them."""
        found: Mapping[str, Any] = self._call("GET", f"/jobs/{job.id}/checkpoints")
        return found

    def savepoint(self, job: FlinkJob, directory: str | None = None, timeout_s: float = 600.0) -> str:
        """Has the job write a savepoint, and go on; returns its path."""
        body = {"cancel-job": False} | ({"target-directory": directory} if directory else {})
        return self._triggered(job, f"/jobs/{job.id}/savepoints", body, "a savepoint", timeout_s)

    def stop(self, job: FlinkJob, directory: str | None = None, timeout_s: float = 600.0) -> str:
        """Has the job write a savepoint and end; returns the savepoint's path."""
        # Not drained: that would move the watermark to the end of time, and with it every timer of the state.
        body: dict[str, Any] = {"drain": False} | ({"targetDirectory": directory} if directory else {})
        path = self._triggered(job, f"/jobs/{job.id}/stop", body, "a stop with a savepoint", timeout_s)
        self._until_ended(job, timeout_s)
        return path

    def cancel(self, job: FlinkJob, timeout_s: float = 120.0) -> None:
        """Ends the job as it is; its newest checkpoint stays."""
        self._call("PATCH", f"/jobs/{job.id}?mode=cancel")
        self._until_ended(job, timeout_s)

    def _triggered(self, job: FlinkJob, path: str, body: Mapping[str, Any], what: str, timeout_s: float) -> str:
        """Triggers an asynchronous operation and waits for its end; returns the savepoint's path."""
        if job.ended:
            raise RunnerError(f"expected {job.name} to run, got {job.state}: {what} can't be had of it")
        request = self._call("POST", path, body)["request-id"]
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            found = self._call("GET", f"/jobs/{job.id}/savepoints/{request}")
            if found["status"]["id"] == "COMPLETED":
                operation = found.get("operation") or {}
                if operation.get("location"):
                    return str(operation["location"])
                cause = operation.get("failure-cause", {}).get("stack-trace") or "no reason"
                raise RunnerError(f"expected {what} of {job.name}, got a failure: {_cause(cause)}")
            self._sleep(_POLL_S)
        raise RunnerError(f"expected {what} of {job.name} within {timeout_s:.0f} s, got none yet; it may still come")

    def _until_ended(self, job: FlinkJob, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not (now := self.job(job.id)).ended:
            if time.monotonic() > deadline:
                raise RunnerError(f"expected {job.name} to end within {timeout_s:.0f} s, got {now.state}")
            self._sleep(_POLL_S)

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        """The decoded answer."""
        try:
            response = self._http.request(method, self._root + path, json=body)
        except urllib3.exceptions.HTTPError as error:
            raise RunnerError(
                f"expected a Flink REST API at {self.master}, got {_root(error)}; see --flink_master"
            ) from error
        try:
            found = response.json()
        except ValueError as error:
            raise RunnerError(
                f"expected a Flink REST API at {self.master}, got {response.status} {response.data[:60]!r}"
            ) from error
        if response.status >= 300:
            messages = [_cause(text) for text in found.get("errors", ()) if text] or [brief(response.data)]
            raise RunnerError(f"{method} {self._root}{path}: {response.status} {messages[-1]}")
        return found


# --- submission -------------------------------------------------------------------------------


def submit(config: JobConfig, options: PipelineOptions, build: Build) -> FlinkJob:
    """Submits the job and returns it once all its tasks run. Raises RunnerError, StoreError."""
    given = options.view_as(FlinkRunnerOptions)
    flink = Flink(given.flink_master)
    name = portable.job_name(options)
    jar = job_server_jar(given.flink_job_server_jar)
    check_cluster(flink, name, given.parallelism, jar)
    portable.write_schema(config)
    before = {job.id for job in flink.jobs()}
    on_sigterm = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # the job server ends with us
    try:
        result = portable.submit(config, flags_of(options, jar), build, FlinkRunner())
        job = _until_running(flink, name, before, result)
    except RunnerError:
        raise
    except Exception as error:  # of gRPC, of the Java process: nothing else tells them apart
        raise RunnerError(f"expected the job server {jar} to submit the job, got {portable.reason(error)}") from error
    finally:
        signal.signal(signal.SIGTERM, on_sigterm)
    _LOG.info("job %s (%s) runs on %s; python -m runners.flink shows and stops it", job.name, job.id, flink.master)
    return job


def check_cluster(flink: Flink, name: str, parallelism: int, jar: str) -> None:
    """Raises RunnerError where the job can't run: another version, no slots, the job runs already."""
    overview = flink.overview()
    version = ".".join(overview.version.split(".")[:2])
    if version not in VERSIONS:
        raise RunnerError(
            f"expected Flink {', '.join(VERSIONS)}, for which Beam {apache_beam.__version__} has a job server, "
            f"got {overview.version} at {flink.master}"
        )
    match = _JAR_NAME.fullmatch(os.path.basename(jar))
    if match and match[1] != version:
        raise RunnerError(
            f"expected the job server for Flink {version}, which runs at {flink.master}, got {os.path.basename(jar)}"
        )
    slots = max(parallelism, 1)
    if overview.free_slots < slots:
        raise RunnerError(
            f"expected {slots} free slots at {flink.master} (--parallelism), got {overview.free_slots} of "
            f"{overview.slots} on {overview.task_managers} TaskManagers; start more, or stop a job"
        )
    same = [job for job in flink.jobs() if job.name == name and not job.ended]
    if same:
        raise RunnerError(
            f"expected no job {name!r} on {flink.master} yet, got {same[0].id} ({same[0].state}); stop it first "
            "(python -m runners.flink stop), or give another --job_name and --output"
        )


def job_server_jar(given: str | None, environment: Mapping[str, str] = os.environ) -> str:
    """The job server's file. Raises RunnerError, which says what it is and where to have it from."""
    artifact = f"org.apache.beam:beam-runners-flink-<Flink's version>-job-server:{apache_beam.__version__}"
    path = given or environment.get("FLINK_JOB_SERVER_JAR")
    wanted = f"expected Beam's Flink job server, the jar {artifact} of Maven Central"
    if not path:
        raise RunnerError(f"{wanted}, by --flink_job_server_jar or FLINK_JOB_SERVER_JAR, got neither")
    if not os.path.isfile(path):
        raise RunnerError(f"{wanted}, got {path!r}, which is no file")
    if not zipfile.is_zipfile(path):
        raise RunnerError(f"{wanted}, got {path!r}, which is no jar; get it anew")
    match = _JAR_NAME.fullmatch(os.path.basename(path))
    if match and match[2] != apache_beam.__version__:
        raise RunnerError(f"{wanted}, got one of version {match[2]}: {path}")
    return path


def flags_of(options: PipelineOptions, jar: str) -> list[str]:
    """What Beam and its job server are told. A name that the job server does not know has no effect, and no error."""
    flink, server = options.view_as(FlinkRunnerOptions), options.view_as(JobServerOptions)
    ours = options.get_all_options()
    flags = [
        *portable.common_flags(options),
        f"--flink_master={flink.flink_master}",
        f"--flink_job_server_jar={jar}",
        # Without these Flink makes no checkpoint, and deletes those it made when a job is cancelled.
        "--externalized_checkpoints_enabled",
        "--retain_externalized_checkpoints_on_cancellation",
    ]
    for name in (
        "checkpointing_interval",
        "number_of_execution_retries",
        "execution_retry_delay",
        "max_bundle_time_mills",
        "state_backend",
        "state_backend_storage_path",
        "savepoint_path",
    ):
        if ours[name] is not None:
            flags.append(f"--{name}={ours[name]}")
    if ours["allow_non_restored_state"]:
        flags.append("--allow_non_restored_state")
    for name in ("parallelism", "max_parallelism"):
        if getattr(flink, name) > 0:
            flags.append(f"--{name}={getattr(flink, name)}")
    if server.job_server_java_launcher:
        flags.append(f"--job_server_java_launcher={server.job_server_java_launcher}")
    return flags


def _until_running(flink: Flink, name: str, before: set[str], result: Any) -> FlinkJob:
    """The new job of that name, once all its tasks run."""
    portable.listen(result)
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        new = next((job for job in flink.jobs() if job.name == name and job.id not in before), None)
        if new is not None and new.running:
            return new
        if new is not None and new.ended:
            raise RunnerError(f"expected the job to run, got {new.state} ({new.id}); see its log on {flink.master}")
        if new is None and PipelineState.is_terminal(result.state):
            raise RunnerError(f"expected the job server to submit the job, got {portable.last_error(result)}")
        time.sleep(_POLL_S)
    raise RunnerError(f"expected the job to run within {_START_S:.0f} s; see python -m runners.flink status")


# --- the commands -----------------------------------------------------------------------------


def main(argv: Sequence[str]) -> int:
    """0: done (status: the job runs). 1: it could not be done. 2: a parameter is wrong. 3: status: it does not run."""
    parser = argparse.ArgumentParser("python -m runners.flink", description="Looks after a job on a Flink cluster.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("status", "says whether the job runs, and how its checkpoints go"),
        ("savepoint", "writes a savepoint; the job goes on"),
        ("stop", "writes a savepoint and ends the job"),
        ("cancel", "ends the job; its newest checkpoint stays"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--flink_master", required=True, metavar="HOST:PORT", help="the JobManager's REST API")
        command.add_argument("--job", default=portable.JOB_NAME, help=f"the job's name or id [{portable.JOB_NAME}]")
        if name in ("savepoint", "stop"):
            command.add_argument(
                "--savepoint_dir", help="the URI to write it under [what the cluster is configured for]"
            )
            command.add_argument("--timeout", type=float, default=600.0, help="seconds to wait for it [600]")
    arguments = parser.parse_args(argv)
    flink = Flink(arguments.flink_master)
    try:
        job = flink.job(arguments.job)
        match arguments.command:
            case "status":
                print(_status(flink, job))
                return 0 if job.running else 3
            case "savepoint":
                print(flink.savepoint(job, arguments.savepoint_dir, arguments.timeout))
            case "stop":
                print(flink.stop(job, arguments.savepoint_dir, arguments.timeout))
            case _:
                flink.cancel(job)
                print(f"{job.name} ({job.id}) is cancelled")
    except RunnerError as error:
        print(f"python -m runners.flink: {error}", file=sys.stderr)
        return 1
    return 0


def _status(flink: Flink, job: FlinkJob) -> str:
    checkpoints = flink.checkpoints(job)
    counts, latest = checkpoints["counts"], (checkpoints.get("latest") or {}).get("completed")
    began = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(job.began_ms / 1000))
    lines = [
        f"job: {job.name} ({job.id})",
        f"state: {job.state} since {began}",
        f"tasks: {job.tasks.get('running', 0)} of {job.tasks.get('total', 0)} running",
        f"checkpoints: {counts['completed']} completed, {counts['failed']} failed, {counts['restored']} restored from",
    ]
    if latest:
        age = time.time() - latest["latest_ack_timestamp"] / 1000
        path = latest.get("external_path") or "no path"
        lines.append(f"newest checkpoint: {age:.0f} s ago, {latest['state_size']} bytes, {path}")
    return "\n".join(lines)


def _cause(trace: str) -> str:
    """The innermost reason of a Java stack trace, in one line."""
    lines = [line.strip() for line in trace.splitlines() if line.strip()]
    causes = [line.removeprefix("Caused by: ") for line in lines if line.startswith("Caused by: ")]
    return (causes[-1] if causes else lines[0] if lines else "no reason")[:300]


def _root(error: BaseException) -> str:
    reason = getattr(error, "reason", None)
    return _root(reason) if isinstance(reason, BaseException) else brief(error)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
