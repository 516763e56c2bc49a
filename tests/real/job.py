"""The job as a process: started as a person starts it, and ended in every way that a process ends."""

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.real.sink import Sink
from tests.servers.process import popen

ROOT = Path(__file__).parents[2]

# Of root without capabilities the kernel asks the rights that it asks of anybody.
UNPRIVILEGED = ("setpriv", "--bounding-set=-all", "--inh-caps=-all") if os.geteuid() == 0 else ()


class Job:
    """A `python -m pipeline` process; its stderr is read as it comes."""

    def __init__(self, argv: Sequence[str], environment: Mapping[str, str]) -> None:
        self.lines: list[str] = []
        self._process = popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=environment,
            cwd=ROOT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """The process's id."""
        return int(self._process.pid)

    @property
    def stderr(self) -> str:
        """What the job has said so far."""
        return "".join(self.lines)

    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def wait(self, timeout: float = 60.0) -> int:
        """The exit code, once the process has ended and all that it said was read."""
        try:
            code = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the job has not ended within {timeout:.0f} s; it said:\n{self.stderr}") from None
        self._reader.join(10)
        return int(code)

    def wait_until_it_says(self, text: str, timeout: float = 60.0) -> None:
        """Returns when `text` is in what the job said."""
        self.wait_until(f"the job says {text!r}", lambda: text in self.stderr, timeout)

    def wait_until(self, what: str, holds: Callable[[], bool], timeout: float = 60.0) -> None:
        """Returns when `holds()`; fails when the job ends or `timeout` seconds pass first."""
        deadline = time.monotonic() + timeout
        while not holds():
            alive = self.alive()
            if (not alive and not holds()) or time.monotonic() > deadline:
                raise AssertionError(f"not until the job ended or {timeout:.0f} s: {what}; it said:\n{self.stderr}")
            time.sleep(0.02)

    def signal(self, number: int) -> None:
        """Sends a signal."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """kill -9, and returns when the process has ended."""
        self._process.kill()
        self.wait()

    def stop(self, timeout: float = 60.0) -> None:
        """SIGTERM, and the job ends with 0, without a traceback."""
        self.signal(signal.SIGTERM)
        code = self.wait(timeout)
        assert code == 0, f"ended with {code}:\n{self.stderr}"
        assert "Traceback" not in self.stderr, self.stderr

    def limit_file_size(self, size: int) -> None:
        """Lets no file of the job's grow beyond `size` bytes: writing fails, as on a full disk; -1 ends it."""
        resource.prlimit(self._process.pid, resource.RLIMIT_FSIZE, (size, -1))

    def close(self) -> None:
        """Ends the process if it runs."""
        if self.alive():
            self.kill()

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.lines.append(line)


class Jobs:
    """Starts jobs with what a test has in common to all, and ends those that are left."""

    def __init__(self, **common: Any) -> None:
        self._common = {"runner": "DirectRunner", "cluster": "test", "batch_interval": 0.5, **common}
        self._started: list[Job] = []

    def start(
        self, sink: Sink, *, prefix: Sequence[str] = (), environment: Mapping[str, str] | None = None, **options: Any
    ) -> Job:
        """A job that writes to the sink. An option of True is a flag, one of None is left out."""
        given = {**self._common, "output": sink.output, **sink.options, **options}
        arguments = [
            f"--{name}" if value is True else f"--{name}={value}" for name, value in given.items() if value is not None
        ]
        argv = [*prefix, sys.executable, "-m", "pipeline", *arguments]
        job = Job(argv, clean_environment({**sink.environment, **(environment or {})}))
        self._started.append(job)
        return job

    def once(self, sink: Sink, **options: Any) -> Job:
        """A job that reads what is there, and has ended well."""
        job = self.start(sink, once=True, **options)
        code = job.wait(120)
        assert code == 0, f"ended with {code}:\n{job.stderr}"
        assert "Traceback" not in job.stderr, job.stderr
        return job

    def close(self) -> None:
        """Ends all jobs that run, and prints what they said, which pytest shows of a test that failed."""
        for number, job in enumerate(self._started):
            ended = "" if job.alive() else f" (ended with {job.wait()})"
            job.close()
            print(f"--- job {number}{ended}:\n{job.stderr}")


def verify(sink: Sink) -> subprocess.CompletedProcess[str]:
    """`python -m pipeline.verify` of a sink."""
    arguments = [f"--{name}={value}" for name, value in sink.options.items()]
    return subprocess.run(
        [sys.executable, "-m", "pipeline.verify", sink.output, *arguments],
        env=clean_environment(sink.environment),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


def assert_verified(sink: Sink) -> str:
    """`python -m pipeline.verify` finds the history complete; returns what it prints."""
    done = verify(sink)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def clean_environment(more: Mapping[str, str]) -> dict[str, str]:
    """This process's environment without what would lead a client elsewhere: proxies, AWS settings, kubeconfigs."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.upper().endswith("_PROXY") and not name.startswith(("AWS_", "KUBE"))
    }
    return {**kept, **more}
