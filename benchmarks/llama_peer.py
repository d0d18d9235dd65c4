"""Measures a running llama-server through its own HTTP interface, with the same token ids as every other side."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import httpx

Case = Callable[[int], Awaitable[float]]


def measure_llama(
    url: str, prompts: Mapping[int, Sequence[tuple[int, ...]]], decode_prompt: int, decode_tokens: int
) -> tuple[Case, Case]:
    """Two functions: tokens/s of prefilling a prompt of a length, and of decoding a batch. Speeds are the server's own."""

    async def complete(client: httpx.AsyncClient, prompt: tuple[int, ...], num_tokens: int) -> dict[str, Any]:
        body = {"prompt": list(prompt), "n_predict": num_tokens, "cache_prompt": False, "temperature": 0, "ignore_eos": True}
        response = await client.post("/completion", json=body)
        response.raise_for_status()
        timings: dict[str, Any] = response.json()["timings"]
        return timings

    async def prefill(length: int) -> float:
        async with httpx.AsyncClient(base_url=url, timeout=300.0) as client:
            timings = await complete(client, prompts[length][0], 1)
        return float(timings["prompt_per_second"])

    async def decode(batch: int) -> float:
        async with httpx.AsyncClient(base_url=url, timeout=300.0) as client:
            calls = (complete(client, prompt, decode_tokens) for prompt in prompts[decode_prompt][:batch])
            timings = await asyncio.gather(*calls)
        # Streams run side by side, each at its own rate; together they make the sum.
        return sum(float(t["predicted_per_second"]) for t in timings)

    return prefill, decode
