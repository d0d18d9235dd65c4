"""A small open- and closed-loop load generator for streaming completions, shared by the benchmarks."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median
from typing import Any

import httpx


@dataclass(frozen=True, slots=True)
class Sample:
    """One finished request. `gaps_s` are the times between consecutive pieces of output."""

    ttft_s: float
    gaps_s: tuple[float, ...]
    total_s: float
    output_tokens: int
    route: str = ""
    kv_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Summary:
    """Medians over requests, and tokens over the whole run."""

    ttft_s: float
    itl_s: float
    output_tokens_per_s: float
    prompt_tokens_per_s: float


def summarise(samples: Sequence[Sample], wall_s: float, prompt_tokens: int) -> Summary:
    """Raises ValueError when a request gave no token: a benchmark of nothing must not look like a success."""
    if not samples or any(s.output_tokens == 0 for s in samples):
        raise ValueError("a request produced no tokens")
    gaps = [gap for s in samples for gap in s.gaps_s]
    return Summary(
        ttft_s=median(s.ttft_s for s in samples),
        itl_s=median(gaps) if gaps else 0.0,
        output_tokens_per_s=sum(s.output_tokens for s in samples) / wall_s,
        prompt_tokens_per_s=prompt_tokens * len(samples) / wall_s,
    )


def run(one: Callable[[int], Sample], *, requests: int, concurrency: int) -> tuple[list[Sample], float]:
    """Closed loop: `requests` calls of `one(number)` with `concurrency` under way; samples and wall seconds."""
    begin = time.perf_counter()
    with ThreadPoolExecutor(concurrency) as threads:
        samples = list(threads.map(one, range(requests)))
    return samples, time.perf_counter() - begin


def stream_completion(client: httpx.Client, url: str, body: dict[str, Any]) -> Sample:
    """POST a streaming /v1/completions and time its pieces. Raises RuntimeError with the server's words on an error."""
    begin = time.perf_counter()
    at: list[float] = []
    tokens, report = 0, {}
    payload = {**body, "stream": True, "stream_options": {"include_usage": True}, "prfaas_report": True}
    with client.stream("POST", f"{url}/v1/completions", json=payload) as answer:
        if answer.status_code != 200:
            raise RuntimeError(f"HTTP {answer.status_code}: {answer.read().decode()[:500]}")
        for line in answer.iter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            chunk = json.loads(line[6:])
            if "error" in chunk:
                raise RuntimeError(str(chunk["error"]))
            if any(choice.get("text") or choice.get("finish_reason") for choice in chunk.get("choices", ())):
                at.append(time.perf_counter())
            if chunk.get("usage"):
                tokens = chunk["usage"]["completion_tokens"]
            report = chunk.get("prfaas") or report
    end = time.perf_counter()
    first = at[0] if at else end
    gaps = tuple(b - a for a, b in itertools.pairwise(at))
    return Sample(first - begin, gaps, end - begin, tokens, str(report.get("route", "")), int(report.get("kv_bytes", 0)))
