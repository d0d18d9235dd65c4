"""Carries one request from its tokens to its last token: decide, call the decode worker, pass its events on.

Implements the gateway's port. Every request ends once (finished, rejected, failed or cancelled) and a counter moves;
nothing of it stays behind, here or on a worker. Holds no policy: what to do is the policy's, whom there is the fleet's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from prfaas import metrics as m
from prfaas.clock import Clock
from prfaas.errors import (
    CapacityError,
    DeadlineExceeded,
    NoWorkerAvailable,
    PrfaasError,
    PromptTooLong,
    RequestError,
    Retry,
    TransferBroken,
    TransferStalled,
    UnknownModel,
    WorkerUnreachable,
)
from prfaas.log import logger
from prfaas.metrics import MetricSet
from prfaas.types import GenerationRequest, PrefillReport, Route, WorkerId
from router.api import Decided, Done, NewTokens, PipelineEvent, Prefilled
from router.clients import DecodeClients
from router.door import Door
from router.fleet import Fleet
from router.ledger import DispatchId
from router.policy.admission import Ticket
from router.policy.decide import Policy, Verdict
from router.policy.prefix_index import PromptNames, name_prompt
from router.policy.view import RequestView

_log = logger(__name__)

MAX_DECODE_ATTEMPTS = 3
# Prompts longer than this are hashed on a thread: about a millisecond of work, which other streams would notice.
INLINE_HASH_TOKENS = 16_384

# Failed rungs that speak of the path or the far end rather than of the request.
LINK_FAULTS = frozenset({e.code for e in (TransferBroken, TransferStalled, WorkerUnreachable)})


@dataclass(slots=True)
class _Trip:
    """What one request has been through so far."""

    request: GenerationRequest
    names: PromptNames
    deadline_at_s: float | None
    came_s: float
    held: RequestView | None = None  # what workers hold of the prompt, as of the fleet's cache revision
    revision: int = -1
    failed: dict[WorkerId, str] = field(default_factory=dict)  # decode workers that failed it, with the error code
    announced: bool = False  # Decided has been passed on
    place: int = -1  # at the door, once let in


@dataclass(frozen=True, slots=True)
class _Start:
    """One attempt: its decision, what deciding took, and its place in the fleet's books."""

    verdict: Verdict
    at_s: float
    decide_s: float
    dispatch_id: DispatchId


class RoutedPipeline:
    """Implements `Pipeline` over a fleet, a policy and the decode workers' clients."""

    def __init__(
        self,
        *,
        fleet: Fleet,
        policy: Policy,
        clients: DecodeClients,
        door: Door,
        model: str,
        metrics: MetricSet,
        clock: Clock,
    ) -> None:
        self._fleet = fleet
        self._door = door
        self._policy = policy
        self._clients = clients
        self._model = model
        self._metrics = metrics
        self._clock = clock

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[PipelineEvent, None]:
        """See `Pipeline.generate`."""
        outcome, reason = "cancelled", "closed_by_caller"
        running = request.sampling.n
        try:
            async with aclosing(self._run(request)) as events:
                async for event in events:
                    if isinstance(event, NewTokens):
                        running -= sum(output.finish_reason is not None for output in event.outputs)
                    if running <= 0 or isinstance(event, Done):  # now, because the caller may close the stream on this
                        outcome, reason = "finished", "finished"
                    yield event
        except PrfaasError as error:
            outcome = "rejected" if isinstance(error, RequestError | CapacityError) else "failed"
            reason = error.code
            raise
        except Exception:
            outcome, reason = "failed", "internal_error"
            raise
        finally:
            self._metrics.inc(m.ROUTED, outcome=outcome, reason=reason)

    async def _run(self, request: GenerationRequest) -> AsyncGenerator[PipelineEvent, None]:
        self._check(request)
        now_s = self._clock.now_s()
        deadline_at_s = None if request.deadline_s is None else now_s + request.deadline_s
        trip = _Trip(request, await self._names(request), deadline_at_s, now_s)
        self._with_time_left(trip)
        async with self._door.admitted(self._ticket(trip)) as trip.place, aclosing(self._attempts(trip)) as events:
            async for event in events:
                yield event

    def _ticket(self, trip: _Trip) -> Ticket:
        """What the request asks of the fleet: the tokens that no worker has cached."""
        request = trip.request
        held = max(self._look_up(trip).cached_tokens.values(), default=0)
        return Ticket(request.tenant, request.priority, len(request.tokens) - held, trip.deadline_at_s)

    def _look_up(self, trip: _Trip) -> RequestView:
        """What every worker holds of the prompt; looked up again only after some cache has changed."""
        if trip.held is None or trip.revision != self._fleet.cache_revision:
            trip.held, trip.revision = self._fleet.request_view(trip.request, trip.names), self._fleet.cache_revision
        return trip.held

    async def _attempts(self, trip: _Trip) -> AsyncGenerator[PipelineEvent, None]:
        """One decode worker after the other, until one answers or nobody else may."""
        last: PrfaasError | None = None
        while True:
            retry = True
            try:
                async with aclosing(self._attempt(trip)) as events:
                    async for event in events:
                        retry = retry and not isinstance(event, NewTokens)
                        yield event
                return
            except NoWorkerAvailable:
                if last is not None:
                    raise last from None  # nobody is left to try: why the last one failed says more
                raise
            except PrfaasError as error:
                if not retry or not self._may_retry(trip, error):
                    raise
                last = error
                self._metrics.inc(m.FALLBACKS, reason=error.code)

    def _check(self, request: GenerationRequest) -> None:
        """Refuse what no worker could ever do, before any worker is bothered."""
        if request.model != self._model:
            raise UnknownModel(f"the model {request.model!r} is not served here; this router serves {self._model!r}")
        context = self._fleet.max_context_tokens(request.model)
        prompt = len(request.tokens)
        if context is not None and prompt >= context:
            raise PromptTooLong(
                f"the prompt has {prompt} tokens and the context is {context}: shorten it by {prompt + 1 - context} tokens",
                prompt_tokens=prompt,
                max_context_tokens=context,
                excess_tokens=prompt + 1 - context,
            )

    async def _names(self, request: GenerationRequest) -> PromptNames:
        sizes = self._fleet.block_sizes()
        if len(request.tokens) * len(sizes) <= INLINE_HASH_TOKENS:
            return name_prompt(request, sizes)
        return await asyncio.to_thread(name_prompt, request, sizes)

    def _may_retry(self, trip: _Trip, error: PrfaasError) -> bool:
        """Another decode worker may do better, and this request has attempts left."""
        return error.retry is Retry.ELSEWHERE and bool(trip.failed) and len(trip.failed) < MAX_DECODE_ATTEMPTS

    async def _attempt(self, trip: _Trip) -> AsyncGenerator[PipelineEvent, None]:
        """Decide and run on one decode worker. A Prefilled is held back until the first token is there, so that an
        attempt that fails before it leaves no trace in the stream."""
        start = await self._decide(trip)
        request = self._with_time_left(trip)
        decision, worker_id = start.verdict.decision, start.verdict.decision.decode_worker
        held: Prefilled | None = None
        num_tokens = 0
        try:
            if not trip.announced:
                trip.announced = True
                yield Decided(decision, start.decide_s)
            async with aclosing(self._clients.generate(request, decision)) as events:
                async for event in events:
                    if isinstance(event, Prefilled):
                        held = self._prefilled(trip, start, event)
                        continue
                    if held is not None:
                        self._compare(start, held.report)
                        yield held
                        held = None
                    if isinstance(event, NewTokens):
                        num_tokens += len(event.outputs)
                    yield event
        except PrfaasError as error:
            trip.failed[worker_id] = error.code
            if isinstance(error, WorkerUnreachable):
                self._fleet.suspect(worker_id)
            _log.warning("request %s failed on decode worker %s: %s", request.request_id, worker_id, error)
            raise
        finally:
            self._fleet.ended(start.dispatch_id)
            if num_tokens:
                self._fleet.finished(decision.uncached_tokens, num_tokens)

    async def _decide(self, trip: _Trip) -> _Start:
        """Decide and book. A request that is late whatever is done lets others go first, once, and is decided on again."""
        started_s, view = self._clock.now_s(), self._seen(trip, patient=False)
        verdict = self._policy.decide(view, self._fleet.view(), started_s)
        if verdict.late and await self._door.step_back(trip.place):
            started_s, view = self._clock.now_s(), self._seen(trip, patient=True)
            verdict = self._policy.decide(view, self._fleet.view(), started_s)
        dispatch_id = self._fleet.dispatched(verdict, view)
        self._door.booked(trip.place)
        decide_s = self._clock.now_s() - started_s
        decision = verdict.decision
        self._metrics.inc(m.ROUTE_DECISIONS, route=decision.route.value, reason=verdict.rule.value)
        self._metrics.observe(m.UNCACHED_TOKENS, decision.uncached_tokens)
        self._metrics.observe(m.ROUTER_OVERHEAD, decide_s, step="decide")
        return _Start(verdict, started_s, decide_s, dispatch_id)

    def _seen(self, trip: _Trip, *, patient: bool) -> RequestView:
        """The request as the policy sees it now. Raises DeadlineExceeded."""
        return replace(
            self._look_up(trip),
            exclude=frozenset(trip.failed),
            may_leave=self._door.may_leave(trip.request.tenant),
            time_left_s=self._with_time_left(trip).deadline_s,
            waited_s=self._clock.now_s() - trip.came_s,
            patient=patient,
        )

    def _prefilled(self, trip: _Trip, start: _Start, event: Prefilled) -> Prefilled:
        """Account for a landed prompt; decode workers that failed before this one join its failed rungs."""
        report = event.report
        self._fleet.prefilled(start.dispatch_id, report, len(trip.request.tokens))
        self._metrics.inc(m.ROUTE_TAKEN, route=report.route.value)
        self._metrics.inc(m.KV_BYTES, report.kv_bytes, route=report.route.value)
        decode_worker = start.verdict.decision.decode_worker
        for attempt in report.attempts:
            worker_id, _, code = attempt.rpartition(":")
            self._metrics.inc(m.FALLBACKS, reason=code)
            if code == WorkerUnreachable.code:
                self._fleet.suspect(WorkerId(worker_id))
            if code in LINK_FAULTS:
                self._fleet.transfer_ended(WorkerId(worker_id), decode_worker, landed=False)
        if report.route is Route.REMOTE:
            self._fleet.transfer_ended(report.worker_id, decode_worker, landed=True, sent_bytes=report.kv_bytes)
            self._door.sent(trip.request.tenant, report.kv_bytes)
        before = tuple(f"{worker_id}:{code}" for worker_id, code in trip.failed.items())
        return Prefilled(replace(report, attempts=before + report.attempts))

    def _compare(self, start: _Start, report: PrefillReport) -> None:
        """Hold the forecast against what happened: the taken route's, and the best that was on offer."""
        forecasts = dict(start.verdict.decision.predicted_ttft_s)
        expected_s = forecasts.get(report.route)
        if expected_s is None or expected_s <= 0:
            return
        actual_s = self._clock.now_s() - start.at_s
        self._metrics.observe(m.FORECAST_RATIO, actual_s / expected_s, route=report.route.value)
        self._metrics.observe(m.REGRET, max(0.0, actual_s - min(forecasts.values())), route=report.route.value)

    def _with_time_left(self, trip: _Trip) -> GenerationRequest:
        """The request with what is left of its deadline. Raises DeadlineExceeded when nothing is."""
        if trip.deadline_at_s is None:
            return trip.request
        left_s = trip.deadline_at_s - self._clock.now_s()
        if left_s <= 0:
            raise DeadlineExceeded("the request's deadline passed before a decode worker finished it")
        return replace(trip.request, deadline_s=left_s)
