"""Whatever happens to an engine, in whatever order: every answer is the oracle's, and nothing is ever lost or leaked.

Conversations grow as trees (a turn continues any earlier one), so that prefixes are shared, forked, evicted and found
again; the pools are small, so that sequences preempt each other and snapshots come and go.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from prfaas.config import EngineSettings
from prfaas.engine.api import Admitted, Finished, LayersReady, SnapshotReady, TokensOut
from prfaas.engine.core import EngineCore
from prfaas.engine.job import JobId, JobKind
from prfaas.errors import EngineFailed, OutOfBlocks, PrfaasError, QueueFull
from prfaas.modelspec import KvRange
from prfaas.sched.plan import StepPlan
from prfaas.sched.restore import CopyCost
from prfaas.types import CacheEventKind, GenerationRequest, RequestId, SamplingParams, TokenOutput
from tests.support.prefix_oracle import PrefixOracle
from tests.support.tiny_specs import emulated_backend, pool_sizes, tiny_spec

BLOCKS, SLOTS, BLOCK = 18, 7, 4
BASES = st.integers(0, 99)
TOKENS = st.lists(st.integers(1, 5), min_size=1, max_size=9)


class EngineMachine(RuleBasedStateMachine):
    shape = "everything"
    host = 0
    copy_cost = CopyCost(1.0, 0.0)

    def __init__(self) -> None:
        super().__init__()
        self.spec = tiny_spec(self.shape, vocab=40, context=56)
        self.backend = emulated_backend(self.spec, blocks=BLOCKS, slots=SLOTS, host=self.host)
        limits = EngineSettings(kind="emulated", max_running=3, max_waiting=4, max_step_tokens=9, state_snapshot_blocks=2)
        sizes = pool_sizes(self.spec, blocks=BLOCKS, slots=SLOTS, host=self.host)
        self.core = EngineCore(self.spec, sizes, limits, self.copy_cost)
        self.oracle = PrefixOracle(self.spec)
        self.now_s = 0.0
        self.running: StepPlan | None = None
        self.requests: dict[JobId, GenerationRequest] = {}
        self.exports: set[JobId] = set()
        self.landings: dict[JobId, list[KvRange]] = {}
        self.answers: dict[JobId, dict[int, list[int]]] = {}
        self.ready: dict[JobId, set[tuple[int, int]]] = {}
        self.promised: dict[JobId, int] = {}  # exports: the boundary whose states will be readable
        self.kept: dict[JobId, int] = {}  # exports: that are; landings: that are sent along
        self.ended: set[JobId] = set()
        self.texts: list[list[int]] = [[1, 2, 3]]
        self.known: dict[tuple[str, str, bytes], None] = {}  # the router's view, fed by events

    # What a door does

    def request(self, base: int, more: list[int], n: int, priority: int) -> GenerationRequest:
        tokens = (*self.texts[base % len(self.texts)], *more)[:50]
        params = SamplingParams(max_tokens=1 + len(more), temperature=0.0 if n == 1 else 1.0, n=n, seed=base)
        return GenerationRequest(RequestId("r"), "tiny", tokens, params, priority)

    def adopt(self, job_id: JobId, request: GenerationRequest) -> None:
        self.requests[job_id] = request
        self.answers[job_id] = {index: [] for index in range(request.sampling.n)}

    @rule(
        base=st.integers(0, 99), more=TOKENS, n=st.sampled_from([1, 1, 1, 3]), priority=st.integers(0, 2), export=st.booleans()
    )
    def submit(self, base: int, more: list[int], n: int, priority: int, export: bool) -> None:
        request = self.request(base, more, n, priority)
        try:
            kind = JobKind.EXPORT if export else JobKind.GENERATE
            job_id = self.core.submit(self.core.prepare(request, kind, self.now_s))
        except QueueFull:
            assert self.core.scheduler.num_waiting >= 4
            return
        except OutOfBlocks as error:
            assert "needed_blocks" in error.detail  # noqa: PT017
            return
        self.adopt(job_id, request)
        if export:
            self.exports.add(job_id)

    @rule(base=st.integers(0, 99), more=TOKENS, n=st.sampled_from([1, 2]), snapshot=st.booleans())
    def reserve(self, base: int, more: list[int], n: int, snapshot: bool) -> None:
        request = self.request(base, more, n, 0)
        job_id = self.core.reserve(self.core.prepare(request, JobKind.LANDING, self.now_s))
        if job_id is None:
            return
        self.adopt(job_id, request)
        length, held = len(request.tokens), self.core.held_tokens(job_id)
        self.landings[job_id] = [
            KvRange(g.name, layer, layer + 1, length if g.is_state else max(held, g.first_needed_token(length)), length)
            for g in self.spec.cache.groups
            for layer in range(len(g.layers))
        ]
        boundary = (length - 1) // BLOCK * BLOCK
        if snapshot and boundary > held:
            self.kept[job_id] = boundary
            states = [g for g in self.spec.cache.groups if g.is_state]
            self.landings[job_id] += [KvRange(g.name, 0, len(g.layers), boundary, boundary) for g in states]

    @precondition(lambda self: self.landings)
    @rule(which=st.integers(0, 9), count=st.integers(1, 8))
    def land(self, which: int, count: int) -> None:
        job_id = list(self.landings)[which % len(self.landings)]
        for _ in range(min(count, len(self.landings[job_id]))):
            piece = self.landings[job_id].pop()
            group = self.spec.cache.group(piece.group)
            payload = self.oracle.payload(self.requests[job_id].tokens[: piece.token_stop], piece)
            if blocks := self.core.borrow(job_id, piece):
                self.backend.write(piece, blocks, payload, [tensor.dtype for tensor in group.tensors])
            self.core.give_back(job_id)
        if not self.landings[job_id]:
            del self.landings[job_id]
            first = self.oracle.first_tokens(self.requests[job_id])
            outputs = [TokenOutput(i, 0, token) for i, token in enumerate(first)]
            self.core.commit(job_id, outputs, now_s=self.now_s, snapshot_tokens=self.kept.get(job_id, 0))

    @precondition(lambda self: self.landings)
    @rule(which=st.integers(0, 9))
    def abort(self, which: int) -> None:
        job_id = list(self.landings)[which % len(self.landings)]
        del self.landings[job_id]
        self.core.cancel(job_id)

    @precondition(lambda self: self.requests)
    @rule(which=st.integers(0, 99))
    def cancel(self, which: int) -> None:
        job_id = list(self.requests)[which % len(self.requests)]
        self.landings.pop(job_id, None)
        self.core.cancel(job_id)

    @precondition(lambda self: any(j in self.ended for j in self.exports))
    @rule()
    def release(self) -> None:
        job_id = next(j for j in self.exports if j in self.ended)
        self.check_export(job_id)
        self.core.cancel(job_id)
        self.exports.discard(job_id)

    # What the engine's thread does

    @precondition(lambda self: self.running is None)
    @rule(passes_s=st.floats(0, 30))
    def plan(self, passes_s: float) -> None:
        self.now_s += passes_s
        plan = self.core.plan(self.now_s)
        self.running = None if plan.empty else plan

    @precondition(lambda self: self.running is not None)
    @rule()
    def execute(self) -> None:
        assert self.running is not None
        plan, self.running = self.running, None
        result = self.backend.execute(plan, lambda layer: self.core.layer_ready(plan, layer))
        self.core.apply(plan, result, self.now_s)

    @precondition(lambda self: self.running is not None)
    @rule()
    def break_step(self) -> None:
        assert self.running is not None
        plan, self.running = self.running, None
        self.core.fail(plan, EngineFailed("broken on purpose"))

    @rule(slow=st.booleans())
    def measure(self, slow: bool) -> None:
        """From now on prefixes in host memory are restored, or from now on they are computed."""
        self.core.scheduler.restores.computed(10**6 if not slow else 10**9, 1e-6 if not slow else 1e15)

    @rule(count=st.integers(1, 12))
    def run(self, count: int) -> None:
        for _ in range(count):
            if self.running is None:
                self.plan(0.0)
            if self.running is None:
                return
            self.execute()
            self.take()

    # What must be true

    def check_export(self, job_id: JobId) -> None:
        """An export's cache is complete, byte for byte, until it is released."""
        if not any(job.job_id == job_id for job in self.core.jobs()):
            return
        request = self.requests[job_id]
        length = len(request.tokens)
        expected = {(layer, token) for layer in range(self.spec.num_layers) for token in range(length)}
        assert self.ready[job_id] == expected, "some entries were never announced"
        assert self.kept.get(job_id, 0) == self.promised[job_id], "a snapshot was promised and never came"
        for group in self.spec.cache.groups:
            stops = {length, self.kept.get(job_id, length)} if group.is_state else {length}
            for stop in stops:
                start = stop if group.is_state else group.first_needed_token(length)
                wanted = KvRange(group.name, 0, len(group.layers), start, stop)
                payload = self.backend.read(wanted, self.core.borrow(job_id, wanted))
                self.core.give_back(job_id)
                assert bytes(payload) == bytes(self.oracle.payload(request.tokens[:stop], wanted))

    @invariant()
    def take(self) -> None:
        for job_id, event in self.core.take_events():
            assert job_id not in self.ended, "an event after the end"
            if isinstance(event, PrfaasError):
                self.ended.add(job_id)
                self.exports.discard(job_id)
            elif isinstance(event, LayersReady):
                self.announce(job_id, event)
            elif isinstance(event, TokensOut):
                for output in event.outputs:
                    assert output.position == len(self.answers[job_id][output.index])
                    self.answers[job_id][output.index].append(output.token_id)
            elif isinstance(event, Finished):
                self.ended.add(job_id)
                self.check_answer(job_id)
            elif isinstance(event, SnapshotReady):
                assert job_id not in self.kept, "a snapshot came twice"
                self.kept[job_id] = event.num_tokens
            else:
                assert isinstance(event, Admitted)
                self.promised[job_id] = event.snapshot_tokens

    def announce(self, job_id: JobId, event: LayersReady) -> None:
        ready = self.ready.setdefault(job_id, set())
        new = {
            (layer, token)
            for layer in range(event.layer_start, event.layer_stop)
            for token in range(event.token_start, event.token_stop)
        }
        assert not new & ready, "entries were announced twice"
        ready |= new

    def check_answer(self, job_id: JobId) -> None:
        request = self.requests[job_id]
        if job_id in self.exports:
            assert [self.answers[job_id][i][0] for i in range(request.sampling.n)] == self.oracle.first_tokens(request)
            return
        for index, answer in self.answers[job_id].items():
            assert answer == self.oracle.answer(request, index), "a token differs from the oracle's"
        self.texts.append([*request.tokens, *self.answers[job_id][0]][:40])

    @invariant()
    def nothing_is_lost(self) -> None:
        self.core.check_integrity()

    @invariant()
    def events_rebuild_the_view(self) -> None:
        for event in self.core.cache.take_events():
            for name in event.hashes:
                key = (event.tier, event.group, bytes(name))
                if event.kind is CacheEventKind.STORED:
                    assert key not in self.known
                    self.known[key] = None
                else:
                    del self.known[key]
        _, snapshot = self.core.cache.snapshot_events()
        assert set(self.known) == {(event.tier, event.group, bytes(name)) for event in snapshot for name in event.hashes}

    def teardown(self) -> None:
        """Everything that still waits or runs comes to its end, and then nothing is held."""
        for job_id in list(self.landings):
            self.core.cancel(job_id)
        for _ in self.rounds():
            self.take()
            for _ in [j for j in self.exports if j in self.ended]:
                self.release()
        self.take()
        assert self.ended == set(self.requests), "a request never ended"
        assert not self.core.jobs()
        for counts in self.core.cache.counts().values():
            assert counts.used == 0
        self.core.check_integrity()

    def rounds(self) -> Iterator[None]:
        for _ in range(3000):
            if self.running is not None:
                self.execute()
            else:
                self.plan(0.0)
                if self.running is None and not any(j in self.ended for j in self.exports):
                    return
            yield
        raise AssertionError("the engine makes no progress")


@pytest.mark.parametrize("host", [0, 12])
@pytest.mark.parametrize("shape", ["dense", "kimi", "gemma", "everything", "recurrent"])
def test_random_lives_of_an_engine(shape: str, host: int) -> None:
    machine = type(f"Machine_{shape}_{host}", (EngineMachine,), {"shape": shape, "host": host})
    quick = settings(max_examples=20, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(machine, settings=quick)  # type: ignore[no-untyped-call]
