"""The port of a worker pool: starts, watches, restarts and stops workers, wherever they run. Knows no policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from prfaas.config import WorkerSettings

WORKER_ENTRYPOINT = "prfaas.worker.main:run_worker"  # run_worker(settings: WorkerSettings, stop: threading.Event) -> None


@dataclass(frozen=True, slots=True)
class PoolMember:
    """One worker as its pool sees it. `pid` is None while it is not running or on an unknown host; `last_status` is how
    its program last ended, None if it did not or nobody knows."""

    worker_id: str
    pid: int | None
    alive: bool
    restarts: int
    last_status: int | None = None


@dataclass(frozen=True, slots=True)
class WorkerOrder:
    """A worker to run and the resources it needs. `resources` are Ray custom resources (ignored by process pools,
    which run on this machine)."""

    settings: WorkerSettings
    num_cpus: float = 0.0
    num_gpus: float = 0.0
    resources: tuple[tuple[str, float], ...] = ()


class WorkerPool(Protocol):
    """Workers of one site, or of several that share a machine or a Ray cluster.

    A worker that dies is started again with back-off until the pool is closed.
    """

    def start(self, orders: Sequence[WorkerOrder]) -> None:
        """Start workers; returns before they are ready (readiness is their registration with the router).
        Raises StartupError when the pool itself cannot start."""
        ...

    def members(self) -> tuple[PoolMember, ...]: ...

    def stop_worker(self, worker_id: str, *, drain_s: float) -> None:
        """Drain and stop one worker for good. Raises KeyError for an unknown id."""
        ...

    def close(self, *, drain_s: float = 5.0) -> None:
        """Stop every worker, politely then firmly, and everything the pool started. Idempotent; leaves no orphan.

        A second call, from another thread and with a smaller `drain_s`, hurries the first.
        """
        ...
