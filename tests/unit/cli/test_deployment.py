"""From flags and a file to the settings of each process."""

from __future__ import annotations

from pathlib import Path

import pytest

from prfaas.cli.deployment import (
    Counts,
    build_deployment,
    drivers,
    router_settings,
    with_thread_counts,
    worker_ids,
    worker_orders,
)
from prfaas.config import DeploymentSettings
from prfaas.errors import ConfigError

FILE = """
model: some-model
pool: process
sites:
  - name: far
    pools: [{role: prefill, count: 2, num_gpus: 1, engine: {num_threads: 3}}]
    host: 10.0.0.1
  - name: near
    pools: [{role: pd_prefill}, {role: decode, count: 2}, {role: decode, num_gpus: 1}]
router: {port: 9000, policy: {threshold_tokens: 77}}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "deployment.yaml"
    path.write_text(FILE)
    return path


def build(flags: dict[str, object], *, file: Path | None = None, counts: Counts | None = None) -> DeploymentSettings:
    return build_deployment(file=file, counts=counts, flags=flags, environ={})


def test_without_a_file_there_are_two_sites_and_every_route_exists() -> None:
    deployment = build({"model": "m"})
    assert worker_ids(deployment.sites) == ("prefill-dc-prefill-0", "pd-dc-pd-prefill-0", "pd-dc-decode-0")


def test_counts_shape_the_sites_and_an_empty_one_is_left_out() -> None:
    deployment = build({"model": "m"}, counts=Counts(prefill=0, pd_prefill=0, decode=2))
    assert worker_ids(deployment.sites) == ("pd-dc-decode-0", "pd-dc-decode-1")


@pytest.mark.parametrize(
    ("counts", "flag"),
    [(Counts(decode=0), "--decode"), (Counts(prefill=-1), "--prefill"), (Counts(pd_prefill=-1), "--pd-prefill")],
)
def test_impossible_counts_are_refused(counts: Counts, flag: str) -> None:
    with pytest.raises(ConfigError, match=flag):
        build({"model": "m"}, counts=counts)


def test_flags_win_over_the_file_and_those_not_given_leave_it_alone(file: Path) -> None:
    flags = {"model": "other", "pool": None, "router": {"port": 9001, "host": None, "policy": {"inline_tokens": None}}}
    deployment = build(flags, file=file)
    assert (deployment.model, deployment.pool) == ("other", "process")
    assert deployment.router == {"port": 9001, "policy": {"threshold_tokens": 77}}


def test_counts_and_a_file_together_are_refused(file: Path) -> None:
    with pytest.raises(ConfigError, match="not both"):
        build({}, file=file, counts=Counts())


def test_sites_need_names_of_their_own(file: Path) -> None:
    file.write_text(FILE.replace("name: near", "name: far"))
    with pytest.raises(ConfigError, match="name of its own"):
        build({}, file=file)


def test_misspelt_settings_are_named(file: Path) -> None:
    file.write_text(FILE + "engin: {}\n")
    with pytest.raises(ConfigError, match="engin"):
        build({}, file=file)


def test_orders_carry_everything_a_worker_needs(file: Path) -> None:
    deployment = build({"engine": {"dtype": "float32"}}, file=file)
    orders = worker_orders(deployment, deployment.sites, source="/m", served_name="m", router_address="r:1")
    assert [order.settings.worker_id for order in orders] == [
        "far-prefill-0", "far-prefill-1", "near-pd-prefill-0", "near-decode-0", "near-decode-1", "near-decode-2",
    ]  # fmt: skip
    far, last = orders[0], orders[-1]
    assert (far.settings.host, far.settings.engine.num_threads, far.num_gpus) == ("10.0.0.1", 3, 1)
    assert far.resources == (("site:far", 0.001),)
    assert (last.settings.engine.dtype, last.num_gpus, last.settings.router_address) == ("float32", 1, "r:1")
    assert (last.settings.model, last.settings.served_model_name, last.settings.site) == ("/m", "m", "near")


@pytest.mark.parametrize(("cores", "workers", "threads"), [(2, 3, 2), (1, 3, 1), (16, 3, 11), (4, 1, 4), (2, 40, 1)])
def test_workers_share_the_cores_with_some_overlap(cores: int, workers: int, threads: int) -> None:
    deployment = build({"model": "m"}, counts=Counts(prefill=0, pd_prefill=0, decode=workers))
    assert with_thread_counts(deployment, cores).engine.num_threads == threads


def test_threads_that_were_asked_for_are_left_alone(file: Path) -> None:
    deployment = with_thread_counts(build({"engine": {"num_threads": 5}}, file=file), cores=64)
    assert deployment.engine.num_threads == 5
    assert deployment.sites[0].pools[0].engine is not None
    assert deployment.sites[0].pools[0].engine.num_threads == 3


def test_router_settings_refuse_unknown_fields() -> None:
    deployment = build({"model": "m", "router": {"prot": 1}})
    with pytest.raises(ConfigError, match=r"router\.prot"):
        router_settings(deployment, source="/m", served_name="m")


def test_process_sites_have_drivers_of_their_own_and_ray_sites_share_one_for_each_cluster(file: Path) -> None:
    def names(deployment: DeploymentSettings) -> list[list[str]]:
        return [[site.name for site in group] for group in drivers(deployment)]

    assert names(build({}, file=file)) == [["far"], ["near"]]
    assert names(build({"pool": "ray"}, file=file)) == [["far", "near"]]
    file.write_text(FILE.replace("host: 10.0.0.1", "ray_address: 10.0.0.1:6379"))
    assert names(build({"pool": "ray"}, file=file)) == [["far"], ["near"]]


def test_workers_of_one_machine_cannot_share_a_metrics_port(file: Path) -> None:
    def orders(text: str, **flags: object) -> list[int | None]:
        file.write_text(text)
        deployment = build(dict(flags), file=file)
        found = worker_orders(deployment, deployment.sites, source="/m", served_name="m", router_address="r:1")
        return [order.settings.metrics_port for order in found]

    shared = FILE.replace("{role: decode, count: 2}", "{role: decode, count: 2, metrics_port: 9400}")
    with pytest.raises(ConfigError, match="metrics_port of its own"):
        orders(shared)
    assert orders(shared, pool="ray")[3:] == [9400, 9400, None], "Ray puts them on machines of their own"


def test_a_file_without_a_decode_worker_is_refused(tmp_path: Path) -> None:
    lone = tmp_path / "lone.yaml"
    lone.write_text("model: m\nsites:\n  - name: a\n    pools: [{role: prefill, count: 1}]\n")
    with pytest.raises(ConfigError, match="at least one decode worker"):
        build_deployment(file=lone, counts=None, flags={}, environ={})
