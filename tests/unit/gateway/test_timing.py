"""Stages sum to TTFT whatever the workers claim."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prfaas.clock import ManualClock
from router.gateway.timing import Stopwatch
from tests.support.fake_pipeline import REPORT

seconds = st.floats(0, 1e4, allow_nan=False)


@given(*[seconds] * 8)
def test_stages_sum_to_ttft_and_none_is_negative(
    tokenize: float, wait: float, decide: float, work: float, queue: float, prefill: float, wire: float, commit: float
) -> None:
    clock = ManualClock(5.0)
    watch = Stopwatch(clock, clock.now_s())
    clock.advance(tokenize)
    watch.tokenized()
    clock.advance(wait)
    watch.decided(decide)
    clock.advance(work)
    assert watch.token() is None
    report = replace(REPORT, queue_s=queue, prefill_s=prefill, wire_s=wire, commit_s=commit)
    for claimed in (report, None):
        stages = watch.stages(claimed)
        assert stages is not None
        assert stages.total_s == pytest.approx(watch.ttft_s(), abs=1e-6)
        assert min(value for _, value in stages.items()) >= -1e-9


def test_true_claims_are_kept_and_the_rest_is_the_first_decode() -> None:
    clock = ManualClock()
    watch = Stopwatch(clock, 0.0)
    clock.advance(1)
    watch.tokenized()
    clock.advance(2)
    watch.decided(0.5)
    clock.advance(20)
    watch.token()
    stages = watch.stages(replace(REPORT, queue_s=1, prefill_s=10, wire_s=3, commit_s=2))
    assert stages is not None
    assert dict(stages.items()) == {
        "tokenize": 1, "decide": 0.5, "queue": 2.5, "prefill": 10, "wire": 3, "commit": 2, "decode_first": 4
    }  # fmt: skip


def test_gaps_between_tokens() -> None:
    clock = ManualClock()
    watch = Stopwatch(clock, 0.0)
    assert watch.ttft_s() is None
    assert watch.stages(None) is None
    clock.advance(1)
    assert watch.token() is None
    clock.advance(0.25)
    assert watch.token() == 0.25
    assert watch.ttft_s() == 1
    assert watch.elapsed_s() == 1.25


def test_a_copy_shares_arrival_and_tokenizing_only() -> None:
    clock = ManualClock()
    watch = Stopwatch(clock, 0.0)
    clock.advance(1)
    watch.tokenized()
    twin = watch.copy()
    watch.token()
    assert twin.ttft_s() is None
    assert twin.tokenize_s == 1
