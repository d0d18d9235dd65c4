"""A complete plan: the best PrfaaS allocation beside its two baselines, with latency, cost and sensitivity, as JSON."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from prfaas.planner.cases import Case
from prfaas.planner.cost import cost_of, gbps_to_rent
from prfaas.planner.queueing import latency, rate_at_slo
from prfaas.planner.search import DEFAULT_STEP_TOKENS, Allocation, best_allocation, homogeneous, naive
from prfaas.planner.throughput import Moments, PdSite, PrefillSite, Rates, Stage, evaluate

JsonValue = str | int | float | bool | None | list["JsonValue"] | dict[str, "JsonValue"]
LOAD_FOR_LATENCY = 0.7  # share of a system's own throughput at which its TTFT is reported


@dataclass(frozen=True, slots=True)
class SystemPlan:
    """One system of the comparison. `exact` re-rates the same allocation with E[T(L)] instead of T(E[L])."""

    name: str
    sites: tuple[PrefillSite, ...]
    pd: PdSite
    allocation: Allocation
    exact: Rates
    throughput_at_slo_rps: float
    ttft_bare_s: tuple[float, float]  # mean, P90: prefill time alone, as the paper counts
    ttft_loaded_s: tuple[float, float, float]  # mean, P90, P99 at LOAD_FOR_LATENCY of the exact throughput


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """Throughput of the plan when one thing changes and the threshold and split are searched again."""

    what: str
    value: float
    throughput_rps: float
    threshold_tokens: int
    binding: Stage


@dataclass(frozen=True, slots=True)
class Plan:
    case: Case
    prfaas: SystemPlan
    homogeneous: SystemPlan
    naive: SystemPlan
    sensitivity: tuple[Sensitivity, ...]
    gbps_to_rent: float


def make_plan(case: Case, *, step_tokens: int = DEFAULT_STEP_TOKENS, with_sensitivity: bool = True) -> Plan:
    """Solve a case. Raises ConfigError for fleets that cannot serve at all."""
    found = best_allocation(case.sites, case.pd, case.model, case.workload, step_tokens=step_tokens)
    mine = _system("prfaas", case, case.sites, case.pd, found)
    base = _system("homogeneous", case, (), case.baseline_pd, homogeneous(case.baseline_pd, case.model, case.workload))
    all_remote = _system("naive", case, case.sites, case.pd, naive(case.sites, case.pd, case.model, case.workload))
    mean_long = found.rates.split.mean_long
    emitted = max((case.model.phi_gbps(s.hardware, mean_long) for s in case.sites), default=0.0) if mean_long > 0 else 0.0
    rent = gbps_to_rent(found.rates, case.model, emitted)
    return Plan(case, mine, base, all_remote, _sensitivity(case, step_tokens) if with_sensitivity else (), rent)


def _system(name: str, case: Case, sites: tuple[PrefillSite, ...], pd: PdSite, found: Allocation) -> SystemPlan:
    threshold = -1 if name == "naive" else found.threshold_tokens
    exact = evaluate(
        sites, pd, case.model, case.workload, threshold_tokens=threshold, num_prefill=found.num_prefill,
        num_decode=found.num_decode, moments=Moments.EXACT,
    )  # fmt: skip
    bare = latency(
        tuple(replace(s, rtt_s=0.0, link_gbps=1e9) for s in sites), pd, case.model, case.workload,
        threshold_tokens=threshold, num_prefill=found.num_prefill, rate_rps=0.0,
    )  # fmt: skip
    loaded = latency(
        sites, pd, case.model, case.workload, threshold_tokens=threshold, num_prefill=found.num_prefill,
        rate_rps=exact.throughput_rps * LOAD_FOR_LATENCY,
    )  # fmt: skip
    at_slo = rate_at_slo(
        sites, pd, case.model, case.workload, threshold_tokens=threshold, num_prefill=found.num_prefill,
        max_rps=exact.throughput_rps, ttft_slo_s=case.ttft_slo_s,
    )  # fmt: skip
    return SystemPlan(
        name, sites, pd, found, exact, at_slo,
        (bare.mean_s, bare.percentile_s(0.9)),
        (loaded.mean_s, loaded.percentile_s(0.9), loaded.percentile_s(0.99)),
    )  # fmt: skip


def _sensitivity(case: Case, step_tokens: int) -> tuple[Sensitivity, ...]:
    rows = []
    coarse = max(step_tokens, 400)

    def row(what: str, value: float, changed: Case) -> None:
        found = best_allocation(changed.sites, changed.pd, changed.model, changed.workload, step_tokens=coarse)
        rows.append(Sensitivity(what, value, found.rates.throughput_rps, found.threshold_tokens, found.rates.binding))

    for gbps in (1.0, 5.0, 10.0, 25.0, 50.0, 100.0):
        row("link_gbps", gbps, replace(case, sites=tuple(replace(s, link_gbps=gbps) for s in case.sites)))
    for change in (-1, 1):
        sites = tuple(replace(s, instances=max(0, s.instances + change)) for s in case.sites)
        row("prefill_instances", float(sum(s.instances for s in sites)), replace(case, sites=sites))
        pd = replace(case.pd, instances=max(1, case.pd.instances + change))
        row("pd_instances", float(pd.instances), replace(case, pd=pd))
    for factor in (0.5, 2.0):
        output = case.workload.mean_output_tokens * factor
        row("mean_output_tokens", output, replace(case, workload=replace(case.workload, mean_output_tokens=output)))
    return tuple(rows)


def _number(value: float) -> float | None:
    return None if math.isinf(value) or math.isnan(value) else value


def _system_json(system: SystemPlan, case: Case, base_rps: float) -> dict[str, JsonValue]:
    rates, found = system.allocation.rates, system.allocation
    cost = cost_of(system.sites, system.pd, case.workload, rates)
    has_threshold = system.name == "prfaas"
    threshold: int | None = found.threshold_tokens if has_threshold else (0 if system.name == "naive" else None)
    return {
        "threshold_tokens": threshold,
        "n_prefill_remote": sum(s.instances for s in system.sites),
        "n_prefill_local": found.num_prefill,
        "n_decode_local": found.num_decode,
        "throughput_rps": rates.throughput_rps,
        "ratio_to_homogeneous": rates.throughput_rps / base_rps,
        "theta_rps": {
            "prefill_remote": rates.theta_prefill_remote,
            "link": rates.theta_link,
            "prefill_local": rates.theta_prefill_local,
            "decode": rates.theta_decode,
        },
        "egress_gbps": rates.egress_gbps,
        "binding_stage": rates.binding.value,
        "offloaded_share": rates.split.p_long,
        "mean_long_tokens": rates.split.mean_long,
        "mean_short_tokens": rates.split.mean_short,
        "exact_throughput_rps": system.exact.throughput_rps,
        "approximation_error": rates.throughput_rps / system.exact.throughput_rps - 1,
        "throughput_at_slo_rps": system.throughput_at_slo_rps,
        "ttft_bare_s": {"mean": _number(system.ttft_bare_s[0]), "p90": _number(system.ttft_bare_s[1])},
        "ttft_loaded_s": {
            "load": LOAD_FOR_LATENCY,
            "mean": _number(system.ttft_loaded_s[0]),
            "p90": _number(system.ttft_loaded_s[1]),
            "p99": _number(system.ttft_loaded_s[2]),
        },
        "cost": {
            "per_hour": cost.per_hour,
            "egress_per_hour": cost.egress_per_hour,
            "per_million_tokens": cost.per_million_tokens,
            "per_million_output_tokens": cost.per_million_output_tokens,
        },
    }


def plan_json(plan: Plan) -> dict[str, JsonValue]:
    """The documented JSON form of a plan: one object per system, the sensitivity table and the link to rent."""
    base = plan.homogeneous.allocation.rates.throughput_rps
    sensitivity: list[JsonValue] = [
        {
            "what": row.what,
            "value": row.value,
            "throughput_rps": row.throughput_rps,
            "threshold_tokens": row.threshold_tokens,
            "binding_stage": row.binding.value,
        }
        for row in plan.sensitivity
    ]
    return {
        "case": plan.case.name,
        "model": plan.case.model.name,
        "slo": {"ttft_s": plan.case.ttft_slo_s, "itl_s": plan.case.itl_slo_s},
        "prfaas": _system_json(plan.prfaas, plan.case, base),
        "homogeneous": _system_json(plan.homogeneous, plan.case, base),
        "naive": _system_json(plan.naive, plan.case, base),
        "link_gbps_to_rent": plan.gbps_to_rent,
        "sensitivity": sensitivity,
    }
