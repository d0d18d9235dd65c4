"""Runs as tables for a person: one by itself, or two beside each other with ratios."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from prfaas.cli.bench.document import Outcome
from prfaas.cli.bench.figures import Figures
from prfaas.sim.result import Spread

LATE_S = 0.010  # requests sent later than this, at the 99th percentile, say that the generator is the bottleneck
NOTABLE = 0.05  # differences from here on are coloured
_LATENCIES = ("TTFT", "ITL", "TPOT", "E2E")


@dataclass(frozen=True, slots=True)
class Row:
    """One compared figure."""

    name: str
    first: float
    second: float
    lower_is_better: bool

    @property
    def ratio(self) -> float | None:
        """How many times better the second is; None where one of them is nothing."""
        if not self.first or not self.second:
            return None
        return self.first / self.second if self.lower_is_better else self.second / self.first


def show(outcome: Outcome, console: Console) -> None:
    """One run."""
    figures = outcome.figures
    console.print(f"[bold]{outcome.model}[/] at {outcome.url}: {_sentence(figures)}")
    table = Table("milliseconds", title_justify="left")
    for heading in ("mean", "P50", "P90", "P95", "P99"):
        table.add_column(heading, justify="right")
    for name, spread in _spreads(figures):
        table.add_row(name, *(f"{value * 1e3:,.2f}" for value in (spread.mean, spread.p50, spread.p90, spread.p95, spread.p99)))
    console.print(table)
    console.print(
        f"output {figures.output_tokens_per_s:,.1f} tokens/s, prompt {figures.prompt_tokens_per_s:,.1f} tokens/s, "
        f"{figures.requests_per_s:.2f} requests/s"
    )
    if figures.goodput_rps is not None:
        share = figures.goodput_rps / figures.requests_per_s if figures.requests_per_s else 0.0
        console.print(f"goodput {figures.goodput_rps:.2f} requests/s ({share:.0%} of those answered; {_objective(outcome)})")
    if figures.routes:
        console.print("routes: " + ", ".join(f"{name} {count}" for name, count in sorted(figures.routes.items())))
    if figures.late.p99 > LATE_S:
        console.print(
            f"[yellow]![/] requests were sent up to {figures.late.p99 * 1e3:.0f} ms late (P99): the load generator is short of "
            "CPU, and latencies are not the server's alone"
        )


def show_errors(figures: Figures, console: Console) -> None:
    """What went wrong, most frequent first."""
    for error, count in sorted(figures.errors.items(), key=lambda item: -item[1])[:10]:
        console.print(f"[bold red]{count} failed:[/] ", end="")
        console.print(error, markup=False)


def show_pair(first: Outcome, second: Outcome, console: Console) -> None:
    """Two runs. A ratio above 1 always says that the second is better."""
    table = Table("", title_justify="left")
    for heading in (f"{first.model}\n{first.url}", f"{second.model}\n{second.url}", "ratio"):
        table.add_column(heading, justify="right")
    for row in compare(first.figures, second.figures):
        table.add_row(row.name, f"{row.first:,.2f}", f"{row.second:,.2f}", _ratio(row.ratio))
    console.print(table)
    keys = sorted(set(first.workload) | set(second.workload))
    pairs = {key: (first.workload.get(key), second.workload.get(key)) for key in keys}
    changed = [f"{key}: {one} / {other}" for key, (one, other) in pairs.items() if one != other]
    if changed:
        console.print(f"[yellow]![/] the workloads differ: {', '.join(changed)}")


def _ratio(ratio: float | None) -> Text:
    if ratio is None:
        return Text("-")
    return Text(f"{ratio:.2f}", style="green" if ratio > 1 + NOTABLE else "red" if ratio < 1 - NOTABLE else "")


def compare(first: Figures, second: Figures) -> Iterator[Row]:
    """Every figure of two runs that can be better or worse; latencies in milliseconds."""
    for (name, one), (_, other) in zip(_spreads(first), _spreads(second), strict=True):
        for label, a, b in (("P50", one.p50, other.p50), ("P90", one.p90, other.p90), ("P99", one.p99, other.p99)):
            yield Row(f"{name} {label}, ms", a * 1e3, b * 1e3, lower_is_better=True)
    yield Row("output, tokens/s", first.output_tokens_per_s, second.output_tokens_per_s, lower_is_better=False)
    yield Row("requests/s", first.requests_per_s, second.requests_per_s, lower_is_better=False)
    if first.goodput_rps is not None and second.goodput_rps is not None:
        yield Row("goodput, requests/s", first.goodput_rps, second.goodput_rps, lower_is_better=False)


def _spreads(figures: Figures) -> list[tuple[str, Spread]]:
    return list(zip(_LATENCIES, (figures.ttft, figures.itl, figures.tpot, figures.e2e), strict=True))


def _sentence(figures: Figures) -> str:
    return (
        f"{figures.num_good} of {figures.num_requests} requests in {figures.duration_s:.1f} s, on average "
        f"{figures.mean_prompt_tokens:,.0f} tokens in ({figures.cached_share:.0%} from a cache), "
        f"{figures.mean_output_tokens:,.0f} out"
    )


def _objective(outcome: Outcome) -> str:
    given = {"TTFT": outcome.objective.ttft_s, "ITL": outcome.objective.itl_s}
    return ", ".join(f"{name} within {limit_s * 1e3:g} ms" for name, limit_s in given.items() if limit_s is not None)
