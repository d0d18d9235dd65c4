"""Prefill and decode speed of the engine on one machine, beside other engines on the same weights and precision.

    python -m benchmarks.engine --check
    python -m benchmarks.engine --check --llama-server http://127.0.0.1:8080

Every case is run by all sides in turn, each in a process of its own, round after round, and the best round of each
counts: the machine may be shared, and the best is what the code can do. With `--llama-server` a running llama-server is
measured too (same weights and precision, `--parallel 8`). The bar against transformers is 3, against llama-server 1.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.engine_peers import (
    DECODE_PROMPT,
    DECODE_TOKENS,
    Case,
    LlamaServer,
    Prompts,
    Side,
    TransformersProcess,
    serve_transformers,
)
from benchmarks.table import Measurement, Report, arguments, finish
from prfaas.clock import Clock, MonotonicClock
from prfaas.config import EngineSettings, cache_dir
from prfaas.engine.api import Engine, TokensOut
from prfaas.engine.loop import LoopedEngine
from prfaas.engine.torch_backend import TorchBackend
from prfaas.engine.torch_device import pick_device, pick_dtype
from prfaas.metrics import Emitter, MetricSet
from prfaas.model.api import CausalLM, LayerCache, LayerCallback, StepInput
from prfaas.model.kernels.open_kernels import open_kernels
from prfaas.model.load import load_model
from prfaas.modelspec import ModelSpec
from prfaas.types import GenerationRequest, RequestId, SamplingParams

PREFILLS = (512, 2048)
BATCHES = (1, 8)
CASES = (*(Case("prefill", n) for n in PREFILLS), *(Case("decode", b) for b in BATCHES))
BARS = {"transformers": 3.0, "llama-server": 1.0}
MAX_OVERHEAD_S = 0.0005


@dataclass(frozen=True, slots=True)
class Bench:
    """What every side is given."""

    source: str
    dtype: torch.dtype
    repeats: int
    prompts: Prompts
    clock: Clock


class TimedModel:
    """A network that adds up the seconds spent in it, so that what is around it can be told apart."""

    def __init__(self, model: CausalLM, clock: Clock) -> None:
        self._model = model
        self._clock = clock
        self.forward_s = 0.0
        self.num_steps = 0

    @property
    def spec(self) -> ModelSpec:
        return self._model.spec

    @property
    def device(self) -> torch.device:
        return self._model.device

    @property
    def dtype(self) -> torch.dtype:
        return self._model.dtype

    def forward(self, step: StepInput, cache: Sequence[LayerCache], on_layer: LayerCallback) -> torch.Tensor:
        started_s = self._clock.now_s()
        logits = self._model.forward(step, cache, on_layer)
        self.forward_s += self._clock.now_s() - started_s
        self.num_steps += 1
        return logits


async def answer(engine: Engine, prompt: tuple[int, ...], num_tokens: int, clock: Clock) -> tuple[float, float]:
    """Generate greedily; when the first and the last token came, in seconds of the clock."""
    sampling = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
    first_s = last_s = 0.0
    async for event in engine.submit(GenerationRequest(RequestId("b"), "m", prompt, sampling)).events():
        if isinstance(event, TokensOut):
            last_s = clock.now_s()
            first_s = first_s or last_s
    return first_s, last_s


class OurEngine:
    """The real engine, with scheduler, cache and loop, on its own thread."""

    def __init__(self, bench: Bench) -> None:
        settings = EngineSettings(prefix_cache=False, cache_bytes=1024**3, max_step_tokens=2048)
        self._bench = bench
        self._model = TimedModel(load(bench, settings), bench.clock)
        backend = TorchBackend(self._model, settings, None)
        self._engine = LoopedEngine(backend, settings, metrics=MetricSet(Emitter.WORKER), clock=bench.clock)

    async def measure(self, case: Case) -> float:
        bench = self._bench
        if case.kind == "prefill":
            started_s = bench.clock.now_s()
            first_s, _ = await answer(self._engine, bench.prompts[case.size][0], 1, bench.clock)
            return case.size / (first_s - started_s)
        prompts = bench.prompts[DECODE_PROMPT][: case.size]
        spans = await asyncio.gather(*(answer(self._engine, prompt, DECODE_TOKENS, bench.clock) for prompt in prompts))
        started_s, ended_s = max(first for first, _ in spans), max(last for _, last in spans)
        return case.size * (DECODE_TOKENS - 1) / (ended_s - started_s)

    async def overhead_s(self) -> float:
        """Seconds per decode step that are not the network's."""
        model, clock = self._model, self._bench.clock
        model.forward_s, model.num_steps = 0.0, 0
        started_s = clock.now_s()
        await answer(self._engine, self._bench.prompts[DECODE_PROMPT][0], DECODE_TOKENS, clock)
        return (clock.now_s() - started_s - model.forward_s) / model.num_steps

    async def close(self) -> None:
        await self._engine.close()


def load(bench: Bench, settings: EngineSettings) -> CausalLM:
    """The network as the engine's factory would load it."""
    return load_model(
        bench.source,
        served_name="m",
        block_tokens=settings.block_tokens,
        dtype=bench.dtype,
        device=pick_device("cpu"),
        kernels=open_kernels(cache_dir() / "native", torch.get_num_threads()),
    )


def peak_memory(options: argparse.Namespace) -> Measurement:
    """Peak memory of a process that loads the model and runs, over what it had before, beside weights plus cache."""
    command = [sys.executable, "-m", "benchmarks.engine", "--model", options.source, "--memory-probe", "--dtype", options.dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    grown, allowed = (float(number) for number in done.stdout.split())
    return Measurement(
        "peak memory, weights + cache", grown / 2**20, "MiB", allowed / 2**20, bar=1 / 1.15, lower_is_better=True
    )


def probe_memory(bench: Bench) -> None:
    """Print bytes by which the peak exceeds the process before loading, and bytes of weights plus configured cache."""
    settings = EngineSettings(cache_bytes=128 * 1024**2)
    before = resident_bytes("VmRSS")

    async def body() -> int:
        model = load(bench, settings)
        backend = TorchBackend(model, settings, None)
        engine = LoopedEngine(backend, settings, metrics=MetricSet(Emitter.WORKER), clock=bench.clock)
        prompts = bench.prompts[2048]
        await asyncio.gather(*(answer(engine, prompt, 16, bench.clock) for prompt in prompts))
        await engine.close()
        return model.spec.num_parameters * bench.dtype.itemsize

    weights = asyncio.run(body())
    print(resident_bytes("VmHWM") - before, weights + settings.cache_bytes)


def resident_bytes(line: str) -> int:
    """VmRSS (now) or VmHWM (peak) of this program. getrusage would carry over the peak of the process that forked it."""
    status = dict(entry.split(":", 1) for entry in Path("/proc/self/status").read_text().splitlines())
    return int(status[line].split()[0]) * 1024


def make_bench(options: argparse.Namespace) -> Bench:
    rng = random.Random(options.seed)
    counts = {**dict.fromkeys(PREFILLS, 2), DECODE_PROMPT: max(BATCHES)}
    prompts = {n: [tuple(rng.randrange(10, 400) for _ in range(n)) for _ in range(count)] for n, count in counts.items()}
    dtype = pick_dtype(options.dtype, torch.device("cpu"))
    return Bench(options.source, dtype, options.repeats, prompts, MonotonicClock())


def resolve_source(name: str) -> str:
    """A path as it is; any other name through the command line, as a user would."""
    if Path(name).exists():
        return name
    command = [sys.executable, "-m", "prfaas", "fetch", name, "--quiet"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().splitlines()[-1]


async def run(options: argparse.Namespace, bench: Bench) -> Report:
    precision = str(bench.dtype).removeprefix("torch.")
    report = Report(f"engine speed, {Path(bench.source).stem}, {precision}, {torch.get_num_threads()} threads", options.seed)
    ours, transformers = OurEngine(bench), TransformersProcess(transformers_command(options))
    sides: dict[str, Side] = {"ours": ours, "transformers": transformers}
    if options.llama_server:
        sides["llama-server"] = LlamaServer(options.llama_server, bench.prompts)
    best: dict[tuple[str, Case], float] = {}
    for case in CASES:
        for round_ in range(bench.repeats + 1):  # the first warms up
            for name, side in sides.items():
                speed = await side.measure(case)
                if round_:
                    best[name, case] = max(speed, best.get((name, case), 0.0))
    for name in list(sides)[1:]:
        for case in CASES:
            report.add(Measurement(f"{case} vs {name}", best["ours", case], "tok/s", best[name, case], BARS[name]))
    overhead_us = 1e6 * min([await ours.overhead_s() for _ in range(bench.repeats)])
    report.add(
        Measurement("engine around the network, per step", overhead_us, "us", bar=MAX_OVERHEAD_S * 1e6, lower_is_better=True)
    )
    transformers.close()
    await ours.close()
    report.add(peak_memory(options))
    return report


def transformers_command(options: argparse.Namespace) -> list[str]:
    """This program, told to be the other side."""
    same = ["--model", options.source, "--dtype", options.dtype, "--threads", str(torch.get_num_threads())]
    return [sys.executable, "-m", "benchmarks.engine", *same, "--seed", str(options.seed), "--serve-transformers"]


def main() -> int:
    parser = arguments(__doc__ or "", seed=7)
    parser.add_argument("--model", default="smollm2", help="a directory, a GGUF file or a name (default: %(default)s)")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0 lets torch decide")
    parser.add_argument("--llama-server", metavar="URL", help="a running llama-server to compare with")
    parser.add_argument("--serve-transformers", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--memory-probe", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.source = resolve_source(options.model)
    if options.threads:
        torch.set_num_threads(options.threads)
    bench = make_bench(options)
    if options.memory_probe:
        probe_memory(bench)
        return 0
    if options.serve_transformers:
        serve_transformers(bench.source, bench.dtype, bench.prompts, bench.clock)
        return 0
    return finish(asyncio.run(run(options, bench)), options)


if __name__ == "__main__":
    sys.exit(main())
