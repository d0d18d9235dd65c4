"""Burstiness x prefix hits x bandwidth: how both policies do beside the local-only fleet, as rows and as plots."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.table import Measurement, Report
from prfaas.planner.cases import Case, paper_case
from prfaas.sim.run import simulate
from prfaas.sim.scenario import SimPolicy, Workload, WorkloadKind, scenario_for

CVS = (1.0, 2.0, 4.0)
SHARES = (0.0, 0.5)
GBPS = (1.0, 3.0, 10.0, 30.0, 100.0)
RATE_RPS, DURATION_S = 1.2, 300.0
POLICIES = (SimPolicy.THRESHOLD, SimPolicy.PREDICTIVE)


@dataclass(frozen=True, slots=True)
class Cell:
    """P90 TTFT in seconds, and the share of requests within both objectives."""

    cv: float
    share: float
    gbps: float
    policy: SimPolicy
    p90_s: float
    good: float


def run_grid(report: Report, directory: Path) -> None:
    """Fill the report and write `grid_ttft.svg` and `grid_goodput.svg`."""
    cells = [
        _cell(cv, share, gbps, policy, report.seed) for cv in CVS for share in SHARES for gbps in GBPS for policy in POLICIES
    ]
    for cell in cells:
        name = f"{cell.policy.value}, CV {cell.cv:g}, {cell.share:.0%} shared, {cell.gbps:g} Gbit/s"
        report.add(Measurement(f"{name}: P90 TTFT", cell.p90_s, "s"))
        report.add(Measurement(f"{name}: within the objectives", cell.good, "share"))
    directory.mkdir(parents=True, exist_ok=True)
    _draw(cells, directory / "grid_ttft.svg", "P90 TTFT, s", lambda c: c.p90_s, log=True)
    _draw(cells, directory / "grid_goodput.svg", "share within the objectives", lambda c: c.good, log=False)


def _cell(cv: float, share: float, gbps: float, policy: SimPolicy, seed: int) -> Cell:
    case: Case = paper_case()
    case = replace(case, sites=tuple(replace(s, link_gbps=gbps) for s in case.sites))
    load = Workload(WorkloadKind.BURSTY, cv=cv, prefix_share=share)
    scenario = scenario_for(case, policy, rate_rps=RATE_RPS, duration_s=DURATION_S, workload=load, seed=seed)
    result = simulate(scenario)
    return Cell(cv, share, gbps, policy, result.ttft.p90, result.goodput_rps / max(result.throughput_rps, 1e-9))


def _draw(cells, path, label, value, *, log) -> None:  # type: ignore[no-untyped-def]
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.hashsalt": "prfaas", "svg.fonttype": "none"}):
        figure = Figure(figsize=(9, 3.4), layout="constrained")
        for axes, share in zip(figure.subplots(1, len(SHARES), sharey=True), SHARES, strict=True):
            for cv, colour in zip(CVS, ("tab:blue", "tab:orange", "tab:green"), strict=True):
                for policy, style in zip(POLICIES, ("-", "--"), strict=True):
                    line = [c for c in cells if (c.cv, c.share, c.policy) == (cv, share, policy)]
                    axes.plot(
                        [c.gbps for c in line],
                        [value(c) for c in line],
                        style,
                        color=colour,
                        label=f"{policy.value}, CV {cv:g}",
                    )
            axes.set_xscale("log")
            axes.set_yscale("log" if log else "linear")
            axes.set_xlabel("Gbit/s")
            axes.set_title(f"{share:.0%} of each prompt shared")
        figure.axes[0].set_ylabel(label)
        figure.axes[0].legend(fontsize="x-small")
        figure.savefig(path, format="svg", metadata={"Date": None})
