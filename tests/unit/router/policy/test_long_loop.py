"""Re-planning from fitted models finds the paper's operating point, and leaves well enough alone."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from router.policy.costs import PrefillFit, PrefillModel
from router.policy.long_loop import MIN_SAMPLES, FarSite, NearSite, Observed, replan

H200 = ((1024, 0.44), (8192, 0.72), (27_486, 1.633), (32_768, 1.84), (45_046, 2.484), (62_410, 3.51), (131_072, 7.4))
H20 = ((1024, 0.84), (8192, 1.543), (32_768, 5.011), (131_072, 20.66))


def fitted(points: tuple[tuple[int, float], ...]) -> PrefillModel:
    fit = PrefillFit()
    for _ in range(5):
        for tokens, seconds in points:
            fit.add(tokens, 0, seconds)
    model = fit.model()
    assert model is not None
    return model


def paper_lengths(number: int = 4000) -> tuple[int, ...]:
    rng, lengths = random.Random(1), list[int]()
    while len(lengths) < number:
        length = round(rng.lognormvariate(9.90, 1.0))
        if 128 <= length <= 131_072:
            lengths.append(length)
    return tuple(lengths)


FAR = (FarSite("far", 4, fitted(H200), 12.5e9),)
NEAR = NearSite("pd", 3, 5, fitted(H20), 0.025, 20)
SEEN = Observed(paper_lengths(), 1024.0, 173 * 2**20, 16.8 * 1024)


def test_the_papers_split_is_found_from_measurements_and_its_threshold_nearly() -> None:
    plan = replan(FAR, NEAR, SEEN, 40_000)
    assert plan is not None
    assert (plan.best.num_prefill, plan.best.num_decode) == (3, 5)
    assert plan.threshold_tokens == pytest.approx(19_400, rel=0.15)
    assert plan.best.rates.throughput_rps == pytest.approx(3.24, rel=0.08)
    assert plan.change_threshold


def test_near_the_optimum_nothing_is_changed() -> None:
    first = replan(FAR, NEAR, SEEN, 40_000)
    assert first is not None
    again = replan(FAR, NEAR, SEEN, first.threshold_tokens + 500)
    assert again is not None
    assert not again.change_threshold
    assert not again.change_split


def test_a_wrong_split_is_worth_converting_nodes() -> None:
    plan = replan(FAR, replace(NEAR, num_prefill=1, num_decode=7), SEEN, 19_400)
    assert plan is not None
    assert plan.change_split
    assert plan.best.num_prefill == 3


def test_a_thin_link_raises_the_threshold() -> None:
    wide = replan(FAR, NEAR, SEEN, 20_000)
    thin = replan((replace(FAR[0], link_bytes_per_s=0.5e9),), NEAR, SEEN, 20_000)
    assert wide is not None
    assert thin is not None
    assert thin.threshold_tokens > wide.threshold_tokens


def test_too_little_evidence_concludes_nothing() -> None:
    assert replan(FAR, NEAR, replace(SEEN, uncached_tokens=SEEN.uncached_tokens[: MIN_SAMPLES - 1]), 1) is None
    assert replan((), NEAR, SEEN, 1) is None
    assert replan(FAR, replace(NEAR, num_decode=0), SEEN, 1) is None
