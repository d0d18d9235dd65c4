"""From flags and a file to a deployment, and from a deployment to the settings of each process. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prfaas.cluster.api import WorkerOrder
from prfaas.config import (
    DeploymentSettings,
    EngineSettings,
    PoolSettings,
    RouterSettings,
    SiteSettings,
    WorkerSettings,
    resolve,
    validate,
)
from prfaas.errors import ConfigError

PREFILL_SITE = "prefill-dc"
PD_SITE = "pd-dc"
SITE_SHARE = 0.001  # of a node's `site:NAME` resource: any number of workers fits, none runs in another site


@dataclass(frozen=True, slots=True)
class Counts:
    """Workers of the two sites that `prfaas serve` starts when no deployment file says otherwise."""

    prefill: int = 1
    pd_prefill: int = 1
    decode: int = 1


def two_sites(counts: Counts) -> list[dict[str, Any]]:
    """A prefill site and a prefill-decode site, as settings. Raises ConfigError when nothing would decode."""
    if counts.decode < 1:
        raise ConfigError("--decode must be at least 1: without a decode worker no request can be answered")
    if min(counts.prefill, counts.pd_prefill) < 0:
        raise ConfigError("--prefill and --pd-prefill cannot be negative")
    wanted = {
        PREFILL_SITE: {"prefill": counts.prefill},
        PD_SITE: {"pd_prefill": counts.pd_prefill, "decode": counts.decode},
    }
    sites = [
        {"name": name, "pools": [{"role": role, "count": count} for role, count in pools.items() if count > 0]}
        for name, pools in wanted.items()
    ]
    return [site for site in sites if site["pools"]]


def build_deployment(
    *, file: Path | None, counts: Counts | None, flags: Mapping[str, Any], environ: Mapping[str, str] | None = None
) -> DeploymentSettings:
    """Merge a deployment file, the environment and flags; without a file, the two sites of `counts`.

    Raises ConfigError for bad settings, for counts given together with a file, and for site names used twice.
    """
    if file is not None and counts is not None:
        raise ConfigError("give worker counts either as flags or in the deployment file, not both")
    layer = _given(flags)
    if file is None:
        layer["sites"] = two_sites(counts or Counts())
    deployment = resolve(DeploymentSettings, file=file, environ=environ, flags=layer)
    require_own_names(deployment)
    if not any(pool.role == "decode" and pool.count for site in deployment.sites for pool in site.pools):
        raise ConfigError("a deployment needs at least one decode worker: without it no request can be answered")
    return deployment


def require_own_names(deployment: DeploymentSettings) -> None:
    """Raises ConfigError unless there are sites, each with a name of its own."""
    names = [site.name for site in deployment.sites]
    if not names or len(set(names)) != len(names):
        raise ConfigError(f"a deployment needs at least one site, each with a name of its own; it has {names}")


def _given(flags: Mapping[str, Any]) -> dict[str, Any]:
    """The flags that were given: None means that a flag was not."""
    nested = {key: _given(value) if isinstance(value, Mapping) else value for key, value in flags.items()}
    return {key: value for key, value in nested.items() if value is not None and value != {}}


def with_thread_counts(deployment: DeploymentSettings, cores: int) -> DeploymentSettings:
    """Fill in `num_threads` where the deployment leaves it to us (0).

    Two threads' worth of work per core: a prefill and a decode worker seldom compute at the same moment, so sharing
    the cores evenly would leave half of them idle while one request is being answered.
    """
    num_workers = sum(pool.count for site in deployment.sites for pool in site.pools)
    threads = max(1, min(cores, math.ceil(2 * cores / num_workers)))

    def fill(engine: EngineSettings) -> EngineSettings:
        return engine if engine.num_threads else engine.model_copy(update={"num_threads": threads})

    def fill_pool(pool: PoolSettings) -> PoolSettings:
        return pool if pool.engine is None else pool.model_copy(update={"engine": fill(pool.engine)})

    sites = tuple(site.model_copy(update={"pools": tuple(map(fill_pool, site.pools))}) for site in deployment.sites)
    return deployment.model_copy(update={"engine": fill(deployment.engine), "sites": sites})


def router_settings(deployment: DeploymentSettings, *, source: str, served_name: str) -> RouterSettings:
    """The router's settings. Raises ConfigError for unknown fields."""
    return validate(RouterSettings, {"model": source, "served_model_name": served_name, **deployment.router}, at="router")


def worker_orders(
    deployment: DeploymentSettings, sites: Sequence[SiteSettings], *, source: str, served_name: str, router_address: str
) -> tuple[WorkerOrder, ...]:
    """One order for each worker of `sites`, with ids that say where it is and what it does.

    Raises ConfigError when workers that are sure to share a machine would share a metrics port.
    """
    if deployment.pool == "process":
        _require_own_metrics_ports(sites)
    return tuple(
        WorkerOrder(
            WorkerSettings(
                worker_id=worker_id,
                site=site.name,
                role=pool.role,
                model=source,
                served_model_name=served_name,
                router_address=router_address,
                host=site.host,
                metrics_port=pool.metrics_port,
                engine=pool.engine or deployment.engine,
                transport=deployment.transport,
            ),
            num_cpus=pool.num_cpus,
            num_gpus=pool.num_gpus,
            resources=((f"site:{site.name}", SITE_SHARE),),
        )
        for site, pool, worker_id in _workers(sites)
    )


def _require_own_metrics_ports(sites: Sequence[SiteSettings]) -> None:
    ports = [pool.metrics_port for _, pool, _ in _workers(sites) if pool.metrics_port]
    if len(set(ports)) != len(ports):
        raise ConfigError("workers of a process site share one machine: give each a pool with a metrics_port of its own")


def worker_ids(sites: Sequence[SiteSettings]) -> tuple[str, ...]:
    """The ids of all workers of `sites`."""
    return tuple(worker_id for _, _, worker_id in _workers(sites))


def _workers(sites: Sequence[SiteSettings]) -> Iterator[tuple[SiteSettings, PoolSettings, str]]:
    for site in sites:
        numbers: dict[str, int] = {}
        for pool in site.pools:
            for _ in range(pool.count):
                number = numbers.setdefault(pool.role, 0)
                numbers[pool.role] += 1
                yield site, pool, f"{site.name}-{pool.role.replace('_', '-')}-{number}"


def drivers(deployment: DeploymentSettings) -> tuple[tuple[SiteSettings, ...], ...]:
    """Sites grouped by the process that drives them: each process site alone, Ray sites by their Ray cluster."""
    if deployment.pool == "process":
        return tuple((site,) for site in deployment.sites)
    groups: dict[str | None, list[SiteSettings]] = {}
    for site in deployment.sites:
        groups.setdefault(site.ray_address, []).append(site)
    return tuple(map(tuple, groups.values()))
