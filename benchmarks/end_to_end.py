"""What each route costs: TTFT, inter-token latency and throughput through router, prefill, KV stream and decode.

The baseline is one plain process of the same engine, without HTTP, router, gRPC or transfer. All parts share this
machine's cores, so a route cannot be faster than the plain process here: the ratios show the price of the machinery.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.served import served
from benchmarks.table import Measurement, Report, arguments, finish
from prfaas.artifacts import ResolvedModel, resolve_model
from prfaas.cli.bench.dialect import Endpoint
from prfaas.cli.bench.drive import Arrival
from prfaas.cli.bench.figures import Figures, Objective
from prfaas.cli.bench.record import Record
from prfaas.cli.bench.running import Plan, bench
from prfaas.cli.bench.workload import Lengths, Shape
from prfaas.cli.catalog import catalog
from prfaas.clock import MonotonicClock
from prfaas.config import EngineSettings
from prfaas.engine.api import Engine, TokensOut
from prfaas.engine.factory import build_engine
from prfaas.metrics import Emitter, MetricSet
from prfaas.types import GenerationRequest, RequestId, SamplingParams

ROUTES = ("inline", "local", "remote")
CONCURRENCY = (1, 8)
ENGINE = {"num_threads": 2, "cache_bytes": 768 * 1024**2, "prefix_cache": False}


def num_requests(concurrency: int) -> int:
    return 5 if concurrency == 1 else 16


def prompt_of(number: int, tokens: int, seed: int) -> list[int]:
    """Random token ids, different for every request."""
    rng = random.Random(f"{seed}-{number}-{tokens}")
    return [rng.randrange(300, 480) for _ in range(tokens)]


async def _plain_request(engine: Engine, tokens: list[int], output_tokens: int, number: int) -> Record:
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
    return Record(begin, begin, at[0], time.perf_counter(), gaps, len(tokens), 0, count)


async def _plain(model: ResolvedModel, prompt_tokens: int, output_tokens: int, seed: int) -> dict[int, Figures]:
    settings = EngineSettings.model_validate(ENGINE)
    engine = build_engine(
        settings, source=model.source, served_name="bench", metrics=MetricSet(Emitter.WORKER), clock=MonotonicClock()
    )
    found = {}
    try:
        await _plain_request(engine, prompt_of(-1, prompt_tokens, seed), output_tokens, -1)
        for concurrency in CONCURRENCY:
            gate = asyncio.Semaphore(concurrency)

            async def one(number: int, gate: asyncio.Semaphore = gate) -> Record:
                async with gate:
                    return await _plain_request(engine, prompt_of(number, prompt_tokens, seed), output_tokens, number)

            records = await asyncio.gather(*(one(number) for number in range(num_requests(concurrency))))
            found[concurrency] = _whole(Figures.of(records, Objective()))
    finally:
        await engine.close()
    return found


def _whole(figures: Figures) -> Figures:
    """Raises RuntimeError when a request failed or gave no token: a benchmark of nothing must not look like a success."""
    if figures.errors:
        raise RuntimeError(f"requests failed: {figures.errors}")
    return figures


def _through(url: str, route: str, prompt_tokens: int, output_tokens: int, seed: int) -> dict[int, Figures]:
    found = {}
    shape = Shape(Lengths(prompt_tokens, prompt_tokens), Lengths(output_tokens, output_tokens))
    for concurrency in CONCURRENCY:
        plan = Plan(
            arrival=Arrival(concurrency), shape=shape, requests=num_requests(concurrency), warmup=1,
            endpoint=Endpoint.COMPLETIONS, extra={"temperature": 0, "ignore_eos": True}, seed=seed,
        )  # fmt: skip
        figures = _whole(bench(url, plan, MonotonicClock(), say=lambda _: None).figures)
        if set(figures.routes) != {route}:
            raise RuntimeError(f"asked for {route}, but the requests went {dict(figures.routes)}")
        found[concurrency] = figures
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
            with served(model, Path(cache), engine=ENGINE, policy={"force_route": route}) as url:
                found = _through(url, route, options.prompt_tokens, options.output_tokens, options.seed)
            for concurrency in CONCURRENCY:
                _rows(report, route, concurrency, found[concurrency], plain[concurrency])
    return finish(report, options)


def _rows(report: Report, route: str, concurrency: int, found: Figures, plain: Figures) -> None:
    name = f"{route}, {concurrency} at once"
    report.add(Measurement(f"{name}: TTFT", found.ttft.p50 * 1e3, "ms", plain.ttft.p50 * 1e3, lower_is_better=True))
    report.add(Measurement(f"{name}: ITL", found.itl.p50 * 1e3, "ms", plain.itl.p50 * 1e3, lower_is_better=True))
    report.add(Measurement(f"{name}: output", found.output_tokens_per_s, "tok/s", plain.output_tokens_per_s))


if __name__ == "__main__":
    sys.exit(main())
