"""`make bench`: what the job costs, as JSON. Compare ratios within one run; machines are noisy.

The cluster is a process of its own that serves Events from memory. `start_up` is the same job over a cluster of a few
Events: what it costs is subtracted. `floor` is the codec alone, in one process, over the same bytes: decode each Event,
build the same enriched record, serialize it, compress a file of 1,000; no Beam, HTTP, deduplication, commit or disk.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from transforms import codec
from transforms.decode import Decoder
from transforms.facts import Facts
from transforms.objects import object_type
from transforms.record import event_record
from transforms.types import Event, News

EVENTS = int(os.environ.get("BENCH_EVENTS", "100000"))
_PAGE = 1000


def main() -> int:
    """Runs the job over a few and over many Events, and the codec over the same Events, and prints the figures."""
    with tempfile.TemporaryDirectory() as directory:
        with _cluster(10) as url:
            start_up = _run_job(url, Path(directory) / "few")
        with _cluster(EVENTS) as url:
            job = _run_job(url, Path(directory) / "many")
            floor = _run_floor(url)
        wall_s = job["wall_s"] - start_up["wall_s"]
        cpu_s = job["cpu_s"] - start_up["cpu_s"]
        print(
            json.dumps(
                {
                    "events": EVENTS,
                    "records": job["records"],
                    "job": {
                        "events_per_s": round(EVENTS / wall_s),
                        "events_per_cpu_s": round(EVENTS / cpu_s),
                        "cpu_us_per_event": round(cpu_s / EVENTS * 1e6, 1),
                        "cpu_s": round(cpu_s, 2),
                        "peak_memory_mb": round(job["peak_mb"]),
                        "api_requests_per_10000_events": round(job["requests"] / EVENTS * 10_000, 1),
                        "bytes_per_record": round(job["bytes"] / job["records"], 1),
                    },
                    "floor": {
                        "events_per_s": round(EVENTS / floor["wall_s"]),
                        "cpu_us_per_event": round(floor["cpu_s"] / EVENTS * 1e6, 1),
                        "cpu_s": round(floor["cpu_s"], 2),
                        "peak_memory_mb": round(floor["peak_mb"]),
                        "bytes_per_record": round(floor["bytes"] / EVENTS, 1),
                    },
                    "job_cpu_over_floor": round(cpu_s / floor["cpu_s"], 2),
                    "start_up": {"cpu_s": round(start_up["cpu_s"], 2), "peak_memory_mb": round(start_up["peak_mb"])},
                },
                indent=2,
            )
        )
    return 0


@contextmanager
def _cluster(events: int) -> Iterator[str]:
    command = [sys.executable, "-m", "pipeline.demo.bench", "--events", str(events), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield server.stdout.readline().strip()
        finally:
            server.terminate()


def _run_job(url: str, directory: Path) -> dict[str, Any]:
    directory.mkdir()
    kubeconfig = directory / "kubeconfig"
    kubeconfig.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "bench", "cluster": {"server": url}}],
                "users": [{"name": "bench", "user": {}}],
                "contexts": [{"name": "bench", "context": {"cluster": "bench", "user": "bench"}}],
                "current-context": "bench",
            }
        )
    )
    output = directory / "output"
    options = ["--kubeconfig", str(kubeconfig), "--output", str(output), "--cluster", "bench", "--once"]
    began = time.perf_counter()
    job = subprocess.Popen([sys.executable, "-m", "pipeline", *options], stderr=subprocess.PIPE, text=True)
    assert job.stderr is not None
    said = job.stderr.read()
    _, status, usage = os.wait4(job.pid, 0)
    wall_s = time.perf_counter() - began
    job.returncode = os.waitstatus_to_exitcode(status)
    if job.returncode:
        raise SystemExit(f"the job failed: {said}")
    segments = [path.read_bytes() for path in output.rglob("*.pb.gz")]
    return {
        "wall_s": wall_s,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "peak_mb": usage.ru_maxrss / 1024,
        "records": sum(sum(1 for _ in codec.unpack(data)) for data in segments),
        "bytes": sum(map(len, segments)),
        "requests": int(said.rsplit(" API requests", 1)[0].rsplit(" ", 1)[1].replace(",", "")),
    }


def _run_floor(url: str) -> dict[str, float]:
    pages, facts = list(_pages(url)), _facts(url)
    began, cpu = time.perf_counter(), time.process_time()
    size = 0
    for page in pages:
        events = page_decoder.decode(page).items
        size += len(codec.pack([event_record("bench", News("LISTED", e, 1), facts).data for e in events]))
    return {
        "wall_s": time.perf_counter() - began,
        "cpu_s": time.process_time() - cpu,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "bytes": size,
    }


def _facts(url: str) -> Facts:
    facts = Facts()
    for plural in ("pods", "nodes", "services"):
        facts.begin_list(plural)
        with urllib.request.urlopen(f"{url}/api/v1/{plural}") as response:
            changes, _ = Decoder(object_type(plural)).page(response.read(), 1)
        for change in changes:
            facts.apply(plural, "LISTED", change.object, 1)
        facts.end_list(plural, 1)
    return facts


class _Page(msgspec.Struct):
    metadata: dict[str, Any]
    items: list[Event]


page_decoder = msgspec.json.Decoder(_Page)


def _pages(url: str) -> Iterator[bytes]:
    following = ""
    while True:
        token = f"&continue={following}" if following else ""
        with urllib.request.urlopen(f"{url}/api/v1/events?limit={_PAGE}{token}") as response:
            body = response.read()
        yield body
        following = page_decoder.decode(body).metadata.get("continue", "")
        if not following:
            return


if __name__ == "__main__":
    sys.exit(main())
