from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prfaas.clock import ManualClock
from prfaas.types import SiteId, WorkerId
from router.ledger import NOTHING, Dispatch, Ledger
from router.policy.view import Link

workers = st.sampled_from([WorkerId(w) for w in "abc"])
dispatches = st.builds(Dispatch, workers, workers, st.integers(0, 1000), st.integers(0, 50))


@given(st.lists(st.tuples(dispatches, st.booleans())), st.randoms(use_true_random=False))
def test_sums_follow_what_is_open_and_return_to_zero(entries: list[tuple[Dispatch, bool]], order: object) -> None:
    ledger, waiting, computed = Ledger(ManualClock()), [], []
    for dispatch, prefilled in entries:
        dispatch_id = ledger.open(dispatch)
        if prefilled:
            assert ledger.prefilled(dispatch_id) == dispatch
            ledger.prefilled(dispatch_id)  # told twice, counted once
        (computed if prefilled else waiting).append((dispatch_id, dispatch))
    both = waiting + computed
    for worker in "abc":
        sums = ledger.of(WorkerId(worker))
        assert sums.sequences == sum(d.decode_worker == worker for _, d in both)
        assert sums.prefill_tokens == sum(d.prefill_tokens for _, d in waiting if d.prefill_worker == worker)
        assert sums.blocks == sum(d.blocks for _, d in waiting if d.decode_worker == worker)
    order.shuffle(both)  # type: ignore[attr-defined]
    for dispatch_id, dispatch in both:
        assert ledger.close(dispatch_id) == dispatch
    assert ledger.num_open == 0
    assert all(ledger.of(WorkerId(w)) == NOTHING for w in "abc")


def test_bytes_are_promised_to_a_link_until_they_have_landed() -> None:
    ledger, way = Ledger(ManualClock()), Link(SiteId("far"), SiteId("pd"))
    near = ledger.open(Dispatch(WorkerId("a"), WorkerId("b"), 10, 1))
    first, second = (ledger.open(Dispatch(WorkerId("a"), WorkerId("c"), 10, 1, link=way, link_bytes=n)) for n in (100, 30))
    assert ledger.promised_bytes() == {way: 130}
    ledger.prefilled(first)
    ledger.prefilled(near)
    assert ledger.promised_bytes() == {way: 30}
    ledger.close(first)
    ledger.close(second)
    assert ledger.promised_bytes() == {}


def test_a_dispatch_ends_once() -> None:
    ledger = Ledger(ManualClock())
    dispatch_id = ledger.open(Dispatch(WorkerId("a"), WorkerId("b"), 10, 1))
    ledger.close(dispatch_id)
    with pytest.raises(KeyError):
        ledger.close(dispatch_id)


def test_what_the_first_prompt_has_had_counts_as_done() -> None:
    clock = ManualClock()
    ledger, worker = Ledger(clock), WorkerId("p")
    assert ledger.queued_s(worker) == 0
    first, second = (ledger.open(Dispatch(WorkerId("d"), worker, 100, 1, prefill_ms=ms)) for ms in (2000, 3000))
    assert ledger.queued_s(worker) == 5
    clock.advance(1.5)
    assert ledger.queued_s(worker) == 3.5
    clock.advance(10)
    assert ledger.queued_s(worker) == 3, "no more than all of it"
    ledger.prefilled(first)
    assert ledger.queued_s(worker) == 3
    clock.advance(1)
    assert ledger.queued_s(worker) == 2
    ledger.close(second)
    assert ledger.queued_s(worker) == 0
