"""POST /v1/responses, and looking up or deleting what was stored: OpenAI's responses dialect over a ChatRun."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from prfaas.clock import unix_time_s
from prfaas.errors import PrfaasError
from prfaas.types import FinishReason
from router.gateway import not_applied
from router.gateway.body import Body, BodyRoute
from router.gateway.chat import ChatAsk, ChatDelta, ChatDeltas, ChatRun, start_chat
from router.gateway.core import GatewayCore
from router.gateway.documents import DeletedDocument, StoredDocument, answers
from router.gateway.errors import openai_error
from router.gateway.facts import report, route_header, wants_report
from router.gateway.generation import Routed
from router.gateway.logprobs import chat_logprobs
from router.gateway.parsers.api import TextPiece
from router.gateway.problem import problem_of
from router.gateway.prompt import new_id
from router.gateway.reply import EventSink, JsonReply, StreamReply
from router.gateway.responses_ask import responses_ask
from router.gateway.responses_items import OutputItems, output_message
from router.gateway.responses_schema import ResponsesRequest
from router.gateway.responses_store import ResponseStore, StoredResponse
from router.gateway.sse import event
from router.gateway.visit import Visit, visit_of


def responses_routes(core: GatewayCore) -> APIRouter:
    """The endpoints, bound to their ports and to a store of their own."""
    router = APIRouter(route_class=BodyRoute)
    store = ResponseStore()

    @router.post("/v1/responses", response_class=Response, responses=answers(StoredDocument, streams=True))
    async def create_response(body: ResponsesRequest, request: Request) -> Response:
        visit = visit_of(request)
        tenant = visit.tenant or body.user or ""
        earlier = store.get(body.previous_response_id, tenant).messages if body.previous_response_id else ()
        ask = responses_ask(core, body, earlier, tenant)
        run = await start_chat(core, ask, visit, new_id("resp").replace("-", "_"))
        reply = _Response(core, body, ask, run, store, wants_report(request, body.prfaas_report))
        limit_s = run.generation.request.deadline_s
        if not body.stream:
            return JsonReply(reply.document, limit_s=limit_s)
        keepalive_s = core.settings.limits.sse_keepalive_s
        return StreamReply(reply.stream, keepalive_s=keepalive_s, limit_s=limit_s, late=reply.late_error(visit))

    @router.get("/v1/responses/{response_id}", response_class=JSONResponse, responses=answers(StoredDocument))
    async def get_response(response_id: str, request: Request, user: str = "") -> JSONResponse:
        return JSONResponse(store.get(response_id, visit_of(request).tenant or user).document)

    @router.delete("/v1/responses/{response_id}", response_class=JSONResponse, responses=answers(DeletedDocument))
    async def delete_response(response_id: str, request: Request, user: str = "") -> JSONResponse:
        store.delete(response_id, visit_of(request).tenant or user)
        return JSONResponse({"id": response_id, "object": "response", "deleted": True})

    return router


class _Response:
    """One response, as a document or as a stream of numbered events."""

    def __init__(
        self, core: GatewayCore, body: ResponsesRequest, ask: ChatAsk, run: ChatRun, store: ResponseStore, with_report: bool
    ) -> None:
        self._core = core
        self._body = body
        self._ask = ask
        self._run = run
        self._store = store
        self._with_report = with_report
        self._created = int(unix_time_s())
        self._output = OutputItems()
        self._sequence = 0
        self._status = "in_progress"

    async def document(self) -> tuple[dict[str, Any], Mapping[str, str]]:
        """Collect the output into a `response`."""
        headers: dict[str, str] = {}
        async with aclosing(self._run.run()) as events:
            async for item in events:
                if isinstance(item, Routed):
                    headers = self._headers(item)
                else:
                    deque(self._events(item), maxlen=0)
        return self._keep(), headers

    async def stream(self, sink: EventSink) -> None:
        """Send the events, the last of which carries the whole response."""
        pending = b""
        async with aclosing(self._run.run()) as events:
            async for item in events:
                if isinstance(item, Routed):
                    sink.open(self._headers(item))
                    if item.report is None:
                        started = self._document()
                        kinds = ("response.created", "response.in_progress")
                        pending = self._bytes({"type": kind, "response": started} for kind in kinds)
                    continue
                pending += self._bytes(self._events(item))
                if pending:
                    await sink.send(pending)
                pending = b""
        final = self._keep()
        await sink.send(self._bytes([{"type": f"response.{self._status}", "response": final}]))

    def late_error(self, visit: Visit) -> Callable[[PrfaasError], bytes]:
        """Spells an error that comes after the stream started."""

        def spell(error: PrfaasError) -> bytes:
            visit.fail(error)
            found = openai_error(problem_of(error), visit.request_id)["error"]
            fields = {key: found[key] for key in ("code", "message", "param")}
            return self._bytes([{"type": "error", **fields}])

        return spell

    def _bytes(self, events: Iterable[dict[str, Any]]) -> bytes:
        framed = b""
        for each in events:
            framed += event(each["type"], {**each, "sequence_number": self._sequence})
            self._sequence += 1
        return framed

    def _events(self, deltas: ChatDeltas) -> Iterator[dict[str, Any]]:
        """Apply deltas."""
        for delta in deltas:
            yield from self._applied(delta)

    def _applied(self, delta: ChatDelta) -> Iterator[dict[str, Any]]:
        """The tokens' logprobs go with the delta's first text."""
        logprobs = chat_logprobs(self._core.text.vocabulary, delta.tokens) if self._body.include else []
        for piece in delta.pieces:
            yield from self._output.add(piece, logprobs)
            logprobs = [] if isinstance(piece, TextPiece) else logprobs
        if delta.ending is not None:
            self._status = "incomplete" if delta.ending.reason is FinishReason.LENGTH else "completed"
            yield from self._output.close(self._status)

    def _headers(self, routed: Routed) -> dict[str, str]:
        return {**route_header(routed), **not_applied.of_responses(self._body)}

    def _keep(self) -> dict[str, Any]:
        document = self._document()
        if self._body.store is not False:
            messages = (*self._ask.messages, output_message(self._output.items))
            self._store.put(document["id"], StoredResponse(document, messages, self._ask.tenant))
        return document

    def _document(self) -> dict[str, Any]:
        body, request, done = self._body, self._run.generation.request, self._status != "in_progress"
        tier = "default" if body.service_tier in (None, "auto") else body.service_tier
        return {
            "id": request.request_id,
            "object": "response",
            "created_at": self._created,
            "status": self._status,
            "background": False,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if self._status == "incomplete" else None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "model": request.model,
            "output": self._output.items if done else [],
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": body.previous_response_id,
            "reasoning": {"effort": body.reasoning.effort if body.reasoning is not None else None, "summary": None},
            "service_tier": tier,
            "store": body.store is not False,
            "temperature": request.sampling.temperature,
            "text": {"format": _given(body.text.format if body.text is not None else None) or {"type": "text"}},
            "tool_choice": _given(body.tool_choice) or "auto",
            "tools": [_given(tool) for tool in body.tools or ()],
            "top_logprobs": body.top_logprobs or 0,
            "top_p": request.sampling.top_p,
            "truncation": "disabled",
            "usage": self._usage() if done else None,
            "user": body.user,
            "metadata": body.metadata or {},
            **({"prfaas": report(self._run.generation)} if self._with_report and done else {}),
        }

    def _usage(self) -> dict[str, Any]:
        usage = self._run.generation.usage
        return {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": self._run.reasoning_tokens},
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        }


def _given(value: Any) -> Any:
    """A part of the request as the response repeats it."""
    return value.model_dump(by_alias=True, exclude_none=True) if isinstance(value, Body) else value
