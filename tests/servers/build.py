"""Builds the servers that the tests run against: `python -m tests.servers.build`.

The modules in `go/` pin the versions. The binaries go to `$XDG_CACHE_HOME/kube-history/servers/<hash of the pins>/`, so
a checkout stays clean, checkouts with the same pins share them, and new pins never meet old binaries. etcd and
kube-apiserver come from `KUBEBUILDER_ASSETS` where that is set, as with Kubernetes' envtest.
"""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_GO = Path(__file__).with_name("go")


class BuildError(RuntimeError):
    """A server cannot be had; the message is one line: what was expected, what was there, what to do."""


@dataclass(frozen=True)
class _Tool:
    module: str  # the folder under go/ that pins it
    package: str
    envtest: bool  # whether KUBEBUILDER_ASSETS holds it


_TOOLS = {
    "etcd": _Tool("kube", "go.etcd.io/etcd/server/v3", envtest=True),
    "kube-apiserver": _Tool("kube", "k8s.io/kubernetes/cmd/kube-apiserver", envtest=True),
    "versitygw": _Tool("versitygw", "github.com/versity/versitygw/cmd/versitygw", envtest=False),
}


def cache_dir() -> Path:
    """Where the binaries of this checkout's pins are, or will be."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    pins = hashlib.sha256()
    for path in sorted(_GO.glob("*/go.*")):
        pins.update(path.read_bytes())
    return base / "kube-history" / "servers" / pins.hexdigest()[:16]


def binary(name: str, say: Callable[[str], None] = lambda _: None) -> Path:
    """The path of `etcd`, `kube-apiserver` or `versitygw`, built now (in minutes) if it is missing.

    Safe to call from several processes at once: one builds, the others wait for it. A binary is published whole or not
    at all. Raises BuildError.
    """
    tool = _TOOLS[name]
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    if assets and tool.envtest:
        path = Path(assets) / name
        if not path.is_file():
            raise BuildError(
                f"expected {name} in KUBEBUILDER_ASSETS; {assets} has none; put it there or unset the variable"
            )
        return path
    path = cache_dir() / name
    if not path.is_file():
        with _lock(path.parent, say):
            if not path.is_file():  # else another process built it while this one waited
                _build(name, tool, path, say)
    return path


def _build(name: str, tool: _Tool, path: Path, say: Callable[[str], None]) -> None:
    go = shutil.which("go")
    if go is None:
        raise BuildError(
            f"expected Go on PATH to build {name}; there is none; install Go {_required_go()} or newer"
            + (", or set KUBEBUILDER_ASSETS to a folder with etcd and kube-apiserver" if tool.envtest else "")
        )
    say(f"building {name}: takes a few minutes the first time")
    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{name}-") as scratch:
        built = Path(scratch) / name
        linked = f"-s -w -X k8s.io/component-base/version.gitVersion={_kubernetes_version()}"
        command = [go, "build", "-mod=readonly", "-buildvcs=false", "-trimpath", "-ldflags", linked, "-o", str(built)]
        done = subprocess.run(
            [*command, tool.package],
            cwd=_GO / tool.module,
            env={**os.environ, "CGO_ENABLED": "0"},
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            tail = " | ".join(done.stderr.strip().splitlines()[-3:])
            raise BuildError(f"expected {tool.package} to build in {_GO / tool.module}; go said: {tail}; mend that")
        built.replace(path)
    say(f"built {name} in {time.monotonic() - started:.0f} s")


def _required_go() -> str:
    versions = [_pin(tool.module, r"^go (\S+)$") for tool in _TOOLS.values()]
    return max(versions, key=lambda version: [int(part) for part in version.split(".")])


def _kubernetes_version() -> str:
    # A kube-apiserver without a version from the linker calls itself v0.0.0 and refuses to start.
    return _pin("kube", r"^require k8s\.io/kubernetes (\S+)$")


def _pin(module: str, pattern: str) -> str:
    path = _GO / module / "go.mod"
    found = re.search(pattern, path.read_text(), re.MULTILINE)
    if found is None:
        raise BuildError(f"expected a line like {pattern} in {path}; there is none; restore the file")
    return found[1]


@contextmanager
def _lock(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Holds the folder's build lock; the kernel frees it when the holder dies."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another build")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main() -> int:
    """Makes every server available and prints where it is."""
    try:
        for name in _TOOLS:
            print(f"{name}: {binary(name, lambda line: print(line, flush=True))}", flush=True)
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
