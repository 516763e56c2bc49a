"""The deploy files as kustomize builds them; kustomize is built with Go, once, outside of the checkout."""

import fcntl
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.servers.build import BuildError

DEPLOY = Path(__file__).parents[2] / "deploy"
OVERLAYS = ("direct/overlays/s3", "direct/overlays/pvc", "direct/overlays/namespaces", "flink/overlays/s3")
_PACKAGE = "sigs.k8s.io/kustomize/kustomize/v5@v5.7.1"

Object = dict[str, Any]


@cache
def built(overlay: str) -> tuple[Object, ...]:
    """The objects of an overlay, in the order in which kustomize prints them. Don't change them."""
    return build(DEPLOY / overlay)


def build(folder: Path) -> tuple[Object, ...]:
    """What kustomize makes of a folder, without a complaint."""
    done = subprocess.run([_binary(), "build", folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return tuple(yaml.safe_load_all(done.stdout))


def of_kind(objects: tuple[Object, ...], *kinds: str) -> list[Object]:
    """The objects of these kinds."""
    return [obj for obj in objects if obj["kind"] in kinds]


def pod_templates(objects: tuple[Object, ...]) -> list[Object]:
    """The pod templates of all workloads."""
    return [obj["spec"]["template"] for obj in of_kind(objects, "Deployment", "Job")]


def containers(objects: tuple[Object, ...]) -> list[Object]:
    """All containers."""
    return [container for template in pod_templates(objects) for container in template["spec"]["containers"]]


def settings(objects: tuple[Object, ...], file: str) -> str:
    """A file of the config maps."""
    (found,) = [obj["data"][file] for obj in of_kind(objects, "ConfigMap") if file in obj["data"]]
    return str(found)


def _binary() -> str:
    found = shutil.which("kustomize")
    if found:
        return found
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kube-history" / "kustomize"
    binary = base / _PACKAGE.rpartition("@")[2] / "kustomize"
    binary.parent.mkdir(parents=True, exist_ok=True)
    with (base / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not binary.is_file():
            _build(binary)
    return str(binary)


def _build(binary: Path) -> None:
    go = shutil.which("go")
    if go is None:
        raise BuildError("expected kustomize or Go on PATH; there is neither; install one")
    with tempfile.TemporaryDirectory(dir=binary.parent) as scratch:
        environment = {**os.environ, "GOBIN": scratch, "CGO_ENABLED": "0"}
        done = subprocess.run([go, "install", _PACKAGE], env=environment, capture_output=True, text=True)
        if done.returncode != 0:
            raise BuildError(f"expected go install {_PACKAGE} to work; it said: {done.stderr[-300:]}; mend that")
        (Path(scratch) / "kustomize").replace(binary)
