"""From OpenAI sampling fields to SamplingParams. Knows the fields' defaults, nothing about prompts."""

from __future__ import annotations

import secrets

from prfaas.errors import InvalidRequest
from prfaas.types import Grammar, SamplingParams
from router.gateway.checks import check_token_ids, logit_bias
from router.gateway.core import GatewayCore
from router.gateway.openai_schema import SamplingFields

_SEED_MASK = 2**64 - 1


def sampling_params(
    core: GatewayCore,
    body: SamplingFields,
    *,
    max_tokens: int | None,
    n: int = 1,
    logprobs: int | None = None,
    prompt_logprobs: int | None = None,
    grammar: Grammar | None = None,
) -> SamplingParams:
    """Fill in OpenAI's defaults; a seed is drawn if the caller has none. `max_tokens` is None where it is not known yet.

    Raises:
        InvalidRequest: token ids outside the vocabulary, or min_tokens above max_tokens.
    """
    min_tokens = body.min_tokens or 0
    if max_tokens is not None and min_tokens > max_tokens:
        raise InvalidRequest(f"min_tokens is {min_tokens}, more than the {max_tokens} allowed", param="min_tokens")
    stop_token_ids = tuple(body.stop_token_ids or ())
    check_token_ids("stop_token_ids", stop_token_ids, core.text)
    return SamplingParams(
        max_tokens=max_tokens if max_tokens is not None else max(1, min_tokens),
        min_tokens=min_tokens,
        temperature=_or(body.temperature, 1.0),
        top_p=_or(body.top_p, 1.0),
        top_k=max(0, body.top_k or 0),
        min_p=body.min_p or 0.0,
        repetition_penalty=_or(body.repetition_penalty, 1.0),
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        logit_bias=logit_bias(body.logit_bias, core.text),
        seed=secrets.randbits(63) if body.seed is None else body.seed & _SEED_MASK,
        n=n,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        stop_token_ids=stop_token_ids,
        ignore_eos=body.ignore_eos or False,
        grammar=grammar,
    )


def check_stream_options(body: SamplingFields) -> None:
    """Raises InvalidRequest for options of a stream that is not wanted."""
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("stream_options needs stream to be true", param="stream_options")


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
