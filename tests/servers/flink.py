"""A real Flink session cluster: a JobManager and TaskManagers, from the packages that PyFlink is distributed in."""

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any, Self

import urllib3
import yaml

from tests.servers.build import BuildError
from tests.servers.process import Process, free_port

VERSION = "1.19.3"
_JAVA = Path(__file__).with_name("java")
# Flink 1.19 on a JDK 17 needs what its own configuration opens.
_OPENED = ("java.lang", "java.net", "java.io", "java.nio", "sun.nio.ch", "java.lang.reflect", "java.text", "java.time")
_OPENED += ("java.util", "java.util.concurrent", "java.util.concurrent.atomic", "java.util.concurrent.locks")


def home() -> Path:
    """Flink's directory, installed now (230 MB) if it is missing: outside of the checkout, whole or not at all."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kube-history"
    installed = base / f"flink-{VERSION}"
    base.mkdir(parents=True, exist_ok=True)
    with (base / f".flink-{VERSION}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not installed.is_dir():
            _install(installed)
    return installed / "pyflink"


def _install(target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        packages = [f"apache-flink=={VERSION}", f"apache-flink-libraries=={VERSION}"]
        pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--quiet", "--disable-pip-version-check"]
        done = subprocess.run([*pip, f"--target={scratch}/all", *packages], capture_output=True, text=True)
        if done.returncode != 0:
            tail = " | ".join(done.stderr.strip().splitlines()[-3:])
            raise BuildError(f"expected {' and '.join(packages)} to install; pip said: {tail}; mend that")
        (Path(scratch) / "all").replace(target)


class FlinkCluster:
    """A JobManager, and one TaskManager with `slots` slots, on free loopback ports; checkpoints once a second.

    Entering it returns when the slots can be had (about 5 s).
    """

    def __init__(self, slots: int = 2) -> None:
        self._slots = slots
        self._http = urllib3.PoolManager(retries=False)
        self._job_manager: Process | None = None
        self._task_manager: Process | None = None

    def __enter__(self) -> Self:
        self._dir = Path(tempfile.mkdtemp(prefix="flink-"))
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in (self._task_manager, self._job_manager):
            if process is not None:
                process.kill()
        shutil.rmtree(self._dir, ignore_errors=True)

    @property
    def master(self) -> str:
        """The REST API's address, 127.0.0.1:PORT."""
        return f"127.0.0.1:{self.port}"

    @property
    def savepoints(self) -> str:
        """A URI under which savepoints may be written."""
        return (self._dir / "savepoints").as_uri()

    def get(self, path: str) -> Any:
        """The REST API's answer to a GET."""
        return self._http.request("GET", f"http://{self.master}{path}", timeout=30).json()

    def free_slots(self) -> int:
        """How many slots can be had; 0 while the cluster does not answer."""
        try:
            return int(self.get("/overview")["slots-available"])
        except (urllib3.exceptions.HTTPError, ValueError, KeyError):
            return 0

    def start_task_manager(self) -> None:
        """Starts the TaskManager, and returns when its slots are there (taken or not)."""
        self._task_manager = self._process("taskmanager.sh")
        self._task_manager.wait_until(lambda: bool(self.get("/overview")["slots-total"]))

    def kill_task_manager(self) -> None:
        """kill -9."""
        if self._task_manager is not None:
            self._task_manager.kill()
            self._task_manager = None

    def run_ticks(self, name: str) -> str:
        """Starts a streaming job of that name that counts for ever; returns its id once it runs."""
        jar = self._dir / "ticks.jar"
        if not jar.exists():
            self._compile(jar)
        fields = {"jarfile": ("ticks.jar", jar.read_bytes(), "application/x-java-archive")}
        uploaded = self._http.request("POST", f"http://{self.master}/jars/upload", fields=fields).json()["filename"]
        run = f"http://{self.master}/jars/{Path(uploaded).name}/run"
        body = {"entryClass": "Ticks", "programArgsList": [name]}
        job: str = self._http.request("POST", run, json=body, timeout=60).json()["jobid"]
        assert self._job_manager is not None
        self._job_manager.wait_until(lambda: self._all_running(job))
        return job

    def _all_running(self, job: str) -> bool:
        return all(vertex["status"] == "RUNNING" for vertex in self.get(f"/jobs/{job}")["vertices"])

    def _start(self) -> None:
        self.port, rpc = free_port(), free_port()
        local = "127.0.0.1"
        opened = " ".join(f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in _OPENED)
        configuration = {
            "env": {"java": {"opts": {"all": opened}}},
            "jobmanager": {"bind-host": local, "rpc": {"address": local, "port": rpc}},
            "taskmanager": {"bind-host": local, "host": local, "numberOfTaskSlots": self._slots},
            "rest": {"address": local, "bind-address": local, "port": self.port},
            "io": {"tmp": {"dirs": str(self._dir)}},
            "state": {"checkpoints": {"dir": (self._dir / "checkpoints").as_uri()}},
            "execution": {"checkpointing": {"interval": "1s"}},
        }
        configuration["jobmanager"]["memory"] = {"process": {"size": "800m"}}
        configuration["taskmanager"]["memory"] = {"process": {"size": "1000m"}}
        shutil.copytree(home() / "conf", self._dir / "conf")
        (self._dir / "conf" / "config.yaml").write_text(yaml.safe_dump(configuration))
        self._job_manager = self._process("jobmanager.sh")
        self._task_manager = self._process("taskmanager.sh")
        self._task_manager.wait_until(lambda: self.free_slots() == self._slots)

    def _process(self, script: str) -> Process:
        places = {f"FLINK_{name.upper()}_DIR": str(self._dir / name) for name in ("conf", "log", "pid")}
        for place in places.values():
            Path(place).mkdir(exist_ok=True)
        environment = {**os.environ, **places}
        return Process([home() / "bin" / script, "start-foreground"], self._dir / f"{script}.log", environment)

    def _compile(self, jar: Path) -> None:
        classes = self._dir / "classes"
        path = os.pathsep.join(map(str, (home() / "lib").glob("*.jar")))
        command = ["javac", "-nowarn", "-cp", path, "-d", classes, *_JAVA.glob("*.java")]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise BuildError(f"expected a JDK's javac to compile {_JAVA}: {getattr(error, 'stderr', error)}") from error
        with zipfile.ZipFile(jar, "w") as file:
            for path in classes.glob("*.class"):
                file.write(path, path.name)
