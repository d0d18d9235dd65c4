"""The long loop: minutes-scale re-solving of the paper's throughput model on what was observed.

The planner does the solving ("Prefill-as-a-Service", arXiv:2604.15039, sections 3 and 4); here the fleet's measurements
become its inputs, and its answer is taken only where it pays: a plan that gains less than `MIN_GAIN` changes nothing, so
noise in the observed lengths cannot make the threshold or the roles of nodes wander.
"""

from __future__ import annotations

from dataclasses import dataclass

from prfaas.planner.lengths import Lengths
from prfaas.planner.profile import Curve, HardwareProfile, ModelProfile
from prfaas.planner.search import Allocation, best_allocation, best_threshold
from prfaas.planner.throughput import Moments, PdSite, PrefillSite, Workload, evaluate
from router.policy.costs import PrefillModel

MIN_GAIN = 0.05  # of throughput; less is not worth a change
MIN_SAMPLES = 200  # observed requests below which nothing is concluded
CURVE_TOKENS = (1, 1024, 4096, 16_384, 65_536, 131_072, 262_144)  # where fitted models are read off for the planner
STEP_TOKENS = 500


@dataclass(frozen=True, slots=True)
class FarSite:
    """A prefill-only site as it was measured."""

    name: str
    workers: int
    prefill: PrefillModel
    link_bytes_per_s: float


@dataclass(frozen=True, slots=True)
class NearSite:
    """A site that decodes and prefills. `decode_step_s` is the step time at `batch` sequences."""

    name: str
    num_prefill: int
    num_decode: int
    prefill: PrefillModel
    decode_step_s: float
    batch: int


@dataclass(frozen=True, slots=True)
class Observed:
    """What arrived lately: uncached prompt tokens and KV bytes at two lengths, and the mean output length."""

    uncached_tokens: tuple[int, ...]
    mean_output_tokens: float
    fixed_kv_bytes: float  # states: S_kv at length zero
    kv_bytes_per_token: float


@dataclass(frozen=True, slots=True)
class Replan:
    """A better threshold for the present roles, a better split of the roles, and what each would gain (0.1 is 10 %)."""

    threshold_tokens: int
    threshold_gain: float
    best: Allocation
    split_gain: float

    @property
    def change_threshold(self) -> bool:
        return self.threshold_gain >= MIN_GAIN

    @property
    def change_split(self) -> bool:
        """Converting nodes pays beyond what moving the threshold alone brings."""
        return self.split_gain - self.threshold_gain >= MIN_GAIN


def replan(far: tuple[FarSite, ...], near: NearSite, seen: Observed, threshold_tokens: int) -> Replan | None:
    """Solve again for what was observed; None while too little was, or where a stage has no workers to plan with."""
    if len(seen.uncached_tokens) < MIN_SAMPLES or not far or near.num_decode == 0 or seen.mean_output_tokens <= 0:
        return None
    sites = tuple(PrefillSite(s.name, s.workers, _hardware(s.name, s.prefill, near), s.link_bytes_per_s * 8 / 1e9) for s in far)
    pd = PdSite(near.name, near.num_prefill + near.num_decode, _hardware(near.name, near.prefill, near))
    top = float(CURVE_TOKENS[-1])
    kv = Curve((0.0, top), (seen.fixed_kv_bytes, seen.fixed_kv_bytes + seen.kv_bytes_per_token * top))
    model = ModelProfile("observed", kv)
    workload = Workload(Lengths.empirical(seen.uncached_tokens), seen.mean_output_tokens)
    split = {"num_prefill": near.num_prefill, "num_decode": near.num_decode}
    now = evaluate(sites, pd, model, workload, threshold_tokens=threshold_tokens, moments=Moments.EXACT, **split)
    here = best_threshold(sites, pd, model, workload, moments=Moments.EXACT, step_tokens=STEP_TOKENS, **split)
    best = best_allocation(sites, pd, model, workload, moments=Moments.EXACT, step_tokens=STEP_TOKENS)
    base = now.throughput_rps
    if base <= 0:
        return None
    return Replan(
        threshold_tokens=here.threshold_tokens,
        threshold_gain=here.rates.throughput_rps / base - 1,
        best=best,
        split_gain=best.rates.throughput_rps / base - 1,
    )


def _hardware(name: str, model: PrefillModel, near: NearSite) -> HardwareProfile:
    prefill = Curve.through([(float(t), model.seconds(t)) for t in CURVE_TOKENS], f"prefill of {name}")
    step = Curve((1.0, float(max(2, near.batch))), (near.decode_step_s, near.decode_step_s))
    return HardwareProfile(name, prefill, step, near.batch)
