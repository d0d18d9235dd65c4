"""Takes drawn tokens into a job's samples and makes the outputs that its stream will carry. Frees and plans nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from prfaas.engine.job import Job, Strand
from prfaas.engine.rules import finish_reason
from prfaas.modelspec import ModelSpec
from prfaas.sched.plan import Drawn
from prfaas.types import FinishReason, TokenOutput


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
