"""Restoring against computing: both sides of the break-even, what is learnt from restores, and that errors wear off."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prfaas.cache.hashing import root_hash
from prfaas.cache.hybrid import HybridCache
from prfaas.sched.restore import FREE, CopyCost, HostChoice, Origin, Outcome, Reason, RestoreModel
from prfaas.sched.scheduler import Limits, Scheduler
from prfaas.sched.sequence import Sequence
from tests.support.scheduling import step
from tests.support.tiny_specs import tiny_spec

BLOCK = 4
COST = CopyCost(fixed_s=1e-3, s_per_byte=1e-9)


def model(tokens_per_s: float, cost: CopyCost = COST) -> RestoreModel:
    made = RestoreModel(cost)
    made.computed(512, 512 / tokens_per_s if tokens_per_s else 0.0)
    return made


def test_the_faster_way_is_taken_on_both_sides_of_the_break_even() -> None:
    restores = model(tokens_per_s=10_000.0)
    assert restores.restore_s(9_000_000) == pytest.approx(0.010)
    assert restores.decide(Origin.PROMPT, 100, 8_999_000) == HostChoice(Origin.PROMPT, Outcome.RESTORED, Reason.FASTER)
    assert restores.decide(Origin.PROMPT, 100, 9_001_000) == HostChoice(Origin.PROMPT, Outcome.COMPUTED, Reason.FASTER)
    assert restores.decide(Origin.PROMPT, 99, 8_999_000) == HostChoice(Origin.PROMPT, Outcome.COMPUTED, Reason.FASTER)


def test_what_every_restore_costs_decides_about_short_prefixes() -> None:
    restores = model(tokens_per_s=10_000.0, cost=CopyCost(fixed_s=2e-3, s_per_byte=0.0))
    assert restores.decide(Origin.PROMPT, 16, 1).outcome is Outcome.COMPUTED
    assert restores.decide(Origin.PROMPT, 64, 1).outcome is Outcome.RESTORED


def test_before_anything_was_computed_prefixes_are_restored() -> None:
    assert model(0.0).decide(Origin.PROMPT, 1, 10**12) == HostChoice(Origin.PROMPT, Outcome.RESTORED, Reason.UNMEASURED)


def test_slower_copies_than_measured_are_learnt_and_faster_ones_again() -> None:
    restores = model(tokens_per_s=1000.0)
    for _ in range(60):
        restores.restored(1_000_000, 0.020)  # the start promised 2 ms
    assert restores.restore_s(1_000_000) == pytest.approx(0.020, rel=0.01)
    assert restores.restore_s(10_000_000) == pytest.approx(0.110, rel=0.01)
    for _ in range(60):
        restores.restored(1_000_000, 0.001)
    assert restores.restore_s(1_000_000) == pytest.approx(0.001, rel=0.01)


def test_a_single_outlier_changes_little_and_fades_while_nothing_is_restored() -> None:
    restores = model(tokens_per_s=1000.0)
    restores.restored(1_000_000, 1000.0)
    assert restores.restore_s(1_000_000) == pytest.approx(0.002 * 2.8)
    for _ in range(30):
        restores.fade()
    assert restores.restore_s(1_000_000) == pytest.approx(0.002, rel=0.01)
    restores.restored(1_000_000, 0.001)
    cheaper = restores.restore_s(1_000_000)
    restores.fade()
    assert restores.restore_s(1_000_000) == cheaper


def test_without_a_first_measurement_the_first_restore_is_one() -> None:
    restores = model(tokens_per_s=1000.0, cost=FREE)
    assert restores.decide(Origin.PROMPT, 1, 10**9).outcome is Outcome.RESTORED
    restores.restored(1000, 0.5)
    assert restores.restore_s(2000) == pytest.approx(1.0)


def test_the_speed_is_that_of_full_steps_and_follows_them() -> None:
    restores = model(tokens_per_s=10_000.0)
    for _ in range(20):
        restores.computed(8, 0.010)  # a chat's next turn: 800 tokens/s
        restores.computed(0, 0.010)
    assert restores.compute_s(10_000) == pytest.approx(1.0, rel=0.1)
    for _ in range(100):
        restores.computed(512, 0.512)
    assert restores.compute_s(10_000) == pytest.approx(10.0, rel=0.01)


@given(tokens=st.integers(1, 10**6), num_bytes=st.integers(1, 10**11), rate=st.floats(1.0, 1e6), more=st.integers(1, 10**6))
def test_a_longer_prefix_for_the_same_bytes_is_never_less_worth_restoring(
    tokens: int, num_bytes: int, rate: float, more: int
) -> None:
    restores = model(rate)
    if restores.decide(Origin.PROMPT, tokens, num_bytes).outcome is Outcome.RESTORED:
        assert restores.decide(Origin.PROMPT, tokens + more, num_bytes).outcome is Outcome.RESTORED
    else:
        assert restores.decide(Origin.PROMPT, tokens, num_bytes + more).outcome is Outcome.COMPUTED


def sequence(number: int, length: int, arrival_s: float = 0.0) -> Sequence:
    tokens = [number * 1000 + i for i in range(length)]
    return Sequence(number, tokens, length, length + 4, BLOCK, root_hash(BLOCK), [], 0, arrival_s)


def finish(scheduler: Scheduler, cache: HybridCache, *sequences: Sequence) -> int:
    """Run these to their ends; returns how many tokens were computed."""
    computed = 0
    for one in sequences:
        scheduler.enqueue(one, 0.0)
    while scheduler.num_running or scheduler.num_waiting:
        computed += sum(share.num_tokens for share in step(scheduler, cache).shares)
    return computed


def crowded(shape: str, tokens_per_s: float, cost: CopyCost) -> tuple[Scheduler, HybridCache]:
    """A device that holds one prompt of 40 tokens, over a host that holds many."""
    spec = tiny_spec(shape, block_tokens=BLOCK).cache
    sizes = {g.name: 3 if g.is_state else 12 for g in spec.groups}
    cache = HybridCache(spec, sizes, max_chunk_tokens=16, host_sizes=dict.fromkeys(sizes, 64))
    limits = Limits(max_running=4, max_waiting=8, max_step_tokens=16, snapshot_blocks=2)
    return Scheduler(cache, limits, model(tokens_per_s, cost)), cache


@pytest.mark.parametrize("shape", ["dense", "kimi", "gemma", "everything"])
@pytest.mark.parametrize("tokens_per_s", [10.0, 1e9])
def test_a_slow_engine_restores_and_a_fast_one_computes(shape: str, tokens_per_s: float) -> None:
    scheduler, cache = crowded(shape, tokens_per_s, COST)
    finish(scheduler, cache, sequence(1, 40))
    finish(scheduler, cache, sequence(2, 40))
    computed = finish(scheduler, cache, sequence(1, 40))
    slow = tokens_per_s == 10.0
    outcome = Outcome.RESTORED if slow else Outcome.COMPUTED
    assert scheduler.host_choices == {HostChoice(Origin.PROMPT, outcome, Reason.FASTER): 1}
    assert computed == (4 + 4 if slow else 40 + 4)
    assert all(counts.used == 0 for counts in cache.counts().values())


@pytest.mark.parametrize("shape", ["dense", "kimi"])
def test_choices_after_a_preemption_are_told_apart(shape: str) -> None:
    scheduler, cache = crowded(shape, 10.0, FREE)
    finish(scheduler, cache, *(sequence(number, 20, arrival_s=number) for number in (1, 2)))
    for number in (3, 4):
        one = sequence(number, 19, arrival_s=number)
        one.total_tokens = 40
        scheduler.enqueue(one, 0.0)
    finish(scheduler, cache)
    assert scheduler.host_choices[HostChoice(Origin.PREEMPTION, Outcome.RESTORED, Reason.FASTER)] > 0


def test_a_restore_that_does_not_fit_is_computed_where_nothing_else_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler, cache = crowded("kimi", 10.0, COST)
    finish(scheduler, cache, sequence(1, 40))
    finish(scheduler, cache, sequence(2, 40))
    monkeypatch.setattr(cache, "restore", lambda *_: None)
    assert finish(scheduler, cache, sequence(1, 40)) == 40 + 4
    assert scheduler.host_choices == {HostChoice(Origin.PROMPT, Outcome.COMPUTED, Reason.NO_ROOM): 1}
