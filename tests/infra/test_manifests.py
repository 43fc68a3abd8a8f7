"""Kubernetes manifests: they compose, have KubeRay's fields alone, and agree where they must."""

from __future__ import annotations

import copy
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

from realcustom.pipeline.recipes import RECIPES
from tests.support.kustomize import compose

ROOT = Path(__file__).parents[2]
K8S = ROOT / "infra" / "k8s"
OVERLAYS = ("local", "gpu", "spot")
KUBERNETES = "1.33"  # the oldest release of the manifests
SCHEMA = json.loads((Path(__file__).parent / "kuberay.json").read_text())


def by_kubectl(overlay: str) -> list[dict[str, Any]]:
    command = ["kubectl", "kustomize", str(K8S / "overlays" / overlay)]
    return list(yaml.safe_load_all(subprocess.run(command, check=True, capture_output=True).stdout))


@pytest.fixture(scope="module")
def composed() -> dict[str, list[dict[str, Any]]]:
    """Overlay -> its resources, as kubectl composes them where it is there."""
    if shutil.which("kubectl") is None:
        return {overlay: compose(K8S / "overlays" / overlay) for overlay in OVERLAYS}
    return {overlay: by_kubectl(overlay) for overlay in OVERLAYS}


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="compares with kubectl")
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_without_kubectl_the_composition_is_the_same(overlay: str) -> None:
    def named(resources: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
        return {(each["kind"], each["metadata"]["name"]): each for each in resources}

    ours, theirs = named(compose(K8S / "overlays" / overlay)), named(by_kubectl(overlay))
    assert ours.keys() == theirs.keys()
    for name, resource in theirs.items():
        assert ours[name] == resource, name


def mistakes(resource: dict[str, Any]) -> list[str]:
    """What KubeRay would not understand of one of its resources."""
    schema = {"$ref": f"#/$defs/{resource['kind']}", "$defs": SCHEMA["$defs"]}
    return [
        f"{list(error.path)}: {error.message}"
        for error in jsonschema.Draft202012Validator(schema).iter_errors(resource)
    ]


def pods(value: Any) -> Iterator[dict[str, Any]]:
    """Every pod's spec in a resource."""
    if isinstance(value, dict):
        if "containers" in value:
            yield value
        for inner in value.values():
            yield from pods(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from pods(inner)


def test_kuberay_s_resources_have_its_fields(composed: dict[str, list[dict[str, Any]]]) -> None:
    kinds = set()
    for resources in composed.values():
        for resource in resources:
            if resource["apiVersion"] == "ray.io/v1":
                assert mistakes(resource) == []
                kinds.add(resource["kind"])
    assert kinds == set(SCHEMA["$defs"]) - {"cluster"}


def test_all_that_has_a_namespace_is_in_ours(composed: dict[str, list[dict[str, Any]]]) -> None:
    for overlay, resources in composed.items():
        spaces = {
            (each["kind"], each["metadata"].get("namespace")) for each in resources if each["kind"] != "Namespace"
        }
        assert spaces == {(kind, "realcustom") for kind, _ in spaces}, overlay


def check_kubernetes(resource: dict[str, Any]) -> None:
    """Raise ValidationError for what Kubernetes itself would not take, a field that it does not know among it."""
    kubernetes_validate.validate(resource, KUBERNETES, strict=True)


def of_kubernetes(resources: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Its own resources, and each pod that KubeRay will ask it for, as a resource."""
    own = [each for each in resources if each["apiVersion"] != "ray.io/v1"]
    asked = {json.dumps(pod, sort_keys=True) for each in resources for pod in pods(each)}
    described = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "asked"}}
    return own + [{**described, "spec": json.loads(pod)} for pod in sorted(asked)]


def test_kubernetes_takes_its_own_resources_and_every_pod(composed: dict[str, list[dict[str, Any]]]) -> None:
    kinds = set()
    for resource in (each for resources in composed.values() for each in of_kubernetes(resources)):
        check_kubernetes(resource)
        kinds.add(resource["kind"])
    assert kinds == {"Namespace", "ServiceAccount", "PodDisruptionBudget", "NetworkPolicy", "Pod"}


@pytest.mark.parametrize(
    "plant",
    [
        lambda spec: spec.update(restartPolicies="Never"),
        lambda spec: spec["containers"][0]["resources"].update(limit={"cpu": "1"}),
        lambda spec: spec["containers"][0].update(ports="8000"),
        lambda spec: spec["securityContext"].update(runAsNonRoot="yes"),
    ],
)
def test_a_mistake_in_a_pod_is_found(composed: dict[str, list[dict[str, Any]]], plant: Any) -> None:
    pod = next(each for each in of_kubernetes(composed["gpu"]) if each["kind"] == "Pod")
    plant(pod["spec"])
    with pytest.raises(kubernetes_validate.ValidationError):
        check_kubernetes(pod)


@pytest.mark.parametrize(
    "plant",
    [
        lambda spec: spec.update(suspended=True),
        lambda spec: spec.update(backoffLimit="two"),
        lambda spec: spec["rayClusterSpec"]["gcsFaultToleranceOptions"].update(backend="rocks"),
        lambda spec: spec["rayClusterSpec"]["workerGroupSpecs"][0].pop("groupName"),
        lambda spec: spec.pop("shutdownAfterJobFinishes"),  # which KubeRay wants of a job that is suspended
        lambda spec: spec.update(deletionStrategy={"deletionRules": []}),  # and then it takes no rules
    ],
)
def test_a_planted_mistake_is_found(composed: dict[str, list[dict[str, Any]]], plant: Any) -> None:
    job = copy.deepcopy(next(each for each in composed["gpu"] if each["kind"] == "RayJob"))
    plant(job["spec"])
    assert mistakes(job)


def test_what_is_written_once_is_the_same_everywhere(composed: dict[str, list[dict[str, Any]]]) -> None:
    for overlay, resources in composed.items():
        [cluster] = [each["spec"] for each in resources if each["kind"] == "RayCluster"]
        assert cluster["rayVersion"] == importlib.metadata.version("ray")
        for each in resources:
            spec = each.get("spec", {})
            for own in (
                spec.get("rayClusterSpec"),
                spec.get("rayClusterConfig"),
                spec.get("jobTemplate", {}).get("rayClusterSpec"),
            ):
                assert own in (None, cluster), each["metadata"]["name"]
        images = {container["image"] for each in resources for pod in pods(each) for container in pod["containers"]}
        assert {image.rpartition("-")[0] for image in images} == {"registry.example/realcustom:0.1.0"}, overlay
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            [shm] = [each for each in group["template"]["spec"]["volumes"] if each["name"] == "shm"]
            size = shm["emptyDir"]["sizeLimit"]
            unit = {"Gi": 2**30, "Mi": 2**20}[size[-2:]]
            assert int(size[:-2]) * unit == int(group["rayStartParams"]["object-store-memory"])


def test_every_pod_is_held_short(composed: dict[str, list[dict[str, Any]]]) -> None:
    """Not root, nothing written outside volumes, no capability, memory that is asked for is what there is."""
    for pod in (pod for resources in composed.values() for each in resources for pod in pods(each)):
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["seccompProfile"]
        for container in pod["containers"]:
            security, resources = container["securityContext"], container["resources"]
            assert security["readOnlyRootFilesystem"] and security["capabilities"] == {"drop": ["ALL"]}
            assert not security["allowPrivilegeEscalation"]
            assert resources["requests"]["memory"] == resources["limits"]["memory"]


def test_a_worker_that_is_ended_has_time_for_what_it_does(composed: dict[str, list[dict[str, Any]]]) -> None:
    """Its script is where the image has the repository, and ends before Kubernetes' patience does."""
    for resources in composed.values():
        [cluster] = [each["spec"] for each in resources if each["kind"] == "RayCluster"]
        for group in cluster["workerGroupSpecs"]:
            pod = group["template"]["spec"]
            program, seconds = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
            assert os.access(ROOT / program.removeprefix("/opt/realcustom/"), os.X_OK)
            assert int(seconds) < pod["terminationGracePeriodSeconds"]


def test_jobs_wait_for_a_queue_and_leave_no_cluster(composed: dict[str, list[dict[str, Any]]]) -> None:
    for resources in composed.values():
        jobs = {each["metadata"]["name"]: each["spec"] for each in resources if each["kind"] == "RayJob"}
        assert set(jobs) == {"ingest", "score", "select", "caption", "subjects", "encode", "train", "evaluate"}
        for name, spec in jobs.items():
            assert spec["suspend"] and spec["backoffLimit"]
            assert spec["activeDeadlineSeconds"] >= (15 if name == "train" else 1) * 24 * 3600
            assert spec["shutdownAfterJobFinishes"] and 0 < spec["ttlSecondsAfterFinished"] <= 600


def test_an_evaluation_measures_on_a_worker(composed: dict[str, list[dict[str, Any]]]) -> None:
    """The head takes no work, and has no GPU: a job's own process that computes asks for a worker's share."""
    for overlay, resources in composed.items():
        for kind, name in (("RayJob", "evaluate"), ("RayCronJob", "nightly")):
            [spec] = [each["spec"] for each in resources if (each["kind"], each["metadata"]["name"]) == (kind, name)]
            spec = spec.get("jobTemplate", spec)
            assert (spec["entrypointNumCpus"], spec.get("entrypointNumGpus")) == (1, 1 if overlay == "gpu" else None)
        [cluster] = [each["spec"] for each in resources if each["kind"] == "RayCluster"]
        assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
        if overlay == "gpu":  # those that draw have room beside it
            [drawing] = {
                env["value"] for pod in map(first_env, resources) for env in pod if env["name"] == "RC_DRAWING"
            }
            [group] = [group for group in cluster["workerGroupSpecs"] if group["groupName"] == "gpu"]
            assert int(drawing.split()[1]) + 1 <= group["maxReplicas"]


def first_env(resource: dict[str, Any]) -> list[dict[str, str]]:
    """The variables of a RayJob's submitter."""
    template = resource["spec"].get("submitterPodTemplate") if resource["kind"] == "RayJob" else None
    found: list[dict[str, str]] = template["spec"]["containers"][0].get("env", []) if template else []
    return found


def submitters(resources: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Of every job: what it runs, and the pod that submits it."""
    for each in resources:
        if each["kind"] in ("RayJob", "RayCronJob"):
            spec = each["spec"].get("jobTemplate", each["spec"])
            yield spec["entrypoint"], spec["submitterPodTemplate"]


def test_what_submits_a_job_may_reach_the_dashboard(composed: dict[str, list[dict[str, Any]]]) -> None:
    for resources in composed.values():
        [policy] = [each["spec"] for each in resources if each["kind"] == "NetworkPolicy"]
        labels = [
            one["podSelector"]["matchLabels"]
            for rule in policy["ingress"]
            for one in rule.get("from", ())
            if "podSelector" in one
        ]
        pods_of_jobs = list(submitters(resources))
        assert len(pods_of_jobs) == 9
        assert all(pod["metadata"]["labels"] in labels for _, pod in pods_of_jobs)


def test_the_submitter_s_shell_knows_every_variable_of_a_job(composed: dict[str, list[dict[str, Any]]]) -> None:
    """KubeRay writes the entrypoint into that shell's command line as it is."""
    page = (ROOT / "docs" / "cluster.md").read_text()
    for overlay, resources in composed.items():
        for entrypoint, pod in submitters(resources):
            [container] = pod["spec"]["containers"]
            assert {"configMapRef": {"name": "realcustom-run"}} in container["envFrom"]
            given = {one["name"]: one["value"] for one in container.get("env") or ()}
            named = set(re.findall(r"\$(RC_[A-Z]+)", entrypoint))
            assert all(name in page for name in named)
            variables = {**dict.fromkeys(named, "s3://b/a b"), **given, "PATH": os.environ["PATH"]}
            program = f"python() {{ printf '%s\\n' \"$@\"; }}; {entrypoint}"
            command = ["bash", "-ce", "--", program]
            said = subprocess.run(command, env=variables, check=True, capture_output=True, text=True).stdout.split("\n")
            assert said[said.index("--recipe") + 1] == ("photos_sd15" if overlay == "gpu" else "sprites")
            assert said[said.index("--output") + 1] == "s3://b/a b"


def test_what_needs_a_gpu_is_where_there_are_some(composed: dict[str, list[dict[str, Any]]]) -> None:
    for overlay, resources in composed.items():
        [cluster] = [each["spec"] for each in resources if each["kind"] == "RayCluster"]
        groups = [group["template"]["spec"]["containers"][0]["resources"] for group in cluster["workerGroupSpecs"]]
        assert any("nvidia.com/gpu" in group["limits"] for group in groups) == (overlay == "gpu")
        assert any(each["kind"] == "RayService" for each in resources) == (overlay == "gpu")
    assert RECIPES["photos_sd15"]().train.use_gpu and not RECIPES["sprites"]().train.use_gpu


def test_no_work_on_the_head_and_token_always(composed: dict[str, list[dict[str, Any]]]) -> None:
    for resources in composed.values():
        [cluster] = [each["spec"] for each in resources if each["kind"] == "RayCluster"]
        assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
        assert cluster["authOptions"] == {"mode": "token"}
        assert all(group["minReplicas"] == 0 for group in cluster["workerGroupSpecs"]), (
            "nothing is paid for between jobs"
        )


def test_the_endpoint_is_that_of_serve_yaml(composed: dict[str, list[dict[str, Any]]]) -> None:
    own = yaml.safe_load((ROOT / "infra" / "serve.yaml").read_text())
    [service] = [each["spec"] for each in composed["gpu"] if each["kind"] == "RayService"]
    assert yaml.safe_load(service["serveConfigV2"]) == own


def test_no_secret_is_in_a_manifest(composed: dict[str, list[dict[str, Any]]]) -> None:
    assert not [each for resources in composed.values() for each in resources if each["kind"] == "Secret"]
