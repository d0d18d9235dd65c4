"""Small model specs of every cache shape, and emulated engines over them: no torch, no waiting."""

from __future__ import annotations

from collections.abc import Mapping

from prfaas.clock import Clock, MonotonicClock
from prfaas.config import EngineSettings
from prfaas.engine.backend import PoolSize
from prfaas.engine.emulated import EmulatedBackend
from prfaas.engine.loop import LoopedEngine
from prfaas.metrics import Emitter, MetricSet
from prfaas.modelspec import CacheGroup, CacheSpec, DType, Fingerprint, GroupKind, ModelSpec, TensorSpec, cache_digest
from prfaas.planner.profile import Curve, HardwareProfile

ATTENTION = CacheGroup(
    "mla", GroupKind.FULL, (1, 3), (TensorSpec("latent", (5,), DType.F32), TensorSpec("scale", (1,), DType.BF16))
)
DELTA = CacheGroup(
    "kda", GroupKind.STATE, (0, 2), (TensorSpec("state", (2, 3), DType.F32), TensorSpec("conv", (3,), DType.BF16))
)
WINDOW = CacheGroup("swa", GroupKind.SLIDING, (0, 2), (TensorSpec("kv", (2, 2), DType.F32),), window_tokens=6)
WIDE = CacheGroup("wide", GroupKind.SLIDING, (4,), (TensorSpec("kv", (3,), DType.F32),), window_tokens=11)

SHAPES: Mapping[str, tuple[CacheGroup, ...]] = {
    "dense": (ATTENTION,),
    "kimi": (ATTENTION, DELTA),
    "gemma": (ATTENTION, WINDOW),
    "everything": (ATTENTION, DELTA, WINDOW, WIDE),
    "recurrent": (DELTA,),
}

INSTANT = HardwareProfile("instant", Curve((0.0, 1024.0), (0.0, 0.0)), Curve((1.0, 64.0), (0.0, 0.0)), 64)


def tiny_spec(shape: str = "kimi", *, block_tokens: int = 4, context: int = 512, vocab: int = 1000) -> ModelSpec:
    """A model of the given cache shape; its end-of-sequence token is 0."""
    cache = CacheSpec(SHAPES[shape], block_tokens)
    layers = 1 + max(layer for group in cache.groups for layer in group.layers)
    fingerprint = Fingerprint("tiny", "none", cache_digest(cache))
    return ModelSpec(f"tiny-{shape}", "Emulated", vocab, layers, context, cache, (0,), fingerprint)


def pool_sizes(spec: ModelSpec, *, blocks: int = 64, slots: int = 16, host: int = 0) -> dict[str, PoolSize]:
    """The same size for every group of a kind; `host` blocks or slots of each group in host memory."""
    return {group.name: PoolSize(slots if group.is_state else blocks, host) for group in spec.cache.groups}


def emulated_backend(spec: ModelSpec, *, blocks: int = 64, slots: int = 16, host: int = 0) -> EmulatedBackend:
    """A backend that takes no time and reads everything it attends to."""
    sizes = pool_sizes(spec, blocks=blocks, slots=slots, host=host)
    return EmulatedBackend(spec, sizes, INSTANT, sleep=lambda _: None, audit=True)


def emulated_engine(
    spec: ModelSpec,
    *,
    blocks: int = 64,
    slots: int = 16,
    settings: EngineSettings | None = None,
    backend: EmulatedBackend | None = None,
    clock: Clock | None = None,
) -> LoopedEngine:
    """A running engine over an emulated backend; the test closes it."""
    settings = settings or EngineSettings(kind="emulated", max_running=4, max_step_tokens=16, state_snapshot_blocks=2)
    return LoopedEngine(
        backend or emulated_backend(spec, blocks=blocks, slots=slots),
        settings,
        metrics=MetricSet(Emitter.WORKER),
        clock=clock or MonotonicClock(),
    )
