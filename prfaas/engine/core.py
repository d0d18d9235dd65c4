"""Orchestration of one engine without threads, clock or tensors: jobs in, step plans out, results in, events out.

    submit / reserve -> plan(now) -> [a backend executes] -> apply(plan, result, now) or fail(plan, error)
                                                        -> take_events()

At most one plan is out at a time. Whatever happens to a job while a plan is out, the blocks of that plan stay until it
comes back; the same holds for a thread that reads or writes a job's blocks (`borrow`, `give_back`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from prfaas.cache.hybrid import Demand, HybridCache
from prfaas.config import EngineSettings
from prfaas.engine.answers import accepted_by_grammars, readable_at_once, snapshot_readable, take_drawn, take_first
from prfaas.engine.api import Admitted, EngineEvent, Finished, LayersReady, TokensOut
from prfaas.engine.backend import PoolSize
from prfaas.engine.job import Job, JobId, JobKind, JobState, Sample, Strand
from prfaas.engine.jobs import JobMaker
from prfaas.engine.rows import build_plan, is_answered
from prfaas.engine.rules import check_request, never_fits, total_tokens
from prfaas.engine.totals import CoreTotals
from prfaas.errors import DeadlineExceeded, EngineFailed, PrfaasError, RequestCancelled, TransferGone
from prfaas.modelspec import KvRange, ModelSpec
from prfaas.sched.plan import Drawn, StepPlan, StepResult
from prfaas.sched.restore import FREE, CopyCost, RestoreModel
from prfaas.sched.scheduler import Limits, Round, Scheduler
from prfaas.sched.sequence import Sequence as TokenSequence
from prfaas.types import BlockHash, CacheTier, FinishReason, GenerationRequest, TokenOutput, Usage

CoreEvent = tuple[JobId, EngineEvent | PrfaasError]


class EngineCore:
    """Everything about an engine that can be decided without computing. Not thread-safe; its owner locks."""

    def __init__(self, spec: ModelSpec, sizes: Mapping[str, PoolSize], settings: EngineSettings, cost: CopyCost = FREE) -> None:
        context = min(spec.max_context_tokens, settings.max_context_tokens or spec.max_context_tokens)
        self.spec = spec = replace(spec, max_context_tokens=context)
        self.totals = CoreTotals()
        self._settings = settings
        self.cache = HybridCache(
            spec.cache,
            {name: size.device for name, size in sizes.items()},
            max_chunk_tokens=settings.max_step_tokens,
            reuse=settings.prefix_cache,
            host_sizes={name: size.host for name, size in sizes.items()},
        )
        limits = Limits(settings.max_running, settings.max_waiting, settings.max_step_tokens, settings.state_snapshot_blocks)
        self.scheduler = Scheduler(self.cache, limits, RestoreModel(cost))
        self._jobs: dict[JobId, Job] = {}
        self._strands: dict[int, tuple[Job, Strand]] = {}  # by sequence id
        self._events: list[CoreEvent] = []
        self._ended_keys: list[str] = []
        self._step: Round | None = None
        self._maker = JobMaker(spec)

    # Jobs

    def prepare(self, request: GenerationRequest, kind: JobKind, now_s: float) -> Job:
        """Check a request and name its blocks; touches nothing shared, so it needs no lock.

        Raises InvalidRequest and PromptTooLong as `check_request` does, and OutOfBlocks when it can never fit.
        """
        self._check(request)
        return self._maker.job(request, kind, JobState.RESERVED if kind is JobKind.LANDING else JobState.ACTIVE, now_s)

    def submit(self, job: Job, *, tokens_per_s: float = 0.0) -> JobId:
        """Queue a prepared job. Raises QueueFull."""
        self.scheduler.enqueue(job.strands[0].sequence, tokens_per_s)
        self._adopt(job)
        self.totals.prefix_queried += len(job.request.tokens)
        return job.job_id

    def reserve(self, job: Job) -> JobId | None:
        """Take room for a prepared landing; None when there is none now."""
        request = job.request
        if self.scheduler.starved:
            return None
        landed = sum(1 for sequence in self.scheduler.waiting if sequence.lease is not None)
        if landed + sum(1 for job in self._jobs.values() if job.state is JobState.RESERVED) >= self._settings.max_running:
            return None
        sequence, num_tokens = job.strands[0].sequence, len(request.tokens)
        held = self.cache.match_entries(sequence.name_blocks(), num_tokens)
        upto = min(sequence.total_tokens, num_tokens + 1)
        demand = Demand(upto, sequence.total_tokens, num_tokens, resume=False, spare_blocks=self.scheduler.num_running)
        opened = self.cache.open(sequence.names, held, demand)
        if opened is None:
            return None
        if not self.cache.grow(opened.lease, upto):
            self.cache.close(opened.lease)
            return None
        sequence.lease = job.pinned = opened.lease
        job.cached_tokens = held * self.spec.cache.block_tokens
        if sequence.keep_tokens is not None:
            self.cache.snapshots.keep(opened.lease, sequence.keep_tokens, computed=job.cached_tokens)
        self.totals.prefix_queried += num_tokens
        self.totals.prefix_hit += job.cached_tokens
        self._adopt(job)
        return job.job_id

    def held_tokens(self, job_id: JobId) -> int:
        """Landings: the block-aligned prefix that is already here."""
        return self._jobs[job_id].cached_tokens

    def commit(
        self, job_id: JobId, first: Sequence[TokenOutput], *, now_s: float, snapshot_tokens: int = 0
    ) -> list[tuple[str, tuple[int, ...]]]:
        """Every byte has landed, the states after `snapshot_tokens` too unless that is 0: publish, and decode on from the
        first tokens (one for each sample).

        Returns sample keys and the tokens that the backend's grammars must accept before the next step.

        Raises:
            TransferGone: the landing was aborted or cancelled.
            EngineFailed: `first` does not have one token for each sample.
        """
        job = self._jobs.get(job_id)
        if job is None or job.state is not JobState.RESERVED:
            raise TransferGone("this landing is over already")
        if sorted(output.index for output in first) != list(range(len(job.samples))):
            raise EngineFailed(f"a landing of {len(job.samples)} samples came with {len(first)} first tokens")
        strand = job.strands[0]
        sequence = strand.sequence
        sequence.computed = sequence.cached = sequence.num_prompt
        self.cache.publish(sequence.held, sequence.names, sequence.computed)
        self.cache.snapshots.settle_kept(sequence.held, landed_tokens=snapshot_tokens)
        job.state, job.pinned, job.admitted_s = JobState.ACTIVE, None, now_s
        self._emit(job, Admitted(job.cached_tokens, now_s - job.arrival_s))
        outputs = take_first(job, self.spec, first)
        accepted = accepted_by_grammars(job)
        self._emit(job, TokensOut(outputs, prefill_s=0.0))
        job.spoke = True
        self._continue(job, strand, requeue=True)
        return accepted

    def cancel(self, job_id: JobId, error: PrfaasError | None = None) -> None:
        """End a job: cancel with an error (RequestCancelled unless given), release an export, abort a landing.

        Idempotent; what a step, a reader or a writer still uses is freed when it is done.
        """
        job = self._jobs.get(job_id)
        if job is None or job.state is JobState.LEAVING:
            return
        if job.state is not JobState.PINNED:
            self._count_waste(job)
            self._emit(job, error or RequestCancelled("the request was cancelled"))
        self._end(job)

    def release(self, job_id: JobId) -> None:
        """Unpin an export (cancelling it if it still runs) or abort a landing. Idempotent."""
        self.cancel(job_id)

    def borrow(self, job_id: JobId, wanted: KvRange) -> tuple[int, ...]:
        """The block table of the range's group (or its one state slot) for reading or writing outside the core, until
        `give_back`. Empty for states that nobody keeps.

        Raises:
            TransferGone: the job is over.
        """
        job = self._jobs.get(job_id)
        if job is None or job.state is JobState.LEAVING:
            raise TransferGone("this cache is no longer held")
        lease = job.pinned if job.pinned is not None else job.strands[0].sequence.lease
        if lease is None:
            raise TransferGone("nothing of this cache is computed yet")
        job.borrowers += 1
        return lease.places(wanted, len(job.request.tokens))

    def give_back(self, job_id: JobId) -> None:
        """The reading or writing is over."""
        job = self._jobs[job_id]
        job.borrowers -= 1
        if job.state is JobState.LEAVING:
            self._try_free(job)

    # Steps

    def plan(self, now_s: float) -> StepPlan:
        """The next step; may be empty. Ends jobs whose deadline has passed."""
        assert self._step is None, "one plan at a time"
        for job in [j for j in self._jobs.values() if j.deadline_s is not None and j.deadline_s <= now_s]:
            self.cancel(job.job_id, DeadlineExceeded("the request's deadline passed", deadline_s=job.request.deadline_s))
        step = self.scheduler.schedule()
        for sequence in step.preempted:
            self.totals.preemptions += 1
            job, _ = self._strands[sequence.sequence_id]
            if not job.spoke:
                job.prompt_logprobs.clear()
        for sequence in step.admitted:
            self._admitted(sequence, now_s)
        ended, self._ended_keys = tuple(self._ended_keys), []
        plan = build_plan(step, self._strands, ended)
        if not plan.empty:
            self._step = step
        return plan

    def layer_ready(self, plan: StepPlan, layer: int) -> None:
        """The backend has written `layer` for every row of the running plan."""
        for row in plan.rows:
            if row.layers_wanted:
                job, _ = self._strands[row.sequence_id]
                if job.state is JobState.ACTIVE:
                    self._emit(job, LayersReady(layer, layer + 1, row.context_tokens, row.end_tokens))

    def apply(self, plan: StepPlan, result: StepResult, now_s: float) -> None:
        """Take a step's results in.

        Raises:
            EngineFailed: the result does not answer the plan; nothing was changed, call `fail`.
        """
        step = self._take_step()
        if not is_answered(plan, result):
            self._step = step
            raise EngineFailed("the backend's result does not answer every row of the plan")
        self.scheduler.complete(step, restore_s=result.restore_s)
        for sequence in step.admitted:
            if sequence.restoring:
                sequence.restoring = False
                job, _ = self._strands[sequence.sequence_id]
                self._emit_all(job, readable_at_once(job, sequence, self.spec.num_layers))
        for share, row in zip(step.shares, plan.rows, strict=True):
            answer = result.rows[row.sequence_id]
            job, strand = self._strands[share.sequence.sequence_id]
            self.totals.prompt_computed += max(0, min(row.end_tokens, share.sequence.num_prompt) - row.context_tokens)
            if job.state is JobState.LEAVING:
                continue
            self._emit_all(job, snapshot_readable(job, share))
            job.prompt_logprobs.extend(answer.prompt_logprobs)
            if answer.drawn:
                self._drawn(job, strand, answer.drawn, now_s)
        self._free_leaving(step)

    def fail(self, plan: StepPlan, error: PrfaasError) -> None:
        """The step failed: every job in it ends with `error`, and so does every job that it had to prepare copies for."""
        step = self._take_step()
        self.scheduler.fail(step)
        broken = frozenset((move.group, move.target) for move in step.moves if move.target_tier is CacheTier.DEVICE)
        touched = {*step.admitted, *(share.sequence for share in step.shares)}
        for job in list(self._jobs.values()):
            for sequence in [strand.sequence for strand in job.strands]:
                if sequence in touched or (sequence.lease is not None and sequence.lease.ends_in(broken)):
                    self.cancel(job.job_id, error)
        self._free_leaving(step)

    def take_events(self) -> list[CoreEvent]:
        """Events since the last call, in order."""
        events, self._events = self._events, []
        return events

    def next_deadline_s(self) -> float | None:
        """When `plan` must be called again even if nothing else happens."""
        return min((j.deadline_s for j in self._jobs.values() if j.deadline_s is not None), default=None)

    def jobs(self) -> tuple[Job, ...]:
        """Everything that holds or wants something here. To be looked at, not changed."""
        return tuple(self._jobs.values())

    def match(self, names: Sequence[BlockHash], request: GenerationRequest) -> int:
        """Prompt tokens a prefix hit would save right now; `names` are the prompt's blocks'."""
        if request.sampling.prompt_logprobs is not None:
            return 0
        return self.cache.match(names, len(request.tokens)) * self.spec.cache.block_tokens

    # Inside

    def _check(self, request: GenerationRequest) -> None:
        check_request(request, self.spec)
        lacking = self.cache.fits_alone(total_tokens(request, self.spec))
        if lacking is not None:
            raise never_fits(*lacking)

    def _adopt(self, job: Job) -> None:
        self._jobs[job.job_id] = job
        for strand in job.strands:
            self._strands[strand.sequence.sequence_id] = (job, strand)

    def _emit(self, job: Job, event: EngineEvent | PrfaasError) -> None:
        self._events.append((job.job_id, event))

    def _admitted(self, sequence: TokenSequence, now_s: float) -> None:
        job, _ = self._strands[sequence.sequence_id]
        if job.admitted_s is not None:
            return
        job.admitted_s, job.cached_tokens = now_s, sequence.cached
        self.totals.prefix_hit += sequence.cached
        self._emit(job, Admitted(sequence.cached, now_s - job.arrival_s, sequence.held.kept_tokens))
        if not sequence.restoring:
            self._emit_all(job, readable_at_once(job, sequence, self.spec.num_layers))

    def _emit_all(self, job: Job, events: Sequence[EngineEvent]) -> None:
        for event in events if job.state is JobState.ACTIVE else ():
            self._emit(job, event)

    def _drawn(self, job: Job, strand: Strand, drawn: Sequence[Drawn], now_s: float) -> None:
        outputs = take_drawn(job, strand, self.spec, drawn)
        self.totals.sampled += len(outputs)
        first_s = now_s - job.admitted_s if job.admitted_s is not None and not job.spoke else None
        self._emit(job, TokensOut(outputs, prefill_s=first_s))
        job.spoke = True
        if job.kind is JobKind.EXPORT:
            self._finish_export(job, strand)
        else:
            self._continue(job, strand, requeue=False)

    def _finish_export(self, job: Job, strand: Strand) -> None:
        self.scheduler.leave(strand.sequence)
        self._forget_samples(strand.samples)
        job.pinned, job.state = strand.sequence.held, JobState.PINNED
        self._emit(job, Finished(Usage(len(job.request.tokens), len(job.samples), job.cached_tokens)))

    def _continue(self, job: Job, strand: Strand, *, requeue: bool) -> None:
        """After a draw: the first sample that goes on keeps the sequence, the others fork, finished ones leave."""
        alive = [sample for sample in strand.samples if sample.finish is None]
        self._forget_samples([sample for sample in strand.samples if sample.finish is not None])
        sequence = strand.sequence
        for sample in alive[1:]:
            self._fork(job, sequence, sample)
        strand.samples = alive[:1]
        if alive:
            sequence.tokens.append(alive[0].tokens[-1])
            if requeue:
                self.scheduler.requeue(sequence)
            return
        self._drop_strand(job, strand)
        if job.finished:
            self._emit(job, Finished(Usage(len(job.request.tokens), job.num_drawn, job.cached_tokens)))
            self._end(job)

    def _fork(self, job: Job, parent: TokenSequence, sample: Sample) -> None:
        child = self._maker.sequence(job.request, parent.arrival_s, export=False)
        child.names = list(parent.names)
        child.tokens = [*parent.tokens, sample.tokens[-1]]
        opened = self.cache.fork(parent.held, parent.computed, parent.total_tokens)
        if opened is not None:  # otherwise it computes its prompt again when there is room
            child.lease, child.computed = opened.lease, parent.computed
            self.scheduler.add_moves(opened.moves)
        strand = Strand(child, [sample])
        job.strands.append(strand)
        self._strands[child.sequence_id] = (job, strand)
        self.scheduler.requeue(child)

    def _forget_samples(self, samples: Sequence[Sample]) -> None:
        for sample in samples:
            if sample.sample_key:
                self._ended_keys.append(sample.sample_key)
                sample.sample_key = ""

    def _count_waste(self, job: Job) -> None:
        if job.kind is not JobKind.LANDING and not (job.spoke and job.kind is JobKind.GENERATE):
            strand = job.strands[0].sequence
            self.totals.wasted += max(0, min(strand.computed, strand.num_prompt) - strand.cached)

    def _end(self, job: Job) -> None:
        """Nothing more is computed for a job; free what nobody touches."""
        self._forget_samples([sample for sample in job.samples if sample.finish is None])
        for sample in job.samples:
            sample.finish = sample.finish or FinishReason.CANCELLED
        for strand in job.strands:
            self.scheduler.leave(strand.sequence)
        job.state = JobState.LEAVING
        self._try_free(job)

    def _try_free(self, job: Job) -> None:
        busy = self._step.shares if self._step is not None else ()
        if job.borrowers or any(share.sequence is strand.sequence for share in busy for strand in job.strands):
            return
        for strand in list(job.strands):
            self._drop_strand(job, strand)
        self._jobs.pop(job.job_id, None)

    def _drop_strand(self, job: Job, strand: Strand) -> None:
        self.scheduler.leave(strand.sequence)
        if strand.sequence.lease is not None:
            self.cache.close(strand.sequence.lease)
            strand.sequence.lease = None
        self._strands.pop(strand.sequence.sequence_id, None)
        if len(job.strands) > 1:
            job.strands.remove(strand)

    def _free_leaving(self, step: Round) -> None:
        for job in [job for job in self._jobs.values() if job.state is JobState.LEAVING]:
            self._try_free(job)

    def _take_step(self) -> Round:
        assert self._step is not None, "no plan is out"
        step, self._step = self._step, None
        return step

    def check_integrity(self) -> None:
        """Cache, scheduler and jobs agree. Raises AssertionError."""
        self.cache.check_integrity()
        self.scheduler.check_integrity()
        for sequence in (*self.scheduler.running, *self.scheduler.waiting):
            job, strand = self._strands[sequence.sequence_id]
            assert strand in job.strands
            assert job.state is JobState.ACTIVE
