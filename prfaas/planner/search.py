"""Searching the best threshold and the best split of PD instances: the two-dimensional grid of arXiv:2604.15039, sec. 3."""

from __future__ import annotations

from dataclasses import dataclass

from prfaas.errors import ConfigError
from prfaas.planner.profile import ModelProfile
from prfaas.planner.throughput import Moments, PdSite, PrefillSite, Rates, Workload, evaluate

DEFAULT_STEP_TOKENS = 100


@dataclass(frozen=True, slots=True)
class Allocation:
    """An answer of the search: the threshold, the split and the rates they give."""

    threshold_tokens: int
    num_prefill: int
    num_decode: int
    rates: Rates


def best_threshold(
    sites: tuple[PrefillSite, ...],
    pd: PdSite,
    model: ModelProfile,
    workload: Workload,
    *,
    num_prefill: int,
    num_decode: int,
    moments: Moments = Moments.PAPER,
    step_tokens: int = DEFAULT_STEP_TOKENS,
) -> Allocation:
    """The threshold on a grid of `step_tokens` with the highest throughput for a given split.

    Throughput as a function of t is the minimum of rising branches (remote prefill, link: p falls with t) and a falling
    one (local prefill), so a plateau only occurs where decode binds; there the smallest egress wins, i.e. the largest t.
    """
    longest = int(workload.lengths.values[-1])
    best: Allocation | None = None
    for t in range(0, longest + step_tokens, step_tokens):
        rates = evaluate(
            sites, pd, model, workload, threshold_tokens=t, num_prefill=num_prefill, num_decode=num_decode, moments=moments
        )
        better = best is None or rates.throughput_rps > best.rates.throughput_rps * (1 + 1e-9)
        tie = best is not None and rates.throughput_rps >= best.rates.throughput_rps * (1 - 1e-9)
        if better or (tie and best is not None and rates.egress_gbps < best.rates.egress_gbps):
            best = Allocation(t, num_prefill, num_decode, rates)
    assert best is not None
    return best


def best_allocation(
    sites: tuple[PrefillSite, ...],
    pd: PdSite,
    model: ModelProfile,
    workload: Workload,
    *,
    moments: Moments = Moments.PAPER,
    step_tokens: int = DEFAULT_STEP_TOKENS,
    min_decode: int = 1,
) -> Allocation:
    """Search every split of the PD site's instances and every threshold; ties go to more decode instances.

    A coarse grid finds the neighbourhood for each split, a fine one finishes there.
    Raises ConfigError when the PD site cannot hold `min_decode` decode instances.
    """
    if pd.instances < min_decode:
        raise ConfigError(f"site {pd.name} has {pd.instances} instances, fewer than the {min_decode} that must decode")
    best: Allocation | None = None
    for num_prefill in range(pd.instances - min_decode + 1):
        found = best_threshold(
            sites, pd, model, workload, num_prefill=num_prefill, num_decode=pd.instances - num_prefill,
            moments=moments, step_tokens=step_tokens,
        )  # fmt: skip
        if best is None or found.rates.throughput_rps > best.rates.throughput_rps * (1 + 1e-9):
            best = found
    assert best is not None
    return best


def homogeneous(pd: PdSite, model: ModelProfile, workload: Workload, *, moments: Moments = Moments.PAPER) -> Allocation:
    """The baseline without a prefill site: every prompt stays local, the split is searched."""
    never = int(workload.lengths.values[-1]) + 1
    best: Allocation | None = None
    for num_prefill in range(1, pd.instances):
        num_decode = pd.instances - num_prefill
        rates = evaluate(
            (), pd, model, workload, threshold_tokens=never, num_prefill=num_prefill, num_decode=num_decode, moments=moments
        )
        if best is None or rates.throughput_rps > best.rates.throughput_rps:
            best = Allocation(never, num_prefill, num_decode, rates)
    if best is None:
        raise ConfigError(f"site {pd.name} needs at least two instances, one to prefill and one to decode")
    return best


def naive(
    sites: tuple[PrefillSite, ...], pd: PdSite, model: ModelProfile, workload: Workload, *, moments: Moments = Moments.PAPER
) -> Allocation:
    """The baseline that sends every prompt to the prefill sites and lets the whole PD site decode."""
    rates = evaluate(sites, pd, model, workload, threshold_tokens=-1, num_prefill=0, num_decode=pd.instances, moments=moments)
    return Allocation(0, 0, pd.instances, rates)
