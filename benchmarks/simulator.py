"""What the simulator finds for the paper's fleet: throughput at the objective, a link that falls, and how fast it simulates.

    python -m benchmarks.simulator [--part slo|outage|speed] [--json FILE] [--check]
    python -m benchmarks.simulator --grid DIRECTORY     burstiness x prefix hits x bandwidth, as a table and two plots

Objective: the P90 TTFT that the homogeneous fleet has at 70 % of its exact capacity, P90 gap between tokens 25 ms, every
request answered. One run of a quarter of an hour says little near saturation, so percentiles are means over seeds.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from benchmarks.simulator_grid import run_grid
from benchmarks.table import Measurement, Report, arguments, finish
from prfaas.planner.bound import rate_bound
from prfaas.planner.cases import paper_case
from prfaas.planner.throughput import Moments, evaluate
from prfaas.sim.records import Outcome
from prfaas.sim.result import ITL_TOLERANCE, Result, keeps_slo
from prfaas.sim.run import simulate
from prfaas.sim.scenario import LinkEvent, Scenario, SimPolicy, plan_fleet, scenario_for

BASELINE_LOAD = 0.7  # share of the homogeneous fleet's capacity whose P90 TTFT is everybody's objective
DURATION_S = 900.0
SEEDS = 3
ROUNDS = 4  # of bisection between the bounds below
BETWEEN = {SimPolicy.THRESHOLD: (2.6, 3.15), SimPolicy.PREDICTIVE: (2.6, 3.15), SimPolicy.ALL_REMOTE: (1.8, 2.4)}
OUTAGE = (LinkEvent(300.0, 5.0), LinkEvent(480.0, 0.0), LinkEvent(600.0, 100.0))
PHASES = (60.0, 300.0, 480.0, 600.0, 900.0)
PHASE_NAMES = ("100 Gbit/s", "5 Gbit/s", "no link", "100 Gbit/s again")
STATIC_TOKENS = (19_400, 40_000, 200_000)


def add_slo(report: Report) -> None:
    """Throughput at the objective against both baselines, and P90 TTFT at equal load."""
    case, seeds = paper_case(), range(report.seed, report.seed + SEEDS)
    base = plan_fleet(case, SimPolicy.LOCAL_ONLY)
    rate = BASELINE_LOAD * evaluate(
        (), base.pd, case.model, case.workload, threshold_tokens=base.threshold_tokens, num_prefill=base.num_prefill,
        num_decode=base.num_decode, moments=Moments.EXACT,
    ).throughput_rps  # fmt: skip
    local = scenario_for(case, SimPolicy.LOCAL_ONLY, rate_rps=rate, duration_s=DURATION_S)
    target_s = mean_p90(local, seeds)
    case = replace(case, ttft_slo_s=target_s)
    plans = {p.value: scenario_for(case, p, rate_rps=rate, duration_s=DURATION_S) for p in BETWEEN}
    plans["threshold, static"] = replace(plans["threshold"], adaptive=False)
    found = {name: rate_at(scenario, target_s, seeds) for name, scenario in plans.items()}
    naive = found[SimPolicy.ALL_REMOTE.value]
    fleet = plans["threshold"].fleet
    most = rate_bound(
        fleet.sites, fleet.pd, case.workload, num_prefill=fleet.num_prefill, num_decode=fleet.num_decode
    )  # fmt: skip
    report.add(Measurement("homogeneous at 70 %, P90 TTFT", target_s, "s"))
    for name, bars in (("threshold", (1.54, 1.32)), ("threshold, static", (None, None)), ("predictive", (None, None))):
        report.add(Measurement(f"{name} over homogeneous", found[name], "req/s", rate, bars[0]))
        report.add(Measurement(f"{name} over naive", found[name], "req/s", naive, bars[1]))
    note = f"no policy carries more than {most:.2f} req/s, {most / found['threshold'] - 1:.0%} above threshold"
    report.add(Measurement("predictive over threshold", found["predictive"], "req/s", found["threshold"], 1.08, note=note))
    static = found["threshold, static"]
    report.add(Measurement("predictive over static threshold", found["predictive"], "req/s", static))
    for name, bar in (("threshold", 1 / 0.36), ("predictive", 1 / 0.36), (SimPolicy.ALL_REMOTE.value, None)):
        p90_s = mean_p90(plans[name], seeds)
        row = Measurement(f"{name}: P90 TTFT at {rate:.2f} req/s", p90_s, "s", target_s, bar, lower_is_better=True)
        report.add(row)


def mean_p90(scenario: Scenario, seeds: Sequence[int]) -> float:
    return sum(simulate(replace(scenario, seed=seed)).ttft.p90 for seed in seeds) / len(seeds)


def rate_at(scenario: Scenario, target_s: float, seeds: Sequence[int]) -> float:
    """Bisect the highest offered rate that keeps the objective in the mean over the seeds."""
    low, high = BETWEEN[scenario.policy]
    for _ in range(ROUNDS):
        middle = (low + high) / 2
        results = [simulate(replace(scenario.at_rate(middle), seed=seed)) for seed in seeds]
        ttft_s, itl_s = (sum(values) / len(seeds) for values in zip(*((r.ttft.p90, r.itl.p90) for r in results), strict=True))
        answered = not any(r.num_unfinished for r in results)
        keeps = ttft_s <= target_s and itl_s <= scenario.itl_slo_s * ITL_TOLERANCE and answered
        low, high = (middle, high) if keeps else (low, middle)
    print(scenario.policy.value, scenario.adaptive, low, file=sys.stderr, flush=True)
    return low


def add_outage(report: Report) -> None:
    """A link that falls from 100 to 5 Gbit/s to nothing and comes back, against the best static threshold of each phase."""
    for rate in (0.5, 1.0):
        scenario = scenario_for(paper_case(), SimPolicy.THRESHOLD, rate_rps=rate, duration_s=PHASES[-1], seed=report.seed)
        scenario = replace(scenario, link_events=OUTAGE, warmup_s=PHASES[0])
        fixed = [replace(scenario.fleet, threshold_tokens=tokens) for tokens in STATIC_TOKENS]
        best = [
            max(p) for p in zip(*(shares(simulate(replace(scenario, fleet=f, adaptive=False))) for f in fixed), strict=True)
        ]
        for policy in (SimPolicy.THRESHOLD, SimPolicy.PREDICTIVE):
            result = simulate(replace(scenario, policy=policy))
            for phase, share, static in zip(PHASE_NAMES, shares(result), best, strict=True):
                name = f"{policy.value} at {rate:g} req/s, {phase}: within the objectives"
                report.add(Measurement(name, share, "share", static, 0.9))
            changes = float(len(result.journal.link_changes))
            report.add(Measurement(f"{policy.value} at {rate:g} req/s: changes of the link's state", changes, "in 900 s"))
            lost = float(result.outcomes[Outcome.FAILED.value] + result.outcomes[Outcome.OPEN.value])
            name = f"{policy.value} at {rate:g} req/s: requests that failed"
            report.add(Measurement(name, lost, "", bar=0.0, lower_is_better=True))


def shares(result: Result) -> list[float]:
    """Of the requests that arrived in each phase, how many kept both objectives."""
    found = []
    for begin, end in pairwise(PHASES):
        arrived = [r for r in result.journal.requests if begin <= r.at_s < end]
        found.append(sum(r.finished and keeps_slo(r, result.scenario) for r in arrived) / len(arrived))
    return found


def add_speed(report: Report) -> None:
    """Seconds of one core for an hour of the fleet at full load, and for ten minutes of a thousand workers."""
    hour = scenario_for(paper_case(), SimPolicy.THRESHOLD, rate_rps=3.1, duration_s=3600.0, seed=report.seed)
    report.add(Measurement("an hour of the paper's fleet", cpu_s(hour), "s", bar=20.0, lower_is_better=True))
    took_s = cpu_s(thousand(600.0))
    report.add(Measurement("ten minutes of 1,000 workers at 200 req/s", took_s, "s", bar=300.0, lower_is_better=True))


def thousand(duration_s: float) -> Scenario:
    case, times = paper_case(), 1000 / 12
    sites = tuple(replace(s, instances=round(s.instances * times), link_gbps=s.link_gbps * times) for s in case.sites)
    big = replace(case, sites=sites, pd=replace(case.pd, instances=1000 - sum(s.instances for s in sites)))
    scenario = scenario_for(case, SimPolicy.THRESHOLD, rate_rps=200.0, duration_s=duration_s)
    decode = round(big.pd.instances * 5 / 8)
    fleet = replace(scenario.fleet, sites=big.sites, pd=big.pd, num_decode=decode, num_prefill=big.pd.instances - decode)
    return replace(scenario, case=big, fleet=fleet)


def cpu_s(scenario: Scenario) -> float:
    began = time.process_time()
    simulate(scenario)
    return time.process_time() - began


PARTS = {"slo": add_slo, "outage": add_outage, "speed": add_speed}


def main() -> int:
    parser = arguments("Throughput at the objective, outages and the simulator's own speed", seed=0)
    parser.add_argument("--part", choices=PARTS, action="append", help="only this part; may be repeated (default: all)")
    parser.add_argument("--grid", type=Path, metavar="DIRECTORY", help="run the grid instead and write its plots there")
    options = parser.parse_args()
    report = Report("Simulated fleet of the paper", options.seed)
    if options.grid is not None:
        run_grid(report, options.grid)
    else:
        for part in options.part or PARTS:
            PARTS[part](report)
    return finish(report, options)


if __name__ == "__main__":
    sys.exit(main())
