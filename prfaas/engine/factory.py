"""Builds an engine from settings. torch is imported only when the settings ask for it."""

from __future__ import annotations

import time
from pathlib import Path

from prfaas.clock import Clock
from prfaas.config import EngineSettings, export_environment
from prfaas.engine.api import Engine
from prfaas.engine.backend import Backend
from prfaas.engine.emulated import EmulatedBackend
from prfaas.engine.emulated_profile import load_emulation
from prfaas.engine.loop import LoopedEngine
from prfaas.engine.pool_sizes import plan_pools
from prfaas.errors import ConfigError
from prfaas.metrics import MetricSet
from prfaas.modelspec import ModelSpec

SPIN_COUNT = "10000"  # some tens of microseconds: the gap between two operations


def build_engine(settings: EngineSettings, *, source: str, served_name: str, metrics: MetricSet, clock: Clock) -> Engine:
    """Load a model and start its engine.

    source: a model directory or a GGUF file on this machine. An emulated engine reads no weights, and nothing at all of
    it when its profile describes the model. served_name: what clients call the model. Blocks while files are read, so
    it belongs before an event loop or in a thread. Raises ModelLoadError, ConfigError.
    """
    if settings.kind == "emulated":
        backend = _emulated(settings, source=source, served_name=served_name)
    else:
        backend = _torch(settings, source=source, served_name=served_name)
    return LoopedEngine(backend, settings, metrics=metrics, clock=clock)


def device_of(settings: EngineSettings) -> str:
    """What an engine with these settings computes on here: "emulated", "cpu", or the name of a GPU. Raises ConfigError."""
    if settings.kind == "emulated":
        return "emulated"
    from prfaas.engine.torch_device import device_name, pick_device

    return device_name(pick_device(settings.device))


def _torch(settings: EngineSettings, *, source: str, served_name: str) -> Backend:
    if settings.profile is not None:
        raise ConfigError("profile is for emulated engines; set kind = emulated or leave it out", profile=settings.profile)
    # OpenMP's threads spin for milliseconds after each copy of a cache range, on cores that other workers compute with.
    # The library reads this when torch is loaded.
    export_environment({"GOMP_SPINCOUNT": SPIN_COUNT})
    from prfaas.engine.torch_factory import build_torch_backend

    return build_torch_backend(settings, source=source, served_name=served_name)


def _emulated(settings: EngineSettings, *, source: str, served_name: str) -> Backend:
    if settings.profile is None:
        raise ConfigError("an emulated engine needs a profile: set engine.profile to the path of a profile file")
    given = load_emulation(Path(settings.profile))
    if given.model is None:
        spec = _spec_of_files(source, served_name, settings.block_tokens)
    else:
        spec = given.model.to_spec(served_name, settings.block_tokens)
    return EmulatedBackend(
        spec,
        plan_pools(spec, settings),
        given.hardware.to_profile(),
        sleep=time.sleep,
        time_scale=settings.time_scale,
    )


def _spec_of_files(source: str, served_name: str, block_tokens: int) -> ModelSpec:
    from prfaas.model.load import describe_model

    return describe_model(source, served_name=served_name, block_tokens=block_tokens, dtype=None)
