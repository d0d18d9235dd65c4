"""The fit of prefill times, and money."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prfaas.types import SiteId
from router.policy.costs import MIN_SAMPLES, PrefillFit, PrefillModel, Prices

LENGTHS = (100, 1_000, 4_000, 16_000, 64_000, 128_000)


@settings(max_examples=50, deadline=None)
@given(st.floats(0.001, 1), st.floats(1e-6, 1e-3), st.floats(1e-11, 1e-8))
def test_a_model_is_recovered_from_its_own_measurements(fixed_s: float, per_token_s: float, per_pair_s: float) -> None:
    true, fit = PrefillModel(fixed_s, per_token_s, per_pair_s), PrefillFit()
    for new in LENGTHS:
        for cached in (0, 30_000):
            fit.add(new, cached, true.seconds(new, cached))
    model = fit.model()
    assert model is not None
    for new in (500, 30_000, 100_000):
        assert model.seconds(new, 10_000) == pytest.approx(true.seconds(new, 10_000), rel=0.02)


def test_the_papers_h200_profile_is_fitted_within_a_tenth_where_prompts_are_offloaded() -> None:
    fit = PrefillFit()
    points = [(1024, 0.44), (8192, 0.72), (27_486, 1.633), (32_768, 1.84), (45_046, 2.484), (62_410, 3.51), (131_072, 7.4)]
    for _ in range(5):
        for tokens, seconds in points:
            fit.add(tokens, 0, seconds)
    model = fit.model()
    assert model is not None
    for tokens, seconds in points:
        assert model.seconds(tokens) == pytest.approx(seconds, rel=0.1)


def test_too_few_measurements_give_no_model_and_bad_ones_are_ignored() -> None:
    fit = PrefillFit()
    for _ in range(MIN_SAMPLES - 1):
        fit.add(100, 0, 1.0)
    fit.add(0, 100, 1.0)
    fit.add(100, 0, 0.0)
    assert fit.model() is None
    fit.add(100, 0, 1.0)
    assert fit.model() is not None


def test_one_length_alone_still_gives_a_sane_model() -> None:
    fit = PrefillFit()
    for _ in range(20):
        fit.add(1000, 0, 0.5)
    model = fit.model()
    assert model is not None
    assert model.seconds(1000) == pytest.approx(0.5, rel=0.01)
    assert 0.5 <= model.seconds(2000) <= 2.1


def test_the_fit_follows_hardware_that_changes() -> None:
    fit = PrefillFit()
    for speed in (1e-4, 3e-4):
        for _ in range(120):
            for tokens in (1_000, 10_000, 30_000):
                fit.add(tokens, 0, tokens * speed)
    model = fit.model()
    assert model is not None
    assert model.seconds(10_000) == pytest.approx(3.0, rel=0.1)


@given(st.lists(st.tuples(st.integers(1, 200_000), st.integers(0, 100_000), st.floats(1e-4, 100)), min_size=4, max_size=30))
def test_whatever_was_measured_a_forecast_is_never_negative(samples: list[tuple[int, int, float]]) -> None:
    fit = PrefillFit()
    for sample in samples:
        fit.add(*sample)
    model = fit.model()
    if model is not None:
        assert min(model.fixed_s, model.per_token_s, model.per_pair_s) >= 0
        assert model.seconds(10_000, 5_000) >= 0


def test_money_is_time_and_bytes() -> None:
    prices = Prices({SiteId("a"): 36.0}, {SiteId("a"): 0.02})
    assert prices.of(SiteId("a"), 10.0, 5 * 10**9) == pytest.approx(0.1 + 0.1)
    assert prices.of(SiteId("b"), 10.0, 10**9) == 0.0
