"""Which requests an engine takes, and when a sample is over. Pure rules; no state."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, isfinite, isnan

from prfaas.errors import InvalidRequest, OutOfBlocks, PromptTooLong
from prfaas.modelspec import ModelSpec
from prfaas.types import FinishReason, GenerationRequest, SamplingParams

MAX_SAMPLES = 128  # of one request: each has books of its own, and a caller inside the fleet could ask for billions


def check_request(request: GenerationRequest, spec: ModelSpec) -> None:
    """Refuse what can never be computed.

    Raises:
        InvalidRequest: no tokens, ids outside the vocabulary, or counts out of range.
        PromptTooLong: no room for a single answer token in the context.
    """
    params = request.sampling
    if not request.tokens:
        raise InvalidRequest("the prompt is empty; send at least one token", param="prompt")
    if min(request.tokens) < 0 or max(request.tokens) >= spec.vocab_size:
        raise InvalidRequest(f"token ids must be at least 0 and below {spec.vocab_size}", param="prompt")
    if params.max_tokens < 1:
        raise InvalidRequest(f"max_tokens must be at least 1, not {params.max_tokens}", param="max_tokens")
    if not 1 <= params.n <= MAX_SAMPLES:
        raise InvalidRequest(f"n must be between 1 and {MAX_SAMPLES}, not {params.n}", param="n")
    if not 0 <= params.min_tokens <= params.max_tokens:
        raise InvalidRequest(f"min_tokens must be between 0 and max_tokens ({params.max_tokens})", param="min_tokens")
    _check_numbers(params)
    excess = len(request.tokens) + 1 - spec.max_context_tokens
    if excess > 0:
        raise PromptTooLong(
            f"the prompt has {len(request.tokens)} tokens, and at most {spec.max_context_tokens - 1} leave room for an "
            f"answer; shorten it by {excess}",
            prompt_tokens=len(request.tokens),
            max_context_tokens=spec.max_context_tokens,
            excess_tokens=excess,
        )


def _check_numbers(params: SamplingParams) -> None:
    """Raises InvalidRequest for what is not a number, or none that a distribution can be shaped with."""
    within = {
        "temperature": 0.0 <= params.temperature < inf,
        "top_p": 0.0 < params.top_p <= 1.0,
        "min_p": 0.0 <= params.min_p <= 1.0,
        "repetition_penalty": 0.0 < params.repetition_penalty < inf,
        "presence_penalty": isfinite(params.presence_penalty),
        "frequency_penalty": isfinite(params.frequency_penalty),
        "logit_bias": not any(isnan(bias) or bias == inf for _, bias in params.logit_bias),
    }
    wrong = next((name for name, fine in within.items() if not fine), None)
    if wrong is not None:
        raise InvalidRequest(f"{wrong} is not a number that tokens can be drawn with", param=wrong)


def never_fits(group: str, needed_blocks: int, existing_blocks: int) -> OutOfBlocks:
    """The refusal of a request that is too large for a cache group even when it is alone."""
    return OutOfBlocks(
        f"prompt and answer need {needed_blocks} blocks of the {group} cache, and it has {existing_blocks}; "
        "shorten the prompt or lower max_tokens",
        needed_blocks=needed_blocks,
        free_blocks=existing_blocks,
        group=group,
    )


def total_tokens(request: GenerationRequest, spec: ModelSpec) -> int:
    """The most tokens that are ever computed for one sample: prompt and answer, within the context."""
    return min(len(request.tokens) + request.sampling.max_tokens, spec.max_context_tokens)


def snapshot_position(request: GenerationRequest, spec: ModelSpec) -> int | None:
    """The block boundary whose recurrent states travel with a prompt's cache, so that the next turn of the conversation
    can resume there at the receiver; None where they would not be worth sending.

    States at the prompt's own end fit no other prompt, and a decode leaves a snapshot at the next boundary it reaches; so
    one is sent unless the answer is sure to get there, or `CacheSpec.boundary_bytes` finds it not worth sending.
    """
    cache, num_tokens, params = spec.cache, len(request.tokens), request.sampling
    position = max(0, num_tokens - 1) // cache.block_tokens * cache.block_tokens
    if not cache.boundary_bytes(num_tokens):
        return None
    sure_tokens = params.max_tokens if params.ignore_eos and not params.stop_token_ids else params.min_tokens
    reaches = num_tokens + sure_tokens - 1 >= position + cache.block_tokens and params.grammar is None
    return None if reaches else position


def penalised(params: SamplingParams) -> bool:
    """Whether what a sample has said makes tokens less likely."""
    return params.repetition_penalty != 1.0 or params.presence_penalty != 0.0 or params.frequency_penalty != 0.0


def needs_history(params: SamplingParams) -> bool:
    """Whether the draws of a sample depend on its earlier tokens, beyond the logits."""
    return params.grammar is not None or penalised(params)


def finish_reason(
    request: GenerationRequest, spec: ModelSpec, answer: Sequence[int], *, grammar_done: bool
) -> FinishReason | None:
    """Whether a sample is over after the last token of `answer`; stop tokens win over lengths.

    An end or stop token counts from position `min_tokens` on.
    """
    params, last = request.sampling, answer[-1]
    ends = last in params.stop_token_ids or (last in spec.eos_token_ids and not params.ignore_eos)
    if grammar_done or (ends and len(answer) > params.min_tokens):
        return FinishReason.STOP
    if len(answer) >= params.max_tokens or len(request.tokens) + len(answer) >= spec.max_context_tokens:
        return FinishReason.LENGTH
    return None
