"""The Kubernetes manifests: schemas, references between objects, and settings that our own code accepts."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from prfaas.cli.deployment import worker_orders
from prfaas.config import DeploymentSettings, RouterSettings, resolve

KUBERNETES = Path(__file__).parents[2] / "deploy" / "kubernetes"
VERSION = "1.33.1"
KUSTOMIZE_KIND = "Kustomization"

GROUP_KEYS = {
    "groupName",
    "replicas",
    "minReplicas",
    "maxReplicas",
    "numOfHosts",
    "rayStartParams",
    "template",
    "scaleStrategy",
}
HEAD_KEYS = {"serviceType", "headService", "enableIngress", "rayStartParams", "template"}
SPEC_KEYS = {
    "headGroupSpec", "workerGroupSpecs", "rayVersion", "enableInTreeAutoscaling", "autoscalerOptions", "suspend",
    "headServiceAnnotations",
}  # fmt: skip


def documents() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted(KUBERNETES.rglob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            if isinstance(document, dict) and "apiVersion" in document and document["kind"] != KUSTOMIZE_KIND:
                yield f"{path.relative_to(KUBERNETES)}:{document['kind']}", document


def objects(kind: str) -> list[dict[str, Any]]:
    return [document for _, document in documents() if document["kind"] == kind]


def groups(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    return [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]


def pods() -> list[tuple[str, dict[str, Any]]]:
    """Every pod that the manifests lead to, as a Pod object."""
    found = [(d["metadata"]["name"], d["spec"]["template"]) for d in objects("Deployment")]
    for cluster in objects("RayCluster"):
        found += [(f"{cluster['metadata']['name']}/{g.get('groupName', 'head')}", g["template"]) for g in groups(cluster)]
    return [
        (name, {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", **template["metadata"]}, "spec": template["spec"]})
        for name, template in found
    ]


@pytest.mark.parametrize(
    ("name", "document"), [pytest.param(*d, id=d[0]) for d in [*documents(), *pods()] if d[1]["kind"] != "RayCluster"]
)
def test_agrees_with_the_schema_of_kubernetes(name: str, document: dict[str, Any]) -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    validator.validate(document, VERSION, strict=True)


@pytest.mark.parametrize("cluster", objects("RayCluster"), ids=lambda c: c["metadata"]["name"])
def test_ray_clusters_have_the_shape_that_kuberay_defines(cluster: dict[str, Any]) -> None:
    spec = cluster["spec"]
    assert cluster["apiVersion"] == "ray.io/v1"
    assert set(spec) <= SPEC_KEYS
    assert set(spec["headGroupSpec"]) <= HEAD_KEYS
    for group in spec["workerGroupSpecs"]:
        assert set(group) <= GROUP_KEYS
        assert {"groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"} <= set(group)
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for group in groups(cluster):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values()), "KubeRay's parameters are strings"


@pytest.mark.parametrize("cluster", objects("RayCluster"), ids=lambda c: c["metadata"]["name"])
def test_a_sites_nodes_offer_what_its_workers_ask_for(cluster: dict[str, Any]) -> None:
    directory = KUBERNETES / cluster["metadata"]["name"].removeprefix("prfaas-")
    deployment = resolve(DeploymentSettings, file=directory / "site.yaml", environ={})
    orders = worker_orders(deployment, deployment.sites, source="/m", served_name="m", router_address="r:1")
    wanted = {name for order in orders for name, _ in order.resources}
    for group in cluster["spec"]["workerGroupSpecs"]:
        offered = yaml.safe_load(shlex.split(group["rayStartParams"]["resources"])[0])
        assert set(offered) == wanted
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        assert {order.num_gpus for order in orders} == {limits["nvidia.com/gpu"]}
        annotations, ports = group["template"]["metadata"]["annotations"], group["template"]["spec"]["containers"][0]["ports"]
        assert {order.settings.metrics_port for order in orders} == {int(annotations["prometheus.io/port"])}
        assert int(annotations["prometheus.io/port"]) in [port["containerPort"] for port in ports]
    assert len(orders) == sum(group["replicas"] for group in cluster["spec"]["workerGroupSpecs"])
    (site,) = deployment.sites
    assert site.host == "auto", "pods learn their own address"


def test_the_router_settings_are_accepted_and_match_the_ports() -> None:
    settings = resolve(RouterSettings, file=KUBERNETES / "router" / "router.yaml", environ={})
    (deployment,) = objects("Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert {port["name"]: port["containerPort"] for port in container["ports"]} == {
        "http": settings.port,
        "grpc": settings.grpc_port,
    }
    assert deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > settings.drain_timeout_s
    served = {resolve(DeploymentSettings, file=p, environ={}).served_model_name for p in KUBERNETES.rglob("site.yaml")}
    assert served == {settings.served_model_name}


def test_services_select_the_router_and_name_its_ports() -> None:
    (deployment,) = objects("Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    names = {port["name"] for port in deployment["spec"]["template"]["spec"]["containers"][0]["ports"]}
    assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()
    for service in objects("Service"):
        assert service["spec"]["selector"].items() <= labels.items()
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= names


@pytest.mark.parametrize(("name", "pod"), [pytest.param(*p, id=p[0]) for p in pods()])
def test_pods_are_bounded_unprivileged_and_mount_what_they_declare(name: str, pod: dict[str, Any]) -> None:
    spec = pod["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    volumes = {volume["name"] for volume in spec.get("volumes", [])}
    used = set()
    for container in [*spec.get("initContainers", []), *spec["containers"]]:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert "memory" in container["resources"]["limits"]
        assert "cpu" in container["resources"]["requests"]
        used |= {mount["name"] for mount in container.get("volumeMounts", [])}
    assert used == volumes, f"{name} mounts {used} of {volumes}"


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_kustomize_builds_and_rewrites_images_and_config_maps_everywhere() -> None:
    done = subprocess.run(["kubectl", "kustomize", str(KUBERNETES)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    built = list(yaml.safe_load_all(done.stdout))
    maps = {document["metadata"]["name"] for document in built if document["kind"] == "ConfigMap"}
    assert len(maps) == 3
    referred = set()
    for document in built:
        specs = [document["spec"]["template"]["spec"]] if document["kind"] == "Deployment" else []
        specs += [group["template"]["spec"] for group in groups(document)] if document["kind"] == "RayCluster" else []
        for spec in specs:
            assert all(":" in container["image"] for container in [*spec.get("initContainers", []), *spec["containers"]])
            referred |= {volume["configMap"]["name"] for volume in spec.get("volumes", []) if "configMap" in volume}
    assert referred == maps
    assert all(document["metadata"].get("namespace") == "prfaas" for document in built if document["kind"] != "Namespace")
