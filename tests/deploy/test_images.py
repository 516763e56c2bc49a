"""The images, as far as they can be tried without containers: what they copy installs, starts, and needs no disk."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import urllib3

from tests.deploy.kustomize import built, containers, settings
from tests.real.job import ROOT, Jobs, clean_environment
from tests.real.sink import LocalSink, assert_written
from tests.servers import manifests
from tests.servers.control_plane import ControlPlane
from tests.servers.flink import home
from tests.servers.process import Process, free_port

IMAGES = ROOT / "deploy" / "images"
DOCKERFILES = sorted(IMAGES.glob("*.Dockerfile"))


def test_there_is_one_for_each_image_that_is_deployed() -> None:
    text = "".join(path.read_text() for path in (ROOT / "deploy").rglob("kustomization.yaml"))
    names = set(re.findall(r"name: (kube-history[\w-]*),? *(?:\n +)?newName", text))
    tagged = {re.search(r"--tag (\S+):", path.read_text())[1] for path in DOCKERFILES}  # type: ignore[index]
    assert names == tagged == {"kube-history", "kube-history-flink", "kube-history-submit"}


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_base_images_are_pinned_and_nobody_is_root(dockerfile: Path) -> None:
    text = dockerfile.read_text()
    bases = re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    assert all(re.search(r":[^:]*\d", base) or base == "${JOB_IMAGE}" for base in bases)
    user = re.findall(r"^USER (\d+):\d+$", text, re.MULTILINE)
    assert user or bases[-1] == "${JOB_IMAGE}"
    assert all(int(uid) > 999 for uid in user)


def test_what_the_image_copies_is_in_its_build_context() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(copied()) == allowed
    assert all((ROOT / name).exists() for name in copied())


def copied() -> list[str]:
    """What the job's image is made of, by name."""
    lines = re.findall(r"^COPY (.+) \S+$", (IMAGES / "job.Dockerfile").read_text(), re.MULTILINE)
    return [name for line in lines for name in line.split()]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which only what the image copies was installed, as the Dockerfile does it."""
    folder = tmp_path_factory.mktemp("image")
    for name in copied():
        source, target = ROOT / name, folder / "source" / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            target.parent.mkdir(exist_ok=True)
            shutil.copy(source, target)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run(
        [*pip, "--no-build-isolation", f"--target={folder / 'site'}", "."],
        cwd=folder / "source",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder / "site"


def test_what_the_image_copies_installs_and_starts(installed: Path, tmp_path: Path) -> None:
    code = "import pipeline, sys; print(pipeline.__file__); from pipeline.main import main; sys.exit(main(['--help']))"
    environment = clean_environment({"PYTHONPATH": str(installed)})
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(installed)), "it would start from the checkout"


def read_only(writable: Path) -> list[str]:
    """A command's prefix: it sees a file system of which only `writable` and /proc and the like can be written."""
    script = (
        f"mount --bind {writable} {writable} && mount --bind / / && mount -o remount,bind,ro / "
        f'&& ! touch /read-only 2>/dev/null && exec setpriv --bounding-set=-all --inh-caps=-all -- "$@"'
    )
    prefix = ["unshare", "--mount", "sh", "-c", script, "sh"]
    probe = subprocess.run([*prefix, "true"], capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(f"no rights here to make a read-only file system: {probe.stderr.strip()}")
    return prefix


@pytest.mark.real
def test_the_job_runs_with_a_read_only_root_file_system(
    control_plane: ControlPlane, local: LocalSink, namespace: str, tmp_path: Path
) -> None:
    (tmp_path / "tmp").mkdir()
    prefix = read_only(tmp_path)
    pod = control_plane.api.create(manifests.pod("web", namespace))
    event = control_plane.api.create(manifests.event(pod))
    jobs = Jobs(kubeconfig=control_plane.kubeconfig, namespaces=namespace)
    environment = {"TMPDIR": str(tmp_path / "tmp"), "HOME": "/nonexistent", "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        heartbeat = tmp_path / "tmp" / "heartbeat"
        job = jobs.start(local, prefix=prefix, environment=environment, once=True, heartbeat_file=heartbeat)
        assert job.wait(60) == 0, job.stderr
    finally:
        jobs.close()
    assert_written(local, {event["metadata"]["uid"]: 1})
    assert heartbeat.exists()


@pytest.mark.real
def test_flink_starts_as_deployed_with_a_read_only_root_file_system(tmp_path: Path) -> None:
    objects = built("flink/overlays/s3")
    for file in ("config.yaml", "log4j-console.properties"):
        (tmp_path / file).write_text(settings(objects, file))
    port, rpc = free_port(), free_port()
    here = ["-Djobmanager.rpc.address=127.0.0.1", f"-Djobmanager.rpc.port={rpc}", "-Drest.address=127.0.0.1"]
    here += [f"-Drest.port={port}", f"-Dio.tmp.dirs={tmp_path}", f"-Dweb.tmpdir={tmp_path}", "-Dblob.server.port=0"]
    here += [f"-Dtaskmanager.{name}.port=0" for name in ("rpc", "data")]
    here += ["-Dmetrics.internal.query-service.port=0"]
    prefix, started, http = read_only(tmp_path), list[Process](), urllib3.PoolManager(retries=False)

    def slots() -> int:
        try:
            return int(http.request("GET", f"http://127.0.0.1:{port}/overview", timeout=5).json()["slots-available"])
        except (urllib3.exceptions.HTTPError, ValueError, KeyError):
            return 0

    try:
        for name in ("jobmanager", "taskmanager"):
            (container,) = [c for c in containers(objects) if c["name"] == name]
            command = [
                part.replace("/opt/flink", str(home())).replace("$(POD_IP)", "127.0.0.1")
                for part in container["command"]
            ]
            places = {item["name"]: item["value"] for item in container["env"] if "value" in item}
            assert set(places.values()) == {"/etc/flink", "/tmp"}
            environment = {**os.environ, **dict.fromkeys(places, str(tmp_path))}
            # jobmanager.sh takes the host and the web port first.
            more = ["127.0.0.1", str(port), *here] if name == "jobmanager" else here
            started.append(Process([*prefix, *command, *more], tmp_path / f"{name}.log", environment))
        started[0].wait_until(lambda: slots() == 2, 90)
    finally:
        for process in reversed(started):
            process.kill()
