"""Who computes what in a step: budgets, order, chunks cut at snapshots, preemption, and that everybody gets a turn."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prfaas.cache.hashing import root_hash
from prfaas.cache.hybrid import HybridCache
from prfaas.errors import QueueFull
from prfaas.sched.restore import FREE, RestoreModel
from prfaas.sched.scheduler import Limits, Round, Scheduler
from prfaas.sched.sequence import AGING_S, Sequence
from tests.support.scheduling import step
from tests.support.tiny_specs import tiny_spec

BLOCK = 4


def scheduler_of(shape: str = "dense", *, blocks: int = 64, slots: int = 8, **limits: int) -> tuple[Scheduler, HybridCache]:
    spec = tiny_spec(shape, block_tokens=BLOCK).cache
    sizes = {g.name: slots if g.is_state else blocks for g in spec.groups}
    given_limits = Limits(**{"max_running": 4, "max_waiting": 8, "max_step_tokens": 16, "snapshot_blocks": 2, **limits})
    cache = HybridCache(spec, sizes, max_chunk_tokens=given_limits.max_step_tokens)
    return Scheduler(cache, given_limits, RestoreModel(FREE)), cache


def sequence(number: int, length: int, *, answer: int = 4, priority: int = 0, arrival_s: float = 0.0) -> Sequence:
    tokens = [number * 1000 + i for i in range(length)]
    return Sequence(number, tokens, length, length + answer, BLOCK, root_hash(BLOCK), [], priority, arrival_s)


def shares(done: Round) -> list[tuple[int, int]]:
    return [(share.sequence.sequence_id, share.num_tokens) for share in done.shares]


def test_a_long_prompt_is_cut_into_chunks_and_decodes_go_first() -> None:
    scheduler, cache = scheduler_of()
    scheduler.enqueue(sequence(1, 5), 0.0)
    assert shares(step(scheduler, cache)) == [(1, 5)]
    scheduler.enqueue(sequence(2, 40), 0.0)
    assert shares(step(scheduler, cache)) == [(1, 1), (2, 15)]
    assert shares(step(scheduler, cache)) == [(1, 1), (2, 15)]
    assert shares(step(scheduler, cache)) == [(1, 1), (2, 10)]


def test_chunks_end_where_states_are_snapshotted() -> None:
    scheduler, cache = scheduler_of("kimi", slots=64, max_step_tokens=64)
    scheduler.enqueue(sequence(1, 31), 0.0)
    rounds = [step(scheduler, cache) for _ in range(5)]
    assert [shares(done)[0][1] for done in rounds] == [8, 8, 8, 4, 3]
    assert [done.shares[0].snapshot is not None for done in rounds] == [True, True, True, True, False]


def test_one_prompt_cannot_fill_all_snapshot_slots() -> None:
    scheduler, cache = scheduler_of("kimi", slots=8, max_step_tokens=512)
    scheduler.enqueue(sequence(1, 200), 0.0)
    taken = 0
    while not scheduler.running or scheduler.running[0].remaining > 1:
        taken += sum(share.snapshot is not None for share in step(scheduler, cache).shares)
    assert taken == 3  # two on the way, a quarter of the slots, and the prompt's end


def test_a_decode_replaces_its_own_snapshot() -> None:
    scheduler, cache = scheduler_of("kimi", slots=8)
    scheduler.enqueue(sequence(1, 6, answer=40), 0.0)
    while scheduler.num_running or scheduler.num_waiting:
        step(scheduler, cache)
        assert cache.counts()["kda"].cached <= 2
    names = sequence(1, 6).name_blocks()
    assert cache.match(names, 7) == 1


def test_priority_goes_first_and_waiting_makes_up_for_it() -> None:
    low, high = sequence(1, 4, priority=1), sequence(2, 4, priority=0, arrival_s=AGING_S - 1)
    late = sequence(3, 4, priority=0, arrival_s=AGING_S + 1)
    scheduler, cache = scheduler_of(max_running=1)
    for one in (late, low, high):
        scheduler.enqueue(one, 0.0)
    order: list[int] = []
    while scheduler.num_running or scheduler.num_waiting:
        order.extend(number for number, count in shares(step(scheduler, cache)) if count == 4)
    assert order == [2, 1, 3]


def test_the_last_in_rank_makes_room() -> None:
    scheduler, cache = scheduler_of(blocks=7, max_step_tokens=64)
    first, second = sequence(1, 11, answer=8), sequence(2, 11, answer=8, arrival_s=1.0)
    scheduler.enqueue(first, 0.0)
    scheduler.enqueue(second, 0.0)
    preempted: list[int] = []
    while scheduler.num_running or scheduler.num_waiting:
        preempted.extend(one.sequence_id for one in step(scheduler, cache).preempted)
    assert preempted
    assert set(preempted) == {2}
    assert len(first.tokens) == len(second.tokens) == 20
    assert all(counts.used == 0 for counts in cache.counts().values())


def test_a_full_queue_refuses_with_a_hint() -> None:
    scheduler, _ = scheduler_of(max_waiting=2)
    for number in (1, 2):
        scheduler.enqueue(sequence(number, 50), 100.0)
    with pytest.raises(QueueFull) as full:
        scheduler.enqueue(sequence(3, 50), 100.0)
    assert full.value.detail == {"depth": 2, "limit": 2, "retry_after_s": 0.5}


def test_a_failed_step_leaves_nothing_behind() -> None:
    scheduler, cache = scheduler_of("kimi")
    one = sequence(1, 12)
    scheduler.enqueue(one, 0.0)
    scheduler.fail(scheduler.schedule())
    scheduler.leave(one)
    cache.close(one.held)
    assert all(counts.used == counts.cached == 0 for counts in cache.counts().values())


ARRIVALS = st.lists(
    st.tuples(st.integers(1, 40), st.integers(1, 12), st.integers(0, 3), st.integers(0, 6)), min_size=1, max_size=25
)


@settings(deadline=None, max_examples=60)
@given(arrivals=ARRIVALS, shape=st.sampled_from(["dense", "kimi", "gemma", "everything"]), budget=st.integers(6, 30))
def test_everybody_finishes_whatever_arrives(arrivals: list[tuple[int, int, int, int]], shape: str, budget: int) -> None:
    scheduler, cache = scheduler_of(shape, blocks=14, slots=5, max_waiting=100, max_step_tokens=budget)
    now_s, unfinished = 0.0, 0
    todo = list(arrivals)
    for number in range(20_000):
        now_s += 1.0
        if todo and todo[0][3] <= number % 7:
            length, answer, priority, _ = todo.pop(0)
            scheduler.enqueue(sequence(len(todo) + 1, length, answer=answer, priority=priority, arrival_s=now_s), 0.0)
        done = step(scheduler, cache)
        assert sum(share.num_tokens for share in done.shares) <= budget
        unfinished = scheduler.num_running + scheduler.num_waiting
        if not todo and not unfinished:
            break
        assert done.shares or done.preempted or not unfinished, "work waits and nothing runs"
    assert not unfinished
    assert all(counts.used == 0 for counts in cache.counts().values())


@settings(deadline=None, max_examples=20)
@given(rival=st.integers(1, 30), patience=st.integers(1, 3))
def test_a_low_priority_waits_only_so_long(rival: int, patience: int) -> None:
    """An endless stream of more urgent work cannot keep a sequence waiting beyond its priority's worth of ageing."""
    scheduler, cache = scheduler_of(max_running=1, max_waiting=10_000, max_step_tokens=64)
    patient = sequence(1, 8, priority=patience)
    scheduler.enqueue(patient, 0.0)
    now_s = 0.0
    for number in range(2, 2000):
        now_s += 1.0
        scheduler.enqueue(sequence(number, rival, answer=1, arrival_s=now_s), 0.0)
        step(scheduler, cache)
        if patient.computed:
            break
    # A rival takes two steps, so the backlog of those ahead of it is served in twice the time in which it arrived.
    assert patient.computed
    assert now_s <= 2 * AGING_S * patience + 4
