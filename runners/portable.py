"""`--runner PortableRunner`: the streaming graph through Beam's Job API, and what the runners that speak it share.

Workers are EXTERNAL: the runner's tasks ask a worker pool (`apache_beam.runners.worker.worker_pool_main`) for them, at
an address that each task reaches for itself. So no container is started, and nothing is staged: the pool's Python has
this project installed.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import apache_beam as beam
import grpc
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions, PortableOptions
from apache_beam.runners.portability.portable_runner import PortableRunner
from apache_beam.runners.runner import PipelineState

from runners.config import JobConfig
from runners.errors import RunnerError
from transforms import codec, layout
from transforms.carried import Process
from transforms.types import Target

_LOG = logging.getLogger(__name__)

JOB_NAME = "kube-history"
WORKER_POOL = "localhost:50000"
_POLL_S = 0.5
_API_S, _BEAMS_API_S = 60, 300  # Beam waits five minutes for a Job API that is not there

Build = Callable[[beam.Pipeline, JobConfig, Process, Sequence[Target]], object]


def run(config: JobConfig, options: PipelineOptions, build: Build) -> None:
    """Runs the job through the Job API at --job_endpoint, until it ends; SIGTERM and SIGINT cancel it."""
    portable = options.view_as(PortableOptions)
    write_schema(config)
    with stopped_by_signals() as stopping:
        flags = [*common_flags(options), f"--job_endpoint={portable.job_endpoint}"]
        flags.append(f"--job_server_timeout={_timeout_s(options)}")
        if portable.artifact_endpoint:
            flags.append(f"--artifact_endpoint={portable.artifact_endpoint}")
        try:
            result = submit(config, flags, build, PortableRunner())
        except Exception as error:
            raise RunnerError(
                f"expected a Job API at --job_endpoint {portable.job_endpoint} to take the job, got "
                f"{reason(error)}; start a job server there"
            ) from error
        _LOG.info("runs at %s", portable.job_endpoint)
        wait(result, stopping, config.run_for_s)


def _timeout_s(options: PipelineOptions) -> int:
    given: int = options.view_as(PortableOptions).job_server_timeout
    return _API_S if given == _BEAMS_API_S else given


def submit(config: JobConfig, flags: Sequence[str], build: Build, runner: PortableRunner) -> Any:
    """Hands the streaming graph to a runner; returns Beam's handle of the job."""
    pipeline = beam.Pipeline(runner=runner, options=PipelineOptions(list(flags)))
    # The workers each acquire a Carried of their own: nothing of this process travels.
    build(pipeline, config, Process(config.settings), targets_of(config))
    return pipeline.run()


def targets_of(config: JobConfig) -> list[Target]:
    """What is watched: one element each, so that a cluster that is down holds no other back."""
    return [target for cluster in config.clusters for target in config.targets(cluster.name)]


def write_schema(config: JobConfig) -> None:
    """Checks that the sink can be written, and puts the records' schema there. Raises StoreError."""
    store = config.store.open()
    store.check()
    store.create(layout.SCHEMA, codec.descriptor_set())


def common_flags(options: PipelineOptions, worker_pool: str = WORKER_POOL) -> list[str]:
    """The flags of Beam that every streaming submission has."""
    portable = options.view_as(PortableOptions)
    environment = portable.environment_type or "EXTERNAL"
    flags = [
        "--streaming",
        f"--job_name={job_name(options)}",
        f"--environment_type={environment}",
        # Else `pip freeze` is run and staged, and a task would have to be able to read the submission's files.
        "--experiments=disable_logging_submission_environment",
    ]
    address = portable.environment_config or (worker_pool if environment == "EXTERNAL" else None)
    return [*flags, f"--environment_config={address}"] if address else flags


def job_name(options: PipelineOptions) -> str:
    """The job's name: --job_name, or ours."""
    return options.view_as(GoogleCloudOptions).job_name or JOB_NAME


def wait(result: Any, stopping: threading.Event, run_for_s: float = 0.0) -> None:
    """Returns when the job has been asked to stop or has run its time, and was cancelled; raises when it fails."""
    listen(result)
    until = time.monotonic() + run_for_s if run_for_s else float("inf")
    try:
        while not stopping.wait(_POLL_S) and time.monotonic() < until:
            state = result.state
            if PipelineState.is_terminal(state):
                raise RunnerError(f"expected the job to go on for ever, got {state}: {last_error(result)}")
        result.cancel()
    except grpc.RpcError as error:
        raise RunnerError(f"expected the runner to answer, got {reason(error)}; see what became of it") from error


def listen(result: Any) -> None:
    """Keeps what the runner says of the job from now on, and logs its warnings and errors."""
    threading.Thread(target=_read_messages, args=(result,), daemon=True).start()


def last_error(result: Any) -> str:
    """The newest error among the job's messages, in one line."""
    time.sleep(_POLL_S)  # the message comes in a stream of its own, beside the state
    return brief(result._last_error_message())


def reason(error: Exception) -> str:
    """Why a call of the Job API failed, in one line: an error of gRPC is many lines."""
    return f"{error.code().name}: {brief(error.details())}" if isinstance(error, grpc.Call) else brief(error)


def brief(error: object) -> str:
    """An error in one line of at most 300 letters; the last line says what it was."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]


@contextmanager
def stopped_by_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set; the handlers that were there come back."""
    stopping = threading.Event()

    def on_signal(number: int, _: FrameType | None) -> None:
        _LOG.warning("%s: the job is cancelled", signal.Signals(number).name)
        stopping.set()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _read_messages(result: Any) -> None:
    try:
        for message in result._message_stream:
            result._messages.append(message)
            if message.HasField("message_response") and message.message_response.importance >= _WARNING:
                _LOG.warning("runner: %s", brief(message.message_response.message_text))
    except Exception as error:  # the stream ends with the runner
        _LOG.debug("no more messages of the job: %s", error)


_WARNING = 4  # JobMessage.JOB_MESSAGE_WARNING of Beam's beam_job_api.proto; 5 is an error
