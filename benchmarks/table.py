"""The table every benchmark prints: a value beside its baseline, the bar it has to pass, and where it was measured."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

_COLUMNS = ("name", "value", "unit", "baseline", "ratio", "bar", "ok")


@dataclass(frozen=True, slots=True)
class Measurement:
    """One row. `bar` is the least acceptable ratio to the baseline; without a baseline, the limit of the value itself.

    A ratio above 1 always means better than the baseline, also where lower values are better.
    """

    name: str
    value: float
    unit: str
    baseline: float | None = None
    bar: float | None = None
    lower_is_better: bool = False
    note: str = ""

    @property
    def ratio(self) -> float | None:
        if not self.baseline or not self.value:
            return None
        return self.baseline / self.value if self.lower_is_better else self.value / self.baseline

    @property
    def ok(self) -> bool | None:
        """Whether the bar is passed; None when there is none."""
        if self.bar is None:
            return None
        if self.ratio is not None:
            return self.ratio >= self.bar
        return self.value <= self.bar if self.lower_is_better else self.value >= self.bar


@dataclass(slots=True)
class Report:
    """Measurements of one run, with what is needed to repeat it."""

    title: str
    seed: int
    rows: list[Measurement] = field(default_factory=list)

    def add(self, row: Measurement) -> None:
        self.rows.append(row)

    def document(self) -> dict[str, object]:
        """Everything, as JSON-ready values."""
        return {
            "title": self.title,
            "commit": commit(),
            "hardware": hardware(),
            "python": platform.python_version(),
            "seed": self.seed,
            "command": " ".join([Path(sys.executable).name, *sys.orig_argv[1:]]),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "rows": [{**asdict(row), "ratio": row.ratio, "ok": row.ok} for row in self.rows],
        }

    def text(self) -> str:
        """The table, aligned, under a line that says where it comes from."""
        cells = [list(_COLUMNS), *(_cells(row) for row in self.rows)]
        widths = [max(len(line[at]) for line in cells) for at in range(len(_COLUMNS))]
        head = f"{self.title} | commit {commit()} | {hardware()} | seed {self.seed}"
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
        notes = [f"{row.name}: {row.note}" for row in self.rows if row.note]
        return "\n".join([head, *lines, *notes])


def _cells(row: Measurement) -> list[str]:
    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"

    ok = {None: "-", True: "yes", False: "NO"}[row.ok]
    return [row.name, number(row.value), row.unit, number(row.baseline), number(row.ratio), number(row.bar), ok]


def commit() -> str:
    """Short hash of the checked-out commit, with a plus sign when files differ from it; "unknown" outside git."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
        return done.stdout.strip() if done.returncode == 0 else ""

    short = git("rev-parse", "--short", "HEAD")
    return (short + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")) if short else "unknown"


def hardware() -> str:
    """Processor, cores this process may use, and memory."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        model = names[0] if names else model
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{model}, {len(os.sched_getaffinity(0))} cores, {memory_gib:.0f} GiB"


def arguments(description: str, *, seed: int) -> argparse.ArgumentParser:
    """A parser with the options all benchmarks share; a benchmark adds its own."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the table as JSON")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a bar is missed")
    parser.add_argument("--seed", type=int, default=seed, help="seed of everything random (default: %(default)s)")
    return parser


def finish(report: Report, options: argparse.Namespace) -> int:
    """Print the table, write the JSON that was asked for, and give the exit status."""
    print(report.text())
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report.document(), indent=1) + "\n")
    return 1 if options.check and missed(report.rows) else 0


def missed(rows: Sequence[Measurement]) -> list[str]:
    """Names of the rows whose bar is missed."""
    return [row.name for row in rows if row.ok is False]
