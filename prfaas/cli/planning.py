"""How a plan is solved for the command line and shown on a terminal."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table

from prfaas.cli.outputs import require_places
from prfaas.errors import ConfigError
from prfaas.planner.cases import Case
from prfaas.planner.inputs import named_case, override_sites, parse_workload
from prfaas.planner.outputs import deployment_file, draw
from prfaas.planner.plan import Plan, SystemPlan, make_plan, plan_json


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """What the command line asked for; None leaves what the case says."""

    case: str
    link_gbps: float | None
    rtt_ms: float | None
    sites: str | None
    workload: str | None
    output_tokens: float | None
    ttft_slo_s: float | None
    price_prefill: float | None
    price_pd: float | None
    price_egress: float | None
    step_tokens: int
    as_json: bool
    plot: Path | None
    cluster_file: Path | None
    model: str


def run_plan(request: PlanRequest) -> None:
    """Solve, write what was asked for and print. Raises ConfigError for anything that cannot be planned."""
    require_places(request.plot, request.cluster_file)
    solved = make_plan(_case(request), step_tokens=request.step_tokens)
    if request.plot is not None:
        _draw(solved, request.plot)
    if request.cluster_file is not None:
        request.cluster_file.write_text(deployment_file(solved, model=request.model))
    if request.as_json:
        typer.echo(json.dumps(plan_json(solved), indent=2))
    else:
        _print(solved, Console())


def _case(request: PlanRequest) -> Case:
    case = named_case(request.case)
    if request.sites is not None:
        case = override_sites(case, request.sites)
    case = _override_links(case, request.link_gbps, request.rtt_ms, request.price_prefill, request.price_egress)
    if request.price_pd is not None:
        pd = replace(case.pd, price_per_instance_hour=request.price_pd)
        case = replace(case, pd=pd, baseline_pd=replace(case.baseline_pd, price_per_instance_hour=request.price_pd))
    if request.workload is not None:
        case = replace(case, workload=parse_workload(request.workload))
    if request.output_tokens is not None:
        case = replace(case, workload=replace(case.workload, mean_output_tokens=request.output_tokens))
    if request.ttft_slo_s is not None:
        case = replace(case, ttft_slo_s=request.ttft_slo_s)
    return case


def _override_links(
    case: Case, link_gbps: float | None, rtt_ms: float | None, price_prefill: float | None, price_egress: float | None
) -> Case:
    return replace(
        case,
        sites=tuple(
            replace(
                s,
                link_gbps=s.link_gbps if link_gbps is None else link_gbps,
                rtt_s=s.rtt_s if rtt_ms is None else rtt_ms / 1000,
                price_per_instance_hour=s.price_per_instance_hour if price_prefill is None else price_prefill,
                price_per_gbyte=s.price_per_gbyte if price_egress is None else price_egress,
            )
            for s in case.sites
        ),
    )


def _draw(solved: Plan, path: Path) -> None:
    try:
        draw(solved, path)
    except ImportError as error:
        raise ConfigError("--plot needs matplotlib: pip install 'prfaas[plot]'") from error
    except ValueError as error:
        raise ConfigError(f"cannot draw {path}: {error}") from error


def _print(solved: Plan, console: Console) -> None:
    table = Table(title=f"{solved.case.name}: {solved.case.model.name}", title_justify="left")
    for heading in ("", "prfaas", "homogeneous", "naive"):
        table.add_column(heading, justify="left" if not heading else "right")
    systems = (solved.prfaas, solved.homogeneous, solved.naive)
    base = solved.homogeneous.allocation.rates.throughput_rps
    rows: list[tuple[str, list[str]]] = [
        ("threshold, tokens", [_threshold(s) for s in systems]),
        ("remote prefill / local prefill / decode", [_split(s) for s in systems]),
        ("throughput, requests/s", [f"{s.allocation.rates.throughput_rps:.2f}" for s in systems]),
        ("  to homogeneous", [f"{s.allocation.rates.throughput_rps / base:.2f}x" for s in systems]),
        ("  binding stage", [s.allocation.rates.binding.value for s in systems]),
        ("  with E[T(L)] instead of T(E[L])", [f"{s.exact.throughput_rps:.2f}" for s in systems]),
        (f"  with P90 TTFT <= {solved.case.ttft_slo_s:g} s", [f"{s.throughput_at_slo_rps:.2f}" for s in systems]),
        ("offloaded share", [f"{s.allocation.rates.split.p_long:.1%}" for s in systems]),
        ("egress, Gbit/s", [f"{s.allocation.rates.egress_gbps:.1f}" for s in systems]),
        ("TTFT bare, mean / P90, s", [f"{s.ttft_bare_s[0]:.2f} / {s.ttft_bare_s[1]:.2f}" for s in systems]),
        ("TTFT at 70 % load, mean / P90, s", [f"{s.ttft_loaded_s[0]:.2f} / {s.ttft_loaded_s[1]:.2f}" for s in systems]),
    ]
    for name, cells in rows:
        table.add_row(name, *cells)
    console.print(table)
    console.print(f"link to rent: [bold]{solved.gbps_to_rent:.0f} Gbit/s[/] for the planned egress at 60 % utilisation")
    sensitivity = Table(title="If one thing changes (threshold and split searched again)", title_justify="left")
    for heading in ("what", "value", "requests/s", "threshold", "binding"):
        sensitivity.add_column(heading)
    for row in solved.sensitivity:
        sensitivity.add_row(
            row.what, f"{row.value:g}", f"{row.throughput_rps:.2f}", f"{row.threshold_tokens:,}", row.binding.value
        )
    console.print(sensitivity)


def _threshold(system: SystemPlan) -> str:
    return f"{system.allocation.threshold_tokens:,}" if system.name == "prfaas" else "-"


def _split(system: SystemPlan) -> str:
    remote = sum(s.instances for s in system.sites)
    return f"{remote} / {system.allocation.num_prefill} / {system.allocation.num_decode}"
