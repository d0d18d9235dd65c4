"""`prfaas simulate`: the production router, scheduler and cache over virtual time, with queues, links and their faults."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def simulate(
    case: Annotated[str, typer.Option(help="'paper', or the path of a plan file")] = "paper",
    policy: Annotated[
        str, typer.Option(help="threshold, predictive, local-only (homogeneous), all-remote (naive)")
    ] = "threshold",
    rate: Annotated[float | None, typer.Option(min=0.001, help="Requests/s; default: 80 % of the planned throughput")] = None,
    duration: Annotated[float, typer.Option(min=1.0, help="Seconds of arrivals")] = 600.0,
    workload: Annotated[
        str,
        typer.Option(
            help="paper, bursty[:cv=3], diurnal[:swing=0.5,period=3600], agents[:turns=8,..], swarm[:agents=300,shared=30000,"
            "step=500], each with share=S for common prefixes; or a trace (Mooncake JSONL, BurstGPT CSV)"
        ),
    ] = "paper",
    speed: Annotated[float, typer.Option(min=0.001, help="Play a trace this many times as fast")] = 1.0,
    sites: Annotated[str | None, typer.Option(help="Instances by site: NAME=N,NAME=N")] = None,
    threshold: Annotated[int | None, typer.Option(min=0, help="Planned threshold, tokens")] = None,
    static: Annotated[bool, typer.Option("--static", help="Do not let queues and links move the threshold")] = False,
    link_gbps: Annotated[float | None, typer.Option(min=0.0, help="Capacity of each prefill site's link, Gbit/s")] = None,
    rtt_ms: Annotated[float | None, typer.Option(min=0.0, help="Round trip between the sites, milliseconds")] = None,
    loss: Annotated[float, typer.Option(min=0.0, max=0.5, help="Share of packets lost")] = 0.0,
    link_events: Annotated[str | None, typer.Option(help="Capacity from a time on: SECONDS=GBPS,SECONDS=GBPS")] = None,
    ttft_slo: Annotated[float | None, typer.Option(min=0.001, help="TTFT objective, seconds")] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same result")] = 0,
    json_out: Annotated[str | None, typer.Option("--json", help="Write JSON to this file, '-' for stdout")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a report with plots")] = None,
    trace: Annotated[Path | None, typer.Option(help="Write Chrome trace events, for a trace viewer")] = None,
) -> None:
    """Simulate a fleet under load and report throughput, latencies by stage, utilisation and cost."""
    from prfaas.cli.simulating import SimulateRequest, run_simulation

    run_simulation(
        SimulateRequest(
            case=case,
            policy=policy,
            rate_rps=rate,
            duration_s=duration,
            workload=workload,
            speed=speed,
            sites=sites,
            threshold_tokens=threshold,
            static=static,
            link_gbps=link_gbps,
            rtt_ms=rtt_ms,
            loss_ratio=loss,
            link_events=link_events,
            ttft_slo_s=ttft_slo,
            seed=seed,
            json_out=json_out,
            html=html,
            trace=trace,
        )
    )
