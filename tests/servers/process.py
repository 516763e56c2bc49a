"""One server process of ours: its log, its readiness, and its end through its own handle."""

import random
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

# Tests that are killed can't stop their servers, so the kernel does. It goes by the thread that started a process,
# hence one that lives as long as this program.
_DIE_WITH_PARENT = ["setpriv", "--pdeathsig", "KILL", "--"] if shutil.which("setpriv") else []
_SPAWNER = ThreadPoolExecutor(1, thread_name_prefix="spawner")


def popen(argv: Sequence[str | Path], **options: Any) -> subprocess.Popen[Any]:
    """A process that ends when this one does, however that comes about; options are those of subprocess.Popen."""
    # A Ctrl-C in the terminal is for the tests, which then end what they started.
    start = partial(subprocess.Popen[Any], [*_DIE_WITH_PARENT, *map(str, argv)], start_new_session=True, **options)
    return _SPAWNER.submit(start).result()


class ServerError(RuntimeError):
    """A server did not start or stop as it should; the message ends with the tail of its log."""


class PortTakenError(ServerError):
    """The server's port was taken by somebody else."""


class Process:
    """A started process that writes to `log`; only ever signalled through the handle that started it."""

    def __init__(self, argv: Sequence[str | Path], log: Path, env: Mapping[str, str] | None = None) -> None:
        self._name, self._log = Path(argv[0]).name, log
        self._start_of_log = log.stat().st_size if log.exists() else 0
        with log.open("ab") as file:
            self._process = popen(argv, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=env)

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def wait_until(self, ready: Callable[[], bool], timeout: float = 60.0) -> None:
        """Returns when `ready()` is true; raises ServerError when the process ends or `timeout` seconds pass first."""
        deadline = time.monotonic() + timeout
        while not ready():
            if not self.alive():
                code, tail = self._process.returncode, self._tail()
                kind = PortTakenError if "address already in use" in tail else ServerError
                raise kind(f"expected {self._name} to start; it ended with {code}; its log:\n{tail}")
            if time.monotonic() > deadline:
                raise ServerError(
                    f"expected {self._name} ready within {timeout} s; it is not; its log:\n{self._tail()}"
                )
            time.sleep(0.03)

    def stop(self, timeout: float = 30.0) -> None:
        """SIGTERM, and returns when the process has ended; one that takes too long is killed and is a ServerError."""
        self._process.terminate()
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired as error:
            self.kill()
            raise ServerError(
                f"expected {self._name} to stop within {timeout} s; it was killed; its log:\n{self._tail()}"
            ) from error

    def kill(self) -> None:
        """SIGKILL, and returns when the process has ended."""
        self._process.kill()
        self._process.wait()

    def _tail(self, lines: int = 15) -> str:
        with self._log.open("rb") as file:
            file.seek(self._start_of_log)
            return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])


def on_free_port(start: Callable[[int], None]) -> None:
    """Calls `start(port)` with a free port, and again with another when somebody else took that one meanwhile."""
    for _ in range(3):
        try:
            return start(free_port())
        except PortTakenError:
            continue
    return start(free_port())


def free_port() -> int:
    """A loopback port that is free now; a server can still lose it, so see `on_free_port`.

    It lies below Linux's range of ephemeral ports: a server that is down for a while has to get its port back, and the
    kernel would give an ephemeral one to the next outgoing connection.
    """
    while True:
        port = random.SystemRandom().randrange(10_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
