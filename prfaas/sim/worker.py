"""A worker in virtual time: the production engine core, scheduler and cache over a profile instead of a device.

A round of decodes only is priced as many equal steps at once: the core plans it, it lasts until the first of its
sequences ends or something joins the batch, and the one draw that it is answered with stands for all tokens of these
steps. Joining happens at step boundaries, so every time is what a step-by-step simulation gives. What differs: the
cache grows by one grain a round instead of one token a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from prfaas.config import EngineSettings
from prfaas.engine.api import Admitted, EngineEvent, Finished, LayersReady, TokensOut
from prfaas.engine.core import EngineCore
from prfaas.engine.job import Job, JobId, JobKind
from prfaas.engine.meters import EngineMeters
from prfaas.engine.pool_sizes import plan_pools
from prfaas.errors import PrfaasError
from prfaas.metrics import MetricSet
from prfaas.planner.profile import HardwareProfile
from prfaas.sched.plan import Drawn, Row, RowResult, StepPlan, StepResult
from prfaas.sched.sequence import Sequence
from prfaas.sim.gaps import Histogram
from prfaas.sim.kernel import Kernel, Timer
from prfaas.sim.listener import Answer, Listener
from prfaas.sim.model import SimModel
from prfaas.sim.prompts import DRAW, END
from prfaas.types import GenerationRequest, Role, SiteId, TokenOutput, WorkerId, WorkerInfo, WorkerLoad

NO_DRAW, DREW, DREW_LAST = RowResult(), RowResult((Drawn(DRAW),)), RowResult((Drawn(END),))
SLACK = 1e-9  # relative slack of step boundaries, far above rounding and far below a step


@dataclass(frozen=True, slots=True)
class SimEngineSettings:
    """One simulated engine, in the model's tokens. `cache_bytes`: device memory for blocks and states."""

    block_tokens: int = 1024
    cache_bytes: int = 200_000_000_000
    max_step_tokens: int = 8192
    max_waiting: int = 4096
    prefix_cache: bool = True


@dataclass(slots=True, eq=False)
class _Track:
    """One job here. `left`: answer tokens to come; `spoke_s`: when its latest token came, None before the first."""

    kind: JobKind
    sequence: Sequence
    listener: Listener
    prompt_tokens: int
    num_answer: int
    left: int
    held_tokens: int = 0
    streams: bool = False
    first_s: float = 0.0
    spoke_s: float | None = None
    wait_s: float | None = None


@dataclass(slots=True)
class _Round:
    """A planned step that runs, or several equal decode steps."""

    plan: StepPlan
    began_s: float
    step_s: float
    steps: int
    decodes: int
    timer: Timer


class SimWorker:
    """One instance. Every call that may give it work starts it; it then keeps itself going."""

    def __init__(
        self,
        worker_id: str,
        site: str,
        role: Role,
        model: SimModel,
        hardware: HardwareProfile,
        settings: SimEngineSettings,
        kernel: Kernel,
        metrics: MetricSet,
        gaps: Histogram,
    ) -> None:
        self.role, self.hardware, self._kernel, self._model, self._gaps = role, hardware, kernel, model, gaps
        self._keeps = settings.prefix_cache  # states at a prompt's last boundary: without a cache nobody resumes from them
        engine = _engine_settings(settings, hardware, model.grain, role)
        sizes = plan_pools(model.spec, engine)
        self.core = EngineCore(model.engine_spec, sizes, engine)
        blocks = min(sizes[group.name].device for group in model.spec.cache.groups if not group.is_state)
        self.info = _info(worker_id, site, role, model, hardware, blocks)
        self._meters = EngineMeters(metrics, model.spec.name)
        self.slot_s = 0.0  # seconds times the share of decode slots in use
        self.prompt_tokens = 0
        self.answer_tokens = 0
        self._busy_s = 0.0
        self._round: _Round | None = None
        self._tracks: dict[JobId, _Track] = {}
        self._by_sequence: dict[int, _Track] = {}
        self._load: WorkerLoad | None = None  # as last reported, while nothing has changed since
        self._gone: list[int] = []  # sequences that ended while a round ran that may compute for them
        self._settling = False  # a round's results are being told; nothing starts meanwhile
        self._room: list[Callable[[], bool]] = []

    # Work

    def generate(self, request: GenerationRequest, prompt_tokens: int, listener: Listener) -> JobId:
        """Queue a prompt to prefill and decode here. Raises what `EngineCore.submit` raises."""
        return self._submit(request, JobKind.GENERATE, prompt_tokens, listener, None)

    def export(
        self, request: GenerationRequest, prompt_tokens: int, listener: Listener, *, held_tokens: int, streams: bool
    ) -> JobId:
        """Queue a prompt to prefill for another worker. With `streams`, layers are offered as they are computed."""
        return self._submit(request, JobKind.EXPORT, prompt_tokens, listener, held_tokens if streams else None)

    def _submit(
        self, request: GenerationRequest, kind: JobKind, prompt_tokens: int, listener: Listener, streamed_from: int | None
    ) -> JobId:
        job = self.core.prepare(request, kind, self._kernel.now_s())
        job_id = self.core.submit(job, tokens_per_s=self._meters.prefill_tokens_per_s)
        track = self._track(job, listener, prompt_tokens)
        if streamed_from is not None:
            track.held_tokens, track.streams = streamed_from, True
        self._pump()
        return job_id

    def reserve(
        self, request: GenerationRequest, prompt_tokens: int, listener: Listener, granted: Callable[[JobId, int], None]
    ) -> None:
        """Take room for a landing now, or, in order of asking, as soon as there is some. `granted` gets the job and the
        tokens of the prompt's prefix that are here already. Raises what `EngineCore.prepare` raises."""
        job = self.core.prepare(request, JobKind.LANDING, self._kernel.now_s())

        def attempt() -> bool:
            job_id = self.core.reserve(job)
            if job_id is None:
                return False
            self._track(job, listener, prompt_tokens)
            self._load = None
            granted(job_id, self.core.held_tokens(job_id) * self._model.grain)
            return True

        if self._room or not attempt():
            self._room.append(attempt)

    def commit(self, job_id: JobId) -> None:
        """Every byte has landed: decode on from the first token."""
        track, now_s = self._tracks[job_id], self._kernel.now_s()
        track.first_s = track.spoke_s = now_s
        track.left -= 1
        first = TokenOutput(index=0, position=0, token_id=DRAW if track.left else END)
        self.core.commit(job_id, (first,), now_s=now_s)
        self._dispatch()
        self._pump()

    def release(self, job_id: JobId) -> None:
        """Unpin or cancel an export, or abort a landing. Idempotent."""
        self._forget(job_id)
        self.core.release(job_id)
        self._offer_room()
        self._pump()

    # Looking

    def load(self) -> WorkerLoad:
        """What a heartbeat reports, in the model's tokens."""
        if self._load is None:
            load, grain = self._meters.load(self.core, draining=False), self._model.grain
            self._load = replace(
                load,
                waiting_prefill_tokens=load.waiting_prefill_tokens * grain,
                prefill_tokens_per_s=load.prefill_tokens_per_s * grain,
            )
        return self._load

    @property
    def waiting_for_room(self) -> int:
        return len(self._room)

    def busy_s(self) -> float:
        """Seconds in which a step was running, until now."""
        return self._busy_s + (self._kernel.now_s() - self._round.began_s if self._round is not None else 0.0)

    def decode_slot_s(self) -> float:
        """Seconds times the share of decode slots in use, until now."""
        now = self._round
        running = now.decodes * (self._kernel.now_s() - now.began_s) / self.hardware.max_batch if now is not None else 0.0
        return self.slot_s + running

    # Inside

    def _track(self, job: Job, listener: Listener, prompt_tokens: int) -> _Track:
        sequence, answer = job.strands[0].sequence, job.request.sampling.max_tokens
        left = 1 if job.kind is JobKind.EXPORT else answer
        track = _Track(job.kind, sequence, listener, prompt_tokens, left, left)
        self._tracks[job.job_id] = self._by_sequence[sequence.sequence_id] = track
        return track

    def _forget(self, job_id: JobId) -> None:
        """A round that still computes for the job finds its track by sequence, until the round ends."""
        track = self._tracks.pop(job_id, None)
        if track is not None and self._round is not None:
            self._gone.append(track.sequence.sequence_id)
        elif track is not None:
            del self._by_sequence[track.sequence.sequence_id]

    def _pump(self) -> None:
        """Start the next round; one of decodes only that is running is cut short at its next step boundary instead."""
        self._load = None
        if self._settling:
            return
        if self._round is not None:
            self._cut(self._round)
            return
        now_s = self._kernel.now_s()
        plan = self.core.plan(now_s)
        self._dispatch()
        if plan.empty:
            return
        prefill_s, decodes, steps = self._price(plan)
        step_s = prefill_s + (self.hardware.decode_step_s(decodes) if decodes else 0.0)
        timer = self._kernel.after(step_s * steps, self._finish)
        self._round = _Round(plan, now_s, step_s, steps, decodes, timer)
        if any(row.layers_wanted and self._by_sequence[row.sequence_id].streams for row in plan.rows):
            self._announce_layers(plan, step_s)

    def _cut(self, running: _Round) -> None:
        done = math.ceil((self._kernel.now_s() - running.began_s) / running.step_s * (1 - SLACK)) if running.steps > 1 else 1
        steps = max(1, done)
        if steps < running.steps:
            running.timer.cancel()
            running.steps = steps
            at_s = max(self._kernel.now_s(), running.began_s + steps * running.step_s)
            running.timer = self._kernel.at(at_s, self._finish)

    def _price(self, plan: StepPlan) -> tuple[float, int, int]:
        """Seconds of prefill in a step, sequences that decode, steps. Chunks run one after the other, then the decodes.

        A chunk of an uncached length [a, b) costs T(b) - T(a), T(0) = 0; a cached prefix is free (arXiv:2604.15039,
        section 3).
        """
        decodes, prefill_s, steps = 0, 0.0, 1 << 30
        for row in plan.rows:
            track = self._by_sequence[row.sequence_id]
            if track.spoke_s is not None and len(row.tokens) == 1:
                decodes += 1
                steps = min(steps, track.left)
            else:
                prefill_s += self._chunk_s(row, track)
        return prefill_s, decodes, steps if decodes == len(plan.rows) > 0 else 1

    def _chunk_s(self, row: Row, track: _Track) -> float:
        grain, cached = self._model.grain, track.sequence.cached * self._model.grain
        begin = row.context_tokens * grain - cached
        end = min(row.end_tokens * grain, max(track.prompt_tokens, begin + cached + 1)) - cached
        curve = self.hardware.prefill_s
        self.prompt_tokens += end - begin
        return max(0.0, curve(end) - (curve(begin) if begin > 0 else 0.0))

    def _announce_layers(self, plan: StepPlan, step_s: float) -> None:
        """Layers become readable one after the other. Before a prompt's end only those of attention have something new."""
        spec, ends = self.core.spec, any(row.draws for row in plan.rows)
        new = {layer for group in spec.cache.groups if ends or not group.is_state for layer in group.layers}
        for layer in sorted(new - {spec.num_layers - 1}):
            self._kernel.after(step_s * (layer + 1) / spec.num_layers, partial(self._layer_done, plan, layer))

    def _layer_done(self, plan: StepPlan, layer: int) -> None:
        self.core.layer_ready(plan, layer)
        self._dispatch()

    def _finish(self) -> None:
        done, now_s = self._round, self._kernel.now_s()
        assert done is not None, "only a running round ends"
        plan = done.plan
        self._busy_s += now_s - done.began_s
        self.slot_s += done.decodes * (now_s - done.began_s) / self.hardware.max_batch
        self._meters.step_done(plan, done.step_s)
        if any(row.layers_wanted for row in plan.rows):
            self.core.layer_ready(plan, self.core.spec.num_layers - 1)
        result = StepResult({row.sequence_id: self._answer(row, done) for row in plan.rows})
        self._gaps.add(done.step_s, done.decodes * (done.steps - 1))  # those before the first of the round are each row's own
        self.core.apply(plan, result, now_s)
        self._round = None
        for sequence_id in self._gone:
            del self._by_sequence[sequence_id]
        self._gone.clear()
        self._settling = True
        self._dispatch()
        self._offer_room()
        self._settling = False
        self._pump()

    def _answer(self, row: Row, done: _Round) -> RowResult:
        track = self._by_sequence[row.sequence_id]
        if not row.draws:
            return NO_DRAW
        if track.spoke_s is None:
            track.first_s = done.began_s + done.step_s
            track.left -= 1
            self.answer_tokens += 1
        else:
            self._gaps.add(done.began_s + done.step_s - track.spoke_s)
            if track.wait_s is None:
                track.wait_s = done.began_s - track.spoke_s
            track.left -= done.steps
            self.answer_tokens += done.steps
        track.spoke_s = done.began_s + done.step_s * done.steps
        return DREW_LAST if track.left <= 0 else DREW

    def _offer_room(self) -> None:
        while self._room and self._room[0]():
            self._room.pop(0)

    def _dispatch(self) -> None:
        for job_id, event in self.core.take_events():
            if type(event) is TokensOut and event.prefill_s is None:
                continue  # tokens after the first are counted by the round
            track = self._tracks.get(job_id)
            if track is not None:
                self._tell(job_id, track, event)

    def _tell(self, job_id: JobId, track: _Track, event: EngineEvent | PrfaasError) -> None:
        listener = track.listener
        match event:
            case Admitted(cached_tokens, queue_s):
                listener.admitted(cached_tokens * self._model.grain, queue_s)
            case LayersReady(layer_start, layer_stop, token_start, token_stop):
                span, held = (token_start, token_stop), track.held_tokens
                ready = range(layer_start, layer_stop) if track.streams else ()
                prompt, keeps = track.prompt_tokens, self._keeps
                num_bytes = sum(self._model.ready_bytes(layer, span, prompt, held, boundary=keeps) for layer in ready)
                if num_bytes:
                    listener.layers(num_bytes)
            case TokensOut(_, prefill_s):
                listener.first_token(prefill_s or 0.0)
            case Finished():
                self._ended(job_id, track)
            case PrfaasError():
                self._forget(job_id)
                listener.failed(event)

    def _ended(self, job_id: JobId, track: _Track) -> None:
        """An answer is complete. Exports end too, but stay pinned until they are released."""
        if track.kind is JobKind.EXPORT:
            return
        self._forget(job_id)
        last_s = track.first_s if track.spoke_s is None else track.spoke_s
        track.listener.finished(Answer(track.num_answer, track.first_s, last_s, track.wait_s or 0.0))


def _engine_settings(settings: SimEngineSettings, hardware: HardwareProfile, grain: int, role: Role) -> EngineSettings:
    """In grains. A decode takes a whole grain of a step's budget where it computes one token; decode workers get as much
    on top."""
    spare = hardware.max_batch if role is Role.DECODE else 0
    return EngineSettings(
        kind="emulated",
        block_tokens=settings.block_tokens // grain,
        cache_bytes=settings.cache_bytes,
        max_running=hardware.max_batch,
        max_waiting=settings.max_waiting,
        max_step_tokens=max(1, settings.max_step_tokens // grain) + spare,
        prefix_cache=settings.prefix_cache,
    )


def _info(worker_id: str, site: str, role: Role, model: SimModel, hardware: HardwareProfile, num_blocks: int) -> WorkerInfo:
    return WorkerInfo(
        worker_id=WorkerId(worker_id),
        incarnation="simulated",
        site=SiteId(site),
        role=role,
        address=worker_id,
        model=model.spec.name,
        fingerprint_digest=model.spec.fingerprint.digest,
        max_context_tokens=model.spec.max_context_tokens,
        block_tokens=model.block_tokens,
        total_blocks=num_blocks,
        max_running=hardware.max_batch,
        device=hardware.name,
        cache_groups=model.spec.cache.describe(),
    )
