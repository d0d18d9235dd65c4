"""Pieces of OpenAI responses that several endpoints share: usage, finish reasons, errors inside a stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from prfaas.errors import PrfaasError
from prfaas.types import FinishReason, TokenOutput, Usage
from router.gateway.chat import ChatRun
from router.gateway.errors import openai_error
from router.gateway.openai_schema import StreamOptions
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


@dataclass(frozen=True, slots=True)
class UsageIn:
    """Which chunks of a stream say what was used: `every` one, or a `last` one of its own, which the others announce."""

    every: bool
    last: bool

    def added(self, chunk: dict[str, Any], usage: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """A chunk with its usage; null where the last chunk will have it."""
        if not (self.every or self.last):
            return chunk
        return {**chunk, "usage": usage() if self.every else None}


def usage_in(options: StreamOptions | None, *, with_report: bool) -> UsageIn:
    """What `stream_options` ask for; the report travels with the last usage."""
    chosen = options or StreamOptions()
    return UsageIn(every=chosen.continuous_usage_stats, last=chosen.include_usage or with_report)


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
