"""One step of an engine as plain data: what the scheduler decided, and what a backend answers.

The plan is complete: a backend needs nothing else to run it, and the simulator can price it without running it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from prfaas.errors import PrfaasError
from prfaas.types import SamplingParams, TokenLogprob


@dataclass(frozen=True, slots=True)
class Draw:
    """One token to sample from a row's last logits, for sample `index` at output position `position`.

    `prompt_tokens` and `output_tokens` are the history that penalties and grammars look at. `sample_key` names what
    the backend remembers of the sample between steps (a grammar's state, token counts), unique per request and sample;
    when nothing looks at the history, it and `output_tokens` are empty.
    """

    index: int
    position: int
    params: SamplingParams
    prompt_tokens: tuple[int, ...]
    output_tokens: tuple[int, ...]
    sample_key: str = ""


class Row(NamedTuple):
    """One sequence's share of a step: feed `tokens` after `context_tokens` that are already cached.

    block_tables: group -> block ids from the sequence's start, -1 where absent. state_slots: group -> slot, read if
    context_tokens > 0 and written. `draws` is empty in the middle of a prefill; several draws mean n > 1 samples of
    one prefill. `layers_wanted` asks for layer callbacks (an export).
    """

    sequence_id: int
    tokens: tuple[int, ...]
    context_tokens: int
    block_tables: Mapping[str, tuple[int, ...]]
    state_slots: Mapping[str, int]
    draws: tuple[Draw, ...] = ()
    prompt_logprobs: int | None = None  # want logprobs of every fed token's successor within the prompt
    next_prompt_token: int | None = None  # the prompt token after this chunk, for prompt_logprobs across chunks
    layers_wanted: bool = False

    @property
    def end_tokens(self) -> int:
        return self.context_tokens + len(self.tokens)


@dataclass(frozen=True, slots=True)
class Copy:
    """Copy a block or state slot within a group; across tiers when the two differ ("device", "host")."""

    group: str
    source: int
    target: int
    source_tier: str = "device"
    target_tier: str = "device"


@dataclass(frozen=True, slots=True)
class StepPlan:
    """Copies `before` run first (restored snapshots, forked blocks), then the rows, then copies `after` (snapshots).

    `ended` lists the keys of samples that are over, so that the backend forgets them.
    """

    rows: tuple[Row, ...]
    before: tuple[Copy, ...] = ()
    after: tuple[Copy, ...] = ()
    ended: tuple[str, ...] = ()

    @property
    def num_tokens(self) -> int:
        return sum(len(row.tokens) for row in self.rows)

    @property
    def num_prefill_tokens(self) -> int:
        """Tokens of rows that compute a prompt: several at once, or a prompt's first."""
        return sum(len(row.tokens) for row in self.rows if len(row.tokens) > 1 or not row.context_tokens)

    @property
    def num_decodes(self) -> int:
        return sum(1 for row in self.rows if len(row.tokens) == 1 and row.context_tokens)

    @property
    def empty(self) -> bool:
        return not (self.rows or self.before or self.after or self.ended)


@dataclass(frozen=True, slots=True)
class Drawn:
    """A sampled token. `grammar_done`: the grammar accepts nothing further, so the sample must stop. With an `error` there
    is no token, and the request of this row ends with it; the other rows of the step are well."""

    token_id: int
    logprob: float | None = None
    top_logprobs: tuple[TokenLogprob, ...] = ()
    grammar_done: bool = False
    error: PrfaasError | None = None


@dataclass(frozen=True, slots=True)
class RowResult:
    """Answers one row: as many drawn tokens as it had draws, and prompt logprobs for its fed tokens when wanted."""

    drawn: tuple[Drawn, ...] = ()
    prompt_logprobs: tuple[tuple[TokenLogprob, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class StepResult:
    """Results by sequence id, one for each row of the plan; and how long the copies from host memory took, where the
    backend measures that and there were any."""

    rows: Mapping[int, RowResult] = field(default_factory=dict)
    restore_s: float | None = None
