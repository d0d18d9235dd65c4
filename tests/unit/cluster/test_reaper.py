"""What the reaper makes of its input."""

from __future__ import annotations

import signal

from prfaas.cluster.reaper import read_groups, signal_groups


def test_groups_still_watched_at_the_end_are_those_not_forgotten() -> None:
    assert read_groups(["watch 11\n", "watch 12\n", "forget 11\n", "watch 13\n"]) == {12, 13}


def test_forgetting_a_stranger_and_watching_twice_are_harmless() -> None:
    assert read_groups(["forget 5\n", "watch 6\n", "watch 6\n", "forget 6\n"]) == set()


def test_no_input_means_nobody_to_end() -> None:
    assert signal_groups(read_groups([]), signal.SIGTERM) == set()
