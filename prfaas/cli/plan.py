"""`prfaas plan`: how many instances, which threshold, which link, and what it costs; beside the two baselines."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from prfaas.errors import ConfigError
from prfaas.planner.cases import Case
from prfaas.planner.inputs import named_case, override_sites, parse_workload
from prfaas.planner.outputs import deployment_file, draw
from prfaas.planner.plan import Plan, SystemPlan, make_plan, plan_json


def plan(
    case: Annotated[str, typer.Option(help="'paper', or the path of a plan file")] = "paper",
    link_gbps: Annotated[float | None, typer.Option(min=0.0, help="Capacity of each prefill site's link, Gbit/s")] = None,
    rtt_ms: Annotated[float | None, typer.Option(min=0.0, help="Round trip between the sites, milliseconds")] = None,
    sites: Annotated[str | None, typer.Option(help="Instances by site: NAME=N,NAME=N")] = None,
    workload: Annotated[
        str | None,
        typer.Option(help="lognormal:mu=..,sigma=..[,min=..,max=..,output=..], fixed:tokens=..,output=.. or a trace"),
    ] = None,
    output_tokens: Annotated[float | None, typer.Option(min=1.0, help="Mean output length")] = None,
    ttft_slo: Annotated[float | None, typer.Option(min=0.001, help="P90 TTFT to keep, seconds")] = None,
    price_prefill: Annotated[float | None, typer.Option(min=0.0, help="Price of a prefill instance-hour")] = None,
    price_pd: Annotated[float | None, typer.Option(min=0.0, help="Price of a PD instance-hour")] = None,
    price_egress: Annotated[float | None, typer.Option(min=0.0, help="Price per GB of egress")] = None,
    step_tokens: Annotated[int, typer.Option(min=1, help="Grid step of the threshold search")] = 100,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw throughput against the threshold (.svg, .png, .pdf)")] = None,
    cluster_file: Annotated[Path | None, typer.Option(help="Write a deployment file for `prfaas serve --file`")] = None,
    model: Annotated[str, typer.Option(help="Model named in the deployment file")] = "moonshotai/Kimi-Linear-48B-A3B-Instruct",
) -> None:
    """Solve the throughput model of Prefill-as-a-Service for a fleet, a link and a workload."""
    given = named_case(case)
    if sites is not None:
        given = override_sites(given, sites)
    given = _override_links(given, link_gbps, rtt_ms, price_prefill, price_egress)
    if price_pd is not None:
        given = replace(
            given,
            pd=replace(given.pd, price_per_instance_hour=price_pd),
            baseline_pd=replace(given.baseline_pd, price_per_instance_hour=price_pd),
        )
    if workload is not None:
        given = replace(given, workload=parse_workload(workload))
    if output_tokens is not None:
        given = replace(given, workload=replace(given.workload, mean_output_tokens=output_tokens))
    if ttft_slo is not None:
        given = replace(given, ttft_slo_s=ttft_slo)
    solved = make_plan(given, step_tokens=step_tokens)
    if plot is not None:
        _draw(solved, plot)
    if cluster_file is not None:
        cluster_file.write_text(deployment_file(solved, model=model))
    if as_json:
        typer.echo(json.dumps(plan_json(solved), indent=2))
        return
    _print(solved, Console())


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
