"""POST /v1/completions: OpenAI's text dialect, with several prompts, echo and best_of, over Generations."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from prfaas.clock import unix_time_s
from prfaas.errors import InvalidRequest
from prfaas.types import TokenOutput
from router.gateway.body import BodyRoute
from router.gateway.checks import check_model, check_token_ids, output_room, stop_strings
from router.gateway.core import GatewayCore
from router.gateway.documents import Completion, answers
from router.gateway.facts import report, route_header, wants_report
from router.gateway.generation import Generation, Routed
from router.gateway.logprobs import CompletionLogprobs, joined
from router.gateway.merge import run_all
from router.gateway.openai_schema import CompletionRequest
from router.gateway.openai_wire import finish_reason, late_error, token_ids, usage_in, usage_object
from router.gateway.prompt import generation_request, new_id
from router.gateway.reply import EventSink, JsonReply, StreamReply
from router.gateway.sample import Delta, Ending
from router.gateway.sampling import check_stream_options, sampling_params
from router.gateway.sse import DONE, TEXT_HERE, Envelope, data
from router.gateway.timing import Stopwatch
from router.gateway.visit import Visit, visit_of

DEFAULT_MAX_TOKENS = 16  # OpenAI's own


def completion_routes(core: GatewayCore) -> APIRouter:
    """The endpoint, bound to its ports."""
    router = APIRouter(route_class=BodyRoute)

    @router.post("/v1/completions", response_class=Response, responses=answers(Completion, streams=True))
    async def create_completion(body: CompletionRequest, request: Request) -> Response:
        visit = visit_of(request)
        generations = await _prepare(core, body, visit)
        completion = _Completion(core, body, generations, wants_report(request, body.prfaas_report))
        limit_s = generations[0].request.deadline_s
        if not body.stream:
            return JsonReply(completion.document, limit_s=limit_s)
        return StreamReply(
            completion.stream,
            keepalive_s=core.settings.limits.sse_keepalive_s,
            limit_s=limit_s,
            late=late_error(visit),
        )

    return router


async def _prepare(core: GatewayCore, body: CompletionRequest, visit: Visit) -> list[Generation]:
    """One generation per prompt; everything that can be refused is refused here."""
    limits = core.settings.limits
    check_model(core, body.model)
    check_stream_options(body)
    stops = stop_strings(body.stop, limits.max_stop_strings)
    prompts = _prompts(body.prompt)
    n = body.n or 1
    draws = max(n, body.best_of or n)
    if body.best_of is not None and body.best_of < n:
        raise InvalidRequest(f"best_of is {body.best_of}, less than n = {n}", param="best_of")
    if draws > n and body.stream:
        raise InvalidRequest("best_of above n cannot be streamed: the best is known only at the end", param="best_of")
    if len(prompts) * draws > limits.max_n:
        raise InvalidRequest(
            f"{len(prompts)} prompts with {draws} answers each make {len(prompts) * draws}, the limit is {limits.max_n}",
            param="prompt" if len(prompts) > draws else "n",
            limit=limits.max_n,
        )
    watch = Stopwatch(core.clock, visit.arrived_s)
    tokens = [await _encode(core, prompt) for prompt in prompts]
    watch.tokenized()
    logprobs = body.logprobs if body.logprobs is not None or draws == n else 0
    response_id = new_id("cmpl")
    generations = []
    for at, prompt_tokens in enumerate(tokens):
        room = output_room(
            core, prompt_tokens=len(prompt_tokens), wanted=body.max_tokens, default=DEFAULT_MAX_TOKENS, param="prompt"
        )
        prompt_logprobs = body.logprobs if body.echo else None
        sampling = sampling_params(core, body, max_tokens=room, n=draws, logprobs=logprobs, prompt_logprobs=prompt_logprobs)
        request = generation_request(
            core,
            visit,
            prompt_tokens,
            sampling,
            request_id=response_id if len(tokens) == 1 else f"{response_id}-{at}",
            tenant=body.user or "",
            cache_salt=body.cache_salt or "",
            priority=body.priority or 0,
        )
        generations.append(Generation(core, request, stops=stops, watch=watch.copy()))
    visit.meters += generations
    return generations


def _prompts(prompt: str | list[str] | list[int] | list[list[int]]) -> list[str | list[int]]:
    """The four spellings as a list of prompts. Raises InvalidRequest for none."""
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise InvalidRequest("prompt is empty; send a text or a list of token ids", param="prompt")
    numbers = [item for item in prompt if isinstance(item, int)]
    return [numbers] if numbers else [item for item in prompt if not isinstance(item, int)]


async def _encode(core: GatewayCore, prompt: str | list[int]) -> tuple[int, ...]:
    if isinstance(prompt, str):
        return await core.encoder.run(lambda: core.text.encode(prompt, add_special_tokens=True), chars=len(prompt))
    check_token_ids("prompt", prompt, core.text)
    return tuple(prompt)


class _Choice:
    """One sample of one prompt, as it grows."""

    def __init__(self, core: GatewayCore, generation: Generation, body: CompletionRequest) -> None:
        self._generation = generation
        self._echo = core.text.decode(generation.request.tokens) if body.echo else None
        self._logprobs = CompletionLogprobs(core.text.vocabulary) if body.logprobs is not None else None
        self._with_ids = bool(body.return_token_ids)
        self._starts = True
        self.ending: Ending | None = None
        self.tokens: list[TokenOutput] = []
        self.text: list[str] = []

    def take(self, delta: Delta) -> None:
        self.text.append(delta.text)
        self.tokens.extend(delta.tokens)
        self.ending = delta.ending

    def flush(self, index: int) -> dict[str, Any]:
        """What came since the last flush, as a choice; the first one starts with the echoed prompt."""
        text, tokens = "".join(self.text), self.tokens
        self.text, self.tokens = [], []
        lists: dict[str, Any] | None = None
        if self._echo is not None:
            text = self._echo + text
            if self._logprobs is not None:
                lists = self._logprobs.of_prompt(self._generation.request.tokens, self._generation.prompt_logprobs or ())
        self._echo = None
        if self._logprobs is not None:
            new = self._logprobs.of(tokens)
            lists = new if lists is None else joined(lists, new)
        finish = finish_reason(self.ending) if self.ending is not None else None
        choice = {"index": index, "text": text, "logprobs": lists, "finish_reason": finish}
        if self._with_ids:
            choice["token_ids"] = token_ids(tokens, self.ending)
            if self._starts:
                choice["prompt_token_ids"] = list(self._generation.request.tokens)
        self._starts = False
        return choice

    def score(self) -> float:
        """Mean log-probability per token, by which best_of ranks."""
        values = [token.logprob for token in self.tokens if token.logprob is not None]
        return sum(values) / len(values) if values else float("-inf")


class _Completion:
    """One response, as a document or as a stream of chunks."""

    def __init__(self, core: GatewayCore, body: CompletionRequest, generations: list[Generation], with_report: bool) -> None:
        self._generations = generations
        self._n = body.n or 1
        self._with_report = with_report
        self._usage_in = usage_in(body.stream_options, with_report=with_report)
        self._created = int(unix_time_s())
        self._plain = not (body.echo or body.logprobs is not None or body.return_token_ids or self._usage_in.every)
        self._envelopes: dict[int, Envelope] = {}
        self._choices = [
            [_Choice(core, generation, body) for _ in range(generation.request.sampling.n)] for generation in generations
        ]

    async def document(self) -> tuple[dict[str, Any], Mapping[str, str]]:
        """Collect all samples of all prompts into a `text_completion`."""
        headers: dict[str, str] = {}
        async with aclosing(run_all(self._generations)) as events:
            async for at, event in events:
                if not isinstance(event, Routed):
                    for delta in event:
                        self._choices[at][delta.index].take(delta)
                elif at == 0:
                    headers = route_header(event)
        choices: list[dict[str, Any]] = []
        for samples in self._choices:
            best = samples if len(samples) == self._n else sorted(samples, key=_Choice.score, reverse=True)[: self._n]
            choices += [sample.flush(len(choices) + at) for at, sample in enumerate(best)]
        return {**self._head(), "choices": choices, "usage": self._usage(), **self._report()}, headers

    async def stream(self, sink: EventSink) -> None:
        """Send `text_completion` chunks; the headers wait for the first prompt's route."""
        async with aclosing(run_all(self._generations)) as events:
            async for at, event in events:
                if not isinstance(event, Routed):
                    await sink.send(b"".join(self._chunk(at, delta) for delta in event))
                elif at == 0:
                    sink.open(route_header(event))
        if self._usage_in.last:
            await sink.send(data({**self._head(), "choices": [], "usage": self._usage(), **self._report()}))
        await sink.send(DONE)

    def _chunk(self, at: int, delta: Delta) -> bytes:
        choice, index = self._choices[at][delta.index], at * self._n + delta.index
        if self._plain and delta.ending is None:
            if index not in self._envelopes:
                only_text = {"index": index, "text": TEXT_HERE, "logprobs": None, "finish_reason": None}
                self._envelopes[index] = Envelope(self._document(only_text))
            return self._envelopes[index].data(delta.text)
        choice.take(delta)
        return data(self._document(choice.flush(index)))

    def _document(self, choice: dict[str, Any]) -> dict[str, Any]:
        return self._usage_in.added({**self._head(), "choices": [choice]}, self._usage)

    def _head(self) -> dict[str, Any]:
        request = self._generations[0].request
        response_id = request.request_id if len(self._generations) == 1 else request.request_id.rpartition("-")[0]
        return {"id": response_id, "object": "text_completion", "created": self._created, "model": request.model}

    def _usage(self) -> dict[str, Any]:
        return usage_object([generation.usage for generation in self._generations])

    def _report(self) -> dict[str, Any]:
        if not self._with_report:
            return {}
        reports = [report(generation) for generation in self._generations]
        return {"prfaas": reports[0] if len(reports) == 1 else reports}
