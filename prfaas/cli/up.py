"""Drives the workers of one site (or of several that share a machine or a Ray cluster) against a router elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from prfaas.cli.pool_news import pool_news
from prfaas.cli.run_directory import RunDirectory
from prfaas.cli.stop_signal import StopSignal
from prfaas.cluster.api import PoolMember, WorkerOrder, WorkerPool
from prfaas.cluster.process_pool import ProcessPool
from prfaas.errors import ConfigError

PUBLISH_S = 0.5
FIRM_S = 0.0


def make_pool(kind: str, *, ray_address: str | None, log_dir: Path | None) -> WorkerPool:
    """A pool of the kind that a deployment names. Raises ConfigError when Ray is wanted but not installed."""
    if kind == "process":
        return ProcessPool(log_dir=log_dir)
    try:
        from prfaas.cluster.ray_pool import RayPool
    except ImportError as error:
        raise ConfigError("Ray is not installed: pip install 'prfaas[ray]', or use --pool process") from error
    return RayPool(address=ray_address, log_dir=log_dir)


def run_pool(
    pool: WorkerPool,
    orders: Sequence[WorkerOrder],
    *,
    name: str,
    run: RunDirectory | None,
    drain_s: float,
    stop: StopSignal,
    tell: Callable[[str], None],
) -> None:
    """Start the workers, publish their state and `tell` of ends and restarts while they run, and close the pool when a
    stop is asked for."""
    try:
        pool.start(orders)
        stop.install()
        seen: tuple[PoolMember, ...] = ()
        while not stop.asked:
            members = pool.members()
            if run is not None:
                run.write_members(name, members)
            for line in pool_news(seen, members):
                tell(line)
            seen = members
            time.sleep(PUBLISH_S)
    finally:
        close_pool(pool, drain_s=drain_s, stop=stop)


def close_pool(pool: WorkerPool, *, drain_s: float, stop: StopSignal) -> None:
    """Close a pool politely; a second stop signal meanwhile makes it firm."""
    closing = threading.Thread(target=lambda: pool.close(drain_s=drain_s), name="close-pool")
    closing.start()
    while closing.is_alive() and not stop.hurried:
        closing.join(0.05)
    if closing.is_alive():
        pool.close(drain_s=FIRM_S)
    closing.join()
