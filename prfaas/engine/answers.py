"""Takes drawn tokens into a job's samples and makes the events that its stream will carry. Frees and plans nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from prfaas.engine.api import EngineEvent, LayersReady, SnapshotReady
from prfaas.engine.job import Job, JobKind, Strand
from prfaas.engine.rules import finish_reason
from prfaas.modelspec import ModelSpec
from prfaas.sched.plan import Drawn
from prfaas.sched.scheduler import Share
from prfaas.sched.sequence import Sequence as TokenSequence
from prfaas.types import FinishReason, TokenOutput


def readable_at_once(job: Job, sequence: TokenSequence, num_layers: int) -> tuple[EngineEvent, ...]:
    """What of an export its prefix hit makes readable before anything is computed."""
    if job.kind is not JobKind.EXPORT or not sequence.cached:
        return ()
    return (LayersReady(0, num_layers, 0, sequence.cached), *_kept_at(sequence, sequence.cached))


def snapshot_readable(job: Job, share: Share) -> tuple[EngineEvent, ...]:
    """The snapshot that an export keeps, once the step that reached it has run."""
    if job.kind is not JobKind.EXPORT or share.snapshot is None:
        return ()
    return _kept_at(share.sequence, share.sequence.computed)


def _kept_at(sequence: TokenSequence, num_tokens: int) -> tuple[EngineEvent, ...]:
    return (SnapshotReady(num_tokens),) if sequence.held.kept_tokens == num_tokens else ()


def take_drawn(job: Job, strand: Strand, spec: ModelSpec, drawn: Sequence[Drawn]) -> tuple[TokenOutput, ...]:
    """Append one token to each of the strand's samples. The first output of sample 0 carries the prompt's logprobs."""
    outputs = []
    for sample, token in zip(strand.samples, drawn, strict=True):
        sample.tokens.append(token.token_id)
        sample.finish = finish_reason(job.request, spec, sample.tokens, grammar_done=token.grammar_done)
        wants_prompt = not job.spoke and sample.index == 0 and job.request.sampling.prompt_logprobs is not None
        outputs.append(
            TokenOutput(
                index=sample.index,
                position=len(sample.tokens) - 1,
                token_id=token.token_id,
                logprob=token.logprob,
                top_logprobs=token.top_logprobs,
                finish_reason=sample.finish,
                prompt_logprobs=tuple(job.prompt_logprobs) if wants_prompt else None,
            )
        )
    return tuple(outputs)


def take_first(job: Job, spec: ModelSpec, first: Sequence[TokenOutput]) -> tuple[TokenOutput, ...]:
    """Append first tokens that were drawn elsewhere, one for each sample, with the finish reasons they have here.

    Whether a grammar is done is known only where the token was drawn: its STOP is kept.
    """
    outputs = []
    for output in sorted(first, key=lambda each: each.index):
        sample = job.samples[output.index]
        sample.tokens.append(output.token_id)
        stopped = output.finish_reason is FinishReason.STOP
        sample.finish = finish_reason(job.request, spec, sample.tokens, grammar_done=stopped)
        outputs.append(replace(output, finish_reason=sample.finish))
    return tuple(outputs)


def accepted_by_grammars(job: Job) -> list[tuple[str, tuple[int, ...]]]:
    """Keys of the constrained samples that go on, and the tokens that their grammars have not seen yet."""
    if job.request.sampling.grammar is None:
        return []
    return [(s.sample_key, tuple(s.tokens)) for s in job.samples if s.finish is None]
