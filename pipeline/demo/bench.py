"""A cluster full of Events, served from memory, to measure a client against.

`python -m pipeline.demo.bench --events 100000` prints its URL when all objects are rendered to bytes and sorted:
core/v1 Events of 1 to 1.3 KB about 1,000 pods, and the pods, nodes, Services and EndpointSlices that they refer to. A
page of a list is then one join of bytes, and it is not compressed, so that the time measured is the client's. Watches
stay open and silent.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence

from pipeline.demo import manifests
from pipeline.demo.kinds import JsonObject
from pipeline.demo.manifests import App
from pipeline.demo.recorder import Occurrence, event, reference
from pipeline.demo.server import DemoServer
from pipeline.demo.store import Store, random_uid

_NODES = 50
_SERVICES = 100
_OCCURRENCES = (
    ("Unhealthy", "Readiness probe failed: HTTP probe failed with statuscode: 503", "Warning"),
    ("BackOff", "Back-off restarting failed container {name} in pod {pod}_{namespace}({uid})", "Warning"),
    (
        "Pulled",
        'Successfully pulled image "{image}" in 1.204s (1.204s including waiting). Image size: 48211931 bytes.',
        "",
    ),
    ("Created", "Created container: {name}", ""),
    ("Started", "Started container {name}", ""),
    ("Killing", "Stopping container {name}", ""),
)


def fill(store: Store, events: int, pods: int = 1000, seed: int = 1) -> None:
    """Fill a store with `events` Events about `pods` pods of a hundred Services on fifty nodes."""
    rng = random.Random(seed)
    begin = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    nodes = [
        _put(store, "nodes", manifests.node(f"worker-{i}", f"10.0.{i}.10", f"zone-{i % 3}")) for i in range(_NODES)
    ]
    apps = [App(f"team-{i % 10}", f"service-{i}", "1.0.0", f"team-{i % 10}", 8080, "java") for i in range(_SERVICES)]
    owners = [_put(store, "replicasets", _replicaset(store, app)) for app in apps]
    objects = [_pod(store, app, owners[i % _SERVICES], nodes, i) for i in range(pods) for app in (apps[i % _SERVICES],)]
    for number, app in enumerate(apps):
        service = _put(store, "services", manifests.service(app, f"10.96.{number // 250}.{number % 250}"))
        endpoints = [manifests.endpoint(pod) for pod in objects[number::_SERVICES]]
        store.create("endpointslices", manifests.endpoint_slice(service, "x7k2p") | {"endpoints": endpoints})
    involved = [reference(pod) for pod in objects]
    for number in range(events):
        pod = objects[number % pods]
        moment = begin + datetime.timedelta(milliseconds=36 * number % 3_600_000)
        name = f"{pod['metadata']['name']}.{int(moment.timestamp() * 1000) * 1_000_000 + number:016x}"
        what, count = _occurrence(pod, rng.randrange(len(_OCCURRENCES))), rng.randrange(1, 20)
        about = involved[number % pods]
        store.create("events", event(about, what, name=name, uid=random_uid(rng), moment=moment, count=count))


def _put(store: Store, resource: str, obj: JsonObject) -> JsonObject:
    return obj | store.create(resource, obj)


def _replicaset(store: Store, app: App) -> JsonObject:
    deployment = _put(store, "deployments", manifests.workload("deployments", app, 10))
    return manifests.replicaset(deployment, app, "7d9c5b4f6d", 1)


def _pod(store: Store, app: App, owner: JsonObject, nodes: Sequence[JsonObject], number: int) -> JsonObject:
    pod = manifests.pod(owner, app, f"{owner['metadata']['name']}-{number:05d}", {"pod-template-hash": "7d9c5b4f6d"})
    node = nodes[number % len(nodes)]
    pod["spec"]["nodeName"] = node["metadata"]["name"]
    host, ip = node["status"]["addresses"][0]["address"], f"10.244.{number // 250}.{number % 250}"
    ready = [{"type": "Ready", "status": "True"}]
    status = {"phase": "Running", "hostIP": host, "podIP": ip, "startTime": "2026-01-01T00:00:00Z", "conditions": ready}
    return _put(store, "pods", pod | {"status": status})


def _occurrence(pod: JsonObject, number: int) -> Occurrence:
    reason, message, kind = _OCCURRENCES[number]
    metadata, container = pod["metadata"], pod["spec"]["containers"][0]
    text = message.format(
        name=container["name"],
        image=container["image"],
        pod=metadata["name"],
        namespace=metadata["namespace"],
        uid=metadata["uid"],
    )
    path = f"spec.containers{{{container['name']}}}"
    return Occurrence(reason, text, "kubelet", pod["spec"]["nodeName"], kind or "Normal", path)


@contextlib.contextmanager
def serve_events(events: int, port: int = 0) -> Iterator[str]:
    """A server process with `events` Events; gives its URL when all is rendered, and ends the process on leaving."""
    command = [sys.executable, "-m", "pipeline.demo.bench", "--events", str(events), "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            if not url:
                raise RuntimeError(f"the benchmark's server ended with {process.wait()} before it served")
            yield url
        finally:
            process.terminate()


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; the first line on stdout is the URL."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.demo.bench", description="Serve Events to a benchmark.")
    parser.add_argument("--events", type=int, default=100_000, help="how many Events (default: %(default)s)")
    parser.add_argument("--pods", type=int, default=1000, help="how many pods they are about (default: %(default)s)")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one (default: %(default)s)")
    options = parser.parse_args(argv)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    store = Store(history=1)
    fill(store, options.events, options.pods)
    for resource in store.resources:
        store.snapshot(resource)
    with DemoServer(store, port=options.port, compress=False) as server:
        print(server.url, flush=True)
        stop.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
