"""`python -m tests.support.emulated_worker --settings FILE`: a worker whose engine computes by the clock, without torch.

Its model has every kind of cache group. At `engine.time_scale` 1 a prompt token takes 1 ms and a decode step 4 ms.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import time
from pathlib import Path

from prfaas.clock import Clock
from prfaas.config import WorkerSettings, resolve
from prfaas.engine.api import Engine
from prfaas.engine.backend import PoolSize
from prfaas.engine.emulated import EmulatedBackend
from prfaas.engine.loop import LoopedEngine
from prfaas.log import configure_logging
from prfaas.metrics import MetricSet
from prfaas.modelspec import CacheGroup, CacheSpec, DType, Fingerprint, ModelSpec, TensorSpec, cache_digest
from prfaas.planner.profile import Curve, HardwareProfile
from prfaas.types import GroupKind
from prfaas.worker.main import run_worker_with

BLOCK_TOKENS = 16
KV = (TensorSpec("k", (8, 16), DType.F16), TensorSpec("v", (8, 16), DType.F16))
STATE = (TensorSpec("s", (64, 64), DType.F32),)
CACHE = CacheSpec(
    groups=(
        CacheGroup("full", GroupKind.FULL, (3, 7), KV),
        CacheGroup("window", GroupKind.SLIDING, (2, 6), KV, window_tokens=40),
        CacheGroup("state", GroupKind.STATE, (0, 1, 4, 5), STATE),
    ),
    block_tokens=BLOCK_TOKENS,
)
SIZES = {"full": PoolSize(1024), "window": PoolSize(1024), "state": PoolSize(64)}
PROFILE = HardwareProfile(
    name="by the clock",
    prefill_s=Curve.through([(0, 0.0), (1000, 1.0)], "prefill"),
    decode_step_s=Curve.through([(1, 0.004), (8, 0.004)], "decode"),
    max_batch=8,
)


def build(settings: WorkerSettings, metrics: MetricSet, clock: Clock) -> Engine:
    """The weights of this model are its name: workers of different models refuse each other."""
    spec = ModelSpec(
        name=settings.served_model_name,
        architecture="emulated",
        vocab_size=256,
        num_layers=8,
        max_context_tokens=8192,
        cache=CACHE,
        eos_token_ids=(0,),
        fingerprint=Fingerprint(model=settings.model, tokenizer="none", cache=cache_digest(CACHE)),
    )
    backend = EmulatedBackend(spec, SIZES, PROFILE, sleep=time.sleep, time_scale=settings.engine.time_scale, audit=True)
    return LoopedEngine(backend, settings.engine, metrics=metrics, clock=clock)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--settings", type=Path, required=True)
    settings = resolve(WorkerSettings, file=parser.parse_args().settings, environ={})
    configure_logging(settings.worker_id)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda _number, _frame: stop.set())
    run_worker_with(build, settings, stop)


if __name__ == "__main__":
    sys.exit(main())
