"""Forecasts start from a profile and follow the hardware from then on."""

from __future__ import annotations

import pytest

from prfaas.types import Role, SiteId
from router.policy.costs import Kind
from router.speeds import Speeds

SITE = SiteId("pd")
KIND = Kind(SITE, Role.PD_PREFILL)
POINTS = tuple((tokens, 0.01 + tokens * 1e-4) for tokens in (100.0, 1_000.0, 4_000.0, 16_000.0))


def test_a_profile_is_believed_for_every_role_of_its_site_until_something_is_measured() -> None:
    speeds = Speeds()
    speeds.seed(SITE, POINTS)
    assert set(speeds.models) == {Kind(SITE, role) for role in Role}
    assert speeds.models[KIND].seconds(2_000) == pytest.approx(0.21, rel=0.02)


def test_measurements_replace_a_profile_of_other_hardware_and_touch_no_other_kind() -> None:
    speeds = Speeds()
    speeds.seed(SITE, POINTS)
    for _ in range(60):
        for tokens in (500, 2_000, 8_000):
            speeds.learn(KIND, tokens, 0, 0.02 + tokens * 2e-4)
    assert speeds.models[KIND].seconds(2_000) == pytest.approx(0.42, rel=0.05)
    assert speeds.models[Kind(SITE, Role.DECODE)].seconds(2_000) == pytest.approx(0.21, rel=0.02)


def test_nothing_is_forecast_from_a_few_measurements() -> None:
    speeds = Speeds()
    for tokens in (500, 2_000, 8_000):
        speeds.learn(KIND, tokens, 0, 1.0)
    assert speeds.models == {}
