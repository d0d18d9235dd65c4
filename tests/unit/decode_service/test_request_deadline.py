"""Time left is counted from the message's arrival."""

from __future__ import annotations

from decode_service.deadline import Deadline
from prfaas.clock import ManualClock


def test_time_runs_out_and_stays_out() -> None:
    clock = ManualClock(100.0)
    deadline = Deadline(clock, 5.0)
    assert deadline.left_s() == 5.0
    clock.advance(3.0)
    assert deadline.left_s() == 2.0
    clock.advance(9.0)
    assert deadline.left_s() == 0.0


def test_the_shorter_limit_counts() -> None:
    deadline = Deadline(ManualClock(), 5.0)
    assert deadline.at_most_s(3.0) == 3.0
    assert deadline.at_most_s(30.0) == 5.0


def test_no_deadline_never_ends() -> None:
    deadline = Deadline(ManualClock(), None)
    assert deadline.left_s() is None
    assert deadline.at_most_s(3.0) == 3.0
