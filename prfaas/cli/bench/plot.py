"""A run, or several beside each other, as one picture: TTFT, inter-token latency, output over time. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from prfaas.cli.bench.document import Outcome
from prfaas.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = (".png", ".svg", ".pdf")
SLICES = 60  # of a run, in the plot of its output over time


def check_plot(path: Path) -> None:
    """Raises ConfigError for a picture that could not be written, before an hour is spent on what it shows."""
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"--plot writes {', '.join(FORMATS)} files, not {path.name!r}")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ConfigError("--plot needs matplotlib: pip install 'prfaas[plot]'") from error


def plot(outcomes: Sequence[Outcome], path: Path) -> None:
    """Write the picture; its suffix says in which format."""
    check_plot(path)
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.hashsalt": "prfaas", "svg.fonttype": "none"}):
        figure = Figure(figsize=(12, 4), layout="constrained")
        ttft, itl, output = figure.subplots(1, 3)
        for outcome in outcomes:
            label = f"{outcome.model} at {outcome.url}"
            good = [record for record in outcome.records if record.good]
            _share(ttft, [r.ttft_s * 1e3 for r in good], label)
            _share(itl, [gap * 1e3 for r in good for gap in r.gaps_s], label)
            _output(output, outcome, label)
        _label(ttft, "TTFT, ms", "share of requests")
        _label(itl, "inter-token latency, ms", "share of gaps")
        _label(output, "seconds", "output, tokens/s")
        output.legend(fontsize="small")
        figure.savefig(path, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)


def _share(axes: Axes, values: Sequence[float], label: str) -> None:
    found = np.sort(np.asarray(values))
    axes.plot(found, np.arange(1, len(found) + 1) / max(1, len(found)), label=label)


def _output(axes: Axes, outcome: Outcome, label: str) -> None:
    """A piece of output counts for as many tokens as its request's pieces had on average."""
    width_s = max(outcome.figures.duration_s / SLICES, 1e-9)
    slices = np.zeros(SLICES + 1)
    for record in outcome.records:
        if record.first_s is None or not record.good:
            continue
        at = record.first_s + np.concatenate(([0.0], np.cumsum(record.gaps_s)))
        np.add.at(slices, np.minimum((at / width_s).astype(int), SLICES), record.output_tokens / len(at))
    axes.plot((np.arange(SLICES) + 0.5) * width_s, slices[:SLICES] / width_s, label=label)


def _label(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
