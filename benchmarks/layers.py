"""Time of one Kimi-Linear-48B layer of each kind on this machine's CPU, for prompts of several lengths.

    python -m benchmarks.layers --check

Real sizes, random weights, bfloat16, the kernels that a worker uses. One token is a decode step at a context of 8,192.
Two parts have bars: the delta rule of a prompt, 60 us per token for 32 heads of 128, and absorbed latent attention of a
decode, 1.2 ms for 32 heads at a context of 8,192.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from benchmarks.table import Measurement, Report, arguments, finish
from prfaas.clock import Clock, MonotonicClock
from prfaas.config import cache_dir
from prfaas.model.api import LayerCache, Segment, StepInput
from prfaas.model.kernels.delta_rule import DeltaRows
from prfaas.model.kernels.kernel_set import DeltaRun, Kernels
from prfaas.model.kernels.open_kernels import open_kernels
from prfaas.model.layers.delta import DeltaCore, DeltaShape
from prfaas.model.layers.kda import ForgetGate, KimiDeltaAttention
from prfaas.model.layers.linear import Linear
from prfaas.model.layers.mla import LatentAttention, LatentShape
from prfaas.model.layers.mlp import GatedMlp
from prfaas.model.layers.moe import DenseExperts, MixtureOfExperts, SigmoidRouter
from prfaas.model.layers.norm import GatedRmsNorm, RmsNorm
from prfaas.model.step import StepContext, plan_step
from prfaas.modelspec import CacheGroup, CacheSpec, DType, GroupKind, TensorSpec

LENGTHS = (1, 64, 512, 2048, 8192)
CONTEXT = 8192
BLOCK_TOKENS = 64
HIDDEN, EPS = 2304, 1e-5
DELTA = DeltaShape(32, 32, 128, 128)
CONV_TAPS = 4
LATENT = LatentShape(num_heads=32, rank=512, nope=128, rope=64, value=128)
EXPERTS, TOP_K, INNER = 256, 8, 1024
MAX_DELTA_US, MAX_LATENT_MS = 60.0, 1.2

CACHE = CacheSpec(
    (
        CacheGroup("full", GroupKind.FULL, (0,), (TensorSpec("latent", (LATENT.latent,), DType.BF16),)),
        CacheGroup("state", GroupKind.STATE, (1,), (TensorSpec("recurrent", (32, 128, 128), DType.F32),)),
    ),
    BLOCK_TOKENS,
)


@dataclass(frozen=True, slots=True)
class Maker:
    """Random parts of layers."""

    kernels: Kernels
    generator: torch.Generator

    def tensor(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.randn(*shape, generator=self.generator).mul_(0.02).to(dtype)

    def linear(self, rows: int, columns: int) -> Linear:
        weight = self.tensor(rows, columns)
        self.kernels.settle(weight)
        return Linear(weight, None, self.kernels)

    def norm(self, width: int) -> RmsNorm:
        return RmsNorm(torch.ones(width), EPS, self.kernels)

    def delta_attention(self) -> KimiDeltaAttention:
        width = DELTA.num_value_heads * DELTA.value_dim
        return KimiDeltaAttention(
            group="state",
            core=DeltaCore(DELTA, self.tensor(CONV_TAPS, DELTA.conv_dim), self.kernels),
            qkv_beta=self.linear(3 * width + DELTA.num_value_heads, HIDDEN),
            forget=ForgetGate(
                down=self.linear(DELTA.key_dim, HIDDEN),
                up=self.linear(width, DELTA.key_dim),
                rate=torch.ones(DELTA.num_value_heads, 1),
                bias=torch.zeros(width),
            ),
            gate=(self.linear(DELTA.value_dim, HIDDEN), self.linear(width, DELTA.value_dim)),
            norm=GatedRmsNorm(torch.ones(DELTA.value_dim), EPS, silu=False),
            out=self.linear(HIDDEN, width),
        )

    def latent_attention(self) -> LatentAttention:
        heads = LATENT.num_heads
        return LatentAttention(
            group="full",
            rope=None,
            shape=LATENT,
            scale=LATENT.query**-0.5,
            query_down=None,
            query_norm=None,
            query_up=self.linear(heads * LATENT.query, HIDDEN),
            latent_down=self.linear(LATENT.latent, HIDDEN),
            latent_norm=self.norm(LATENT.rank),
            expand=self.linear(heads * (LATENT.nope + LATENT.value), LATENT.rank),
            out=self.linear(HIDDEN, heads * LATENT.value),
        )

    def experts(self) -> MixtureOfExperts:
        """Experts lie in memory of their own each, with the same values."""
        router = SigmoidRouter(
            self.tensor(EXPERTS, HIDDEN, dtype=torch.float32), torch.zeros(EXPERTS), TOP_K, 1, 1, normalise=True, scaling=2.446
        )
        stacked = [self.tensor(*shape).repeat(EXPERTS, 1, 1) for shape in ((2 * INNER, HIDDEN), (HIDDEN, INNER))]
        for weights in stacked:
            self.kernels.settle(weights)
        shared = GatedMlp(self.linear(2 * INNER, HIDDEN), self.linear(HIDDEN, INNER))
        return MixtureOfExperts(router, DenseExperts(stacked[0], stacked[1], self.kernels), shared)

    def delta_rows(self, tokens: int) -> DeltaRows:
        heads, width = DELTA.num_value_heads, DELTA.key_dim
        query, key, value, raw = (self.tensor(tokens, heads, width, dtype=torch.float32) for _ in range(4))
        query, key = torch.nn.functional.normalize(query, dim=-1), torch.nn.functional.normalize(key, dim=-1)
        return DeltaRows(query, key, value, -raw.abs(), torch.full((tokens, heads), 0.5))


def plan(tokens: int) -> StepContext:
    """A prompt from its start, or one token at the benchmark's context."""
    before = CONTEXT if tokens == 1 else 0
    blocks = torch.arange(-(-(before + tokens) // BLOCK_TOKENS), dtype=torch.int32)[None]
    positions, none = torch.arange(tokens) + before, torch.empty(0, dtype=torch.int64)
    segments = [Segment(0, tokens, before)]
    step = StepInput(positions, positions, segments, {"full": blocks}, {"state": torch.tensor([1])}, none, BLOCK_TOKENS)
    return plan_step(step, CACHE, {}, torch.bfloat16, torch.device("cpu"))


def make_cache() -> LayerCache:
    blocks = CONTEXT // BLOCK_TOKENS + 1
    return {
        "latent": torch.zeros(blocks, BLOCK_TOKENS, LATENT.latent, dtype=torch.bfloat16),
        "recurrent": torch.zeros(2, DELTA.num_value_heads, DELTA.key_dim, DELTA.value_dim),
        "conv": torch.zeros(2, CONV_TAPS - 1, DELTA.conv_dim, dtype=torch.bfloat16),
    }


def best_s(run: Callable[[], object], clock: Clock, repeats: int) -> float:
    """Seconds of the fastest run after a first one."""
    times = []
    for _ in range(repeats + 1):
        started_s = clock.now_s()
        run()
        times.append(clock.now_s() - started_s)
    return min(times[1:])


def measure(make: Maker, clock: Clock, repeats: int, report: Report) -> None:
    cache = make_cache()
    cases: Mapping[str, Callable[[], Callable[[torch.Tensor, StepContext], torch.Tensor]]] = {
        "KDA layer": lambda: _with_cache(make.delta_attention(), cache),
        "MLA layer": lambda: _with_cache(make.latent_attention(), cache),
        "MoE layer": lambda: _alone(make.experts()),
    }
    for name, build in cases.items():
        layer = build()
        for tokens in LENGTHS:
            x, step = make.tensor(tokens, HIDDEN), plan(tokens)
            took_s = best_s(lambda run=layer, x=x, step=step: run(x, step), clock, repeats)  # type: ignore[misc]
            report.add(Measurement(f"{name}, {tokens:,} tokens", took_s * 1e3, "ms"))
    measure_parts(make, cache, clock, repeats, report)


def measure_parts(make: Maker, cache: LayerCache, clock: Clock, repeats: int, report: Report) -> None:
    for tokens in LENGTHS:
        rows, runs = make.delta_rows(tokens), [DeltaRun(1, 0, tokens)]
        took_s = best_s(lambda r=rows, g=runs: make.kernels.delta(r, cache["recurrent"], g), clock, repeats)  # type: ignore[misc]
        bar = MAX_DELTA_US if tokens > 1 else None
        name = f"delta rule, {tokens:,} tokens, per token"
        report.add(Measurement(name, took_s * 1e6 / tokens, "us", bar=bar, lower_is_better=True))
    query, access = make.tensor(1, LATENT.num_heads, LATENT.latent), plan(1).paged["full"]
    took_s = best_s(
        lambda: make.kernels.attend_latent(query, cache["latent"], access, LATENT.query**-0.5, LATENT.rank), clock, 20 * repeats
    )
    name = f"absorbed latent attention, context {CONTEXT:,}"
    report.add(Measurement(name, took_s * 1e3, "ms", bar=MAX_LATENT_MS, lower_is_better=True))


def _with_cache(
    layer: KimiDeltaAttention | LatentAttention, cache: LayerCache
) -> Callable[[torch.Tensor, StepContext], torch.Tensor]:
    return lambda x, step: layer(x, step, cache)


def _alone(layer: MixtureOfExperts) -> Callable[[torch.Tensor, StepContext], torch.Tensor]:
    return lambda x, _step: layer(x)


def main() -> int:
    parser = arguments(__doc__ or "", seed=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0 lets torch decide")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    threads = torch.get_num_threads()
    report = Report(f"layers of Kimi-Linear-48B, bfloat16, {threads} threads", options.seed)
    make = Maker(open_kernels(cache_dir() / "native", threads), torch.Generator().manual_seed(options.seed))
    with torch.inference_mode():
        measure(make, MonotonicClock(), options.repeats, report)
    return finish(report, options)


if __name__ == "__main__":
    sys.exit(main())
