"""A run as JSON and back. The keys are described in docs/clients.md; they are added to, never renamed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prfaas.cli.bench.figures import Figures, Objective
from prfaas.cli.bench.record import Record
from prfaas.errors import ConfigError

_SPREADS = frozenset({"ttft", "itl", "tpot", "e2e", "late"})


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run against one server, with what is needed to repeat it."""

    url: str
    model: str
    workload: Mapping[str, Any]
    objective: Objective
    figures: Figures
    records: tuple[Record, ...] = ()


def to_json(outcome: Outcome) -> dict[str, Any]:
    """Everything, as JSON-ready values."""
    figures = asdict(outcome.figures)
    names = {f"{name}_s" if name in _SPREADS else name: value for name, value in figures.items()}
    return {
        "url": outcome.url,
        "model": outcome.model,
        "workload": dict(outcome.workload),
        "slo": asdict(outcome.objective),
        "figures": names,
        "requests": [asdict(record) for record in outcome.records],
    }


def read_outcome(path: Path) -> Outcome:
    """The run that a file holds. Raises ConfigError when it holds none."""
    try:
        document = json.loads(path.read_text())
        records = tuple(Record(**{**each, "gaps_s": tuple(each["gaps_s"])}) for each in document["requests"])
        objective = Objective(**document["slo"])
        named = (str(document["url"]), str(document["model"]), dict(document["workload"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} does not hold a run of 'prfaas bench --json': {error!r}") from error
    return Outcome(*named, objective, Figures.of(records, objective), records)
