"""Random conversation trees on real networks: no hit, eviction, preemption or restore ever changes a greedy token.

The cache is a few blocks, so that branches evict each other's prefixes, sequences preempt each other and come back from
host memory. The truth is the same weights, each prompt alone, with nothing cached.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

pytest.importorskip("torch")

import torch

from prfaas.clock import MonotonicClock
from prfaas.config import EngineSettings
from prfaas.engine.api import Admitted, TokensOut
from prfaas.engine.loop import LoopedEngine
from prfaas.engine.torch_backend import TorchBackend
from prfaas.metrics import Emitter, MetricSet
from prfaas.model.graphed import GraphedDecoder
from prfaas.model.kernels.cuda_kernels import CudaKernels
from prfaas.model.kernels.torch_kernels import TorchKernels
from prfaas.model.load import load_model
from prfaas.model.recorder import CallRecorder
from prfaas.sched.restore import FREE, CopyCost, Outcome, Reason
from prfaas.types import GenerationRequest, RequestId, SamplingParams
from tests.support.models import tiny_model

pytestmark = [pytest.mark.torch, pytest.mark.timeout(240)]

BLOCK, TURNS, AT_ONCE, ANSWER = 16, 16, 4, 48
MODELS = ("tiny-kimi-linear", "tiny-qwen3-next", "tiny-gemma3", "tiny-deepseek-v3", "tiny-llama")
NEVER = CopyCost(1e9, 0.0)
HOST = 8 * 1024**2
BLOCKS, SLOTS = 24, 14  # the longest conversation needs 16 blocks; four run at once


@dataclass(frozen=True)
class Turn:
    """A prompt, its greedy answer, and how much of the prompt came from a cache."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    cached_tokens: int


class PricedBackend(TorchBackend):
    """Copies from host memory cost what a test says."""

    cost = FREE

    def copy_cost(self) -> CopyCost:
        return self.cost


def start(name: str, cost: CopyCost = FREE, *, graphs: bool = False, **changes: object) -> LoopedEngine:
    cpu, kernels = torch.device("cpu"), CudaKernels(None) if graphs else TorchKernels()
    plain = load_model(tiny_model(name), served_name="m", block_tokens=BLOCK, dtype=torch.float32, device=cpu, kernels=kernels)
    model = GraphedDecoder(plain, CallRecorder(), max_rows=AT_ONCE) if graphs else plain
    states = SLOTS * sum(g.bytes_between(0, 1) for g in model.spec.cache.groups if g.is_state)
    blocks = BLOCKS * sum(g.bytes_between(0, BLOCK) for g in model.spec.cache.groups if not g.is_state)
    small = {"cache_bytes": states + blocks + 1, "state_snapshot_share": (states + 1) / (states + blocks + 1)}
    limits = {"block_tokens": BLOCK, "max_step_tokens": 48, "max_context_tokens": 512, "state_snapshot_blocks": 3}
    settings = EngineSettings.model_validate({"device": "cpu", "dtype": "float32", **limits, **small, **changes})
    backend = PricedBackend(model, settings, None)
    backend.cost = cost
    return LoopedEngine(backend, settings, metrics=MetricSet(Emitter.WORKER), clock=MonotonicClock())


async def ask(engine: LoopedEngine, prompt: Sequence[int]) -> Turn:
    params = SamplingParams(temperature=0.0, max_tokens=ANSWER, ignore_eos=True)
    answer, cached = [], 0
    async for event in engine.submit(GenerationRequest(RequestId("r"), "m", tuple(prompt), params)).events():
        if isinstance(event, Admitted):
            cached = event.cached_tokens
        elif isinstance(event, TokensOut):
            answer.extend(output.token_id for output in event.outputs)
    return Turn(tuple(prompt), tuple(answer), cached)


async def grow(engine: LoopedEngine, rng: random.Random) -> list[Turn]:
    """Turns that continue any earlier turn's prompt and answer, or only a part of it, several at once."""
    texts: list[tuple[int, ...]] = [()]
    turns: list[Turn] = []
    while len(turns) < TURNS:
        prompts = []
        for _ in range(AT_ONCE):
            base = rng.choice(texts[-8:])
            kept = base[: rng.randrange(len(base) + 1)] if rng.random() < 0.3 else base
            prompts.append((*kept[:180], *rng.choices(range(20, 500), k=rng.randint(5, 25))))
        done = await asyncio.gather(*(ask(engine, prompt) for prompt in prompts))
        turns += done
        texts += [(*turn.prompt, *turn.answer) for turn in done]
    return turns


@pytest.mark.parametrize(
    ("name", "host", "cost", "graphs"),
    [(name, host, FREE, False) for name in MODELS for host in (0, HOST)]
    # One with attention alone and one with states: what is decided does not know more of a model.
    + [(name, HOST, NEVER, False) for name in ("tiny-kimi-linear", "tiny-llama")]
    + [(name, HOST, FREE, True) for name in ("tiny-kimi-linear", "tiny-gemma3", "tiny-deepseek-v3")],
)
async def test_the_cache_never_changes_a_greedy_token(name: str, host: int, cost: CopyCost, graphs: bool) -> None:
    engine = start(name, cost, graphs=graphs, host_cache_bytes=host)
    plain = start(name, prefix_cache=False, cache_bytes=64 * 1024**2)
    try:
        turns = await grow(engine, random.Random(7))
        fresh = await asyncio.gather(*(ask(plain, turn.prompt) for turn in turns))
        assert [turn.answer for turn in fresh] == [turn.answer for turn in turns]
        chosen = {choice.outcome for choice in engine._core.scheduler.host_choices if choice.reason is Reason.FASTER}
        assert chosen == ({Outcome.COMPUTED if cost is NEVER else Outcome.RESTORED} if host else set())
        assert sum(turn.cached_tokens > 0 for turn in turns) >= 3
        assert engine._core.totals.preemptions > 0 or name == "tiny-gemma3"  # windows let only one or two run at once
        engine._core.check_integrity()
        held = engine.counters()
        assert (held["blocks_used"], held["slots_used"]) == (0, 0)
    finally:
        await engine.close()
        await plain.close()
