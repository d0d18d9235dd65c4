"""What the simulator finds for the paper's fleet, and how fast it finds it.

    python -m benchmarks.simulator slo      throughput at the objective of four policies, and P90 TTFT at equal load
    python -m benchmarks.simulator outage   a link that falls from 100 to 5 to 0 Gbit/s and comes back
    python -m benchmarks.simulator speed    seconds of one core for an hour of the fleet, and for 1,000 workers

Each prints one JSON document.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from itertools import pairwise

from prfaas.planner.cases import paper_case
from prfaas.planner.throughput import Moments, evaluate
from prfaas.sim.result import Result, to_json
from prfaas.sim.run import simulate, throughput_at_slo
from prfaas.sim.scenario import LinkEvent, SimPolicy, plan_fleet, scenario_for

BASELINE_LOAD = 0.7  # share of the homogeneous fleet's capacity whose P90 TTFT is everybody's objective
DURATION_S = 1500.0


def slo() -> dict[str, object]:
    case = paper_case()
    base = plan_fleet(case, SimPolicy.LOCAL_ONLY)
    capacity = evaluate(
        (), base.pd, case.model, case.workload, threshold_tokens=base.threshold_tokens, num_prefill=base.num_prefill,
        num_decode=base.num_decode, moments=Moments.EXACT,
    ).throughput_rps  # fmt: skip
    rate = BASELINE_LOAD * capacity
    scenario = scenario_for(case, SimPolicy.LOCAL_ONLY, rate_rps=rate, duration_s=DURATION_S)
    local = simulate(scenario)
    target_s = local.ttft.p90
    found: dict[str, object] = {"homogeneous_capacity_rps": capacity, "objective_p90_ttft_s": target_s}
    rates = {SimPolicy.LOCAL_ONLY.value: rate}
    for policy, top in ((SimPolicy.THRESHOLD, 3.6), (SimPolicy.PREDICTIVE, 3.6), (SimPolicy.ALL_REMOTE, 2.7)):
        case_for = scenario_for(replace(case, ttft_slo_s=target_s), policy, rate_rps=rate, duration_s=DURATION_S)
        equal = simulate(case_for)
        best = throughput_at_slo(case_for, ttft_s=target_s, max_rps=top, rounds=7)
        rates[policy.value] = best.rate_rps
        found[policy.value] = {
            "rate_rps": best.rate_rps,
            "over_homogeneous": best.rate_rps / rate,
            "p90_ttft_s_at_homogeneous_rate": equal.ttft.p90,
            "p90_ttft_over_homogeneous": equal.ttft.p90 / target_s,
            "at_best": to_json(best.result) if best.result is not None else None,
        }
        print(policy.value, best.rate_rps, file=sys.stderr, flush=True)
    found["over_naive"] = {p: rates[p] / rates["all-remote"] for p in ("threshold", "predictive")}
    return found


def outage() -> dict[str, object]:
    """At a rate that the PD site carries alone, and at one that it does not."""
    case = paper_case()
    found: dict[str, object] = {}
    events = (LinkEvent(300.0, 5.0), LinkEvent(480.0, 0.0), LinkEvent(600.0, 100.0))
    for rate in (0.5, 1.6):
        for policy in (SimPolicy.THRESHOLD, SimPolicy.PREDICTIVE):
            scenario = scenario_for(case, policy, rate_rps=rate, duration_s=900.0)
            result = simulate(replace(scenario, link_events=events, warmup_s=60.0))
            borders = (60.0, 300.0, 480.0, 600.0, 900.0)
            found[f"{policy.value}@{rate}"] = {**to_json(result), "phases": phases(result, borders)}
    return found


def phases(result: Result, borders: tuple[float, ...]) -> list[dict[str, float]]:
    rows = []
    for begin, end in pairwise(borders):
        ttft = sorted(r.ttft_s for r in result.journal.requests if begin <= r.at_s < end and r.finished)
        remote = sum(r.route == "remote" for r in result.journal.requests if begin <= r.at_s < end)
        p90 = ttft[int(0.9 * len(ttft))] if ttft else 0.0
        rows.append({"from_s": begin, "to_s": end, "finished": len(ttft), "remote": remote, "p90_ttft_s": p90})
    return rows


def speed() -> dict[str, object]:
    case = paper_case()
    hour = scenario_for(case, SimPolicy.THRESHOLD, rate_rps=3.1, duration_s=3600.0)
    return {"paper_hour": timed(hour), "thousand_workers": timed(thousand())}


def thousand() -> object:
    case, times = paper_case(), 1000 / 12
    sites = tuple(replace(s, instances=round(s.instances * times), link_gbps=s.link_gbps * times) for s in case.sites)
    big = replace(case, sites=sites, pd=replace(case.pd, instances=1000 - sum(s.instances for s in sites)))
    scenario = scenario_for(case, SimPolicy.THRESHOLD, rate_rps=200.0, duration_s=600.0)
    decode = round(big.pd.instances * 5 / 8)
    fleet = replace(scenario.fleet, sites=big.sites, pd=big.pd, num_decode=decode, num_prefill=big.pd.instances - decode)
    return replace(scenario, case=big, fleet=fleet)


def timed(scenario) -> dict[str, object]:  # type: ignore[no-untyped-def]
    began = time.process_time()
    result = simulate(scenario)
    took_s = time.process_time() - began
    return {
        "workers": scenario.fleet.num_workers,
        "requests": len(result.journal.requests),
        "simulated_s": scenario.duration_s,
        "cpu_s": took_s,
        "events": result.events,
        "throughput_rps": result.throughput_rps,
    }


if __name__ == "__main__":
    print(json.dumps({"slo": slo, "outage": outage, "speed": speed}[sys.argv[1]](), indent=2))
