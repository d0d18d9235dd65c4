"""How a scenario is put together for the command line, and how its result is shown and written."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table

from prfaas.cli.outputs import require_places
from prfaas.planner.cases import Case
from prfaas.planner.inputs import named_case, override_sites
from prfaas.planner.throughput import Moments, evaluate
from prfaas.sim.parsing import parse_link_events, parse_policy, parse_workload
from prfaas.sim.report import write_report
from prfaas.sim.result import Result, Spread, to_json
from prfaas.sim.run import simulate
from prfaas.sim.scenario import FleetPlan, Scenario, scenario_for
from prfaas.sim.traces import trace_events

DEFAULT_LOAD = 0.8


@dataclass(frozen=True, slots=True)
class SimulateRequest:
    """What the command line asked for; None leaves what the case says."""

    case: str
    policy: str
    rate_rps: float | None
    duration_s: float
    workload: str
    speed: float
    sites: str | None
    threshold_tokens: int | None
    static: bool
    link_gbps: float | None
    rtt_ms: float | None
    loss_ratio: float
    link_events: str | None
    ttft_slo_s: float | None
    seed: int
    json_out: str | None
    html: Path | None
    trace: Path | None


def run_simulation(request: SimulateRequest) -> None:
    """Simulate, write what was asked for and print. Raises ConfigError for what cannot be simulated."""
    require_places(request.html, request.trace, request.json_out)
    result = simulate(build_scenario(request))
    if request.html is not None:
        write_report(result, request.html)
    if request.trace is not None:
        request.trace.write_text(json.dumps({"traceEvents": trace_events(result), "displayTimeUnit": "ms"}))
    if request.json_out == "-":
        typer.echo(json.dumps(to_json(result), indent=2))
        return
    if request.json_out is not None:
        Path(request.json_out).write_text(json.dumps(to_json(result), indent=2) + "\n")
    _print(result, Console())


def build_scenario(request: SimulateRequest) -> Scenario:
    """Raises ConfigError naming the option that is wrong."""
    case = _case(request)
    load = parse_workload(request.workload, speed=request.speed)
    made = scenario_for(
        case, parse_policy(request.policy), rate_rps=request.rate_rps or 1.0, duration_s=request.duration_s,
        workload=load, seed=request.seed,
    )  # fmt: skip
    fleet = made.fleet
    if request.threshold_tokens is not None:
        fleet = replace(fleet, threshold_tokens=request.threshold_tokens)
    return replace(
        made,
        fleet=fleet,
        rate_rps=request.rate_rps or DEFAULT_LOAD * planned_rps(case, fleet),
        loss_ratio=request.loss_ratio,
        link_events=parse_link_events(request.link_events or ""),
        adaptive=not request.static,
    )


def planned_rps(case: Case, fleet: FleetPlan) -> float:
    """What the planner's exact model expects of a fleet."""
    rates = evaluate(
        fleet.sites, fleet.pd, case.model, case.workload, threshold_tokens=fleet.threshold_tokens if fleet.num_prefill else -1,
        num_prefill=fleet.num_prefill, num_decode=fleet.num_decode, moments=Moments.EXACT,
    )  # fmt: skip
    return rates.throughput_rps


def _case(request: SimulateRequest) -> Case:
    case = named_case(request.case)
    if request.sites is not None:
        case = override_sites(case, request.sites)
    sites = tuple(
        replace(
            site,
            link_gbps=site.link_gbps if request.link_gbps is None else request.link_gbps,
            rtt_s=site.rtt_s if request.rtt_ms is None else request.rtt_ms / 1000,
        )
        for site in case.sites
    )
    return replace(case, sites=sites, ttft_slo_s=request.ttft_slo_s or case.ttft_slo_s)


def _print(result: Result, console: Console) -> None:
    scenario, fleet = result.scenario, result.scenario.fleet
    remote = sum(s.instances for s in fleet.sites)
    console.print(
        f"[bold]{scenario.case.name}[/], {scenario.policy.value}: {remote} remote prefill, {fleet.num_prefill} local prefill, "
        f"{fleet.num_decode} decode; {scenario.rate_rps:.2f} requests/s for {scenario.duration_s:.0f} s, seed {scenario.seed}"
    )
    console.print(
        f"throughput [bold]{result.throughput_rps:.2f}[/] requests/s, goodput [bold]{result.goodput_rps:.2f}[/] "
        f"(TTFT {scenario.ttft_slo_s:g} s, ITL {scenario.itl_slo_s * 1000:g} ms); " + ", ".join(_ends(result))
    )
    table = Table(title="Seconds", title_justify="left")
    for heading in ("", "mean", "P50", "P90", "P95", "P99"):
        table.add_column(heading, justify="left" if not heading else "right")
    rows = {"TTFT": result.ttft, **{f"  {name}": spread for name, spread in result.stages.items()}, "ITL": result.itl}
    for name, spread in rows.items():
        table.add_row(name, *_cells(spread))
    console.print(table)
    shares = ", ".join(f"{name} {share:.0%}" for name, share in result.utilisation.items())
    console.print(f"busy: {shares}; egress {result.egress_gbps:.1f} Gbit/s")
    console.print("routes: " + ", ".join(f"{name} {share:.0%}" for name, share in result.routes.items()))
    for change in result.journal.link_changes[:20]:
        console.print(f"{change.at_s:8.1f} s  link {change.link} is {change.state}")


def _ends(result: Result) -> list[str]:
    return [f"{count} {name}" for name, count in result.outcomes.items() if count]


def _cells(spread: Spread) -> list[str]:
    return [f"{value:.3f}" for value in (spread.mean, spread.p50, spread.p90, spread.p95, spread.p99)]
