"""A Job API without a runner behind it, in the place of Beam's job server: `fake_job_server.py RECEIVED PORT [ERROR]`.

It describes the options that the real one has, writes those it gets, with the pipeline's transforms, to RECEIVED as
JSON, and then says that the job runs, or that it failed with ERROR.
"""

import json
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from apache_beam.portability.api import beam_job_api_pb2 as api
from apache_beam.portability.api import beam_job_api_pb2_grpc
from google.protobuf import json_format

# Of FlinkPipelineOptions.java: what the Python SDK does not know of itself.
_OPTIONS = {
    "attached_mode": ("BOOLEAN", "true"),
    "allow_non_restored_state": ("BOOLEAN", "false"),
    "checkpointing_interval": ("INTEGER", "-1"),
    "execution_retry_delay": ("INTEGER", "-1"),
    "externalized_checkpoints_enabled": ("BOOLEAN", "false"),
    "flink_master": ("STRING", "[auto]"),
    "max_bundle_time_mills": ("INTEGER", "1000"),
    "number_of_execution_retries": ("INTEGER", "-1"),
    "parallelism": ("INTEGER", "-1"),
    "retain_externalized_checkpoints_on_cancellation": ("BOOLEAN", "false"),
    "savepoint_path": ("STRING", ""),
    "state_backend": ("STRING", ""),
    "state_backend_storage_path": ("STRING", ""),
}


class JobService(beam_job_api_pb2_grpc.JobServiceServicer):
    """Takes one job."""

    def __init__(self, received: Path, error: str) -> None:
        self._received, self._error = received, error
        self._state = api.JobState.FAILED if error else api.JobState.RUNNING

    def DescribePipelineOptions(self, request: Any, context: Any) -> Any:  # noqa: N802
        options = [
            api.PipelineOptionDescriptor(name=name, type=api.PipelineOptionType.Enum.Value(kind), default_value=default)
            for name, (kind, default) in _OPTIONS.items()
        ]
        return api.DescribePipelineOptionsResponse(options=options)

    def Prepare(self, request: Any, context: Any) -> Any:  # noqa: N802
        options = json_format.MessageToDict(request.pipeline_options)
        components = request.pipeline.components
        content = {
            "options": {name.removeprefix("beam:option:").removesuffix(":v1"): options[name] for name in options},
            "transforms": sorted(transform.unique_name for transform in components.transforms.values()),
            "environments": sorted({environment.urn for environment in components.environments.values()}),
            "payloads": sorted({environment.payload.decode() for environment in components.environments.values()}),
            "dependencies": sum(len(environment.dependencies) for environment in components.environments.values()),
        }
        scratch = self._received.with_suffix(".new")
        scratch.write_text(json.dumps(content))
        scratch.replace(self._received)
        return api.PrepareJobResponse(preparation_id="prepared")

    def Run(self, request: Any, context: Any) -> Any:  # noqa: N802
        return api.RunJobResponse(job_id="job")

    def GetState(self, request: Any, context: Any) -> Any:  # noqa: N802
        return api.JobStateEvent(state=self._state)

    def GetStateStream(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        yield api.JobStateEvent(state=self._state)
        threading.Event().wait()

    def GetMessageStream(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        if self._error:
            error = api.JobMessage(importance=api.JobMessage.JOB_MESSAGE_ERROR, message_text=self._error)
            yield api.JobMessagesResponse(message_response=error)
        threading.Event().wait()


if __name__ == "__main__":
    server = grpc.server(ThreadPoolExecutor(16))
    service = JobService(Path(sys.argv[1]), sys.argv[3] if len(sys.argv) > 3 else "")
    beam_job_api_pb2_grpc.add_JobServiceServicer_to_server(service, server)
    server.add_insecure_port(f"localhost:{sys.argv[2]}")
    server.start()
    server.wait_for_termination()
