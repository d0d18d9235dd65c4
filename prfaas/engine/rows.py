"""From a round of the scheduler to a step plan, and the check that a result answers it. Pure; decides nothing."""

from __future__ import annotations

from collections.abc import Mapping

from prfaas.cache.lease import Move
from prfaas.engine.job import Job, JobKind, Strand
from prfaas.sched.plan import Copy, Draw, Row, StepPlan, StepResult
from prfaas.sched.scheduler import Round, Share


def build_plan(step: Round, strands: Mapping[int, tuple[Job, Strand]], ended: tuple[str, ...]) -> StepPlan:
    """The plan of a round. `strands`: sequence id -> its job and strand; `ended`: sample keys to forget."""
    return StepPlan(
        rows=tuple(_row(share, *strands[share.sequence.sequence_id]) for share in step.shares),
        before=tuple(_copy(move) for move in step.moves),
        after=tuple(_copy(move) for share in step.shares if share.snapshot for move in share.snapshot.moves),
        ended=ended,
    )


def is_answered(plan: StepPlan, result: StepResult) -> bool:
    """Whether a result has one entry for each row, with one drawn token for each draw."""
    for row in plan.rows:
        answer = result.rows.get(row.sequence_id)
        if answer is None or len(answer.drawn) != len(row.draws):
            return False
    return True


def _row(share: Share, job: Job, strand: Strand) -> Row:
    sequence = share.sequence
    end = sequence.computed + share.num_tokens
    wants_prompt = job.request.sampling.prompt_logprobs if not job.spoke else None
    return Row(
        sequence_id=sequence.sequence_id,
        tokens=tuple(sequence.tokens[sequence.computed : end]),
        context_tokens=sequence.computed,
        block_tables={name: tuple(table) for name, table in sequence.held.tables.items()},
        state_slots=dict(sequence.held.slots),
        draws=_draws(job, strand) if end == len(sequence.tokens) else (),
        prompt_logprobs=wants_prompt,
        next_prompt_token=sequence.tokens[end] if wants_prompt is not None and end < sequence.num_prompt else None,
        layers_wanted=job.kind is JobKind.EXPORT,
    )


def _draws(job: Job, strand: Strand) -> tuple[Draw, ...]:
    request = job.request
    return tuple(
        [
            Draw(
                index=sample.index,
                position=len(sample.tokens),
                params=request.sampling,
                prompt_tokens=request.tokens,
                output_tokens=tuple(sample.tokens) if sample.sample_key else (),
                sample_key=sample.sample_key,
            )
            for sample in strand.samples
        ]
    )


def _copy(move: Move) -> Copy:
    return Copy(move.group, move.source, move.target, move.source_tier, move.target_tier)
