"""Objects as a cluster holds them: pure functions from names to manifests, with the fields that readers use.

Each manifest has kind and apiVersion (Events refer to objects by them); the store takes them off.
"""

from __future__ import annotations

import dataclasses

from pipeline.demo.kinds import RESOURCES, JsonObject

REGISTRY = "registry.example.com"

_NODE_INFO = {
    "architecture": "amd64",
    "bootID": "0b9b7c0e-6a3b-4d6e-9d0c-2f1f6a1e5c11",
    "containerRuntimeVersion": "containerd://2.1.4",
    "kernelVersion": "6.8.0-60-generic",
    "kubeProxyVersion": "",
    "kubeletVersion": "v1.34.1",
    "machineID": "4c4c4544004d3510804cb7c04f4d5931",
    "operatingSystem": "linux",
    "osImage": "Ubuntu 24.04.2 LTS",
    "systemUUID": "4c4c4544-004d-3510-804c-b7c04f4d5931",
}


@dataclasses.dataclass(frozen=True, slots=True)
class App:
    """What a workload runs. `owner_team` and the rest become labels and annotations, of pods too."""

    namespace: str
    name: str
    version: str
    team: str
    port: int
    process: str

    @property
    def selector(self) -> dict[str, str]:
        """The labels that select its pods."""
        return {"app.kubernetes.io/name": self.name}

    @property
    def labels(self) -> dict[str, str]:
        """The labels of all that belongs to it."""
        return {
            **self.selector,
            "app.kubernetes.io/part-of": self.namespace,
            "app.kubernetes.io/version": self.version,
            "team": self.team,
        }

    @property
    def annotations(self) -> dict[str, str]:
        """The annotations of its pods."""
        return {"prometheus.io/scrape": "true", "prometheus.io/port": str(self.port), "example.com/oncall": self.team}

    @property
    def image(self) -> str:
        """The image, with its tag."""
        return f"{REGISTRY}/{self.namespace}/{self.name}:{self.version}"


def manifest(resource: str, metadata: JsonObject, **fields: object) -> JsonObject:
    """An object of a resource."""
    kind = RESOURCES[resource]
    return {"kind": kind.kind, "apiVersion": kind.api_version, "metadata": metadata, **fields}


def owned_by(owner: JsonObject) -> list[JsonObject]:
    """The ownerReferences of what `owner` controls."""
    reference = {"apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": owner["metadata"]["name"]}
    return [{**reference, "uid": owner["metadata"]["uid"], "controller": True, "blockOwnerDeletion": True}]


def namespace(name: str) -> JsonObject:
    """A Namespace."""
    labels = {"kubernetes.io/metadata.name": name}
    return manifest("namespaces", {"name": name, "labels": labels}, status={"phase": "Active"})


def node(name: str, ip: str, zone: str) -> JsonObject:
    """A Node that is ready, with addresses."""
    labels = {
        "kubernetes.io/hostname": name,
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": "amd64",
        "node.kubernetes.io/instance-type": "m6i.xlarge",
        "topology.kubernetes.io/zone": zone,
    }
    return manifest(
        "nodes",
        {"name": name, "labels": labels, "annotations": {"node.alpha.kubernetes.io/ttl": "0"}},
        spec={"podCIDR": f"10.244.{ip.rpartition('.')[2]}.0/24", "providerID": f"demo:///{zone}/{name}"},
        status={
            "addresses": [
                {"type": "InternalIP", "address": ip},
                {"type": "ExternalIP", "address": f"203.0.113.{ip.rpartition('.')[2]}"},
                {"type": "Hostname", "address": name},
            ],
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
            "nodeInfo": _NODE_INFO,
        },
    )


def template(app: App, labels: JsonObject) -> JsonObject:
    """A pod template's content, which is a pod's spec too."""
    container = {
        "name": app.name,
        "image": app.image,
        "ports": [{"name": "http", "containerPort": app.port, "protocol": "TCP"}],
        "readinessProbe": {"httpGet": {"path": "/ready", "port": "http"}, "periodSeconds": 5},
        "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"memory": "512Mi"}},
    }
    spec = {"containers": [container], "restartPolicy": "Always", "serviceAccountName": app.name}
    return {"metadata": {"labels": labels, "annotations": app.annotations}, "spec": spec}


def workload(resource: str, app: App, replicas: int) -> JsonObject:
    """A Deployment, StatefulSet or DaemonSet."""
    metadata: JsonObject = {"name": app.name, "namespace": app.namespace, "labels": app.labels, "generation": 1}
    if resource == "deployments":
        metadata["annotations"] = {"deployment.kubernetes.io/revision": "1"}
    spec: JsonObject = {"selector": {"matchLabels": app.selector}, "template": template(app, app.labels)}
    if resource == "daemonsets":
        status = {f"{which}NumberScheduled": replicas for which in ("current", "desired", "updated")}
        status |= {"numberMisscheduled": 0, "numberReady": replicas}
    else:
        spec["replicas"] = replicas
        status = {"replicas": replicas, "readyReplicas": replicas}
    return manifest(resource, metadata, spec=spec, status=status)


def replicaset(deployment: JsonObject, app: App, template_hash: str, revision: int) -> JsonObject:
    """A ReplicaSet of a Deployment, without replicas as yet."""
    labels = app.labels | {"pod-template-hash": template_hash}
    metadata = {
        "name": f"{app.name}-{template_hash}",
        "namespace": app.namespace,
        "labels": labels,
        "annotations": {"deployment.kubernetes.io/revision": str(revision)},
        "ownerReferences": owned_by(deployment),
    }
    spec = {"replicas": 0, "selector": {"matchLabels": app.selector}, "template": template(app, labels)}
    return manifest("replicasets", metadata, spec=spec, status={"replicas": 0})


def pod(owner: JsonObject, app: App, name: str, extra_labels: JsonObject) -> JsonObject:
    """A Pod that nothing has been done about: pending, on no node."""
    metadata = {
        "name": name,
        "namespace": app.namespace,
        "labels": app.labels | extra_labels,
        "annotations": app.annotations,
        "ownerReferences": owned_by(owner),
    }
    return manifest(
        "pods", metadata, spec=template(app, {})["spec"], status={"phase": "Pending", "qosClass": "Burstable"}
    )


def service(app: App, cluster_ip: str, name: str = "") -> JsonObject:
    """A Service over an app's pods."""
    return manifest(
        "services",
        {"name": name or app.name, "namespace": app.namespace, "labels": app.labels},
        spec={
            "type": "ClusterIP",
            "clusterIP": cluster_ip,
            "clusterIPs": [cluster_ip],
            "selector": app.selector,
            "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": app.port}],
        },
        status={"loadBalancer": {}},
    )


def endpoint_slice(of: JsonObject, suffix: str) -> JsonObject:
    """A Service's EndpointSlice, without endpoints."""
    name = of["metadata"]["name"]
    labels = {
        "kubernetes.io/service-name": name,
        "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
    }
    metadata = {"name": f"{name}-{suffix}", "namespace": of["metadata"]["namespace"], "labels": labels}
    ports = [{"name": "http", "protocol": "TCP", "port": of["spec"]["ports"][0]["targetPort"]}]
    metadata["ownerReferences"] = owned_by(of)
    return manifest("endpointslices", metadata, addressType="IPv4", endpoints=[], ports=ports)


def endpoint(pod: JsonObject) -> JsonObject:
    """A Pod as an endpoint: ready as the pod is."""
    ready = is_ready(pod)
    target = {"kind": "Pod", **{key: pod["metadata"][key] for key in ("name", "namespace", "uid")}}
    return {
        "addresses": [pod["status"]["podIP"]],
        "conditions": {"ready": ready, "serving": ready, "terminating": "deletionTimestamp" in pod["metadata"]},
        "nodeName": pod["spec"]["nodeName"],
        "targetRef": target,
    }


def is_ready(pod: JsonObject) -> bool:
    """Whether a Pod's Ready condition holds."""
    conditions = pod["status"].get("conditions", [])
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)
