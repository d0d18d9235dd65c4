"""`prfaas plan`: how many instances, which threshold, which link, and what it costs; beside the two baselines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


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
    from prfaas.cli.planning import PlanRequest, run_plan

    run_plan(
        PlanRequest(
            case=case,
            link_gbps=link_gbps,
            rtt_ms=rtt_ms,
            sites=sites,
            workload=workload,
            output_tokens=output_tokens,
            ttft_slo_s=ttft_slo,
            price_prefill=price_prefill,
            price_pd=price_pd,
            price_egress=price_egress,
            step_tokens=step_tokens,
            as_json=as_json,
            plot=plot,
            cluster_file=cluster_file,
            model=model,
        )
    )
