"""The command: how it ends, with which code and with which one line."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import main as main_module
from pipeline.main import main
from tests.pipeline.test_options import WRONG
from transforms.commit import ChainError
from transforms.kube import ConfigError, KubeError
from transforms.store import LocalStore, StoreError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def quiet(monkeypatch):
    """Leaves this process's logging, memory and signal handlers as they are."""
    monkeypatch.setattr(main_module, "_log_to_stderr", lambda _: None)
    monkeypatch.setattr(main_module, "_settle_memory", lambda: None)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("arguments", [arguments for arguments, _ in WRONG], ids=lambda text: text or "none")
def test_a_wrong_parameter_ends_with_2_and_one_line(arguments, capsys):
    assert main(arguments.split()) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("python -m pipeline: ")
    assert shown.err.endswith(" (see --help)\n")
    assert shown.err.count("\n") == 1


@pytest.mark.parametrize(
    "error",
    [
        ConfigError("cluster 'prod': expected a usable kubeconfig;\n tried in-cluster"),
        KubeError("GET https://prod/api/v1/events: 403 Forbidden", 403),
        StoreError("s3://bucket: denied"),
        ChainError("expected to be the only job"),
        OSError(28, "No space left on device"),
        RuntimeError("something in Beam\nTraceback"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.usefixtures("quiet")
def test_what_stops_the_job_ends_with_1_and_one_line(error, monkeypatch, caplog):
    def run(*_):
        raise error

    monkeypatch.setattr(main_module, "_run", run)
    assert main(["--output", "o"]) == 1
    (record,) = [record for record in caplog.records if record.name == "kube-history"]
    assert record.levelno == logging.ERROR
    assert record.exc_info in (None, False)
    assert "\n" not in record.getMessage()
    assert " ".join(str(error).split()) in record.getMessage()


@pytest.mark.usefixtures("quiet")
def test_with_debug_the_traceback_is_shown(monkeypatch, caplog):
    def run(*_):
        raise KubeError("no")

    monkeypatch.setattr(main_module, "_run", run)
    assert main(["--output", "o", "--debug"]) == 1
    assert caplog.records[-1].exc_info


@pytest.mark.usefixtures("quiet")
def test_the_first_signal_ends_the_job_after_its_epoch(monkeypatch, caplog):
    stopped = []

    class Job:
        def __init__(self, config, build):
            assert config.batch_size == 7

        def run(self):
            os.kill(os.getpid(), signal.SIGTERM)

        def stop(self):
            stopped.append(True)

    monkeypatch.setattr(main_module, "DirectJob", Job)
    assert main(["--output", "o", "--batch_size", "7"]) == 0
    assert stopped == [True]
    assert "SIGTERM: ends after this epoch; once more ends at once" in caplog.text


@pytest.mark.usefixtures("quiet")
def test_the_second_signal_ends_the_process(monkeypatch):
    ended = []
    monkeypatch.setattr(main_module.os, "_exit", ended.append)

    class Job:
        def __init__(self, *_):
            pass

        def run(self):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)

        def stop(self):
            pass

    monkeypatch.setattr(main_module, "DirectJob", Job)
    main(["--output", "o"])
    assert ended == [128 + signal.SIGTERM]


@pytest.mark.usefixtures("quiet")
def test_the_demo_cluster_is_there_while_the_job_runs_and_gone_afterwards(monkeypatch):
    found = []

    def run(_, config):
        (cluster,) = config.clusters
        assert config.settings.clusters == (cluster,)
        assert os.path.isfile(cluster.kubeconfig)
        found.append(cluster)

    monkeypatch.setattr(main_module, "_run", run)
    assert main(["--output", "o", "--demo"]) == 0
    (cluster,) = found
    assert cluster.name == "demo"
    assert not os.path.exists(cluster.kubeconfig)


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_command_reads_the_demo_cluster_and_writes_its_history(tmp_path):
    done = run("--runner", "DirectRunner", "--demo", "--once", "--output", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "records written in" in done.stderr
    paths = [entry.path for entry in LocalStore(tmp_path / "out").list("")]
    assert "_schema/record.desc" in paths
    assert any(path.startswith("cluster=demo/dt=") and path.endswith(".pb.gz") for path in paths)


def test_the_command_without_a_cluster_says_what_it_tried(tmp_path):
    nowhere = {"KUBECONFIG": str(tmp_path / "none"), "HOME": str(tmp_path), "KUBERNETES_SERVICE_HOST": ""}
    done = run("--output", str(tmp_path / "out"), **nowhere)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "ERROR cluster 'default': expected a usable kubeconfig; tried in-cluster (" in line
