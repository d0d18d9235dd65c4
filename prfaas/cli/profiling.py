"""Measures what an engine on this machine takes: prefill against length, a decode step against batch. Knows no files.

The engine is the one that a worker runs, alone and without its prefix cache, so that nothing is queued and everything is
computed: what the planner calls T_prefill(l) and the decode step (arXiv:2604.15039, section 3).
"""

from __future__ import annotations

import asyncio
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from prfaas.clock import Clock
from prfaas.engine.api import Engine, TokensOut
from prfaas.engine.emulated_profile import EmulationInput, GroupShape, ModelShape, TensorShape
from prfaas.errors import EngineFailed
from prfaas.modelspec import ModelSpec
from prfaas.planner.inputs import HardwareInput, ModelInput
from prfaas.types import GenerationRequest, RequestId, SamplingParams

DECODE_PROMPT_TOKENS = 8
DECODE_STEPS = 32


@dataclass(frozen=True, slots=True)
class ProfilePlan:
    """What to measure. Every prompt length is measured `repeats` times, and the median counts."""

    lengths: tuple[int, ...]
    batches: tuple[int, ...]
    repeats: int
    seed: int


async def profile_engine(
    engine: Engine, plan: ProfilePlan, *, name: str, clock: Clock, say: Callable[[str], None]
) -> EmulationInput:
    """Measure everything in `plan`. Raises EngineFailed for a batch that does not run together."""
    rng = random.Random(plan.seed)
    await _prefill_s(engine, min(plan.lengths), rng, clock)  # the first step pays for what is set up once
    prefill: list[tuple[float, float]] = []
    for length in plan.lengths:
        took_s = statistics.median([await _prefill_s(engine, length, rng, clock) for _ in range(plan.repeats)])
        say(f"prefill of {length:,} tokens: {took_s * 1e3:,.1f} ms ({length / took_s:,.0f} tokens/s)")
        prefill.append((length, took_s))
    decode: list[tuple[float, float]] = []
    for batch in plan.batches:
        step_s = await _decode_step_s(engine, batch, rng, clock)
        say(f"decode step of {batch} sequences: {step_s * 1e3:,.2f} ms ({batch / step_s:,.0f} tokens/s)")
        decode.append((batch, step_s))
    hardware = HardwareInput(
        name=name, prefill_s=tuple(prefill), decode_step_s=tuple(decode), max_batch=max(plan.batches)
    )  # fmt: skip
    kv = ModelInput(
        name=engine.spec.name, kv_bytes=tuple((tokens, engine.spec.cache.request_bytes(tokens)) for tokens in plan.lengths)
    )
    return EmulationInput(hardware=hardware, model=model_shape(engine.spec), kv=kv)


def model_shape(spec: ModelSpec) -> ModelShape:
    """What an emulated engine needs of a model."""
    groups = tuple(
        GroupShape(
            name=group.name,
            kind=group.kind,
            layers=group.layers,
            tensors=tuple(TensorShape(name=t.name, shape=t.shape, dtype=t.dtype) for t in group.tensors),
            window_tokens=group.window_tokens,
        )
        for group in spec.cache.groups
    )
    return ModelShape(
        architecture=spec.architecture,
        vocab_size=spec.vocab_size,
        num_layers=spec.num_layers,
        max_context_tokens=spec.max_context_tokens,
        eos_token_ids=spec.eos_token_ids,
        groups=groups,
    )


async def _prefill_s(engine: Engine, length: int, rng: random.Random, clock: Clock) -> float:
    """Seconds from submission to the first token of a prompt alone."""
    began_s = clock.now_s()
    arrivals = await _arrivals(engine, _request(engine, length, 1, rng), clock)
    return arrivals[0] - began_s


async def _decode_step_s(engine: Engine, batch: int, rng: random.Random, clock: Clock) -> float:
    """Median seconds between two tokens of a sequence while all `batch` sequences run."""
    requests = [_request(engine, DECODE_PROMPT_TOKENS, DECODE_STEPS + batch, rng) for _ in range(batch)]
    arrivals = await asyncio.gather(*(_arrivals(engine, request, clock) for request in requests))
    begin_s, end_s = max(a[0] for a in arrivals), min(a[-1] for a in arrivals)
    steps = [after - before for a in arrivals for before, after in pairwise(a) if before >= begin_s and after <= end_s]
    if not steps:
        raise EngineFailed(f"{batch} sequences did not run together: the engine has no room for them")
    return statistics.median(steps)


async def _arrivals(engine: Engine, request: GenerationRequest, clock: Clock) -> Sequence[float]:
    """When each token of a request came."""
    return [clock.now_s() async for event in engine.submit(request).events() if isinstance(event, TokensOut)]


def _request(engine: Engine, length: int, max_tokens: int, rng: random.Random) -> GenerationRequest:
    tokens = tuple(rng.randrange(engine.spec.vocab_size) for _ in range(length))
    sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
    return GenerationRequest(RequestId(f"profile-{rng.randrange(2**48)}"), engine.spec.name, tokens, sampling)
