"""`prfaas up`: the workers of one site against a router elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from prfaas.artifacts import resolve_model
from prfaas.cli.catalog import catalog
from prfaas.cli.deployment import require_own_names, with_thread_counts, worker_orders
from prfaas.cli.run_directory import RunDirectory
from prfaas.cli.screen import Screen
from prfaas.cli.serve import num_cores
from prfaas.cli.stop_signal import StopSignal
from prfaas.cli.up import make_pool, run_pool
from prfaas.config import DeploymentSettings, SiteSettings, resolve
from prfaas.errors import ConfigError
from prfaas.log import configure_logging


@dataclass(frozen=True, slots=True)
class SiteRequest:
    """What `prfaas up` was asked to do. `only` empty: every site of the file."""

    file: Path
    only: tuple[str, ...]
    router: str
    run_directory: Path | None
    name: str
    drain_s: float


def run_site(request: SiteRequest, screen: Screen) -> None:
    """Run the pool until a stop signal. Raises ConfigError, FetchError or StartupError when it cannot start."""
    configure_logging(request.name)
    stop = StopSignal()
    _require_address(request.router)
    deployment = resolve(DeploymentSettings, file=request.file)
    require_own_names(deployment)
    sites = choose_sites(deployment, request.only)
    deployment = with_thread_counts(deployment.model_copy(update={"sites": sites}), num_cores())
    model = resolve_model(deployment.model, catalog(), progress=screen.step)
    orders = worker_orders(
        deployment,
        sites,
        source=model.source,
        served_name=deployment.served_model_name or model.served_name,
        router_address=request.router,
    )
    log_dir = request.run_directory
    pool = make_pool(deployment.pool, ray_address=sites[0].ray_address, log_dir=log_dir)
    screen.step(
        f"starting {len(orders)} workers of {', '.join(site.name for site in sites)} for the router at {request.router}"
    )
    run = RunDirectory(log_dir) if log_dir is not None else None
    logs = "their logs follow" if log_dir is None else f"their logs are in {log_dir}"
    screen.step(f"{logs}; `prfaas status` at the router tells which of them have registered")
    run_pool(pool, orders, name=request.name, run=run, drain_s=request.drain_s, stop=stop, tell=screen.warn)


def choose_sites(deployment: DeploymentSettings, only: tuple[str, ...]) -> tuple[SiteSettings, ...]:
    """The sites to run in this process. Raises ConfigError for an unknown one, or for several Ray clusters at once."""
    known = {site.name: site for site in deployment.sites}
    unknown = sorted(set(only) - set(known))
    if unknown:
        raise ConfigError(f"the file has no site {', '.join(unknown)}; it has {', '.join(known)}")
    sites = tuple(site for site in deployment.sites if not only or site.name in only)
    if deployment.pool == "ray" and len({site.ray_address for site in sites}) > 1:
        raise ConfigError(
            "these sites have different Ray clusters and one process drives one cluster: start one "
            "'prfaas up --only SITE' for each"
        )
    return sites


def _require_address(text: str) -> None:
    host, colon, port = text.rpartition(":")
    if not (colon and host and port.isdecimal() and 0 < int(port) < 65536):
        raise ConfigError(f"--router is {text!r}; give the router's gRPC registry as HOST:PORT, with a port from 1 to 65535")
