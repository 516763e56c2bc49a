"""What happens in the story: each act is a generator that does something and yields for how many seconds to pause.

Reasons, messages and components are those that kubelet, the scheduler, the controllers and node-problem-detector write.
Acts overlap, so each looks after every pause whether its pod is still there.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Callable, Iterator

from pipeline.demo import manifests
from pipeline.demo.estate import RECONCILE, Estate, Workload
from pipeline.demo.kinds import JsonObject
from pipeline.demo.recorder import Occurrence, Recorder
from pipeline.demo.store import timestamp

Act = Iterator[float]


@dataclasses.dataclass
class Stage:
    """What acts act on; `spawn` starts another act beside the one that runs."""

    estate: Estate
    recorder: Recorder
    rng: random.Random
    spawn: Callable[[Act], None]
    jobs: Iterator[int] = dataclasses.field(default_factory=lambda: itertools.count(29_412_360, 5))

    def say(self, about: JsonObject, reason: str, message: str, component: str, *, warning: bool = False) -> None:
        """An Event of a controller."""
        kind = "Warning" if warning else "Normal"
        self.recorder.emit(about, Occurrence(reason, message, component, type=kind))

    def kubelet(self, pod: JsonObject, reason: str, message: str, *, warning: bool = False, times: int = 1) -> None:
        """An Event of the kubelet on the pod's node, about its container."""
        path = f"spec.containers{{{pod['spec']['containers'][0]['name']}}}"
        host = pod["spec"].get("nodeName", "")
        kind = "Warning" if warning else "Normal"
        self.recorder.emit(pod, Occurrence(reason, message, "kubelet", host, kind, path), times=times)

    def node(self, name: str, reason: str, message: str, component: str = "kubelet", *, warning: bool = False) -> None:
        """An Event about a node. Kubelet's and node-problem-detector's name the node in place of its uid."""
        node = self.estate.nodes[name]
        own = component in ("kubelet", "kernel-monitor")
        about = node | {"metadata": {"name": name, "uid": name}} if own else node
        host, kind = name if own else "", "Warning" if warning else "Normal"
        self.recorder.emit(about, Occurrence(reason, message, component, host, kind))

    def pause(self, low_s: float, high_s: float) -> float:
        """A random length of time."""
        return self.rng.uniform(low_s, high_s)


def _there(workload: Workload, pod: JsonObject) -> bool:
    return any(other is pod for other in workload.pods) and "deletionTimestamp" not in pod["metadata"]


def _live(workload: Workload) -> list[JsonObject]:
    return [pod for pod in workload.pods if "podIP" in pod["status"] and "deletionTimestamp" not in pod["metadata"]]


def _path(pod: JsonObject) -> str:
    return f"{pod['metadata']['name']}_{pod['metadata']['namespace']}({pod['metadata']['uid']})"


def _controller(workload: Workload) -> str:
    return f"{workload.owner['kind'].lower()}-controller"


# --- pods


def create_pod(stage: Stage, workload: Workload) -> JsonObject:
    """A controller creates a pod."""
    pod = stage.estate.create_pod(workload)
    stage.say(workload.owner, "SuccessfulCreate", f"Created pod: {pod['metadata']['name']}", _controller(workload))
    return pod


def schedule(stage: Stage, pod: JsonObject) -> None:
    """The scheduler binds a pod."""
    node = stage.estate.pick_node()
    stage.estate.assign(pod, node)
    name = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
    message = f"Successfully assigned {name} to {node}"
    stage.recorder.emit(pod, Occurrence("Scheduled", message, "default-scheduler", action="Binding"))


def start_pod(stage: Stage, workload: Workload, pod: JsonObject, ready: bool = True) -> Act:
    """A pod is scheduled, pulled, started, and ready if all is well."""
    yield stage.pause(0.02, 0.15)
    if not _there(workload, pod):
        return
    schedule(stage, pod)
    image, name = pod["spec"]["containers"][0]["image"], pod["spec"]["containers"][0]["name"]
    yield stage.pause(0.1, 0.3)
    stage.kubelet(pod, "Pulling", f'Pulling image "{image}"')
    pull_s = stage.pause(0.2, 0.9)
    yield pull_s
    took, size = f"{pull_s:.3f}s ({pull_s:.3f}s including waiting)", stage.rng.randrange(20_000_000, 90_000_000)
    stage.kubelet(pod, "Pulled", f'Successfully pulled image "{image}" in {took}. Image size: {size} bytes.')
    stage.kubelet(pod, "Created", f"Created container: {name}")
    yield stage.pause(0.02, 0.1)
    stage.kubelet(pod, "Started", f"Started container {name}")
    yield stage.pause(0.2, 0.5)
    if not _there(workload, pod):
        return
    stage.estate.run(pod, ready=ready)


def stop_pod(stage: Stage, workload: Workload, pod: JsonObject) -> Act:
    """A pod is deleted, with grace."""
    if not _there(workload, pod):
        return
    pod["metadata"] |= {"deletionTimestamp": timestamp(stage.estate.now()), "deletionGracePeriodSeconds": 30}
    stage.kubelet(pod, "Killing", f"Stopping container {pod['spec']['containers'][0]['name']}")
    if "podIP" in pod["status"]:
        stage.estate.set_ready(pod, False)
    yield stage.pause(0.3, 0.8)
    stage.estate.remove_pod(workload, pod)


def replace_pod(stage: Stage, workload: Workload, pod: JsonObject) -> Act:
    """A pod goes and its controller makes another."""
    stage.spawn(stop_pod(stage, workload, pod))
    yield stage.pause(0.05, 0.2)
    if workload.owner["kind"] == "StatefulSet":  # which never has two of one name
        yield 1.0
    stage.spawn(start_pod(stage, workload, create_pod(stage, workload)))


def flap_probe(stage: Stage, workload: Workload, times: int) -> Act:
    """A pod fails its readiness probe for a while: its endpoints turn unready and come back."""
    pods = _live(workload)
    if not pods:
        return
    pod = stage.rng.choice(pods)
    for number in range(times):
        code = 503
        stage.kubelet(
            pod, "Unhealthy", f"Readiness probe failed: HTTP probe failed with statuscode: {code}", warning=True
        )
        if number == 1 and _there(workload, pod):
            stage.estate.set_ready(pod, False)
        yield stage.pause(0.25, 0.5)
    if _there(workload, pod):
        stage.estate.set_ready(pod, True)


def crash_loop(stage: Stage, workload: Workload, times: int, out_of_memory: bool) -> Act:
    """A pod's container dies and is restarted, again and again; the kernel says so if memory was the reason."""
    pods = _live(workload)
    if not pods:
        return
    pod = stage.rng.choice(pods)
    container, node = pod["spec"]["containers"][0], pod["spec"]["nodeName"]
    for _ in range(times):
        if out_of_memory:
            pid, pages = stage.rng.randrange(2_000, 60_000), stage.rng.randrange(900, 1500)
            message = (
                f"Memory cgroup out of memory: Killed process {pid} ({workload.app.process}) total-vm:1843200kB, "
                f"anon-rss:522{pages}kB, file-rss:0kB, shmem-rss:0kB, UID:1000 pgtables:{pages}kB oom_score_adj:985"
            )
            stage.node(node, "OOMKilling", message, "kernel-monitor", warning=True)
        if not _there(workload, pod):
            return
        stage.estate.set_ready(pod, False, waiting="CrashLoopBackOff")
        yield stage.pause(0.1, 0.3)
        back_off = f"Back-off restarting failed container {container['name']} in pod {_path(pod)}"
        stage.kubelet(pod, "BackOff", back_off, warning=True)
        yield stage.pause(0.4, 0.8)
        stage.kubelet(pod, "BackOff", back_off, warning=True, times=stage.rng.randrange(1, 3))
        stage.kubelet(pod, "Pulled", f'Container image "{container["image"]}" already present on machine')
        stage.kubelet(pod, "Created", f"Created container: {container['name']}")
        stage.kubelet(pod, "Started", f"Started container {container['name']}")
        yield stage.pause(0.5, 1.0)
    if _there(workload, pod):
        stage.estate.set_ready(pod, True)


def vanish(stage: Stage, workload: Workload) -> Act:
    """A pod is force-deleted: the kubelet goes on about it when it is in no list any more."""
    pods = _live(workload)
    if workload.busy or not pods or workload.owner["kind"] != "ReplicaSet":
        return
    pod = stage.rng.choice(pods)
    stage.kubelet(pod, "Killing", f"Stopping container {pod['spec']['containers'][0]['name']}")
    stage.estate.remove_pod(workload, pod)
    stage.spawn(start_pod(stage, workload, create_pod(stage, workload)))
    rpc = "rpc error: code = DeadlineExceeded desc = context deadline exceeded"
    sandbox = f'failed to "KillPodSandbox" for "{pod["metadata"]["uid"]}" with KillPodSandboxError: "{rpc}"'
    volume = f'MountVolume.SetUp failed for volume "kube-api-access-{stage.estate.letters(5)}" : object '
    for _ in range(4):
        yield stage.pause(0.4, 1.2)
        stage.kubelet(pod, "FailedKillPod", f"error killing pod: {sandbox}", warning=True)
        missing = f'"{workload.app.namespace}"/"kube-root-ca.crt" not registered'
        stage.kubelet(pod, "FailedMount", volume + missing, warning=True)


# --- workloads


def _scale(stage: Stage, workload: Workload, owner: JsonObject, replicas: int) -> None:
    """The deployment controller scales a ReplicaSet."""
    before = owner["spec"]["replicas"]
    owner["spec"]["replicas"] = owner["status"]["replicas"] = replicas
    stage.estate.update(owner)
    direction = "up" if replicas > before else "down"
    message = f"Scaled {direction} replica set {owner['metadata']['name']} from {before} to {replicas}"
    stage.say(workload.obj, "ScalingReplicaSet", message, "deployment-controller")


def _pods_of(workload: Workload, owner: JsonObject) -> list[JsonObject]:
    uid = owner["metadata"]["uid"]
    return [
        pod
        for pod in workload.pods
        if pod["metadata"]["ownerReferences"][0]["uid"] == uid and "deletionTimestamp" not in pod["metadata"]
    ]


def _shrink(stage: Stage, workload: Workload, owner: JsonObject, pods: list[JsonObject]) -> None:
    _scale(stage, workload, owner, len(_pods_of(workload, owner)) - len(pods))
    for pod in pods:
        stage.say(owner, "SuccessfulDelete", f"Deleted pod: {pod['metadata']['name']}", "replicaset-controller")
        stage.spawn(stop_pod(stage, workload, pod))


def _settle(stage: Stage, workload: Workload) -> None:
    """Make the pods as many as there should be, all of the present owner: other acts may have come between."""
    owned = _pods_of(workload, workload.owner)
    for pod in workload.pods:
        if not any(pod is other for other in owned[: workload.replicas]):
            stage.spawn(stop_pod(stage, workload, pod))
    for _ in range(workload.replicas - len(owned)):
        stage.spawn(start_pod(stage, workload, create_pod(stage, workload)))


def _new_revision(stage: Stage, workload: Workload, version: str) -> JsonObject:
    """The Deployment gets another image, and a ReplicaSet for it; returns the one before."""
    old = workload.owner
    workload.app = dataclasses.replace(workload.app, version=version)
    workload.revision += 1
    estate, deployment, app = stage.estate, workload.obj, workload.app
    deployment["metadata"]["annotations"]["deployment.kubernetes.io/revision"] = str(workload.revision)
    deployment["spec"]["template"] = manifests.template(app, app.labels)
    estate.update(deployment)
    workload.owner = estate.create(manifests.replicaset(deployment, app, estate.letters(10), workload.revision))
    return old


def roll_out(stage: Stage, workload: Workload, version: str) -> Act:
    """A rollout that goes well: pod by pod to a new ReplicaSet."""
    if workload.busy:
        return
    workload.busy = True
    old = _new_revision(stage, workload, version)
    new = workload.owner
    for number, pod in enumerate(_pods_of(workload, old), start=1):
        _scale(stage, workload, new, number)
        stage.spawn(start_pod(stage, workload, create_pod(stage, workload)))
        yield stage.pause(1.2, 1.8)
        _shrink(stage, workload, old, [pod])
        yield stage.pause(0.2, 0.5)
    yield 1.5
    _settle(stage, workload)
    stage.estate.delete(old)
    workload.busy = False


def bad_rollout(stage: Stage, workload: Workload, version: str) -> Act:
    """A rollout that fails and is undone.

    One new pod can't pull its image, another never turns ready; somebody points the Service at another port to help,
    and puts it back; then the rollout is undone.
    """
    if workload.busy:
        return
    workload.busy = True
    good_app, good = workload.app, _new_revision(stage, workload, version)
    bad = workload.owner
    _scale(stage, workload, bad, 2)
    stuck, sick = create_pod(stage, workload), create_pod(stage, workload)
    stage.spawn(start_pod(stage, workload, sick, ready=False))
    _shrink(stage, workload, good, _pods_of(workload, good)[:1])
    yield 0.2
    schedule(stage, stuck)
    exposed = stage.estate.services[f"{workload.app.namespace}/{workload.app.name}"]
    port = exposed.service["spec"]["ports"][0]
    for number in range(16):
        _fail_to_pull(stage, stuck, first=number % 4 == 0)
        if number >= 3:
            address = f"{sick['status'].get('podIP', '')}:{workload.app.port}"
            refused = f'Get "http://{address}/ready": dial tcp {address}: connect: connection refused'
            stage.kubelet(sick, "Unhealthy", f"Readiness probe failed: {refused}", warning=True)
        if number == 5:
            port["targetPort"] = 9090
        if number == 11:
            port["targetPort"] = workload.app.port
        if number in (5, 11):
            stage.estate.update(exposed.service)
            stage.estate.sync_endpoints()
        if number == 6:
            stage.spawn(flap_probe(stage, workload, 6))
        yield stage.pause(0.3, 0.5)
    stuck_name = bad["metadata"]["name"]
    exceeded = f'ReplicaSet "{stuck_name}" has timed out progressing.'
    stage.say(workload.obj, "ProgressDeadlineExceeded", exceeded, "deployment-controller", warning=True)
    stage.say(
        workload.obj,
        "DeploymentRollback",
        f'Rolled back deployment "{workload.app.name}" to revision {workload.revision - 1}',
        "deployment-controller",
    )
    _shrink(stage, workload, bad, _pods_of(workload, bad))
    workload.app, workload.owner = good_app, good
    _scale(stage, workload, good, workload.replicas)
    stage.spawn(start_pod(stage, workload, create_pod(stage, workload)))
    yield 2.0
    _settle(stage, workload)
    stage.estate.delete(bad)
    workload.busy = False


def _fail_to_pull(stage: Stage, pod: JsonObject, first: bool) -> None:
    image = pod["spec"]["containers"][0]["image"]
    if first:
        resolve = (
            f'failed to pull and unpack image "{image}": failed to resolve reference "{image}": {image}: not found'
        )
        stage.kubelet(pod, "Pulling", f'Pulling image "{image}"')
        message = f'Failed to pull image "{image}": rpc error: code = NotFound desc = {resolve}'
        stage.kubelet(pod, "Failed", message, warning=True)
        stage.kubelet(pod, "Failed", "Error: ErrImagePull", warning=True)
    stage.kubelet(pod, "BackOff", f'Back-off pulling image "{image}"')
    stage.kubelet(pod, "Failed", "Error: ImagePullBackOff", warning=True)


def fail_to_scale(stage: Stage, times: int) -> Act:
    """The autoscaler gets no metrics: Events in the style of events.k8s.io, whose series grow."""
    scaler = stage.estate.others["HorizontalPodAutoscaler/cart"]
    failed = "failed to get cpu utilization: unable to get metrics for resource cpu"
    why = f"{failed}: no metrics returned from resource metrics API"
    all_invalid = (
        f"invalid metrics (1 invalid out of 1), first error is: failed to get cpu resource metric value: {why}"
    )
    for _ in range(times):
        for reason, message in (("FailedGetResourceMetric", why), ("FailedComputeMetricsReplicas", all_invalid)):
            what = Occurrence(reason, message, "horizontal-pod-autoscaler", type="Warning", action="ComputeMetrics")
            stage.recorder.emit(scaler, what)
        yield stage.pause(0.7, 1.1)


def scale_up(stage: Stage, workload: Workload, replicas: int) -> Act:
    """The autoscaler asks for more replicas, and later for fewer."""
    if workload.busy:
        return
    workload.busy = True
    scaler, few = stage.estate.others["HorizontalPodAutoscaler/cart"], workload.replicas
    for size, reason in (
        (replicas, "cpu resource utilization (percentage of request) above target"),
        (few, "All metrics below target"),
    ):
        message = f"New size: {size}; reason: {reason}"
        stage.say(scaler, "SuccessfulRescale", message, "horizontal-pod-autoscaler")
        workload.obj["spec"]["replicas"] = size
        stage.estate.update(workload.obj)
        pods = _pods_of(workload, workload.owner)
        if size > len(pods):
            _scale(stage, workload, workload.owner, size)
            for _ in range(size - len(pods)):
                stage.spawn(start_pod(stage, workload, create_pod(stage, workload)))
                yield stage.pause(0.05, 0.2)
        elif size < len(pods):
            _shrink(stage, workload, workload.owner, pods[size:])
        yield 6.0
    _settle(stage, workload)
    workload.busy = False


def run_job(stage: Stage) -> Act:
    """A CronJob runs its Job, whose pod comes and goes within a few seconds."""
    cron, app = stage.estate.others["CronJob/reconcile"], RECONCILE
    name = f"reconcile-{next(stage.jobs)}"
    owners = manifests.owned_by(cron)
    metadata = {"name": name, "namespace": app.namespace, "labels": app.labels, "ownerReferences": owners}
    spec = {"completions": 1, "template": manifests.template(app, app.labels)}
    job = stage.estate.create(manifests.manifest("jobs", metadata, spec=spec, status={"active": 1}))
    stage.say(cron, "SuccessfulCreate", f"Created job {name}", "cronjob-controller")
    workload = Workload(app, job, job, 1)
    pod = create_pod(stage, workload)
    yield from start_pod(stage, workload, pod)
    yield stage.pause(0.8, 1.5)
    job["status"] = {"succeeded": 1}
    stage.estate.update(job)
    stage.say(job, "Completed", "Job completed", "job-controller")
    stage.say(cron, "SawCompletedJob", f"Saw completed job: {name}, condition: Complete", "cronjob-controller")
    yield 1.0
    stage.estate.remove_pod(workload, pod)
    stage.estate.delete(job)
    stage.say(cron, "SuccessfulDelete", f"Deleted job {name}", "cronjob-controller")


# --- nodes and the rest


def drain(stage: Stage, name: str) -> Act:
    """A node is cordoned and drained, goes away for a while, and comes back."""
    estate = stage.estate
    if estate.cordoned:
        return
    estate.cordoned.add(name)
    node = estate.nodes[name]
    node["spec"]["unschedulable"] = True
    estate.update(node)
    stage.node(name, "NodeNotSchedulable", f"Node {name} status is now: NodeNotSchedulable")
    yield 0.4
    for workload, pod in estate.pods_on(name):
        if workload.owner["kind"] == "DaemonSet":
            continue
        marked = f"Marking for deletion Pod {pod['metadata']['namespace']}/{pod['metadata']['name']}"
        stage.say(pod, "TaintManagerEviction", marked, "taint-eviction-controller")
        stage.spawn(replace_pod(stage, workload, pod))
        yield stage.pause(0.15, 0.4)
    yield 1.0
    node["status"]["conditions"] = [{"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown"}]
    estate.update(node)
    stage.node(name, "NodeNotReady", f"Node {name} status is now: NodeNotReady", "node-controller")
    for _, pod in estate.pods_on(name):
        stage.say(pod, "NodeNotReady", "Node is not ready", "node-controller", warning=True)
        if "podIP" in pod["status"]:
            estate.set_ready(pod, False)
    yield 2.5
    stage.node(name, "Starting", "Starting kubelet.")
    boot = f"Node {name} has been rebooted, boot id: {estate.letters(8)}"
    stage.node(name, "Rebooted", boot, warning=True)
    for condition in ("NodeHasSufficientMemory", "NodeHasNoDiskPressure", "NodeHasSufficientPID", "NodeReady"):
        stage.node(name, condition, f"Node {name} status is now: {condition}")
        yield 0.1
    del node["spec"]["unschedulable"]
    node["status"]["conditions"] = [{"type": "Ready", "status": "True", "reason": "KubeletReady"}]
    estate.update(node)
    estate.cordoned.discard(name)
    stage.node(name, "NodeSchedulable", f"Node {name} status is now: NodeSchedulable")
    for _, pod in estate.pods_on(name):
        if "podIP" in pod["status"]:
            estate.set_ready(pod, True)


def canary_service(stage: Stage, workload: Workload) -> Act:
    """A Service comes, is relabelled, and goes again."""
    name = f"{workload.app.name}-canary"
    if f"{workload.app.namespace}/{name}" in stage.estate.services:
        return
    exposed = stage.estate.add_service(workload, name)
    yield 2.5
    exposed.service["metadata"]["labels"] |= {"track": "canary"}
    stage.estate.update(exposed.service)
    yield 3.0
    stage.estate.remove_service(exposed)


def expire(stage: Stage, n: int) -> Act:
    """The oldest Events reach the end of their time to live."""
    stage.recorder.expire(n)
    yield 0.0


def chatter(stage: Stage) -> Act:
    """What a quiet cluster says: leaders are elected (on Leases, which no reader lists), ingresses sync."""
    lease_name = stage.rng.choice(("kube-scheduler", "kube-controller-manager", "cert-manager-controller"))
    lease_meta = {"name": lease_name, "namespace": "kube-system", "uid": f"lease-{lease_name}"}
    lease = {"kind": "Lease", "apiVersion": "coordination.k8s.io/v1", "metadata": lease_meta}
    stage.say(lease, "LeaderElection", f"{lease_name}-control-plane-1 became leader", lease_name)
    yield stage.pause(0.1, 0.3)
    ingress = stage.estate.others["Ingress/storefront"]
    stage.say(ingress, "Sync", "Scheduled for sync", "nginx-ingress-controller")


def past_hour(stage: Stage) -> None:
    """The Events that the hour before the story has left."""
    for workload in stage.estate.workloads.values():
        for pod in workload.pods:
            ago_s = stage.pause(300, 3300)
            host, path = pod["spec"]["nodeName"], f"spec.containers{{{workload.app.name}}}"
            message = "Readiness probe failed: HTTP probe failed with statuscode: 503"
            what = Occurrence("Unhealthy", message, "kubelet", host, "Warning", path)
            stage.recorder.emit(pod, what, ago_s=ago_s, times=stage.rng.randrange(1, 9))
    cron = stage.estate.others["CronJob/reconcile"]
    for number in range(11, 0, -1):
        name = f"reconcile-{29_412_360 - 5 * number}"
        for reason, message in (
            ("SuccessfulCreate", f"Created job {name}"),
            ("SawCompletedJob", f"Saw completed job: {name}, condition: Complete"),
        ):
            stage.recorder.emit(cron, Occurrence(reason, message, "cronjob-controller"), ago_s=300.0 * number)
