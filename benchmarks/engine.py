"""Prefill and decode speed of the engine on one machine, beside `transformers` on the same weights and precision.

    python -m benchmarks.engine --check

Each side is measured in turn, in one process, the best of several repeats: the machine may be shared, and the best is
what the code can do. With `--llama-server URL` a running llama-server (same model, same precision, started with
`--parallel 8`) is measured too. The bar against transformers is 3, against llama-server 1.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import random
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.llama_peer import measure_llama
from benchmarks.table import Measurement, Report, arguments, finish
from prfaas.clock import Clock, MonotonicClock
from prfaas.config import EngineSettings
from prfaas.engine.api import Engine, TokensOut
from prfaas.engine.loop import LoopedEngine
from prfaas.engine.torch_backend import TorchBackend
from prfaas.engine.torch_device import pick_device, pick_dtype
from prfaas.metrics import Emitter, MetricSet
from prfaas.model.api import CausalLM, LayerCache, LayerCallback, StepInput
from prfaas.model.load import load_model
from prfaas.modelspec import ModelSpec
from prfaas.types import GenerationRequest, RequestId, SamplingParams

PREFILLS = (512, 2048)
BATCHES = (1, 8)
DECODE_PROMPT = 64
DECODE_TOKENS = 65
MAX_OVERHEAD_S = 0.0005

Speeds = Mapping[str, float]  # case -> tokens per second


@dataclass(frozen=True, slots=True)
class Bench:
    """What every side is given."""

    source: str
    dtype: torch.dtype
    repeats: int
    prompts: Mapping[int, Sequence[tuple[int, ...]]]  # length -> prompts that share no prefix
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


async def measure_engine(bench: Bench) -> tuple[dict[str, float], float]:
    """Speeds of the real engine (scheduler, cache and loop included), and seconds per decode step outside the network."""
    settings = EngineSettings(prefix_cache=False, cache_bytes=1024**3, max_step_tokens=2048)
    device = pick_device(settings.device)
    model = load_model(bench.source, served_name="m", block_tokens=settings.block_tokens, dtype=bench.dtype, device=device)
    timed = TimedModel(model, bench.clock)
    backend = TorchBackend(timed, settings, None)
    engine = LoopedEngine(backend, settings, metrics=MetricSet(Emitter.WORKER), clock=bench.clock)

    async def prefill(length: int) -> float:
        started_s = bench.clock.now_s()
        first_s, _ = await answer(engine, bench.prompts[length][0], 1, bench.clock)
        return length / (first_s - started_s)

    async def decode(batch: int) -> float:
        prompts = bench.prompts[DECODE_PROMPT][:batch]
        spans = await asyncio.gather(*(answer(engine, prompt, DECODE_TOKENS, bench.clock) for prompt in prompts))
        started_s, ended_s = max(first for first, _ in spans), max(last for _, last in spans)
        return batch * (DECODE_TOKENS - 1) / (ended_s - started_s)

    speeds = await best_of(bench.repeats, prefill, decode)
    overhead_s = float("inf")
    for _ in range(bench.repeats):
        timed.forward_s, timed.num_steps = 0.0, 0
        started_s = bench.clock.now_s()
        await answer(engine, bench.prompts[DECODE_PROMPT][0], DECODE_TOKENS, bench.clock)
        overhead_s = min(overhead_s, (bench.clock.now_s() - started_s - timed.forward_s) / timed.num_steps)
    await engine.close()
    return speeds, overhead_s


def load_transformers(bench: Bench) -> Any:
    """The same weights as a transformers model, with the attention it chooses by itself."""
    from transformers import AutoModelForCausalLM, GgufConfig

    path = Path(bench.source)
    if path.is_file():
        # Unpacked, as ours is: kernels on packed weights would be another precision.
        unpacked = GgufConfig(gguf_file=path.name, dequantize=True)
        return AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=bench.dtype, quantization_config=unpacked
        ).eval()
    return AutoModelForCausalLM.from_pretrained(path, dtype=bench.dtype).eval()


async def measure_transformers(bench: Bench) -> dict[str, float]:
    """Speeds of a plain transformers loop: one forward for the prompt, then one per token."""
    model = load_transformers(bench)

    async def prefill(length: int) -> float:
        ids = torch.tensor([bench.prompts[length][0]])
        started_s = bench.clock.now_s()
        with torch.inference_mode():
            model(ids, use_cache=True, logits_to_keep=1)
        return length / (bench.clock.now_s() - started_s)

    async def decode(batch: int) -> float:
        with torch.inference_mode():
            ids = torch.tensor(bench.prompts[DECODE_PROMPT][:batch])
            step = model(ids, use_cache=True, logits_to_keep=1)
            started_s = bench.clock.now_s()
            for _ in range(DECODE_TOKENS - 1):
                token = step.logits[:, -1].argmax(dim=-1, keepdim=True)
                step = model(token, past_key_values=step.past_key_values, use_cache=True)
        return batch * (DECODE_TOKENS - 1) / (bench.clock.now_s() - started_s)

    return await best_of(bench.repeats, prefill, decode)


async def best_of(
    repeats: int, prefill: Callable[[int], Awaitable[float]], decode: Callable[[int], Awaitable[float]]
) -> dict[str, float]:
    """Every case `repeats` times after one warm-up; the best of each."""
    cases = [(f"prefill {n}", prefill, n) for n in PREFILLS] + [(f"decode batch {b}", decode, b) for b in BATCHES]
    speeds = {}
    for name, run, size in cases:
        await run(size)
        speeds[name] = max([await run(size) for _ in range(repeats)])
    return speeds


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
        device = pick_device("cpu")
        model = load_model(bench.source, served_name="m", block_tokens=64, dtype=bench.dtype, device=device)
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


def add_rows(report: Report, ours: Speeds, theirs: Speeds, peer: str, bar: float) -> None:
    for name, speed in ours.items():
        report.add(Measurement(f"{name} vs {peer}", speed, "tok/s", theirs[name], bar))


async def run(options: argparse.Namespace, bench: Bench) -> Report:
    precision = str(bench.dtype).removeprefix("torch.")
    report = Report(f"engine speed, {Path(bench.source).stem}, {precision}, {torch.get_num_threads()} threads", options.seed)
    theirs = await measure_transformers(bench)
    gc.collect()
    ours, overhead_s = await measure_engine(bench)
    add_rows(report, ours, theirs, "transformers", 3.0)
    if options.llama_server:
        llama = await best_of(bench.repeats, *measure_llama(options.llama_server, bench.prompts, DECODE_PROMPT, DECODE_TOKENS))
        add_rows(report, ours, llama, "llama-server", 1.0)
    report.add(
        Measurement(
            "engine around the network, per step", overhead_s * 1e6, "us", bar=MAX_OVERHEAD_S * 1e6, lower_is_better=True
        )
    )
    report.add(peak_memory(options))
    return report


def main() -> int:
    parser = arguments(__doc__ or "", seed=7)
    parser.add_argument("--model", default="smollm2", help="a directory, a GGUF file or a name (default: %(default)s)")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0 lets torch decide")
    parser.add_argument("--llama-server", metavar="URL", help="a running llama-server to compare with")
    parser.add_argument("--memory-probe", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.source = resolve_source(options.model)
    if options.threads:
        torch.set_num_threads(options.threads)
    bench = make_bench(options)
    if options.memory_probe:
        probe_memory(bench)
        return 0
    return finish(asyncio.run(run(options, bench)), options)


if __name__ == "__main__":
    sys.exit(main())
