"""POST /v1/chat/completions: OpenAI's chat dialect over a ChatRun."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from prfaas.clock import unix_time_s
from prfaas.types import TokenOutput
from router.gateway import not_applied
from router.gateway.body import BodyRoute
from router.gateway.chat import ChatDelta, ChatRun, start_chat
from router.gateway.core import GatewayCore
from router.gateway.documents import ChatCompletion, answers
from router.gateway.facts import report, route_header, wants_report
from router.gateway.generation import Routed
from router.gateway.logprobs import chat_logprobs
from router.gateway.openai_ask import chat_ask
from router.gateway.openai_schema import ChatRequest
from router.gateway.openai_wire import chat_finish_reason, late_error, token_ids, usage_in, usage_object
from router.gateway.parsers.api import CallArguments, CallStart, Piece, ReasoningPiece, TextPiece
from router.gateway.prompt import new_id
from router.gateway.reply import EventSink, JsonReply, StreamReply
from router.gateway.sample import Ending
from router.gateway.sse import DONE, TEXT_HERE, Envelope, data
from router.gateway.visit import visit_of


def chat_routes(core: GatewayCore) -> APIRouter:
    """The endpoint, bound to its ports."""
    router = APIRouter(route_class=BodyRoute)

    @router.post("/v1/chat/completions", response_class=Response, responses=answers(ChatCompletion, streams=True))
    async def create_chat_completion(body: ChatRequest, request: Request) -> Response:
        visit = visit_of(request)
        run = await start_chat(core, chat_ask(core, body), visit, new_id("chatcmpl"))
        completion = _ChatCompletion(core, body, run, wants_report(request, body.prfaas_report))
        limit_s = run.generation.request.deadline_s
        if not body.stream:
            return JsonReply(completion.document, limit_s=limit_s)
        keepalive_s = core.settings.limits.sse_keepalive_s
        return StreamReply(completion.stream, keepalive_s=keepalive_s, limit_s=limit_s, late=late_error(visit))

    return router


class _Message:
    """One choice's message as it grows."""

    def __init__(self) -> None:
        self.text: list[str] = []
        self.reasoning: list[str] = []
        self.calls: list[dict[str, Any]] = []
        self.tokens: list[TokenOutput] = []
        self.ending: Ending | None = None

    def take(self, delta: ChatDelta) -> None:
        self.tokens.extend(delta.tokens)
        for piece in delta.pieces:
            self._add(piece)
        self.ending = delta.ending

    def _add(self, piece: Piece) -> None:
        match piece:
            case TextPiece(text):
                self.text.append(text)
            case ReasoningPiece(text):
                self.reasoning.append(text)
            case CallStart(_, call_id, name):
                self.calls.append({"id": call_id, "type": "function", "function": {"name": name, "arguments": ""}})
            case CallArguments(call, text):
                self.calls[call]["function"]["arguments"] += text

    def document(self) -> dict[str, Any]:
        content = "".join(self.text)
        message: dict[str, Any] = {"role": "assistant", "content": content or (None if self.calls else ""), "refusal": None}
        if self.reasoning:
            message["reasoning_content"] = "".join(self.reasoning)
        if self.calls:
            message["tool_calls"] = self.calls
        return message


class _ChatCompletion:
    """One response, as a document or as a stream of chunks."""

    def __init__(self, core: GatewayCore, body: ChatRequest, run: ChatRun, with_report: bool) -> None:
        self._core = core
        self._run = run
        self._body = body
        self._with_report = with_report
        self._usage_in = usage_in(body.stream_options, with_report=with_report)
        self._not_applied = not_applied.of_chat(body, core.text.template_source)
        self._started: set[int] = set()
        self._plain = not (body.logprobs or body.return_token_ids or self._usage_in.every)
        self._envelopes: dict[int, Envelope] = {}
        request = run.generation.request
        self._head: dict[str, Any] = {"id": request.request_id, "created": int(unix_time_s()), "model": request.model}
        if body.service_tier is not None:
            self._head["service_tier"] = "default" if body.service_tier == "auto" else body.service_tier

    async def document(self) -> tuple[dict[str, Any], Mapping[str, str]]:
        """Collect all samples into a `chat.completion`."""
        headers = dict(self._not_applied)
        messages = [_Message() for _ in range(self._run.generation.request.sampling.n)]
        async with aclosing(self._run.run()) as events:
            async for event in events:
                if isinstance(event, Routed):
                    headers.update(route_header(event))
                    continue
                for delta in event:
                    messages[delta.index].take(delta)
        choices = [
            {
                "index": index,
                "message": message.document(),
                "logprobs": self._logprobs(message.tokens),
                "finish_reason": chat_finish_reason(self._run, index, message.ending),
                **self._ids(message.tokens, message.ending),
            }
            for index, message in enumerate(messages)
        ]
        document = {**self._head, "object": "chat.completion", "choices": choices, "usage": self._usage(), **self._report()}
        if self._body.return_token_ids:
            document["prompt_token_ids"] = list(self._run.generation.request.tokens)
        if self._body.metadata is not None:
            document["metadata"] = self._body.metadata
        return document, headers

    async def stream(self, sink: EventSink) -> None:
        """Send `chat.completion.chunk` events. The headers wait for the route, so that they can say it."""
        async with aclosing(self._run.run()) as events:
            async for event in events:
                if isinstance(event, Routed):
                    sink.open({**self._not_applied, **route_header(event)})
                else:
                    await sink.send(b"".join(map(self._chunks, event)))
        if self._usage_in.last:
            last = {**self._head, "object": "chat.completion.chunk", "choices": [], "usage": self._usage()}
            await sink.send(data({**last, **self._report()}))
        await sink.send(DONE)

    def _chunks(self, delta: ChatDelta) -> bytes:
        """A delta as chunks; the tokens' logprobs go with the first of them."""
        events, tokens = b"", delta.tokens
        if delta.index not in self._started:
            self._started.add(delta.index)
            events += self._chunk(delta.index, {"role": "assistant", "content": ""})
        wanted = self._body.logprobs or self._body.return_token_ids
        if self._plain and len(delta.pieces) == 1 and isinstance(delta.pieces[0], TextPiece):
            events += self._envelope(delta.index).data(delta.pieces[0].text)
        else:
            for piece in [_piece_delta(piece) for piece in delta.pieces] or ([{}] if tokens and wanted else []):
                events += self._chunk(delta.index, piece, tokens=tokens)
                tokens = ()
        if delta.ending is not None:
            events += self._chunk(delta.index, {}, ending=delta.ending)
        return events

    def _envelope(self, index: int) -> Envelope:
        """Of chunks with a piece of text and nothing else."""
        if index not in self._envelopes:
            self._envelopes[index] = Envelope(self._document(index, {"content": TEXT_HERE}))
        return self._envelopes[index]

    def _chunk(
        self, index: int, delta: dict[str, Any], *, tokens: Sequence[TokenOutput] = (), ending: Ending | None = None
    ) -> bytes:
        return data(self._document(index, delta, tokens=tokens, ending=ending))

    def _document(
        self, index: int, delta: dict[str, Any], *, tokens: Sequence[TokenOutput] = (), ending: Ending | None = None
    ) -> dict[str, Any]:
        logprobs = self._logprobs(tokens) if tokens else None
        choice = {"index": index, "delta": delta, "logprobs": logprobs, **self._ids(tokens, ending)}
        choice["finish_reason"] = chat_finish_reason(self._run, index, ending)
        chunk = {**self._head, "object": "chat.completion.chunk", "choices": [choice]}
        if "role" in delta and self._body.return_token_ids:
            chunk["prompt_token_ids"] = list(self._run.generation.request.tokens)
        return self._usage_in.added(chunk, self._usage)

    def _usage(self) -> dict[str, Any]:
        return usage_object([self._run.generation.usage], reasoning_tokens=self._run.reasoning_tokens)

    def _report(self) -> dict[str, Any]:
        return {"prfaas": report(self._run.generation)} if self._with_report else {}

    def _ids(self, tokens: Sequence[TokenOutput], ending: Ending | None) -> dict[str, Any]:
        return {"token_ids": token_ids(tokens, ending)} if self._body.return_token_ids else {}

    def _logprobs(self, tokens: Sequence[TokenOutput]) -> dict[str, Any] | None:
        if not self._body.logprobs:
            return None
        return {"content": chat_logprobs(self._core.text.vocabulary, tokens), "refusal": None}


def _piece_delta(piece: Piece) -> dict[str, Any]:
    match piece:
        case TextPiece(text):
            return {"content": text}
        case ReasoningPiece(text):
            return {"reasoning_content": text}
        case CallStart(call, call_id, name):
            function = {"name": name, "arguments": ""}
            return {"tool_calls": [{"index": call, "id": call_id, "type": "function", "function": function}]}
        case CallArguments(call, text):
            return {"tool_calls": [{"index": call, "function": {"arguments": text}}]}
