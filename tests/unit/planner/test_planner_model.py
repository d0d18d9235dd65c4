"""Curves, distributions, waits and the search, against closed forms and their own limits."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prfaas.errors import ConfigError
from prfaas.planner.cases import paper_case
from prfaas.planner.lengths import Lengths
from prfaas.planner.profile import Curve, refine
from prfaas.planner.queueing import erlang_c, latency, rate_at_slo, wait_in
from prfaas.planner.search import best_allocation, best_threshold
from prfaas.planner.throughput import Moments, Stage, evaluate


def test_curve_interpolates_and_extrapolates() -> None:
    curve = Curve.through([(10, 1.0), (0, 0.5), (20, 3.0)], "test")
    assert curve(5) == pytest.approx(0.75)
    assert curve(30) == pytest.approx(5.0)
    np.testing.assert_allclose(curve.values(np.array([5.0, 30.0])), [0.75, 5.0])


@pytest.mark.parametrize("points", [[(1, 1)], [(1, 1), (1, 2)], [(-1, 1), (2, 2)], [(1, -1), (2, 2)]])
def test_curve_refuses_nonsense(points: list[tuple[float, float]]) -> None:
    with pytest.raises(ConfigError, match="prefill"):
        Curve.through(points, "prefill")


def test_refine_moves_only_what_was_measured() -> None:
    curve = Curve.through([(10, 1.0), (100, 2.0), (1000, 4.0)], "test")
    better = refine(curve, [(100, 4.0)], weight=0.5)
    assert better.y == pytest.approx((1.0, 3.0, 4.0))


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=50), st.integers(0, 6000))
def test_split_is_the_plain_conditional_mean(tokens: list[int], threshold: int) -> None:
    split = Lengths.empirical(tokens).split(threshold)
    long = [t for t in tokens if t > threshold]
    short = [t for t in tokens if t <= threshold]
    assert split.p_long == pytest.approx(len(long) / len(tokens), abs=1e-9)
    assert split.mean_long == pytest.approx(sum(long) / len(long) if long else 0.0, abs=1e-6)
    assert split.mean_short == pytest.approx(sum(short) / len(short) if short else 0.0, abs=1e-6)


def test_lognormal_matches_its_closed_form_far_from_the_cuts() -> None:
    lengths = Lengths.lognormal(5.0, 0.5, 1e-3, 1e9)
    assert lengths.mean == pytest.approx(math.exp(5.0 + 0.125), rel=1e-4)
    assert lengths.quantile(0.5) == pytest.approx(math.exp(5.0), rel=1e-3)


def test_erlang_c_against_known_values() -> None:
    assert erlang_c(1, 0.5) == pytest.approx(0.5)
    assert erlang_c(2, 1.0) == pytest.approx(1 / 3)
    assert erlang_c(3, 3.0) == 1.0


def test_wait_of_mm1_is_exact() -> None:
    wait = wait_in(1, rate=0.8, mean_s=1.0, cv2_service=1.0)
    assert wait.mean_s == pytest.approx(0.8 / (1 - 0.8))
    assert wait_in(2, rate=2.5, mean_s=1.0, cv2_service=1.0).mean_if_waiting_s == math.inf


def test_exact_moments_differ_from_the_approximation_where_the_curve_bends() -> None:
    case = paper_case()
    at = {"threshold_tokens": 19_400.0, "num_prefill": 3, "num_decode": 5}
    paper = evaluate(case.sites, case.pd, case.model, case.workload, moments=Moments.PAPER, **at)  # type: ignore[arg-type]
    exact = evaluate(case.sites, case.pd, case.model, case.workload, moments=Moments.EXACT, **at)  # type: ignore[arg-type]
    assert exact.throughput_rps < paper.throughput_rps
    assert exact.throughput_rps == pytest.approx(paper.throughput_rps, rel=0.05)


def test_a_dead_link_turns_everything_local_and_a_thin_one_binds() -> None:
    case = paper_case()
    dead = tuple(replace(s, link_gbps=0.0) for s in case.sites)
    found = best_allocation(dead, case.pd, case.model, case.workload, step_tokens=1000)
    assert found.rates.egress_gbps == 0.0
    assert found.rates.split.p_long == 0.0
    thin = tuple(replace(s, link_gbps=2.0) for s in case.sites)
    bound = best_threshold(thin, case.pd, case.model, case.workload, num_prefill=6, num_decode=2, step_tokens=500)
    assert bound.rates.egress_gbps <= 2.0 * 1.0001
    wide = best_threshold(case.sites, case.pd, case.model, case.workload, num_prefill=6, num_decode=2, step_tokens=500)
    assert bound.rates.throughput_rps <= wide.rates.throughput_rps


def test_link_binds_when_it_is_the_smallest() -> None:
    case = paper_case()
    thin = tuple(replace(s, link_gbps=3.0) for s in case.sites)
    rates = evaluate(thin, case.pd, case.model, case.workload, threshold_tokens=19_400, num_prefill=3, num_decode=5)
    assert rates.binding is Stage.LINK
    assert rates.egress_gbps == pytest.approx(3.0)


def test_latency_grows_with_load_and_the_slo_rate_keeps_the_slo() -> None:
    case = paper_case()

    def p90(rate: float) -> float:
        return latency(
            case.sites, case.pd, case.model, case.workload, threshold_tokens=19_400, num_prefill=3, rate_rps=rate
        ).percentile_s(0.9)

    assert p90(0.1) < p90(2.0) < p90(3.0) < math.inf
    assert p90(10.0) == math.inf
    kept = rate_at_slo(
        case.sites, case.pd, case.model, case.workload, threshold_tokens=19_400, num_prefill=3, max_rps=3.2, ttft_slo_s=6.0
    )
    assert p90(kept) <= 6.0 * 1.001
    assert p90(kept * 1.05) > 6.0
