"""POST /v1/chat/completions: OpenAI's chat dialect over a Generation."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from prfaas.clock import unix_time_s
from prfaas.types import TokenOutput
from router.gateway.chat_prompt import chat_tokens
from router.gateway.checks import check_count, check_model, output_room, stop_strings
from router.gateway.core import GatewayCore
from router.gateway.facts import report, route_header, wants_report
from router.gateway.generation import Generation, Routed
from router.gateway.logprobs import chat_logprobs
from router.gateway.openai_schema import ChatRequest
from router.gateway.openai_wire import finish_reason, late_error, usage_object
from router.gateway.prompt import generation_request, new_id
from router.gateway.reply import EventSink, JsonReply, StreamReply
from router.gateway.sample import Delta, Ending
from router.gateway.sampling import sampling_params
from router.gateway.sse import DONE, data
from router.gateway.timing import Stopwatch
from router.gateway.visit import Visit, visit_of


def chat_routes(core: GatewayCore) -> APIRouter:
    """The endpoint, bound to its ports."""
    router = APIRouter()

    @router.post("/v1/chat/completions", response_class=Response)
    async def create_chat_completion(body: ChatRequest, request: Request) -> Response:
        visit = visit_of(request)
        generation = await _prepare(core, body, visit)
        completion = _ChatCompletion(core, body, generation, wants_report(request, body.prfaas_report))
        if not body.stream:
            return JsonReply(completion.document, limit_s=generation.request.deadline_s)
        return StreamReply(
            completion.stream,
            keepalive_s=core.settings.limits.sse_keepalive_s,
            limit_s=generation.request.deadline_s,
            late=late_error(visit),
        )

    return router


async def _prepare(core: GatewayCore, body: ChatRequest, visit: Visit) -> Generation:
    """Everything that can be refused is refused here, before the pipeline sees the request."""
    limits = core.settings.limits
    check_model(core, body.model)
    check_count("messages", len(body.messages), limits.max_messages)
    check_count("n", body.n or 1, limits.max_n)
    stops = stop_strings(body.stop, limits.max_stop_strings)
    watch = Stopwatch(core.clock, visit.arrived_s)
    tokens = await chat_tokens(core, body)
    max_tokens = output_room(
        core,
        prompt_tokens=len(tokens),
        wanted=body.max_completion_tokens or body.max_tokens,
        default=core.settings.default_max_tokens,
        param="messages",
    )
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    sampling = sampling_params(core, body, max_tokens=max_tokens, n=body.n or 1, logprobs=logprobs)
    watch.tokenized()
    request = generation_request(
        core,
        visit,
        tokens,
        sampling,
        request_id=new_id("chatcmpl"),
        tenant=body.user or "",
        cache_salt=body.cache_salt or "",
        priority=body.priority or 0,
    )
    return Generation(core, request, stops=stops, watch=watch)


class _ChatCompletion:
    """One response, as a document or as a stream of chunks."""

    def __init__(self, core: GatewayCore, body: ChatRequest, generation: Generation, with_report: bool) -> None:
        self._core = core
        self._generation = generation
        self._with_report = with_report
        self._with_logprobs = bool(body.logprobs)
        self._with_usage = with_report or (body.stream_options is not None and body.stream_options.include_usage)
        self._created = int(unix_time_s())
        self._started: set[int] = set()

    async def document(self) -> tuple[dict[str, Any], Mapping[str, str]]:
        """Collect all samples into a `chat.completion`."""
        headers: dict[str, str] = {}
        texts: list[list[str]] = [[] for _ in range(self._generation.request.sampling.n)]
        tokens: list[list[TokenOutput]] = [[] for _ in texts]
        endings: dict[int, Ending] = {}
        async with aclosing(self._generation.run()) as events:
            async for event in events:
                if isinstance(event, Routed):
                    headers = route_header(event.decision)
                    continue
                texts[event.index].append(event.text)
                tokens[event.index].extend(event.tokens)
                if event.ending is not None:
                    endings[event.index] = event.ending
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": "".join(texts[index]), "refusal": None},
                "logprobs": self._logprobs(tokens[index]),
                "finish_reason": finish_reason(endings[index]),
            }
            for index in range(len(texts))
        ]
        document = {**self._head("chat.completion"), "choices": choices, "usage": usage_object([self._generation.usage])}
        if self._with_report:
            document["prfaas"] = report(self._generation)
        return document, headers

    async def stream(self, sink: EventSink) -> None:
        """Send `chat.completion.chunk` events. The headers wait for the route, so that they can say it."""
        async with aclosing(self._generation.run()) as events:
            async for event in events:
                if isinstance(event, Routed):
                    sink.open(route_header(event.decision))
                else:
                    await sink.send(self._chunks(event))
        if self._with_usage:
            last = {**self._head("chat.completion.chunk"), "choices": [], "usage": usage_object([self._generation.usage])}
            if self._with_report:
                last["prfaas"] = report(self._generation)
            await sink.send(data(last))
        await sink.send(DONE)

    def _chunks(self, delta: Delta) -> bytes:
        events = b""
        if delta.index not in self._started:
            self._started.add(delta.index)
            events += self._chunk(delta.index, {"role": "assistant", "content": ""})
        if delta.text or delta.tokens:
            events += self._chunk(delta.index, {"content": delta.text}, tokens=delta.tokens)
        if delta.ending is not None:
            events += self._chunk(delta.index, {}, finish=finish_reason(delta.ending))
        return events

    def _chunk(
        self, index: int, delta: dict[str, Any], *, tokens: tuple[TokenOutput, ...] = (), finish: str | None = None
    ) -> bytes:
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": self._logprobs(tokens) if tokens else None,
            "finish_reason": finish,
        }
        chunk = {**self._head("chat.completion.chunk"), "choices": [choice]}
        if self._with_usage:
            chunk["usage"] = None
        return data(chunk)

    def _head(self, kind: str) -> dict[str, Any]:
        request = self._generation.request
        return {"id": request.request_id, "object": kind, "created": self._created, "model": request.model}

    def _logprobs(self, tokens: list[TokenOutput] | tuple[TokenOutput, ...]) -> dict[str, Any] | None:
        if not self._with_logprobs:
            return None
        return {"content": chat_logprobs(self._core.text.vocabulary, tokens), "refusal": None}
