"""A run as one HTML file: its figures and plots, with nothing loaded from anywhere."""

from __future__ import annotations

import html
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from prfaas.errors import ConfigError
from prfaas.sim.result import STAGES, Result, to_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; color: #222 }}
table {{ border-collapse: collapse; margin: 1rem 0 }} td, th {{ padding: .2rem .8rem; text-align: right }}
th:first-child, td:first-child {{ text-align: left }} tr {{ border-bottom: 1px solid #ddd }}
svg {{ max-width: 100%; height: auto }} pre {{ background: #f6f6f6; padding: 1rem; overflow: auto }}
</style></head><body><h1>{title}</h1><p>{summary}</p>{table}{plots}
<details><summary>JSON</summary><pre>{data}</pre></details></body></html>
"""


def write_report(result: Result, path: Path) -> None:
    """Write the report. Raises ConfigError when matplotlib is not installed."""
    scenario = result.scenario
    title = f"{scenario.case.name}: {scenario.policy.value} at {scenario.rate_rps:.2f} requests/s"
    summary = (
        f"Throughput {result.throughput_rps:.3f} requests/s, goodput {result.goodput_rps:.3f}, offered "
        f"{result.offered_rps:.3f}. {result.num_unfinished} requests got no answer. Egress {result.egress_gbps:.2f} Gbit/s."
    )
    plots = "".join(_svg(draw, result) for draw in (_ttft, _waterfall, _threshold, _use, _link))
    data = html.escape(json.dumps(to_json(result), indent=2))
    path.write_text(PAGE.format(title=html.escape(title), summary=summary, table=_table(result), plots=plots, data=data))


def _table(result: Result) -> str:
    rows = {"TTFT": result.ttft, **{name: result.stages[name] for name in STAGES}, "ITL": result.itl}
    head = "<tr><th>seconds</th><th>mean</th><th>P50</th><th>P90</th><th>P95</th><th>P99</th></tr>"
    body = "".join(
        f"<tr><td>{name}</td>" + "".join(f"<td>{v:.3f}</td>" for v in (s.mean, s.p50, s.p90, s.p95, s.p99)) + "</tr>"
        for name, s in rows.items()
    )
    return f"<table>{head}{body}</table>"


def _svg(draw: Callable[[Axes, Result], None], result: Result) -> str:
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("--html needs matplotlib: pip install 'prfaas[plot]'") from error
    out = io.StringIO()
    with rc_context({"svg.hashsalt": "prfaas", "svg.fonttype": "none"}):
        figure = Figure(figsize=(8, 3), layout="constrained")
        draw(figure.subplots(), result)
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()[out.getvalue().index("<svg") :]


def _ttft(axes: Axes, result: Result) -> None:
    values = sorted(r.ttft_s for r in result.journal.requests if r.finished)
    axes.plot(values, [(i + 1) / len(values) for i in range(len(values))])
    axes.axvline(result.scenario.ttft_slo_s, color="tab:red", linestyle="--")
    axes.set_xlabel("TTFT, s (dashed: objective)")
    axes.set_ylabel("share of requests")


def _waterfall(axes: Axes, result: Result) -> None:
    left = 0.0
    for name in STAGES:
        mean = result.stages[name].mean
        axes.barh(["mean"], [mean], left=left, label=name)
        left += mean
    axes.set_xlabel("seconds, stage after stage")
    axes.legend(ncols=len(STAGES), loc="lower center")


def _threshold(axes: Axes, result: Result) -> None:
    samples = result.journal.samples
    axes.step([s.at_s for s in samples], [s.threshold_tokens / 1000 for s in samples], where="post")
    axes.set_xlabel("s")
    axes.set_ylabel("threshold, K tokens")


def _use(axes: Axes, result: Result) -> None:
    samples = result.journal.samples
    times = [s.at_s for s in samples]
    axes.plot(times, [s.remote_busy for s in samples], label="remote prefill", linewidth=0.8)
    axes.plot(times, [s.local_busy for s in samples], label="local prefill", linewidth=0.8)
    axes.plot(times, [s.decode_slots for s in samples], label="decode slots", linewidth=0.8)
    axes.set_xlabel("s")
    axes.set_ylabel("share in use")
    axes.legend()


def _link(axes: Axes, result: Result) -> None:
    samples = result.journal.samples
    times = [s.at_s for s in samples]
    axes.plot(times, [s.link_gbps for s in samples], label="carried", linewidth=0.8)
    axes.step(times, [s.link_capacity_gbps for s in samples], label="capacity", where="post", color="tab:grey")
    axes.set_xlabel("s")
    axes.set_ylabel("Gbit/s")
    axes.legend()
