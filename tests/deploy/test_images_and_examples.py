"""Dockerfiles copy what exists and pin what pyproject pins; example files are what the commands accept."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from prfaas.cli.deployment import build_deployment, router_settings, worker_orders

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def copied(dockerfile: Path) -> list[str]:
    lines = re.findall(r"^COPY (?!--from)(.+)$", dockerfile.read_text(), re.MULTILINE)
    return [source for line in lines for source in line.split()[:-1]]


@pytest.mark.parametrize("dockerfile", [ROOT / "deploy/docker/Dockerfile.router", ROOT / "deploy/docker/Dockerfile.worker"])
def test_a_dockerfile_copies_every_package_and_its_ignore_file_lets_them_in(dockerfile: Path) -> None:
    sources = copied(dockerfile)
    packages = {pattern.removesuffix("*") for pattern in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]}
    assert packages <= set(sources)
    allowed = dockerfile.with_name(dockerfile.name + ".dockerignore").read_text().splitlines()
    assert all(f"!{source}" in allowed for source in sources)
    assert "USER 10001" in dockerfile.read_text()


def test_versions_in_the_worker_image_are_those_of_the_project() -> None:
    text = (ROOT / "deploy" / "docker" / "Dockerfile.worker").read_text()
    pins = dict(pin.split("==") for extra in ("engine", "ray") for pin in PROJECT["project"]["optional-dependencies"][extra])
    assert f"ARG TORCH_VERSION={pins['torch']}\n" in text
    assert f"ARG RAY_VERSION={pins['ray']}\n" in text
    manifests = [path.read_text() for path in (ROOT / "deploy" / "kubernetes").rglob("raycluster.yaml")]
    assert len(manifests) == 2
    assert all(f"rayVersion: {pins['ray']}\n" in manifest for manifest in manifests)
    makefile = (ROOT / "Makefile").read_text()
    assert f"TORCH_VERSION := {pins['torch']}\n" in makefile


def test_the_router_image_has_neither_torch_nor_ray() -> None:
    text = (ROOT / "deploy" / "docker" / "Dockerfile.router").read_text()
    instructions = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    assert "torch" not in instructions
    assert "ray" not in instructions
    assert "pip install --no-cache-dir .\n" in instructions, "no extras"
    base = " ".join(PROJECT["project"]["dependencies"])
    assert "torch" not in base
    assert "ray==" not in base


@pytest.mark.parametrize("example", ["deployment.yaml", "two-ray-clusters.yaml"])
def test_an_example_deployment_is_accepted_whole(example: str) -> None:
    deployment = build_deployment(file=ROOT / "examples" / example, counts=None, flags={}, environ={})
    orders = worker_orders(deployment, deployment.sites, source="/m", served_name="m", router_address="r:1")
    assert {order.settings.role for order in orders} == {"prefill", "pd_prefill", "decode"}
    router_settings(deployment, source="/m", served_name="m")
