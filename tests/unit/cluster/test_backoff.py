"""How a pool paces the restarts of a worker that keeps failing."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from prfaas.cluster.backoff import Backoff


def test_delays_double_up_to_the_cap() -> None:
    backoff = Backoff(base_s=0.5, cap_s=3.0)
    assert [backoff.delay_s(n) for n in range(1, 6)] == [0.5, 1.0, 2.0, 3.0, 3.0]


def test_a_long_run_forgives_earlier_failures() -> None:
    backoff = Backoff(healthy_s=20)
    assert backoff.failures_after(7, ran_s=19.9) == 8
    assert backoff.failures_after(7, ran_s=20) == 1


@given(st.integers(1, 10_000))
def test_every_delay_is_positive_and_bounded(failures: int) -> None:
    backoff = Backoff()
    assert 0 < backoff.delay_s(failures) <= backoff.delay_s(failures + 1) <= backoff.cap_s
