"""Turns the rows of a step plan into the tensors of one forward pass, and says which logits answer what.

Runs once per step in front of every decoded token, so it makes few, small tensors. Knows no weights and no cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from prfaas.engine.torch_sampler import SampleJob
from prfaas.model.api import Segment, StepInput
from prfaas.modelspec import CacheSpec
from prfaas.sched.plan import Row


@dataclass(frozen=True, slots=True)
class ScoreSpan:
    """Prompt logprobs of plan row `row`: logits rows from `logits_start` score these successors, one each."""

    row: int
    logits_start: int
    successors: tuple[int, ...]
    num_best: int


@dataclass(frozen=True, slots=True)
class PackedStep:
    """A forward pass, and what to do with its logits. `jobs` come in the order of rows and their draws."""

    step: StepInput
    jobs: tuple[SampleJob, ...]
    scores: tuple[ScoreSpan, ...]


@dataclass(slots=True)
class _Wanted:
    """Collects the rows of the token axis whose logits are needed."""

    rows: list[int]
    jobs: list[SampleJob]
    scores: list[ScoreSpan]

    def add(self, ordinal: int, row: Row, start: int) -> None:
        last = start + len(row.tokens) - 1
        if row.prompt_logprobs is not None:
            after = () if row.next_prompt_token is None else (row.next_prompt_token,)
            successors = row.tokens[1:] + after
            if successors:
                self.scores.append(ScoreSpan(ordinal, len(self.rows), successors, row.prompt_logprobs))
                self.rows.extend(range(start, start + len(successors)))
        if row.draws:
            if not self.rows or self.rows[-1] != last:
                self.rows.append(last)
            self.jobs.extend(SampleJob(len(self.rows) - 1, draw) for draw in row.draws)


def pack_rows(rows: Sequence[Row], cache: CacheSpec, device: torch.device) -> PackedStep:
    """Concatenate rows along the token axis. Row i becomes segment i; shapes and dtypes are those of `StepInput`.

    Block tables and state slots stay in host memory, where a network plans its accesses; the rest is on `device`.
    """
    tokens: list[int] = []
    positions: list[int] = []
    segments: list[Segment] = []
    wanted = _Wanted([], [], [])
    for ordinal, row in enumerate(rows):
        start = len(tokens)
        tokens.extend(row.tokens)
        positions.extend(range(row.context_tokens, row.end_tokens))
        segments.append(Segment(start, len(row.tokens), row.context_tokens))
        wanted.add(ordinal, row, start)
    tables: dict[str, torch.Tensor] = {}
    slots: dict[str, torch.Tensor] = {}
    for group in cache.groups:
        if group.is_state:
            slots[group.name] = torch.tensor([row.state_slots[group.name] for row in rows])
        else:
            tables[group.name] = _block_table([row.block_tables[group.name] for row in rows])
    step = StepInput(
        tokens=torch.tensor(tokens, device=device),
        positions=torch.tensor(positions, device=device),
        segments=segments,
        block_tables=tables,
        state_slots=slots,
        logits_rows=torch.tensor(wanted.rows, dtype=torch.int64, device=device),
        block_tokens=cache.block_tokens,
    )
    return PackedStep(step, tuple(wanted.jobs), tuple(wanted.scores))


def _block_table(tables: Sequence[tuple[int, ...]]) -> torch.Tensor:
    """int32 [rows, longest table], padded with -1."""
    packed = np.full((len(tables), max(map(len, tables))), -1, dtype=np.int32)
    for at, table in enumerate(tables):
        packed[at, : len(table)] = table
    return torch.from_numpy(packed)
