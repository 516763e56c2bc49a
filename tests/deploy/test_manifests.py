"""The deploy files: the API server takes all of them, they fit together, and no pod may do more than it has to."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from apache_beam.options.pipeline_options import FlinkRunnerOptions

from pipeline.options import config_of, parse
from tests.deploy.kustomize import (
    DEPLOY,
    OVERLAYS,
    Object,
    build,
    built,
    containers,
    of_kind,
    pod_templates,
    settings,
)
from tests.servers.api import ApiError
from tests.servers.control_plane import ControlPlane

overlays = pytest.mark.parametrize("overlay", OVERLAYS)

_PLURALS = {"NetworkPolicy": "networkpolicies"}


def path_of(obj: Object) -> str:
    """The path of an object in the API."""
    version, meta = obj["apiVersion"], obj["metadata"]
    root = f"/apis/{version}" if "/" in version else f"/api/{version}"
    scope = f"/namespaces/{meta['namespace']}" if "namespace" in meta else ""
    return f"{root}{scope}/{_PLURALS.get(obj['kind'], obj['kind'].lower() + 's')}/{meta['name']}"


def dry_run(server: ControlPlane, obj: Object, **query: str) -> Object:
    """Applies the object as `kubectl apply --server-side --dry-run=server --validate=strict` does."""
    query = {"dryRun": "All", "fieldManager": "test", "force": "true", "fieldValidation": "Strict", **query}
    applied: Object = server.api.request(
        "PATCH", path_of(obj), obj, query=query, content_type="application/apply-patch+yaml"
    )
    return applied


# The API server


@pytest.mark.real
@overlays
def test_the_api_server_takes_every_object_strictly(server: ControlPlane, overlay: str) -> None:
    for obj in built(overlay):
        applied = dry_run(server, obj)
        assert applied["metadata"]["name"] == obj["metadata"]["name"]


@pytest.mark.real
def test_a_field_that_does_not_exist_would_be_refused(server: ControlPlane) -> None:
    (deployment,) = of_kind(built("direct/overlays/s3"), "Deployment")
    wrong = json.loads(json.dumps(deployment).replace("terminationGracePeriodSeconds", "terminationGraceSeconds"))
    with pytest.raises(ApiError, match="terminationGraceSeconds"):
        dry_run(server, wrong)


@pytest.mark.real
@overlays
def test_pod_security_admits_every_pod_as_restricted(server: ControlPlane, overlay: str) -> None:
    for number, template in enumerate(pod_templates(built(overlay))):
        pod = {"apiVersion": "v1", "kind": "Pod", **template}
        pod["metadata"] = {**template["metadata"], "name": f"pod-{number}", "namespace": "kube-history"}
        dry_run(server, pod)
        spec = json.loads(json.dumps(template["spec"]))
        spec["securityContext"].pop("seccompProfile")
        with pytest.raises(ApiError, match="violates PodSecurity"):
            dry_run(server, {**pod, "spec": spec})


@pytest.mark.real
def test_the_optional_roles_for_custom_kinds_are_added_as_the_readme_says(server: ControlPlane, tmp_path: Path) -> None:
    shutil.copytree(DEPLOY, tmp_path / "deploy")
    (line,) = re.findall(r"^ +(components: .*)  #", (DEPLOY / "README.md").read_text(), re.MULTILINE)
    overlay = tmp_path / "deploy" / "direct" / "overlays" / "s3"
    with (overlay / "kustomization.yaml").open("a") as file:
        file.write(line)
    before = {(obj["kind"], obj["metadata"]["name"]) for obj in built("direct/overlays/s3")}
    added = [obj for obj in build(overlay) if (obj["kind"], obj["metadata"]["name"]) not in before]
    assert [obj["kind"] for obj in added] == ["ClusterRole", "ClusterRole", "ClusterRoleBinding"]
    for obj in added:
        dry_run(server, obj)


# How they fit together


@overlays
def test_what_a_pod_names_is_there(overlay: str) -> None:
    objects = built(overlay)
    names = {kind: {obj["metadata"]["name"] for obj in of_kind(objects, kind)} for kind in ("ConfigMap", "Service")}
    claims = {obj["metadata"]["name"] for obj in of_kind(objects, "PersistentVolumeClaim")}
    accounts = {obj["metadata"]["name"] for obj in of_kind(objects, "ServiceAccount")}
    for template in pod_templates(objects):
        spec = template["spec"]
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        for volume in volumes.values():
            assert volume.get("configMap", {}).get("name") in {None, *names["ConfigMap"]}
            assert volume.get("persistentVolumeClaim", {}).get("claimName") in {None, *claims}
        for container in spec["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= set(volumes)
            assert ":" in container["image"], "not pinned"
        assert spec.get("serviceAccountName") in {None, *accounts}


@overlays
def test_only_the_pods_that_read_the_cluster_have_a_token(overlay: str) -> None:
    with_token = {
        template["metadata"]["labels"].get("component", "direct")
        for template in pod_templates(built(overlay))
        if template["spec"]["automountServiceAccountToken"]
    }
    assert with_token == ({"taskmanager"} if overlay.startswith("flink") else {"direct"})


@overlays
def test_every_pod_is_under_a_network_policy_that_names_both_ways(overlay: str) -> None:
    objects = built(overlay)
    policies = of_kind(objects, "NetworkPolicy")
    templates = pod_templates(objects)
    for template in templates:
        matching = [p for p in policies if selects(p["spec"]["podSelector"], template)]
        assert [set(policy["spec"]["policyTypes"]) for policy in matching] == [{"Ingress", "Egress"}]
    for policy in policies:
        peers = [
            peer
            for rule in [*policy["spec"].get("ingress", ()), *policy["spec"].get("egress", ())]
            for peer in [*rule.get("from", ()), *rule.get("to", ())]
        ]
        assert all(any(selects(peer["podSelector"], template) for template in templates) for peer in peers)
    for service in of_kind(objects, "Service"):
        assert any(selects({"matchLabels": service["spec"]["selector"]}, template) for template in templates)


def selects(selector: Object, template: Object) -> bool:
    labels = template["metadata"]["labels"]
    return all(labels.get(key) == value for key, value in selector["matchLabels"].items())


@overlays
def test_no_container_may_do_more_than_it_has_to(overlay: str) -> None:
    for template in pod_templates(built(overlay)):
        pod = template["spec"]["securityContext"]
        assert pod["runAsNonRoot"]
        assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in template["spec"]["containers"]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"]
            assert not context["allowPrivilegeEscalation"]
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert (context.get("runAsUser") or pod["runAsUser"]) > 999
            assert set(container["resources"]["limits"]) == {"cpu", "memory"}
            assert "/tmp" in {mount["mountPath"] for mount in container["volumeMounts"]}


@overlays
def test_the_jobs_parameters_are_right(overlay: str, tmp_path: Path) -> None:
    (job,) = [c for c in containers(built(overlay)) if c["name"] in ("job", "submit")]
    file = tmp_path / "job.yaml"
    file.write_text(settings(built(overlay), "job.yaml"))
    arguments = [argument.replace("/etc/kube-history", str(tmp_path)) for argument in job["args"]]
    config = config_of(parse(arguments))
    assert config.runner == ("FlinkRunner" if overlay.startswith("flink") else "DirectRunner")
    mounted = {mount["mountPath"] for mount in job["volumeMounts"]}
    if overlay.startswith("direct"):
        assert config.heartbeat_file == "/tmp/heartbeat"
        assert all("/tmp/heartbeat" in str(job[probe]) for probe in ("startupProbe", "livenessProbe", "readinessProbe"))
    if overlay.endswith("pvc"):
        assert "/history" in mounted
    if overlay.endswith("namespaces"):
        assert set(config.namespaces) == {role["metadata"]["namespace"] for role in of_kind(built(overlay), "Role")}


def test_flinks_parts_find_each_other() -> None:
    objects = built("flink/overlays/s3")
    flink = yaml.safe_load(settings(objects, "config.yaml"))
    job = yaml.safe_load(settings(objects, "job.yaml"))
    (service,) = of_kind(objects, "Service")
    assert job["flink_master"] == f"{service['metadata']['name']}:{flink['rest']['port']}"
    assert flink["jobmanager"]["rpc"]["address"] == service["metadata"]["name"]
    served = {port["port"] for port in service["spec"]["ports"]}
    assert served == {flink["rest"]["port"], flink["jobmanager"]["rpc"]["port"], flink["blob"]["server"]["port"]}
    (workers,) = [c for c in containers(objects) if c["name"] == "workers"]
    assert job["environment_config"] == f"localhost:{workers['readinessProbe']['tcpSocket']['port']}"
    assert f"--service_port={workers['readinessProbe']['tcpSocket']['port']}" in workers["command"]
    (task_managers,) = [d for d in of_kind(objects, "Deployment") if d["metadata"]["name"] == "flink-taskmanager"]
    slots = task_managers["spec"]["replicas"] * flink["taskmanager"]["numberOfTaskSlots"]
    assert job["parallelism"] <= slots
    for name in ("checkpoints", "savepoints"):
        assert flink["state"][name]["dir"].startswith("s3://"), "a pod's own disk goes with the pod"


def test_flinks_versions_are_one_that_beam_has_a_job_server_for() -> None:
    images = DEPLOY / "images"
    (flink,) = re.findall(r"FROM flink:(\d+\.\d+)\.\d+-", (images / "flink.Dockerfile").read_text())
    jars = set(re.findall(r"flink-(\d+\.\d+)-job-server-([\d.]+\d)", (images / "submit.Dockerfile").read_text()))
    (beam,) = re.findall(r"^apache-beam==(\S+)$", (DEPLOY.parent / "requirements.lock").read_text(), re.MULTILINE)
    assert flink in FlinkRunnerOptions.PUBLISHED_FLINK_VERSIONS
    assert jars == {(flink, beam)}


def test_every_file_belongs_to_a_kustomization() -> None:
    named: set[Path] = set()
    for file in DEPLOY.rglob("kustomization.yaml"):
        content: Any = yaml.safe_load(file.read_text())
        entries = [*content.get("resources", ()), *(patch["path"] for patch in content.get("patches", ()))]
        entries += [entry for generator in content.get("configMapGenerator", ()) for entry in generator["files"]]
        named |= {(file.parent / entry).resolve() for entry in entries}
    there = {path.resolve() for path in DEPLOY.rglob("*.yaml") if path.name != "kustomization.yaml"}
    assert there - named == set()
