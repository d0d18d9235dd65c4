"""`prfaas serve`: resolve the model, start the system, wait until it is ready, serve until asked to stop."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prfaas.artifacts import resolve_model
from prfaas.cli.catalog import catalog
from prfaas.cli.deployment import Counts, build_deployment, with_thread_counts
from prfaas.cli.router_api import Health
from prfaas.cli.run_directory import RunDirectory
from prfaas.cli.screen import Screen
from prfaas.cli.stop_signal import StopSignal
from prfaas.cli.system import System
from prfaas.clock import MonotonicClock
from prfaas.config import cache_dir
from prfaas.log import configure_logging

WATCH_S = 0.2


@dataclass(frozen=True, slots=True)
class ServeRequest:
    """What the command line asks for. `counts` None: as the file or the defaults say."""

    file: Path | None
    counts: Mapping[str, int] | None
    flags: Mapping[str, Any]


def serve_until_stopped(
    request: ServeRequest, screen: Screen, *, when_ready: Callable[[System, Health], None] | None = None
) -> None:
    """Run a system in the foreground. `when_ready` is called once every worker is registered.

    Raises PrfaasError when it cannot start; everything that was started is ended first.
    """
    configure_logging("serve", "WARNING")
    clock = MonotonicClock()
    counts = Counts(**request.counts) if request.counts is not None else None
    deployment = build_deployment(file=request.file, counts=counts, flags=request.flags)
    deployment = with_thread_counts(deployment, num_cores())
    stop = StopSignal()
    stop.install()
    system: System | None = None
    try:
        with stop.interruptible():
            model = resolve_model(deployment.model, catalog(), progress=screen.step)
        named = deployment.served_model_name
        model = model if named is None else type(model)(model.source, named)
        run = RunDirectory.create(cache_dir(), os.getpid())
        system = System(deployment, model, run, say=screen.done, clock=clock)
        began_s = clock.now_s()
        screen.step(f"starting the router and {deployment.pool} workers at {len(deployment.sites)} sites (logs: {run.path})")
        system.start()
        with stop.interruptible():
            health = system.wait_ready()
            screen.done(
                f"ready after {clock.now_s() - began_s:.1f} s: {model.served_name} at {system.endpoints.http}/v1 "
                f"(workers register at {system.endpoints.grpc})"
            )
            if when_ready is not None:
                when_ready(system, health)
            while True:
                time.sleep(WATCH_S)
    except KeyboardInterrupt:
        screen.step("stopping; Ctrl-C again to stop at once")
    finally:
        if system is not None:
            system.close(lambda: stop.hurried)
            screen.done("stopped")


def num_cores() -> int:
    """Cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every platform
        return os.cpu_count() or 1
