"""The life of one request in virtual time: the door, the decision, the ladder of prefill candidates, the answer.

Follows `router.pipeline` and `decode_service.ladder` call for call; each rung that fails leads to the next, and the
last is to prefill on the decode worker.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from prfaas.engine.job import JobId
from prfaas.errors import CapacityError, PrfaasError, TransferStalled, WorkerUnreachable
from prfaas.sim.frontdoor import Entry, FrontDoor, Prompt
from prfaas.sim.kernel import Kernel
from prfaas.sim.links import Flow, SimLink
from prfaas.sim.listener import Answer
from prfaas.sim.paths import Paths
from prfaas.sim.records import Journal, Outcome, RequestRecord
from prfaas.sim.worker import SimWorker
from prfaas.types import Decision, PrefillCandidate, PrefillReport, Route, SiteId, WorkerId
from router.ledger import DispatchId


@dataclass(frozen=True, slots=True)
class World:
    """What a request meets on its way. `links` are by (sending, receiving) site, `paths` by decode worker."""

    kernel: Kernel
    door: FrontDoor
    journal: Journal
    workers: Mapping[WorkerId, SimWorker]
    links: Mapping[tuple[SiteId, SiteId], SimLink]
    paths: Mapping[WorkerId, Paths]
    connect_timeout_s: float


class Trip:
    """One request. Call `start` once; it ends by itself, and `on_end` is then called."""

    def __init__(self, world: World, prompt: Prompt, record: RequestRecord, on_end: Callable[[], None]) -> None:
        self.world, self.prompt, self.record, self._on_end = world, prompt, record, on_end
        self._decision: Decision | None = None
        self._dispatch: DispatchId | None = None
        self._landing: JobId | None = None
        self._held_tokens = 0
        self._asked_s = 0.0
        self._attempts: list[str] = []

    def start(self) -> None:
        try:
            self.world.door.arrive(self.prompt, self._enter)
        except CapacityError as error:
            self._close(Outcome.REJECTED, error.code)

    # The decode worker's side

    def _enter(self, entry: Entry) -> None:
        record, now_s = self.record, self.world.kernel.now_s()
        record.door_s = now_s - record.at_s
        if isinstance(entry, PrfaasError):
            self._over(entry)
            return
        decision, self._dispatch = entry
        self._decision = decision
        record.decode_worker = decision.decode_worker
        record.forecast_s = dict(decision.predicted_ttft_s).get(decision.route, 0.0)
        self._asked_s = now_s
        try:
            if decision.candidates:
                self.decode.reserve(self.prompt.request, self.prompt.num_tokens, _Landed(self), self._granted)
            else:
                self._inline()
        except PrfaasError as error:
            self._over(error)

    @property
    def decision(self) -> Decision:
        assert self._decision is not None, "decided on entering"
        return self._decision

    @property
    def decode(self) -> SimWorker:
        return self.world.workers[self.decision.decode_worker]

    def _granted(self, job_id: JobId, held_tokens: int) -> None:
        self._landing, self._held_tokens = job_id, held_tokens
        self._climb(0)

    def _climb(self, rung: int) -> None:
        """Try a candidate, or prefill here when none is left."""
        candidates = self.decision.candidates
        if rung >= len(candidates):
            self._give_up_landing()
            self._inline()
            return
        _Fetch(self, candidates[rung], self._held_tokens, lambda error: self._rung_failed(rung, error)).start()

    def _rung_failed(self, rung: int, error: PrfaasError) -> None:
        self._attempts.append(f"{self.decision.candidates[rung].worker_id}:{error.code}")
        self.world.journal.rung_failed(error.code)
        self._climb(rung + 1)

    def _inline(self) -> None:
        try:
            self.decode.generate(self.prompt.request, self.prompt.num_tokens, _Inline(self))
        except PrfaasError as error:
            self._over(error)

    def _give_up_landing(self) -> None:
        if self._landing is not None:
            landing, self._landing = self._landing, None
            self.decode.release(landing)

    def landed(self, report: PrefillReport, started_s: float) -> None:
        """The cache is here. What was not queueing or computing since `started_s` was the way there and back."""
        assert self._landing is not None, "a fetch lands in a reservation"
        self._note(report, started_s - self._asked_s)
        landing, self._landing = self._landing, None
        self.decode.commit(landing)

    def prefilled_here(self, queue_s: float, prefill_s: float, cached_tokens: int) -> None:
        report = PrefillReport(
            Route.INLINE, self.decision.decode_worker, cached_tokens, queue_s, prefill_s, 0.0, 0.0, 0, tuple(self._attempts)
        )
        now_s = self.world.kernel.now_s()
        self._note(report, now_s - self._asked_s - queue_s - prefill_s)

    def _note(self, report: PrefillReport, room_s: float) -> None:
        record = self.record
        record.route, record.prefill_worker = report.route, report.worker_id
        record.cached_tokens, record.kv_bytes, record.attempts = report.cached_tokens, report.kv_bytes, report.attempts
        record.room_s, record.queue_s, record.prefill_s, record.wire_s = room_s, report.queue_s, report.prefill_s, report.wire_s
        record.ttft_s = record.door_s + room_s + report.queue_s + report.prefill_s + report.wire_s
        assert self._dispatch is not None, "booked on entering"
        self.world.door.prefilled(self._dispatch, report, self.prompt.num_tokens, self.decision.decode_worker)

    # The end

    def answered(self, answer: Answer) -> None:
        """The last token is out."""
        record = self.record
        record.decode_wait_s = answer.wait_s
        if answer.num_tokens > 1:
            record.itl_s = (answer.last_s - answer.first_s) / (answer.num_tokens - 1)
        self._leave()
        self._close(Outcome.FINISHED, "finished")

    def failed(self, error: PrfaasError) -> None:
        """The decode worker ended the request."""
        self._over(error)

    def _over(self, error: PrfaasError) -> None:
        self._give_up_landing()
        self._leave()
        self._close(Outcome.REJECTED if isinstance(error, CapacityError) else Outcome.FAILED, error.code)

    def _leave(self) -> None:
        if self._dispatch is not None:
            self.world.door.fleet.ended(self._dispatch)
            self._dispatch = None
        self.world.door.left()

    def _close(self, outcome: Outcome, reason: str) -> None:
        self.record.outcome, self.record.reason, self.record.end_s = outcome, reason, self.world.kernel.now_s()
        self._on_end()

    @property
    def attempts(self) -> tuple[str, ...]:
        return tuple(self._attempts)


class _Landed:
    """Listens to a landing on the decode worker."""

    def __init__(self, trip: Trip) -> None:
        self._trip = trip

    def admitted(self, cached_tokens: int, queue_s: float) -> None:
        """Landings are admitted when they are committed; the trip knows that already."""

    def layers(self, num_bytes: int) -> None:
        """Landings send nothing."""

    def first_token(self, prefill_s: float) -> None:
        """The first token came with the cache."""

    def finished(self, answer: Answer) -> None:
        self._trip.answered(answer)

    def failed(self, error: PrfaasError) -> None:
        self._trip.failed(error)


class _Inline:
    """Listens to a prompt that is prefilled and decoded on the decode worker."""

    def __init__(self, trip: Trip) -> None:
        self._trip = trip
        self._cached_tokens, self._queue_s = 0, 0.0

    def admitted(self, cached_tokens: int, queue_s: float) -> None:
        self._cached_tokens, self._queue_s = cached_tokens, queue_s

    def layers(self, num_bytes: int) -> None:
        """Nothing leaves the worker."""

    def first_token(self, prefill_s: float) -> None:
        self._trip.prefilled_here(self._queue_s, prefill_s, self._cached_tokens)

    def finished(self, answer: Answer) -> None:
        self._trip.answered(answer)

    def failed(self, error: PrfaasError) -> None:
        self._trip.failed(error)


class _Fetch:
    """One rung: an order to a prefill worker, its computing, and its cache on the way here.

    Within a site the cache is taken to land with the last layer; over a link it is a flow fed layer by layer. Half a
    round trip passes before the order is there, and half a one behind the last byte.
    """

    def __init__(
        self, trip: Trip, candidate: PrefillCandidate, held_tokens: int, on_failure: Callable[[PrfaasError], None]
    ) -> None:
        self._trip, self._candidate, self._held_tokens, self._on_failure = trip, candidate, held_tokens, on_failure
        self._world, self._kernel = trip.world, trip.world.kernel
        self._worker = self._world.workers[candidate.worker_id]
        site = trip.decode.info.site
        self._link = self._world.links[(candidate.site, site)] if candidate.site != site else None
        self._started_s = self._kernel.now_s()
        self._export: JobId | None = None
        self._flow: Flow | None = None
        self._cached_tokens = 0
        self._queue_s = self._prefill_s = 0.0
        self._over = False

    def start(self) -> None:
        if self._link is None:
            self._order()
        elif self._link.up:
            self._kernel.after(self._link.rtt_s / 2, self._order)
        else:
            self._kernel.after(self._world.connect_timeout_s, self._unreachable)

    def _unreachable(self) -> None:
        worker_id = self._candidate.worker_id
        self._fail(WorkerUnreachable(f"no connection to {worker_id}", worker_id=worker_id))

    def _order(self) -> None:
        prompt = self._trip.prompt
        if self._link is not None:
            self._flow = self._link.open(self._landed)
            self._world.paths[self._trip.decision.decode_worker].began(
                self._candidate.site, self._link, self._flow, self._stalled
            )
        try:
            self._export = self._worker.export(
                prompt.request, prompt.num_tokens, self, held_tokens=self._held_tokens, streams=self._link is not None
            )
        except PrfaasError as error:
            self._fail(error)

    # The prefill worker's side

    def admitted(self, cached_tokens: int, queue_s: float) -> None:
        self._cached_tokens, self._queue_s = cached_tokens, queue_s

    def layers(self, num_bytes: int) -> None:
        if self._link is not None and self._flow is not None:
            self._link.offer(self._flow, num_bytes)

    def first_token(self, prefill_s: float) -> None:
        self._prefill_s = prefill_s
        if self._link is not None and self._flow is not None:
            self._link.offer(self._flow, 0.0, last=True)
        else:
            self._kernel.after(0.0, self._landed)

    def finished(self, answer: Answer) -> None:
        """An export stays pinned until it is released."""

    def failed(self, error: PrfaasError) -> None:
        self._export = None
        self._fail(error)

    # The receiver's side

    def _stalled(self) -> None:
        self._fail(TransferStalled("no byte came for too long"))

    def _landed(self) -> None:
        if self._over:
            return
        trip, took_s = self._trip, self._kernel.now_s() - self._started_s
        kv_bytes = round(self._flow.carried_bytes) if self._flow is not None else 0
        self._close()
        report = PrefillReport(
            route=self._candidate.route,
            worker_id=self._candidate.worker_id,
            cached_tokens=max(self._held_tokens, self._cached_tokens),
            queue_s=self._queue_s,
            prefill_s=self._prefill_s,
            wire_s=max(0.0, took_s - self._queue_s - self._prefill_s),
            commit_s=0.0,
            kv_bytes=kv_bytes,
            attempts=trip.attempts,
        )
        trip.landed(report, self._started_s)

    def _fail(self, error: PrfaasError) -> None:
        if self._over:
            return
        self._close()
        self._on_failure(error)

    def _close(self) -> None:
        self._over = True
        if self._flow is not None and self._link is not None:
            self._link.abort(self._flow)
            self._world.paths[self._trip.decision.decode_worker].ended(self._flow)
        if self._export is not None:
            self._worker.release(self._export)
