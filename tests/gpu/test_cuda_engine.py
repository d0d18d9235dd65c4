"""The engine on an accelerator against the same engine on the CPU: tokens, exported bytes and landings."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
import torch

from prfaas.clock import MonotonicClock
from prfaas.config import EngineSettings
from prfaas.engine.api import Engine, TokensOut
from prfaas.engine.factory import build_engine
from prfaas.metrics import Emitter, MetricSet
from prfaas.modelspec import KvRange
from prfaas.types import GenerationRequest, RequestId, SamplingParams, TokenOutput
from tests.support.models import tiny_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.torch,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator here"),
]

MODELS = ("tiny-kimi-linear", "tiny-deepseek-v3", "tiny-qwen3-next", "tiny-gemma3", "tiny-llama")
LENGTHS = (1, 63, 64, 65, 500, 3000)
SAMPLING = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True)


def _engine(name: str, device: str, **changes: object) -> Engine:
    settings = EngineSettings.model_validate(
        {"device": device, "dtype": "float32", "cache_bytes": 256 * 1024**2, "prefix_cache": False, **changes}
    )
    metrics = MetricSet(Emitter.WORKER)
    return build_engine(settings, source=tiny_model(name), served_name="m", metrics=metrics, clock=MonotonicClock())


def _request(length: int) -> GenerationRequest:
    return GenerationRequest(
        RequestId(f"r{length}"), "m", tuple((i * 7919 + length) % 450 + 20 for i in range(length)), SAMPLING
    )


async def _tokens(engine: Engine, request: GenerationRequest) -> list[int]:
    found: list[int] = []
    async for event in engine.submit(request).events():
        if isinstance(event, TokensOut):
            found.extend(output.token_id for output in event.outputs)
    return found


async def _all(engine: Engine) -> list[list[int]]:
    return list(await asyncio.gather(*(_tokens(engine, _request(length)) for length in LENGTHS)))


@pytest.mark.parametrize("name", MODELS)
async def test_greedy_tokens_equal_the_cpu(name: str) -> None:
    cuda, cpu = _engine(name, "cuda"), _engine(name, "cpu")
    try:
        assert await _all(cuda) == await _all(cpu)
    finally:
        await cuda.close()
        await cpu.close()


async def _export(engine: Engine, request: GenerationRequest) -> tuple[dict[KvRange, bytes], Sequence[TokenOutput]]:
    stream = engine.submit(request, export=True)
    first: Sequence[TokenOutput] = ()
    async for event in stream.events():
        if isinstance(event, TokensOut):
            first = event.outputs
    length = len(request.tokens)
    parts = {}
    for group in engine.spec.cache.groups:
        start = length if group.is_state else group.first_needed_token(length)
        wanted = KvRange(group.name, 0, len(group.layers), start, length)
        parts[wanted] = bytes(stream.read(wanted))
    stream.release()
    return parts, first


@pytest.mark.parametrize("name", MODELS)
async def test_a_cache_computed_on_the_accelerator_continues_on_the_cpu_and_back(name: str) -> None:
    cuda, cpu = _engine(name, "cuda"), _engine(name, "cpu")
    request = _request(500)
    try:
        expected = await _tokens(cpu, request)
        for source, target in ((cuda, cpu), (cpu, cuda)):
            parts, first = await _export(source, request)
            landing = await target.reserve(request, timeout_s=10)
            for wanted, payload in parts.items():
                dtypes = [tensor.dtype for tensor in target.spec.cache.group(wanted.group).tensors]
                landing.write(wanted, memoryview(payload), dtypes)
            found: list[int] = []
            async for event in landing.commit(first).events():
                if isinstance(event, TokensOut):
                    found.extend(output.token_id for output in event.outputs)
            assert found == expected
    finally:
        await cuda.close()
        await cpu.close()


@pytest.mark.parametrize("name", MODELS)
async def test_prefixes_that_the_device_evicted_come_back_from_pinned_memory(name: str) -> None:
    """A cache of a few blocks: every second round finds its prompts in host memory only."""
    small = {"prefix_cache": True, "block_tokens": 16, "cache_bytes": 2 * 1024**2, "host_cache_bytes": 64 * 1024**2}
    cuda, cpu = _engine(name, "cuda", **small), _engine(name, "cpu")
    requests = [_request(length) for length in (300, 310, 320, 330, 340, 350)]
    try:
        expected = [await _tokens(cpu, request) for request in requests]
        for _ in range(2):
            assert [await _tokens(cuda, request) for request in requests] == expected
    finally:
        await cuda.close()
        await cpu.close()


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-kimi-linear"])
async def test_penalties_and_draws_equal_the_cpu(name: str) -> None:
    params = SamplingParams(
        max_tokens=24, temperature=0.8, top_p=0.9, seed=5, repetition_penalty=1.3, frequency_penalty=0.2, ignore_eos=True
    )
    request = GenerationRequest(RequestId("p"), "m", _request(200).tokens, params)
    cuda, cpu = _engine(name, "cuda"), _engine(name, "cpu")
    try:
        assert await _tokens(cuda, request) == await _tokens(cpu, request)
    finally:
        await cuda.close()
        await cpu.close()
