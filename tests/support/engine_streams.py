"""Streams of a running emulated engine: asking, draining, carrying an export into a landing, and the true answer."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from prfaas.engine.api import EngineEvent, EngineStream, Landing, LayersReady, SnapshotReady, TokensOut
from prfaas.engine.loop import LoopedEngine
from prfaas.modelspec import GroupKind, KvRange, ModelSpec
from prfaas.types import GenerationRequest, RequestId, SamplingParams, TokenOutput
from tests.support.tiny_specs import emulated_engine

ANSWER = 10


def ask(tokens: list[int], *, name: str = "r", priority: int = 0, **sampling: object) -> GenerationRequest:
    params = SamplingParams(**{"temperature": 0.0, "max_tokens": ANSWER, "ignore_eos": True, **sampling})  # type: ignore[arg-type]
    return GenerationRequest(RequestId(name), "tiny", tuple(tokens), params, priority)


def prompt(length: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(1, 1000), k=length)


async def drain(stream: EngineStream) -> list[EngineEvent]:
    async with asyncio.timeout(20):
        return [event async for event in stream.events()]


def answers(events: list[EngineEvent], index: int = 0) -> list[int]:
    outputs = [o for event in events if isinstance(event, TokensOut) for o in event.outputs if o.index == index]
    assert [o.position for o in outputs] == list(range(len(outputs)))
    return [o.token_id for o in outputs]


def assert_nothing_held(engine: LoopedEngine) -> None:
    engine._core.check_integrity()
    held = engine.counters()
    names = ("blocks_used", "slots_used", "sequences_running", "sequences_waiting", "landings", "exports_pinned")
    assert {name: held[name] for name in names} == dict.fromkeys(names, 0)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def transfer(
    source: EngineStream, landing: Landing, spec: ModelSpec, num_tokens: int, *, snapshots: list[int] | None = None
) -> list[TokenOutput]:
    """Carry an export into a landing range by range, as the transport does, and return the first tokens.

    `snapshots` is filled with the boundaries whose states came along; without it they are left behind.
    """
    first: list[TokenOutput] = []
    async for event in source.events():
        if isinstance(event, TokensOut):
            first.extend(event.outputs)
        if isinstance(event, SnapshotReady) and snapshots is not None:
            snapshots.append(event.num_tokens)
            for group in spec.cache.groups:
                if group.is_state:
                    states = KvRange(group.name, 0, len(group.layers), event.num_tokens, event.num_tokens)
                    landing.write(states, source.read(states), [tensor.dtype for tensor in group.tensors])
        if not isinstance(event, LayersReady):
            continue
        for group in spec.cache.groups:
            layers = [i for i, layer in enumerate(group.layers) if event.layer_start <= layer < event.layer_stop]
            start, stop = max(event.token_start, landing.held_tokens, group.first_needed_token(num_tokens)), event.token_stop
            if group.kind is GroupKind.STATE:
                start = stop
            if not layers or start > stop or (start == stop and not (group.is_state and stop == num_tokens)):
                continue
            wanted = KvRange(group.name, layers[0], layers[-1] + 1, start, stop)
            landing.write(wanted, source.read(wanted), [tensor.dtype for tensor in group.tensors])
    return first


async def truth(spec: ModelSpec, request: GenerationRequest) -> list[EngineEvent]:
    """What one engine with an empty cache answers."""
    engine = emulated_engine(spec, blocks=256)
    try:
        return await drain(engine.submit(request))
    finally:
        await engine.close()
