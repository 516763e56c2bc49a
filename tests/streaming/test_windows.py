"""The snapshots of a stream: Enrich waits for those of all clusters, so none may hold a window back."""

from __future__ import annotations

import time
from pathlib import Path

import yaml
from apache_beam.io.watermark_estimators import ManualWatermarkEstimator

import transforms.snapshot
from tests.servers.process import free_port
from transforms.carried import Process, Settings
from transforms.facts import Facts
from transforms.kube import Cluster
from transforms.snapshot import Windows, WindowsTracker, _WindowsFn
from transforms.store import StoreConfig


class Tracker(WindowsTracker):
    def defer_remainder(self, _: object) -> None:
        split = self.try_split(0.0)
        assert split is not None
        self.residual = split[1]


def kubeconfig_of_nobody(path: Path) -> str:
    """A kubeconfig of an API server that is not there."""
    content = {
        "clusters": [{"name": "down", "cluster": {"server": f"http://127.0.0.1:{free_port()}"}}],
        "contexts": [{"name": "down", "context": {"cluster": "down", "user": ""}}],
        "current-context": "down",
    }
    path.write_text(yaml.safe_dump(content))
    return str(path)


def test_a_cluster_that_does_not_answer_holds_the_first_window_back_for_a_while_and_then_none(tmp_path, monkeypatch):
    monkeypatch.setattr(transforms.snapshot, "_FIRST_WINDOW_S", 1.0)
    clusters = (Cluster("down", kubeconfig_of_nobody(tmp_path / "kubeconfig")),)
    process = Process(Settings(clusters, StoreConfig(str(tmp_path))))
    carried = process.acquire()
    fn = _WindowsFn(process, (), 1.0)
    fn.setup()
    windows, watermark, took = Windows(), ManualWatermarkEstimator(None), []
    try:
        while len(took) < 3:
            tracker = Tracker(windows)
            begun = time.monotonic()
            for output in fn.process("down", tracker, watermark):
                cluster, facts = output.value
                assert cluster == "down"
                assert isinstance(Facts.decode(facts), Facts)
                took.append(time.monotonic() - begun)
                assert watermark.current_watermark() is None or output.timestamp >= watermark.current_watermark()
            windows = tracker.residual
            assert watermark.current_watermark().micros == windows.following * 1_000_000
            time.sleep(0.1)
    finally:
        carried.readers.close()
    assert 0.9 < took[0] < 5
    assert max(took[1:]) < 0.5
