"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's dialect over a ChatRun.

A response is a sequence of events in either case; the document is those events folded together.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from prfaas.errors import PrfaasError
from prfaas.types import FinishReason
from router.gateway import not_applied
from router.gateway.anthropic_ask import count_ask, messages_ask
from router.gateway.anthropic_schema import CountRequest, MessagesRequest
from router.gateway.body import BodyRoute
from router.gateway.chat import ChatDelta, ChatRun, chat_prompt_tokens, start_chat
from router.gateway.core import GatewayCore
from router.gateway.documents import AnthropicError, AnthropicMessage, CountedTokens, answers
from router.gateway.errors import anthropic_error
from router.gateway.facts import report, route_header, wants_report
from router.gateway.generation import Routed
from router.gateway.parsers.api import CallArguments, CallStart, Piece, ReasoningPiece, TextPiece
from router.gateway.problem import problem_of
from router.gateway.prompt import new_id
from router.gateway.reply import EventSink, JsonReply, StreamReply
from router.gateway.sample import Ending
from router.gateway.sse import event
from router.gateway.visit import Visit, visit_of

Event = dict[str, Any]


def anthropic_routes(core: GatewayCore) -> APIRouter:
    """The endpoints, bound to their ports."""
    router = APIRouter(route_class=BodyRoute)
    message_answers = answers(AnthropicMessage, error=AnthropicError, streams=True)
    count_answers = answers(CountedTokens, error=AnthropicError)

    @router.post("/v1/messages", response_class=Response, responses=message_answers)
    async def create_message(body: MessagesRequest, request: Request) -> Response:
        visit = visit_of(request)
        run = await start_chat(core, messages_ask(core, body), visit, new_id("msg").replace("-", "_"))
        reply = _Message(run, not_applied.of_messages(body), wants_report(request, body.prfaas_report))
        limit_s = run.generation.request.deadline_s
        if not body.stream:
            return JsonReply(reply.document, limit_s=limit_s)
        keepalive_s = core.settings.limits.sse_keepalive_s
        return StreamReply(reply.stream, keepalive_s=keepalive_s, limit_s=limit_s, late=_late_error(visit))

    @router.post("/v1/messages/count_tokens", response_class=JSONResponse, responses=count_answers)
    async def count_tokens(body: CountRequest) -> JSONResponse:
        return JSONResponse({"input_tokens": len(await chat_prompt_tokens(core, count_ask(body)))})

    return router


def _late_error(visit: Visit) -> Callable[[PrfaasError], bytes]:
    def spell(error: PrfaasError) -> bytes:
        visit.fail(error)
        return event("error", anthropic_error(problem_of(error), visit.request_id))

    return spell


class _Blocks:
    """Arranges pieces into content blocks: consecutive pieces of a kind share one, every call has its own."""

    def __init__(self) -> None:
        self._open: str | None = None
        self._index = -1

    def add(self, piece: Piece) -> Iterator[Event]:
        match piece:
            case TextPiece(text):
                yield from self._ensure("text", {"type": "text", "text": ""})
                yield self._delta({"type": "text_delta", "text": text})
            case ReasoningPiece(text):
                yield from self._ensure("thinking", {"type": "thinking", "thinking": "", "signature": ""})
                yield self._delta({"type": "thinking_delta", "thinking": text})
            case CallStart(_, call_id, name):
                yield from self.close()
                yield from self._ensure("tool_use", {"type": "tool_use", "id": call_id, "name": name, "input": {}})
            case CallArguments(_, text):
                yield self._delta({"type": "input_json_delta", "partial_json": text})

    def close(self) -> Iterator[Event]:
        if self._open is not None:
            self._open = None
            yield {"type": "content_block_stop", "index": self._index}

    def _ensure(self, kind: str, empty: dict[str, Any]) -> Iterator[Event]:
        if self._open == kind:
            return
        yield from self.close()
        self._open = kind
        self._index += 1
        yield {"type": "content_block_start", "index": self._index, "content_block": empty}

    def _delta(self, delta: dict[str, Any]) -> Event:
        return {"type": "content_block_delta", "index": self._index, "delta": delta}


class _Message:
    """One response."""

    def __init__(self, run: ChatRun, headers: Mapping[str, str], with_report: bool) -> None:
        self._run = run
        self._headers = headers
        self._with_report = with_report
        self._blocks = _Blocks()

    async def document(self) -> tuple[dict[str, Any], Mapping[str, str]]:
        """Fold the events into a `message`."""
        headers: dict[str, str] = {}
        content: list[dict[str, Any]] = []
        arguments: dict[int, str] = {}
        stop: dict[str, Any] = {}
        async with aclosing(self._run.run()) as events:
            async for item in events:
                if isinstance(item, Routed):
                    headers = {**self._headers, **route_header(item)}
                    continue
                for delta in item:
                    for piece in delta.pieces:
                        for found in self._blocks.add(piece):
                            _fold(found, content, arguments)
                    if delta.ending is not None:
                        stop = self._stop(delta.ending)
        for index, text in arguments.items():
            content[index]["input"] = _parsed(text)
        document = {**self._head(), "content": content, **stop, "usage": self._usage(), **self._report()}
        return document, headers

    async def stream(self, sink: EventSink) -> None:
        """Send the events. `message_start` waits for the first token, for it names the tokens found in a cache."""
        started = False
        async with aclosing(self._run.run()) as events:
            async for item in events:
                if isinstance(item, Routed):
                    sink.open({**self._headers, **route_header(item)})
                    continue
                found: list[Event] = [] if started else [self._start(), {"type": "ping"}]
                started = True
                for delta in item:
                    found += self._events(delta)
                if found:
                    await sink.send(b"".join(event(each["type"], each) for each in found))

    def _events(self, delta: ChatDelta) -> Iterator[Event]:
        for piece in delta.pieces:
            yield from self._blocks.add(piece)
        if delta.ending is not None:
            yield from self._blocks.close()
            end = {"type": "message_delta", "delta": self._stop(delta.ending), "usage": self._usage()}
            yield {**end, **self._report()}
            yield {"type": "message_stop"}

    def _head(self) -> dict[str, Any]:
        request = self._run.generation.request
        return {"id": request.request_id, "type": "message", "role": "assistant", "model": request.model}

    def _start(self) -> Event:
        message = {**self._head(), "content": [], "stop_reason": None, "stop_sequence": None, "usage": self._usage()}
        return {"type": "message_start", "message": message}

    def _stop(self, ending: Ending) -> dict[str, Any]:
        if ending.stop is not None:
            return {"stop_reason": "stop_sequence", "stop_sequence": ending.stop}
        reason = "tool_use" if self._run.called(0) else "end_turn"
        return {"stop_reason": "max_tokens" if ending.reason is FinishReason.LENGTH else reason, "stop_sequence": None}

    def _usage(self) -> dict[str, Any]:
        """Anthropic counts cached prompt tokens apart from the others."""
        usage = self._run.generation.usage
        return {
            "input_tokens": usage.prompt_tokens - usage.cached_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": usage.cached_tokens,
            "output_tokens": usage.completion_tokens,
            "service_tier": "standard",
        }

    def _report(self) -> dict[str, Any]:
        return {"prfaas": report(self._run.generation)} if self._with_report else {}


def _fold(found: Event, content: list[dict[str, Any]], arguments: dict[int, str]) -> None:
    """Apply one block event to the blocks so far; a call's JSON is collected apart."""
    if found["type"] == "content_block_start":
        content.append(dict(found["content_block"]))
        if content[-1]["type"] == "tool_use":
            arguments[len(content) - 1] = ""
    elif found["type"] == "content_block_delta":
        delta, block = found["delta"], content[found["index"]]
        if delta["type"] == "input_json_delta":
            arguments[found["index"]] += delta["partial_json"]
        else:
            key = delta["type"].removesuffix("_delta")
            block[key] += delta[key]


def _parsed(text: str) -> dict[str, Any]:
    """A call's input; what broke off in the middle is no JSON, and empty."""
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
