"""The real system in processes on this machine, for benchmarks that go through its front door."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prfaas.artifacts import ResolvedModel
from prfaas.cli.deployment import PREFILL_SITE, Counts, build_deployment
from prfaas.cli.run_directory import RunDirectory
from prfaas.cli.system import System
from prfaas.config import DeploymentSettings, EngineSettings, SiteSettings, validate


@contextmanager
def served(
    model: ResolvedModel,
    cache: Path,
    *,
    engine: Mapping[str, Any],
    policy: Mapping[str, Any],
    far_engine: Mapping[str, Any] | None = None,
) -> Iterator[str]:
    """Both sites with one worker of each kind, on a free port; yields the URL. Logs go below `cache`.

    far_engine: settings of the prefill site's engine, where it differs.
    """
    flags = {
        "model": model.source, "pool": "process", "engine": dict(engine), "router": {"port": 0, "policy": dict(policy)},
    }  # fmt: skip
    deployment = build_deployment(file=None, counts=Counts(), flags=flags, environ={})
    if far_engine is not None:
        deployment = _with_engine(deployment, PREFILL_SITE, validate(EngineSettings, far_engine))
    running = System(deployment, model, RunDirectory.create(cache, os.getpid()), say=lambda _: None)
    try:
        running.start()
        running.wait_ready()
        yield running.endpoints.http
    finally:
        running.close(lambda: False)


def _with_engine(deployment: DeploymentSettings, name: str, engine: EngineSettings) -> DeploymentSettings:
    def changed(site: SiteSettings) -> SiteSettings:
        pools = tuple(pool.model_copy(update={"engine": engine}) for pool in site.pools)
        return site.model_copy(update={"pools": pools}) if site.name == name else site

    return deployment.model_copy(update={"sites": tuple(map(changed, deployment.sites))})
