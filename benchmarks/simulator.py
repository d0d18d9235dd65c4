"""What the simulator finds for the paper's fleet: throughput at the objective, a link that falls, and how fast it simulates.

    python -m benchmarks.simulator [--part slo|outage|speed] [--jobs 2] [--json FILE] [--check]
    python -m benchmarks.simulator --grid DIRECTORY     burstiness x prefix hits x bandwidth, as a table and two plots

Objective: the P90 TTFT that the homogeneous fleet has at 70 % of its exact capacity, P90 gap between tokens 25 ms, every
request answered, and a P99 TTFT of at most a minute: a policy may put off who is late, but not let a heap of them grow. One
run of a quarter of an hour says little near saturation, so figures are means over seeds.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
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
ROUNDS = 3  # of bisection between the bounds below
LONGEST_S = 60.0  # at the P99
BETWEEN = {"threshold": (2.8, 3.2), "predictive": (2.8, 3.2), "threshold, static": (2.6, 3.0), "all-remote": (2.0, 2.4)}
OUTAGE_RPS = (0.5, 1.0, 1.6)
OUTAGE = (LinkEvent(300.0, 5.0), LinkEvent(480.0, 0.0), LinkEvent(600.0, 100.0))
PHASES = (60.0, 300.0, 480.0, 600.0, 900.0)
PHASE_NAMES = ("100 Gbit/s", "5 Gbit/s", "no link", "100 Gbit/s again")
STATIC_TOKENS = (19_400, 40_000, 200_000)


@dataclass(frozen=True, slots=True)
class Brief:
    """What is kept of one run; a whole result is large to pass between processes."""

    p90_s: float
    p99_s: float
    itl_s: float
    unfinished: int
    lost: int  # failed, or never answered
    shares: tuple[float, ...]  # within both objectives, of those that arrived in each of PHASES
    rest_s: tuple[float, ...]  # until the link's state stays, in each of PHASES
    changes: int


def brief(scenario: Scenario) -> Brief:
    result = simulate(scenario)
    lost = result.outcomes[Outcome.FAILED.value] + result.outcomes[Outcome.OPEN.value]
    phases = [(begin, end) for begin, end in pairwise(PHASES) if end <= scenario.duration_s]
    kept = tuple(share(result, begin, end) for begin, end in phases)
    changes = [change.at_s for change in result.journal.link_changes]
    rest = tuple(max((at - begin for at in changes if begin <= at < end), default=0.0) for begin, end in phases)
    return Brief(result.ttft.p90, result.ttft.p99, result.itl.p90, result.num_unfinished, lost, kept, rest, len(changes))


def share(result: Result, begin_s: float, end_s: float) -> float:
    arrived = [r for r in result.journal.requests if begin_s <= r.at_s < end_s]
    return sum(r.finished and keeps_slo(r, result.scenario) for r in arrived) / max(1, len(arrived))


Run = Callable[[Iterable[Scenario]], list[Brief]]


@dataclass(frozen=True, slots=True)
class Bench:
    """Where rows go, and how scenarios are run."""

    report: Report
    run: Run

    def seeds(self, scenario: Scenario) -> list[Brief]:
        first = self.report.seed
        return self.run(replace(scenario, seed=seed) for seed in range(first, first + SEEDS))

    def p90_s(self, scenario: Scenario) -> float:
        return mean(b.p90_s for b in self.seeds(scenario))


def mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)


def add_slo(bench: Bench) -> None:
    """Throughput at the objective against both baselines, and P90 TTFT at equal load."""
    case, report = paper_case(), bench.report
    base = plan_fleet(case, SimPolicy.LOCAL_ONLY)
    rate = BASELINE_LOAD * evaluate(
        (), base.pd, case.model, case.workload, threshold_tokens=base.threshold_tokens, num_prefill=base.num_prefill,
        num_decode=base.num_decode, moments=Moments.EXACT,
    ).throughput_rps  # fmt: skip
    target_s = bench.p90_s(scenario_for(case, SimPolicy.LOCAL_ONLY, rate_rps=rate, duration_s=DURATION_S))
    case = replace(case, ttft_slo_s=target_s)
    policies = (SimPolicy.THRESHOLD, SimPolicy.PREDICTIVE, SimPolicy.ALL_REMOTE)
    plans = {p.value: scenario_for(case, p, rate_rps=rate, duration_s=DURATION_S) for p in policies}
    plans["threshold, static"] = replace(plans["threshold"], adaptive=False)
    report.add(Measurement("homogeneous at 70 %, P90 TTFT", target_s, "s"))
    for name, bar in (("threshold", 1 / 0.36), ("predictive", 1 / 0.36), ("all-remote", None)):
        p90_s = bench.p90_s(plans[name])
        report.add(Measurement(f"{name}: P90 TTFT at {rate:.2f} req/s", p90_s, "s", target_s, bar, lower_is_better=True))
    found = {name: rate_at(bench, name, scenario, target_s) for name, scenario in plans.items()}
    fleet = plans["threshold"].fleet
    most = rate_bound(fleet.sites, fleet.pd, case.workload, num_prefill=fleet.num_prefill, num_decode=fleet.num_decode)
    for name, bars in (("threshold", (1.54, 1.32)), ("threshold, static", (None, None)), ("predictive", (None, None))):
        report.add(Measurement(f"{name} over homogeneous", found[name], "req/s", rate, bars[0]))
        report.add(Measurement(f"{name} over naive", found[name], "req/s", found["all-remote"], bars[1]))
    note = f"no policy carries more than {most:.2f} req/s, {most / found['threshold'] - 1:.0%} above threshold"
    report.add(Measurement("predictive over threshold", found["predictive"], "req/s", found["threshold"], 1.08, note=note))
    report.add(Measurement("what no policy exceeds", most, "req/s", found["threshold"]))
    static = found["threshold, static"]
    report.add(Measurement("predictive over static threshold", found["predictive"], "req/s", static))


def rate_at(bench: Bench, name: str, scenario: Scenario, target_s: float) -> float:
    """Bisect the highest offered rate that keeps the objective in the mean over the seeds."""
    low, high = BETWEEN[name]
    for _ in range(ROUNDS):
        middle = (low + high) / 2
        runs = bench.seeds(scenario.at_rate(middle))
        p90_s, p99_s, itl_s = mean(b.p90_s for b in runs), mean(b.p99_s for b in runs), mean(b.itl_s for b in runs)
        keeps = p90_s <= target_s and p99_s <= LONGEST_S and itl_s <= scenario.itl_slo_s * ITL_TOLERANCE
        keeps = keeps and not any(b.unfinished for b in runs)
        told = f"{name} at {middle:.3f} req/s: P90 {p90_s:.2f} s, P99 {p99_s:.1f} s, {'kept' if keeps else 'missed'}"
        print(told, file=sys.stderr, flush=True)
        low, high = (middle, high) if keeps else (low, middle)
    return low


def add_outage(bench: Bench) -> None:
    """A link that falls from 100 to 5 Gbit/s to nothing and comes back, against the best static threshold of each phase."""
    for rate in OUTAGE_RPS:
        scenario = scenario_for(paper_case(), SimPolicy.THRESHOLD, rate_rps=rate, duration_s=PHASES[-1])
        scenario = replace(scenario, link_events=OUTAGE, warmup_s=PHASES[0])
        fixed = [replace(scenario.fleet, threshold_tokens=tokens) for tokens in STATIC_TOKENS]
        static = [phase_shares(bench.seeds(replace(scenario, fleet=f, adaptive=False))) for f in fixed]
        best = [max(shares) for shares in zip(*static, strict=True)]
        for policy in (SimPolicy.THRESHOLD, SimPolicy.PREDICTIVE):
            runs, name = bench.seeds(replace(scenario, policy=policy)), f"{policy.value} at {rate:g} req/s"
            print(name, file=sys.stderr, flush=True)
            for number, (phase, kept) in enumerate(zip(PHASE_NAMES, phase_shares(runs), strict=True)):
                bench.report.add(Measurement(f"{name}, {phase}: within the objectives", kept, "share", best[number], 0.9))
                rest_s = max(b.rest_s[number] for b in runs)
                row = Measurement(f"{name}, {phase}: link at rest after", rest_s, "s", bar=10.0, lower_is_better=True)
                bench.report.add(row)
            bench.report.add(Measurement(f"{name}: changes of the link's state", mean(b.changes for b in runs), "in 900 s"))
            lost = sum(b.lost for b in runs)
            bench.report.add(Measurement(f"{name}: requests that failed", lost, "", bar=0.0, lower_is_better=True))


def phase_shares(runs: Iterable[Brief]) -> list[float]:
    """Of the requests that arrived in each phase, how many kept both objectives: the mean over the runs."""
    return [mean(each) for each in zip(*(b.shares for b in runs), strict=True)]


def add_speed(bench: Bench) -> None:
    """Seconds of one core for an hour of the fleet at full load, and for ten minutes of a thousand workers."""
    report = bench.report
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
    parser.add_argument("--jobs", type=int, default=1, help="simulations at a time (default: 1); speed is measured by itself")
    parser.add_argument("--grid", type=Path, metavar="DIRECTORY", help="run the grid instead and write its plots there")
    options = parser.parse_args()
    report = Report("Simulated fleet of the paper", options.seed)
    if options.grid is not None:
        run_grid(report, options.grid)
    else:
        with ProcessPoolExecutor(max(1, min(options.jobs, os.cpu_count() or 1))) as pool:
            bench = Bench(report, lambda scenarios: list(pool.map(brief, scenarios)))
            for part in options.part or PARTS:
                PARTS[part](bench)
    return finish(report, options)


if __name__ == "__main__":
    sys.exit(main())
