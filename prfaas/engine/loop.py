"""The running engine: one thread that plans, executes and applies steps; doors on event loops talk to it at once.

A lock guards the core's bookkeeping and is not held while a step executes, so `submit`, `cancel`, `reserve`, `match` and
`load` never wait for a step. Events reach their event loop by `call_soon_threadsafe`. An idle engine sleeps on a
condition. A step that raises fails its own sequences, and the engine goes on.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from prfaas.cache.hashing import hash_blocks
from prfaas.clock import Clock
from prfaas.config import EngineSettings
from prfaas.engine.api import EngineEvent, EngineStream, Finished, Landing
from prfaas.engine.backend import Backend
from prfaas.engine.core import EngineCore
from prfaas.engine.job import Job, JobId, JobKind
from prfaas.engine.meters import EngineMeters, counters
from prfaas.engine.stream import JobLanding, JobStream
from prfaas.errors import Draining, EngineFailed, InvalidRequest, OutOfBlocks, PrfaasError, QueueFull, RequestCancelled
from prfaas.log import logger
from prfaas.metrics import MetricSet
from prfaas.modelspec import DType, KvRange, ModelSpec
from prfaas.sched.plan import StepPlan, StepResult
from prfaas.types import CacheEvent, GenerationRequest, TokenOutput, WorkerLoad

LOG = logger(__name__)

CHECK_S = 5.0  # a grammar that takes longer to compile is refused

Delivery = tuple[JobId, JobStream, EngineEvent | PrfaasError]


@dataclass(frozen=True, slots=True, eq=False)
class _Ticket:
    """A place in the line of landings that wait for room; `room` is set when trying again makes sense."""

    loop: asyncio.AbstractEventLoop
    room: asyncio.Event


class LoopedEngine:
    """Implements `prfaas.engine.api.Engine` over a backend."""

    def __init__(self, backend: Backend, settings: EngineSettings, *, metrics: MetricSet, clock: Clock) -> None:
        self._backend = backend
        self._settings = settings
        self._clock = clock
        self._core = EngineCore(backend.spec, backend.pool_sizes(), settings, backend.copy_cost())
        self._meters = EngineMeters(metrics, self._core.spec.name)
        self._changed = threading.Condition()
        self._streams: dict[JobId, JobStream] = {}
        self._accepts: list[tuple[JobId, str, tuple[int, ...]]] = []
        self._line: list[_Ticket] = []
        self._draining = False
        self._closing = False
        # One thread: grammars are compiled one after the other, so that they never take more than one core.
        self._checker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prfaas-check")
        self._thread = threading.Thread(target=self._run, name="prfaas-engine", daemon=True)
        self._thread.start()

    @property
    def spec(self) -> ModelSpec:
        return self._core.spec

    # Doors

    async def check(self, request: GenerationRequest) -> None:
        if request.sampling.grammar is None:
            self._backend.check(request.sampling)
            return
        with self._changed:
            self._require_open()
            work = self._checker.submit(self._backend.check, request.sampling)
        try:
            async with asyncio.timeout(CHECK_S):
                await asyncio.wrap_future(work)
        except TimeoutError as error:
            if work.cancel():  # it never began
                raise QueueFull(f"other grammars were being compiled for {CHECK_S} s", retry_after_s=1.0) from error
            raise InvalidRequest(
                f"response_format: this grammar takes more than {CHECK_S} s to compile; send a smaller one",
                param="response_format",
            ) from error

    def submit(self, request: GenerationRequest, *, export: bool = False) -> EngineStream:
        self._backend.check(request.sampling)
        loop = asyncio.get_running_loop()
        job = self._core.prepare(request, JobKind.EXPORT if export else JobKind.GENERATE, self._clock.now_s())
        with self._changed:
            self._require_open()
            job_id = self._core.submit(job, tokens_per_s=self._meters.prefill_tokens_per_s)
            stream = self._streams[job_id] = JobStream(self, job_id, loop)
            self._changed.notify()
        return stream

    async def reserve(self, request: GenerationRequest, *, timeout_s: float) -> Landing:
        self._backend.check(request.sampling)
        job = self._core.prepare(request, JobKind.LANDING, self._clock.now_s())
        ticket: _Ticket | None = None
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    with self._changed:
                        landing = self._try_reserve(job, ticket)
                        if landing is not None:
                            return landing
                        ticket = ticket or self._join_line()
                        ticket.room.clear()
                    await ticket.room.wait()
        except TimeoutError as error:
            raise OutOfBlocks(f"no room for the landing within {timeout_s} s", waited_s=timeout_s) from error
        finally:
            self._leave_line(ticket)

    def match(self, request: GenerationRequest) -> int:
        names = hash_blocks(request.tokens, self.spec.cache.block_tokens, request.cache_salt)
        with self._changed:
            return self._core.match(names, request)

    def load(self) -> WorkerLoad:
        with self._changed:
            return self._meters.load(self._core, draining=self._draining)

    def take_cache_events(self) -> tuple[CacheEvent, ...]:
        with self._changed:
            return self._core.cache.take_events()

    def cache_snapshot(self) -> tuple[int, tuple[CacheEvent, ...]]:
        with self._changed:
            return self._core.cache.snapshot_events()

    def counters(self) -> Mapping[str, float]:
        with self._changed:
            return counters(self._core)

    def drain(self) -> None:
        with self._changed:
            self._draining = True
            self._wake_line()

    def resume(self) -> None:
        with self._changed:
            self._draining = False

    async def close(self) -> None:
        with self._changed:
            if not self._closing:
                self._closing = True
                for job in self._core.jobs():
                    self._core.cancel(job.job_id, RequestCancelled("the engine is closing"))
                self._after_change()
                self._checker.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(self._thread.join)

    # JobPort: what streams and landings ask for

    def end_job(self, job_id: JobId) -> None:
        """Cancel, release or abort, whatever the job is. Idempotent."""
        with self._changed:
            self._core.cancel(job_id)
            self._after_change()

    def read_job(self, job_id: JobId, wanted: KvRange) -> memoryview:
        """Read from a job's blocks; they stay while the read lasts. Raises TransferGone."""
        with self._changed:
            blocks = self._core.borrow(job_id, wanted)
        try:
            return self._backend.read(wanted, blocks)
        finally:
            self._give_back(job_id)

    def write_job(self, job_id: JobId, landed: KvRange, payload: memoryview, dtypes: Sequence[DType]) -> None:
        """Write into a landing's blocks; they stay while the write lasts. Raises TransferGone, ValueError."""
        with self._changed:
            blocks = self._core.borrow(job_id, landed)
        try:
            if blocks:
                self._backend.write(landed, blocks, payload, dtypes)
        finally:
            self._give_back(job_id)

    def commit_job(self, job_id: JobId, first: Sequence[TokenOutput], snapshot_tokens: int) -> EngineStream:
        """Turn a landing into a running sequence. Raises TransferGone, EngineFailed (the landing is aborted then)."""
        stream = JobStream(self, job_id, asyncio.get_running_loop())
        with self._changed:
            try:
                now_s = self._clock.now_s()
                accepted = self._core.commit(job_id, first, now_s=now_s, snapshot_tokens=snapshot_tokens)
                self._accepts.extend((job_id, key, tokens) for key, tokens in accepted)
            except EngineFailed:
                self._core.cancel(job_id)
                raise
            else:
                self._streams[job_id] = stream
            finally:
                self._after_change()
        return stream

    # Inside; the lock is held unless said otherwise

    def _require_open(self) -> None:
        if self._draining or self._closing:
            raise Draining("this engine takes no new work")

    def _give_back(self, job_id: JobId) -> None:
        with self._changed:
            self._core.give_back(job_id)
            self._after_change()

    def _after_change(self) -> None:
        self._deliver()
        self._wake_line()
        self._changed.notify()

    def _deliver(self) -> None:
        while events := self._core.take_events():
            batches: dict[asyncio.AbstractEventLoop, list[Delivery]] = {}
            for job_id, event in events:
                stream = self._streams.get(job_id)
                if stream is None:
                    continue  # a landing that ended before its commit: its owner learns it from write or commit
                if isinstance(event, PrfaasError | Finished):
                    del self._streams[job_id]
                batches.setdefault(stream.loop, []).append((job_id, stream, event))
            for loop, batch in batches.items():
                try:
                    loop.call_soon_threadsafe(_hand_over, batch)
                except RuntimeError:  # that event loop is closed: nobody listens to these jobs any more
                    for job_id, _, _ in batch:
                        self._core.cancel(job_id)

    def _try_reserve(self, job: Job, ticket: _Ticket | None) -> Landing | None:
        """Landings get room in the order in which they asked."""
        self._require_open()
        if self._line and self._line[0] is not ticket:
            return None
        job_id = self._core.reserve(job)
        return None if job_id is None else JobLanding(self, job_id, self._core.held_tokens(job_id))

    def _join_line(self) -> _Ticket:
        if len(self._line) >= self._settings.max_waiting:
            depth, limit = len(self._line), self._settings.max_waiting
            raise QueueFull("too many landings wait for room", depth=depth, limit=limit, retry_after_s=1.0)
        ticket = _Ticket(asyncio.get_running_loop(), asyncio.Event())
        self._line.append(ticket)
        return ticket

    def _leave_line(self, ticket: _Ticket | None) -> None:
        if ticket is not None:
            with self._changed:
                self._line.remove(ticket)
                self._wake_line()

    def _wake_line(self) -> None:
        in_vain = self._draining or self._closing
        for ticket in self._line if in_vain else self._line[:1]:
            with suppress(RuntimeError):  # a closed event loop waits for nothing
                ticket.loop.call_soon_threadsafe(ticket.room.set)

    # The engine's thread; takes the lock itself

    def _run(self) -> None:
        while (plan := self._next_plan()) is not None:
            started_s = self._clock.now_s()
            result = self._execute(plan)
            self._finish_step(plan, result, started_s)
        self._backend.close()

    def _next_plan(self) -> StepPlan | None:
        """The next step to execute; sleeps until there is one. None when the engine closes."""
        with self._changed:
            while not self._closing:
                now_s = self._clock.now_s()
                plan = self._core.plan(now_s)
                self._meters.publish(self._core)
                self._after_plan()
                if not plan.empty:
                    return plan
                deadline_s = self._core.next_deadline_s()
                self._changed.wait(None if deadline_s is None else max(0.0, deadline_s - now_s))
        return None

    def _after_plan(self) -> None:
        self._deliver()
        self._wake_line()

    def _execute(self, plan: StepPlan) -> StepResult | PrfaasError:
        self._accept_landed()
        hook = (lambda layer: self._layer_ready(plan, layer)) if any(row.layers_wanted for row in plan.rows) else None
        try:
            return self._backend.execute(plan, hook)
        except PrfaasError as error:
            LOG.warning("a step of %d rows failed: %s", len(plan.rows), error)
            return error
        except Exception as error:
            LOG.exception("a step of %d rows failed", len(plan.rows))
            failure = EngineFailed(f"the engine failed while computing a step ({type(error).__name__})")
            failure.__cause__ = error
            return failure

    def _accept_landed(self) -> None:
        """Let grammars take in first tokens that were drawn elsewhere; a token that one refuses ends its job alone."""
        with self._changed:
            accepts, self._accepts = self._accepts, []
        for job_id, sample_key, tokens in accepts:
            try:
                self._backend.accept(sample_key, tokens)
            except PrfaasError as error:
                with self._changed:
                    self._core.cancel(job_id, error)

    def _layer_ready(self, plan: StepPlan, layer: int) -> None:
        with self._changed:
            self._core.layer_ready(plan, layer)
            self._deliver()

    def _finish_step(self, plan: StepPlan, result: StepResult | PrfaasError, started_s: float) -> None:
        with self._changed:
            now_s = self._clock.now_s()
            if isinstance(result, StepResult):
                compute_s = now_s - started_s - (result.restore_s or 0.0)
                self._meters.step_done(plan, compute_s)
                self._core.scheduler.restores.computed(plan.num_prefill_tokens, compute_s)
                self._end_broken(result)
                try:
                    self._core.apply(plan, result, now_s)
                except EngineFailed as error:
                    self._core.fail(plan, error)
            else:
                self._core.fail(plan, result)
            self._after_change()

    def _end_broken(self, result: StepResult) -> None:
        """End the requests whose own rows went wrong, before the others' results are taken in."""
        drawn = ((sequence_id, each.error) for sequence_id, row in result.rows.items() for each in row.drawn)
        errors = {sequence_id: error for sequence_id, error in drawn if error is not None}
        for job in self._core.jobs() if errors else ():
            for strand in job.strands:
                if strand.sequence.sequence_id in errors:
                    self._core.cancel(job.job_id, errors[strand.sequence.sequence_id])


def _hand_over(batch: list[Delivery]) -> None:
    for _, stream, event in batch:
        stream.put(event)
