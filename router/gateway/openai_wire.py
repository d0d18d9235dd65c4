"""Pieces of OpenAI responses that several endpoints share: usage, finish reasons, errors inside a stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from prfaas.errors import PrfaasError
from prfaas.types import FinishReason, TokenOutput, Usage
from router.gateway.chat import ChatRun
from router.gateway.errors import openai_error
from router.gateway.problem import problem_of
from router.gateway.sample import Ending
from router.gateway.sse import data
from router.gateway.tools import ToolMode
from router.gateway.visit import Visit


def usage_object(usages: Sequence[Usage], *, reasoning_tokens: int = 0) -> dict[str, Any]:
    """The sum of the usages of one response's generations."""
    prompt = sum(usage.prompt_tokens for usage in usages)
    completion = sum(usage.completion_tokens for usage in usages)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(usage.cached_tokens for usage in usages)},
        "completion_tokens_details": {"reasoning_tokens": reasoning_tokens},
    }


def finish_reason(ending: Ending) -> str:
    """`length` when max_tokens or the context ran out, else `stop`."""
    return "length" if ending.reason is FinishReason.LENGTH else "stop"


def chat_finish_reason(run: ChatRun, index: int, ending: Ending | None) -> str | None:
    """As `finish_reason`, and `tool_calls` for a sample that ended well after calling tools of its own choice; None for
    one that goes on."""
    if ending is None:
        return None
    reason = finish_reason(ending)
    if reason == "stop" and run.called(index) and run.tools.mode is not ToolMode.NAMED:
        return "tool_calls"
    return reason


def token_ids(tokens: Sequence[TokenOutput], ending: Ending | None) -> list[int]:
    """Ids behind a text, and the stop token that ended it."""
    ids = [output.token_id for output in tokens]
    return [*ids, ending.token_id] if ending is not None and ending.token_id is not None else ids


def late_error(visit: Visit) -> Callable[[PrfaasError], bytes]:
    """Spells an error that comes after the response started; OpenAI's SDKs raise it from the stream."""

    def spell(error: PrfaasError) -> bytes:
        visit.fail(error)
        return data(openai_error(problem_of(error), visit.request_id))

    return spell
