"""The real system in processes on this machine, for benchmarks that go through its front door."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prfaas.artifacts import ResolvedModel
from prfaas.cli.deployment import Counts, build_deployment
from prfaas.cli.run_directory import RunDirectory
from prfaas.cli.system import System


@contextmanager
def served(model: ResolvedModel, cache: Path, *, engine: Mapping[str, Any], policy: Mapping[str, Any]) -> Iterator[str]:
    """Both sites with one worker of each kind, on a free port; yields the URL. Logs go below `cache`."""
    flags = {
        "model": model.source, "pool": "process", "engine": dict(engine), "router": {"port": 0, "policy": dict(policy)},
    }  # fmt: skip
    deployment = build_deployment(file=None, counts=Counts(), flags=flags, environ={})
    running = System(deployment, model, RunDirectory.create(cache, os.getpid()), say=lambda _: None)
    try:
        running.start()
        running.wait_ready()
        yield running.endpoints.http
    finally:
        running.close(lambda: False)
