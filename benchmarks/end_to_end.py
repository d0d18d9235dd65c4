"""What each route costs: TTFT, inter-token latency and throughput through router, prefill, KV stream and decode.

The baseline is one plain process of the same engine, without HTTP, router, gRPC or transfer. All parts share this
machine's cores, so a route cannot be faster than the plain process here: the ratios show the price of the machinery.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
from prfaas.engine.factory import build_engine

from benchmarks.load import Sample, Summary, run, stream_completion, summarise
from benchmarks.table import Measurement, Report, arguments, finish
from prfaas.artifacts import ResolvedModel, resolve_model
from prfaas.cli.catalog import catalog
from prfaas.cli.deployment import Counts, build_deployment
from prfaas.cli.run_directory import RunDirectory
from prfaas.cli.system import System
from prfaas.clock import MonotonicClock
from prfaas.config import EngineSettings
from prfaas.engine.api import Engine, TokensOut
from prfaas.metrics import Emitter, MetricSet
from prfaas.types import GenerationRequest, RequestId, SamplingParams

ROUTES = ("inline", "local", "remote")
CONCURRENCY = (1, 8)
ENGINE = {"num_threads": 2, "cache_bytes": 768 * 1024**2, "prefix_cache": False}


def prompt_of(number: int, tokens: int, seed: int) -> list[int]:
    """Random token ids, different for every request."""
    rng = random.Random(f"{seed}-{number}-{tokens}")
    return [rng.randrange(300, 480) for _ in range(tokens)]


async def _plain_request(engine: Engine, tokens: list[int], output_tokens: int, number: int) -> Sample:
    begin = time.perf_counter()
    sampling = SamplingParams(max_tokens=output_tokens, temperature=0.0, ignore_eos=True)
    request = GenerationRequest(RequestId(f"plain-{number}-{begin}"), "bench", tuple(tokens), sampling)
    at: list[float] = []
    count = 0
    async for event in engine.submit(request).events():
        if isinstance(event, TokensOut):
            at.append(time.perf_counter())
            count += len(event.outputs)
    gaps = tuple(b - a for a, b in itertools.pairwise(at))
    return Sample(at[0] - begin, gaps, time.perf_counter() - begin, count)


async def _plain(model: ResolvedModel, prompt_tokens: int, output_tokens: int, seed: int) -> dict[int, Summary]:
    settings = EngineSettings.model_validate(ENGINE)
    engine = build_engine(
        settings, source=model.source, served_name="bench", metrics=MetricSet(Emitter.WORKER), clock=MonotonicClock()
    )
    found = {}
    try:
        await _plain_request(engine, prompt_of(-1, prompt_tokens, seed), output_tokens, -1)
        for concurrency in CONCURRENCY:
            requests = 5 if concurrency == 1 else 16
            gate = asyncio.Semaphore(concurrency)

            async def one(number: int, gate: asyncio.Semaphore = gate) -> Sample:
                async with gate:
                    return await _plain_request(engine, prompt_of(number, prompt_tokens, seed), output_tokens, number)

            begin = time.perf_counter()
            samples = await asyncio.gather(*(one(number) for number in range(requests)))
            found[concurrency] = summarise(samples, time.perf_counter() - begin, prompt_tokens)
    finally:
        await engine.close()
    return found


@contextmanager
def system(model: ResolvedModel, route: str, cache: Path) -> Iterator[str]:
    """The real system in processes on this machine, every request forced onto one route; yields its URL."""
    flags = {
        "model": model.source, "pool": "process", "engine": ENGINE,
        "router": {"port": 0, "policy": {"force_route": route}},
    }  # fmt: skip
    deployment = build_deployment(file=None, counts=Counts(), flags=flags, environ={})
    running = System(deployment, model, RunDirectory.create(cache, os.getpid()), say=lambda _: None)
    try:
        running.start()
        running.wait_ready()
        yield running.endpoints.http
    finally:
        running.close(lambda: False)


def _through(url: str, route: str, served: str, prompt_tokens: int, output_tokens: int, seed: int) -> dict[int, Summary]:
    found = {}
    with httpx.Client(timeout=300, limits=httpx.Limits(max_connections=32)) as client:

        def one(number: int) -> Sample:
            body = {
                "model": served, "prompt": prompt_of(number, prompt_tokens, seed), "max_tokens": output_tokens,
                "temperature": 0, "ignore_eos": True,
            }  # fmt: skip
            sample = stream_completion(client, url, body)
            if sample.route != route:
                raise RuntimeError(f"asked for {route}, but the request went {sample.route}")
            return sample

        one(-1)
        for concurrency in CONCURRENCY:
            samples, wall_s = run(one, requests=5 if concurrency == 1 else 16, concurrency=concurrency)
            found[concurrency] = summarise(samples, wall_s, prompt_tokens)
    return found


def main() -> int:
    parser = arguments(__doc__ or "", seed=1)
    parser.add_argument("--model", default="smollm2", help="a model name, directory or GGUF file (default: %(default)s)")
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--output-tokens", type=int, default=32)
    options = parser.parse_args()
    model = resolve_model(options.model, catalog(), progress=lambda text: print(text, file=sys.stderr))
    report = Report(f"end to end, {options.prompt_tokens} in, {options.output_tokens} out, {options.model}", options.seed)
    print("plain process ...", file=sys.stderr)
    plain = asyncio.run(_plain(model, options.prompt_tokens, options.output_tokens, options.seed))
    with TemporaryDirectory() as cache:
        for route in ROUTES:
            print(f"{route} ...", file=sys.stderr)
            with system(model, route, Path(cache)) as url:
                found = _through(url, route, model.served_name, options.prompt_tokens, options.output_tokens, options.seed)
            for concurrency in CONCURRENCY:
                _rows(report, route, concurrency, found[concurrency], plain[concurrency])
    return finish(report, options)


def _rows(report: Report, route: str, concurrency: int, found: Summary, plain: Summary) -> None:
    name = f"{route}, {concurrency} at once"
    report.add(Measurement(f"{name}: TTFT", found.ttft_s * 1e3, "ms", plain.ttft_s * 1e3, lower_is_better=True))
    report.add(Measurement(f"{name}: ITL", found.itl_s * 1e3, "ms", plain.itl_s * 1e3, lower_is_better=True))
    report.add(Measurement(f"{name}: output", found.output_tokens_per_s, "tok/s", plain.output_tokens_per_s))


if __name__ == "__main__":
    sys.exit(main())
