"""No policy carries more than the bound, and the best threshold of the exact model comes close to it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prfaas.planner.bound import rate_bound
from prfaas.planner.cases import paper_case
from prfaas.planner.search import best_allocation
from prfaas.planner.throughput import Moments, evaluate

CASE = paper_case()


def bound(num_prefill: int, num_decode: int) -> float:
    return rate_bound(CASE.sites, CASE.pd, CASE.workload, num_prefill=num_prefill, num_decode=num_decode)


def test_the_best_threshold_of_the_papers_fleet_is_all_that_any_policy_could_carry() -> None:
    best = best_allocation(CASE.sites, CASE.pd, CASE.model, CASE.workload, moments=Moments.EXACT, step_tokens=1000)
    most = bound(best.num_prefill, best.num_decode)
    assert best.rates.throughput_rps <= most
    assert best.rates.throughput_rps == pytest.approx(most, rel=0.01)


@settings(max_examples=25, deadline=None)
@given(threshold=st.integers(-1, 140_000), num_prefill=st.integers(0, 7), link=st.sampled_from([1.0, 10.0, 100.0]))
def test_no_threshold_exceeds_it(threshold: int, num_prefill: int, link: float) -> None:
    split = {"num_prefill": num_prefill, "num_decode": 8 - num_prefill}
    sites = tuple(replace(s, link_gbps=link) for s in CASE.sites)
    rates = evaluate(
        sites, CASE.pd, CASE.model, CASE.workload, threshold_tokens=threshold, moments=Moments.EXACT, **split
    )  # fmt: skip
    assert rates.throughput_rps <= bound(**split) * (1 + 1e-6)


def test_decode_and_single_pools_bind_too() -> None:
    assert bound(7, 1) == pytest.approx(20 / (0.025 * 1024))
    naive = evaluate(
        CASE.sites, CASE.pd, CASE.model, CASE.workload, threshold_tokens=-1, num_prefill=0, num_decode=8, moments=Moments.EXACT
    )
    assert bound(0, 8) == pytest.approx(naive.throughput_rps)
    alone = rate_bound((), CASE.pd, CASE.workload, num_prefill=6, num_decode=2)
    assert alone == pytest.approx(6 / CASE.workload.lengths.expect(CASE.pd.hardware.prefill_s))
    assert rate_bound((), CASE.pd, CASE.workload, num_prefill=0, num_decode=2) == 0
