"""Prefill, decode and KV throughput of one accelerator, beside what the paper's instances reach per accelerator.

    python -m benchmarks.gpu --check --json gpu.json
    python -m benchmarks.gpu --layers 12            # on a device that 98 GB of weights do not fit on
    python -m benchmarks.gpu --tiny                 # a small shape on the CPU: is the program itself in order?

The whole engine with random weights of Kimi-Linear-48B's shape, on new prompts, without prefix cache. Prefill gives
Phi_kv(l) = S_kv(l) / T_prefill(l) (arXiv:2604.15039, section 2); the paper's column for this model is one instance of eight
H200, so the baseline is an eighth of it. That flatters one device: eight that share a layer wait for each other. Best of
the repeats. MFU is against the dense bfloat16 peak of the device. The bar for Phi_kv is the baseline.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from benchmarks.gpu_model import KIMI_LINEAR_48B, Work, build, with_layers, work_of
from benchmarks.table import Measurement, Report, arguments, finish
from prfaas.clock import Clock, MonotonicClock
from prfaas.config import EngineSettings
from prfaas.engine.api import Engine, TokensOut
from prfaas.engine.loop import LoopedEngine
from prfaas.engine.torch_backend import TorchBackend
from prfaas.engine.torch_device import device_name, pick_device, pick_dtype
from prfaas.engine.torch_factory import with_graphs
from prfaas.metrics import Emitter, MetricSet
from prfaas.model.kernels.open_kernels import open_cuda_kernels
from prfaas.model.tiny.configs import KIMI_LINEAR
from prfaas.types import GenerationRequest, RequestId, SamplingParams

# Gbps of one instance with eight H200 for Kimi Linear 48B, by prompt tokens (arXiv:2604.15039, table 3).
PAPER_PHI_GBPS = {1024: 1.19, 8192: 2.29, 32768: 3.87, 131072: 4.88}
PAPER_DEVICES = 8
# Dense bfloat16 TFLOP/s, from the makers' data sheets.
PEAK_TFLOPS = {"H200": 989.5, "H100": 989.5, "H20": 148.0, "A100": 312.0, "L40S": 362.0, "L4": 121.0, "A10": 125.0}
NO_DEVICE = 2


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured. `compared`: whether the paper's figures are for this shape."""

    name: str
    config: Mapping[str, Any]
    settings: EngineSettings
    lengths: Sequence[int]
    batches: Sequence[int]
    decode_context: int
    decode_tokens: int
    compared: bool


FULL = Plan(
    name="Kimi-Linear-48B shape",
    config=KIMI_LINEAR_48B,
    settings=EngineSettings(
        device="cuda",
        dtype="bfloat16",
        cache_bytes=16 * 1024**3,
        max_running=64,
        max_step_tokens=8192,
        prefix_cache=False,
        host_cache_bytes=0,
    ),
    lengths=tuple(PAPER_PHI_GBPS),
    batches=(1, 16, 64),
    decode_context=1024,
    decode_tokens=256,
    compared=True,
)
TINY = Plan(
    name="tiny shape",
    config=KIMI_LINEAR,
    settings=EngineSettings(device="cpu", dtype="float32", cache_bytes=64 * 1024**2, prefix_cache=False),
    lengths=(64, 256),
    batches=(1, 4),
    decode_context=32,
    decode_tokens=8,
    compared=False,
)


@dataclass(frozen=True, slots=True)
class Bench:
    """A running engine and what prompts are made of."""

    engine: Engine
    clock: Clock
    rng: random.Random
    vocab_size: int
    repeats: int

    def prompt(self, num_tokens: int) -> tuple[int, ...]:
        return tuple(self.rng.choices(range(10, self.vocab_size), k=num_tokens))

    async def prefill_s(self, num_tokens: int) -> float:
        """From submission to the first token."""
        times = []
        for _ in range(self.repeats + 1):  # the first warms up
            started_s = self.clock.now_s()
            (first_s,) = await self._token_times(self.prompt(num_tokens), 1)
            times.append(first_s - started_s)
        return min(times[1:])

    async def decode_tokens_per_s(self, batch: int, context: int, num_tokens: int) -> float:
        """While all of them decode: from the last first token to the first last token."""
        speeds = []
        for _ in range(self.repeats + 1):
            prompts = [self.prompt(context) for _ in range(batch)]
            answers = await asyncio.gather(*(self._token_times(prompt, num_tokens) for prompt in prompts))
            since_s, until_s = max(times[0] for times in answers), min(times[-1] for times in answers)
            drawn = sum(since_s < at_s <= until_s for times in answers for at_s in times)
            speeds.append(drawn / (until_s - since_s))
        return max(speeds[1:])

    async def _token_times(self, prompt: tuple[int, ...], num_tokens: int) -> list[float]:
        """When each token of an answer came."""
        sampling = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
        request = GenerationRequest(RequestId("gpu"), "m", prompt, sampling)
        return [self.clock.now_s() async for event in self.engine.submit(request).events() if isinstance(event, TokensOut)]


async def measure(plan: Plan, bench: Bench, peak_tflops: float | None, report: Report) -> None:
    work = work_of(plan.config)
    for length in plan.lengths:
        took_s = await bench.prefill_s(length)
        for row in prefill_rows(plan, bench, work, length, took_s, peak_tflops):
            report.add(row)
    for batch in plan.batches:
        speed = await bench.decode_tokens_per_s(batch, plan.decode_context, plan.decode_tokens)
        report.add(Measurement(f"decode, batch {batch}, context {plan.decode_context:,}", speed, "tok/s"))


def prefill_rows(
    plan: Plan, bench: Bench, work: Work, length: int, took_s: float, peak_tflops: float | None
) -> list[Measurement]:
    """Speed, use of the device, and KV throughput of one prompt length."""
    phi = bench.engine.spec.cache.request_bytes(length) * 8e-9 / took_s
    paper = PAPER_PHI_GBPS[length] / PAPER_DEVICES if plan.compared else None
    rows = [Measurement(f"prefill {length:,}", length / took_s, "tok/s")]
    if peak_tflops is not None:
        rows.append(Measurement(f"MFU, prefill {length:,}", 100e-12 * work.prefill_flop(length) / took_s / peak_tflops, "%"))
    rows.append(Measurement(f"Phi_kv({length:,})", phi, "Gbps", paper, bar=None if paper is None else 1.0))
    return rows


def peak_of(name: str) -> float | None:
    """The peak of a device by its name; None for one that is not in the table. H200 before H20."""
    return next((peak for part, peak in PEAK_TFLOPS.items() if part in name), None)


def start(plan: Plan, options: argparse.Namespace) -> Bench:
    device = pick_device(plan.settings.device)
    dtype = pick_dtype(plan.settings.dtype, device)
    model = build(
        plan.config,
        dtype=dtype,
        device=device,
        kernels=open_cuda_kernels(dtype),
        block_tokens=plan.settings.block_tokens,
        seed=options.seed,
    )
    backend = TorchBackend(with_graphs(model, plan.settings), plan.settings, None)
    clock = MonotonicClock()
    engine = LoopedEngine(backend, plan.settings, metrics=MetricSet(Emitter.WORKER), clock=clock)
    return Bench(engine, clock, random.Random(options.seed), model.spec.vocab_size, options.repeats)


async def run(plan: Plan, options: argparse.Namespace) -> Report:
    name = device_name(pick_device(plan.settings.device))
    report = Report(f"one accelerator, {plan.name}, {plan.settings.dtype}, {name}", options.seed)
    bench = start(plan, options)
    try:
        await measure(plan, bench, options.peak_tflops or peak_of(name), report)
    finally:
        await bench.engine.close()
    return report


def chosen(options: argparse.Namespace) -> Plan:
    if options.tiny:
        return TINY
    if options.layers is None:
        return FULL
    name = f"{FULL.name}, first {options.layers} layers"
    return replace(FULL, name=name, config=with_layers(FULL.config, options.layers), compared=False)


def main() -> int:
    parser = arguments(__doc__ or "", seed=11)
    parser.add_argument("--tiny", action="store_true", help="a small shape on the CPU, without bars")
    parser.add_argument("--layers", type=int, help="the first layers only; nothing is compared with the paper then")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--peak-tflops", type=float, help="dense bfloat16 peak of a device that is not in the table")
    options = parser.parse_args()
    if not options.tiny and not torch.cuda.is_available():
        print(
            "benchmarks.gpu: no CUDA device here, nothing was measured; --tiny runs a small shape on the CPU", file=sys.stderr
        )
        return NO_DEVICE
    return finish(asyncio.run(run(chosen(options), options)), options)


if __name__ == "__main__":
    sys.exit(main())
