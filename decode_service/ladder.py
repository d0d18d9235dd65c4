"""Gets a prompt's cache: from the candidates of a decision, best first, and in the end by prefilling here.

Each rung that fails is written down and counted, and the next one is tried under what is left of the request's
deadline. What is wrong with the request itself the last rung finds out too, so no rung's error needs judging here.
Knows the ports of engine and transport; no wire, no messages.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

from decode_service.deadline import Deadline
from decode_service.sink import LandingSink
from kv_transport.api import FetchResult, PrefillOrder, PrefillTransport
from prfaas.clock import Clock
from prfaas.engine.api import Engine, EngineStream, Landing
from prfaas.errors import (
    ChunkCorrupt,
    DeadlineExceeded,
    DigestMismatch,
    PrfaasError,
    ProtocolViolation,
    TransferBroken,
    TransferGone,
)
from prfaas.log import logger
from prfaas.metrics import RUNGS_FAILED, MetricSet
from prfaas.types import Decision, GenerationRequest, PrefillCandidate, PrefillReport, SiteId, WorkerId

log = logger(__name__)

# The sender computed and only the way was bad: its prefix cache makes a second try at the same worker cheap.
_WORTH_REPEATING = (ChunkCorrupt, DigestMismatch, TransferBroken, TransferGone)


@dataclass(frozen=True, slots=True)
class LadderTerms:
    """Who is asking, and on which terms each rung is tried."""

    worker_id: WorkerId
    site: SiteId
    attempt_timeout_s: float
    codecs: tuple[str, ...]
    max_lanes: int


@dataclass(frozen=True, slots=True)
class Prefilled:
    """A sequence on its way to its first token, owned by the receiver, who must cancel it when it gives up.

    `report` is complete for a transfer; None for an inline prefill, which is still to be measured. `attempts` are the
    rungs that failed before, as "worker:error_code".
    """

    stream: EngineStream
    report: PrefillReport | None
    attempts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Arrival:
    candidate: PrefillCandidate
    result: FetchResult


class PrefillLadder:
    """Climbs down the rungs of one decision after another. One instance serves all requests of a worker."""

    def __init__(
        self, engine: Engine, transport: PrefillTransport, terms: LadderTerms, metrics: MetricSet, clock: Clock
    ) -> None:
        self._engine = engine
        self._transport = transport
        self._terms = terms
        self._metrics = metrics
        self._clock = clock

    async def prefill(self, request: GenerationRequest, decision: Decision, deadline: Deadline) -> Prefilled:
        """Cancelling the call cancels the rung under way and frees what it had reserved.

        Raises what the engine's `check`, `reserve` and `submit` raise; a candidate's failure is never raised.
        """
        await self._engine.check(request)
        attempts: list[str] = []
        if decision.candidates:
            landed = await self._land(request, decision.candidates, deadline, attempts)
            if landed is not None:
                return landed
        rest = replace(request, deadline_s=deadline.left_s())
        return Prefilled(self._engine.submit(rest), report=None, attempts=tuple(attempts))

    async def _land(
        self, request: GenerationRequest, candidates: Sequence[PrefillCandidate], deadline: Deadline, attempts: list[str]
    ) -> Prefilled | None:
        rest = replace(request, deadline_s=deadline.left_s())
        landing = await self._engine.reserve(rest, timeout_s=deadline.at_most_s(self._terms.attempt_timeout_s))
        sink = LandingSink(landing, self._engine.spec.cache, num_tokens=len(request.tokens))
        arrival = None
        try:
            arrival = await self._first_arrival(request, candidates, deadline, attempts, landing, sink)
        finally:
            sink.close()
            if arrival is None:
                landing.abort()
        return None if arrival is None else self._commit(landing, arrival, sink.snapshot_tokens, tuple(attempts))

    async def _first_arrival(
        self,
        request: GenerationRequest,
        candidates: Sequence[PrefillCandidate],
        deadline: Deadline,
        attempts: list[str],
        landing: Landing,
        sink: LandingSink,
    ) -> _Arrival | None:
        """Every failed try adds to `attempts`. The reservation stays the same, and so does what it must hold: what a
        failed rung wrote is written again by the next."""
        for candidate in candidates:
            for _ in range(2):
                try:
                    result = await self._fetch(request, candidate, deadline, landing.held_tokens, sink)
                    return _Arrival(candidate, result)
                except PrfaasError as error:
                    attempts.append(f"{candidate.worker_id}:{error.code}")
                    self._metrics.inc(RUNGS_FAILED, route=candidate.route.value, reason=error.code)
                    log.warning("request %s: prefill at %s failed: %s", request.request_id, candidate.worker_id, error)
                    if not isinstance(error, _WORTH_REPEATING):
                        break
        return None

    async def _fetch(
        self, request: GenerationRequest, candidate: PrefillCandidate, deadline: Deadline, held_tokens: int, sink: LandingSink
    ) -> FetchResult:
        order = PrefillOrder(
            request=replace(request, deadline_s=deadline.left_s()),
            fingerprint=self._engine.spec.fingerprint,
            held_tokens=held_tokens,
            codecs=self._terms.codecs,
            receiver=self._terms.worker_id,
            receiver_site=self._terms.site,
            max_lanes=self._terms.max_lanes,
        )
        limit_s = deadline.at_most_s(self._terms.attempt_timeout_s)
        try:
            async with asyncio.timeout(limit_s):
                result = await self._transport.fetch(order, candidate.address, sink)
        except TimeoutError as error:
            raise DeadlineExceeded(f"no complete cache within {limit_s:.1f} s", waited_s=limit_s) from error
        firsts = [(output.index, output.position) for output in result.first.outputs]
        if firsts != [(index, 0) for index in range(request.sampling.n)]:
            raise ProtocolViolation("the first tokens are not one for each sample", state="complete", frame="first_tokens")
        return result

    def _commit(self, landing: Landing, arrival: _Arrival, snapshot_tokens: int, attempts: tuple[str, ...]) -> Prefilled:
        candidate, result = arrival.candidate, arrival.result
        started_s = self._clock.now_s()
        stream = landing.commit(result.first.outputs, snapshot_tokens=snapshot_tokens)
        report = PrefillReport(
            route=candidate.route,
            worker_id=candidate.worker_id,
            cached_tokens=max(landing.held_tokens, result.offer.cached_tokens),
            queue_s=result.first.queue_s,
            prefill_s=result.first.prefill_s,
            wire_s=result.wire_s,
            commit_s=self._clock.now_s() - started_s,
            kv_bytes=result.wire_bytes,
            attempts=attempts,
        )
        return Prefilled(stream, report=report, attempts=attempts)
