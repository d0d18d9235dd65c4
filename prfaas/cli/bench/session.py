"""One call of `prfaas bench`: progress while it runs, tables, JSON and a picture at the end, and the exit status."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from prfaas.cli.bench.document import Outcome, read_outcome, to_json
from prfaas.cli.bench.drive import Run
from prfaas.cli.bench.plot import check_plot, plot
from prfaas.cli.bench.record import Record
from prfaas.cli.bench.running import Plan, bench
from prfaas.cli.bench.show import show, show_errors, show_pair
from prfaas.cli.outputs import require_places
from prfaas.cli.screen import Screen
from prfaas.clock import MonotonicClock


@dataclass(frozen=True, slots=True)
class Output:
    """Where a run goes besides the screen. `json` is a path or '-'."""

    json: str | None
    plot: Path | None


def run_bench(urls: Sequence[str], plan: Plan, output: Output, screen: Screen) -> int:
    """Run the plan against one or two servers, one after the other; returns the exit status. Raises as `bench`."""
    require_places(output.json, output.plot)
    if output.plot is not None:
        check_plot(output.plot)
    outcomes = [_watched(url, plan, screen) for url in urls]
    documents = [to_json(outcome) for outcome in outcomes]
    text = json.dumps(documents[0] if len(documents) == 1 else documents, indent=1)
    if output.json is not None and output.json != "-":
        Path(output.json).write_text(text + "\n")
    if output.plot is not None:
        plot(outcomes, output.plot)
    if output.json == "-":
        print(text)
    _report(outcomes, screen.console if output.json == "-" else Console(soft_wrap=True, highlight=False))
    failed = [outcome for outcome in outcomes if outcome.figures.num_good < outcome.figures.num_requests]
    for outcome in failed:
        show_errors(outcome.figures, screen.console)
    return 1 if failed else 0


def compare_files(first: Path, second: Path, picture: Path | None) -> None:
    """Show two runs that were written before. Raises ConfigError when a file holds none."""
    outcomes = [read_outcome(first), read_outcome(second)]
    show_pair(outcomes[0], outcomes[1], Console(soft_wrap=True, highlight=False))
    if picture is not None:
        plot(outcomes, picture)


def _report(outcomes: Sequence[Outcome], console: Console) -> None:
    for outcome in outcomes:
        show(outcome, console)
    if len(outcomes) > 1:
        show_pair(outcomes[0], outcomes[1], console)


def _watched(url: str, plan: Plan, screen: Screen) -> Outcome:
    with _bar(screen.console) as bar:

        def watch(run: Run, total: int) -> None:
            bar.columns = (*bar.columns, _Rate(run))
            row = bar.add_task(url, total=total)
            failed = 0

            def advance(record: Record) -> None:
                nonlocal failed
                failed += not record.good
                bar.update(row, advance=1, description=f"{url} [red]{failed} failed[/]" if failed else url)

            run.progress = advance

        return bench(url, plan, MonotonicClock(), say=screen.step, watch=watch)


@contextmanager
def _bar(console: Console) -> Iterator[Progress]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, refresh_per_second=4) as bar:
        yield bar


class _Rate(ProgressColumn):
    """Pieces of output a second so far."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self._run = run

    def render(self, task: Task) -> Text:
        elapsed_s = self._run.now_s()
        return Text(f"{self._run.pieces / elapsed_s:,.0f} tokens/s" if elapsed_s > 0 else "")
