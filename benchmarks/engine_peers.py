"""The engines that users would pick instead, measured on the same weights, precision and token ids as ours.

Each lives in a process of its own. `transformers` answers cases over pipes; llama-server is started by the caller and
measured through its own HTTP interface, by the speeds that it reports itself.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx
import torch

from prfaas.clock import Clock

Prompts = Mapping[int, Sequence[tuple[int, ...]]]  # length -> prompts that share no prefix

DECODE_PROMPT = 64
DECODE_TOKENS = 65


@dataclass(frozen=True, slots=True)
class Case:
    """Prefill of one prompt of `size` tokens, or decode of `size` sequences side by side."""

    kind: str
    size: int

    def __str__(self) -> str:
        return f"prefill {self.size}" if self.kind == "prefill" else f"decode batch {self.size}"


class Side(Protocol):
    """One of the engines that are compared."""

    async def measure(self, case: Case) -> float:
        """Tokens per second of one run of a case."""
        ...


class LlamaServer:
    """A running llama-server; give it as many slots as the largest batch."""

    def __init__(self, url: str, prompts: Prompts) -> None:
        self._url = url
        self._prompts = prompts

    async def measure(self, case: Case) -> float:
        async with httpx.AsyncClient(base_url=self._url, timeout=300.0) as client:
            if case.kind == "prefill":
                timings = await self._complete(client, self._prompts[case.size][0], 1)
                return float(timings["prompt_per_second"])
            prompts = self._prompts[DECODE_PROMPT][: case.size]
            timings_of = await asyncio.gather(*(self._complete(client, prompt, DECODE_TOKENS) for prompt in prompts))
        # Streams run side by side, each at its own rate; together they make the sum.
        return sum(float(timings["predicted_per_second"]) for timings in timings_of)

    async def _complete(self, client: httpx.AsyncClient, prompt: tuple[int, ...], num_tokens: int) -> dict[str, Any]:
        body = {"prompt": list(prompt), "n_predict": num_tokens, "cache_prompt": False, "temperature": 0, "ignore_eos": True}
        response = await client.post("/completion", json=body)
        response.raise_for_status()
        timings: dict[str, Any] = response.json()["timings"]
        return timings


class TransformersProcess:
    """`serve_transformers` in a process of its own, started by `command`."""

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    async def measure(self, case: Case) -> float:
        return await asyncio.to_thread(self._ask, case)

    def _ask(self, case: Case) -> float:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(case.kind, case.size, file=self._process.stdin, flush=True)
        return float(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate(timeout=30)


def serve_transformers(source: str, dtype: torch.dtype, prompts: Prompts, clock: Clock) -> None:
    """Load the model; for each line "KIND SIZE" on standard input print the tokens per second of that case."""
    model = load_transformers(source, dtype)
    for line in sys.stdin:
        kind, size = line.split()
        run = prefill_once if kind == "prefill" else decode_once
        print(run(model, int(size), prompts, clock), flush=True)


def load_transformers(source: str, dtype: torch.dtype) -> Any:
    """The same weights as a transformers model, with the attention it chooses by itself."""
    from transformers import AutoModelForCausalLM, GgufConfig

    path = Path(source)
    if path.is_file():
        # Unpacked, as ours is: kernels on packed weights would be another precision.
        unpacked = GgufConfig(gguf_file=path.name, dequantize=True)
        return AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=dtype, quantization_config=unpacked
        ).eval()
    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()


def prefill_once(model: Any, length: int, prompts: Prompts, clock: Clock) -> float:
    ids = torch.tensor([prompts[length][0]])
    started_s = clock.now_s()
    with torch.inference_mode():
        model(ids, use_cache=True, logits_to_keep=1)
    return length / (clock.now_s() - started_s)


def decode_once(model: Any, batch: int, prompts: Prompts, clock: Clock) -> float:
    with torch.inference_mode():
        step = model(torch.tensor(prompts[DECODE_PROMPT][:batch]), use_cache=True, logits_to_keep=1)
        started_s = clock.now_s()
        for _ in range(DECODE_TOKENS - 1):
            token = step.logits[:, -1].argmax(dim=-1, keepdim=True)
            step = model(token, past_key_values=step.past_key_values, use_cache=True)
    return batch * (DECODE_TOKENS - 1) / (clock.now_s() - started_s)
