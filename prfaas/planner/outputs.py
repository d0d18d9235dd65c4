"""What a plan leaves behind besides its JSON: a deployment file to start from, and a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import yaml

from prfaas.planner.plan import Plan
from prfaas.planner.throughput import evaluate


def deployment_file(plan: Plan, *, model: str) -> str:
    """A settings file for `prfaas serve --file` with the plan's split and threshold, as YAML text."""
    found = plan.prfaas.allocation
    sites: list[dict[str, object]] = [
        {"name": s.name, "pools": [{"role": "prefill", "count": s.instances, "num_gpus": 8.0}]}
        for s in plan.prfaas.sites
        if s.instances > 0
    ]
    pools: list[dict[str, object]] = []
    if found.num_prefill:
        pools.append({"role": "pd_prefill", "count": found.num_prefill, "num_gpus": 8.0})
    pools.append({"role": "decode", "count": found.num_decode, "num_gpus": 8.0})
    sites.append({"name": plan.prfaas.pd.name, "pools": pools})
    document = {
        "model": model,
        "pool": "ray",
        "router": {"policy": {"threshold_tokens": found.threshold_tokens, "ttft_slo_s": plan.case.ttft_slo_s}},
        "sites": sites,
    }
    rate = found.rates.throughput_rps
    summary = f"{rate:.2f} requests/s, threshold {found.threshold_tokens} tokens, bound by {found.rates.binding}"
    return f"# {plan.case.name}: {summary}\n" + yaml.safe_dump(document, sort_keys=False)


def draw(plan: Plan, path: Path) -> None:
    """Draw throughput and egress against the threshold, with the optimum marked. Format by the file's suffix.

    Raises ImportError when matplotlib is not installed (`pip install prfaas[plot]`).
    """
    from matplotlib.figure import Figure

    case, found = plan.case, plan.prfaas.allocation
    thresholds = np.linspace(0, float(case.workload.lengths.values[-1]), 300)
    rates = [
        evaluate(
            case.sites, case.pd, case.model, case.workload,
            threshold_tokens=float(t), num_prefill=found.num_prefill, num_decode=found.num_decode,
        )
        for t in thresholds
    ]  # fmt: skip
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    left = figure.subplots()
    left.plot(thresholds / 1000, [r.throughput_rps for r in rates], label="PrfaaS-PD", color="tab:blue")
    for system, colour in ((plan.homogeneous, "tab:grey"), (plan.naive, "tab:orange")):
        left.axhline(system.allocation.rates.throughput_rps, label=system.name, color=colour, linestyle="--")
    left.plot([found.threshold_tokens / 1000], [found.rates.throughput_rps], "o", color="tab:blue")
    left.annotate(f"t = {found.threshold_tokens / 1000:.1f}K", (found.threshold_tokens / 1000, found.rates.throughput_rps))
    left.set_xlabel("threshold, thousand uncached tokens")
    left.set_ylabel("requests/s")
    left.set_ylim(bottom=0)
    right = left.twinx()
    right.plot(thresholds / 1000, [r.egress_gbps for r in rates], color="tab:green", alpha=0.6)
    right.set_ylabel("egress, Gbit/s", color="tab:green")
    right.set_ylim(bottom=0)
    left.legend(loc="upper right")
    figure.savefig(path)
