"""What the reaper makes of its input."""

from __future__ import annotations

import signal

from prfaas.cluster.reaper import read_remains, signal_groups


def test_groups_still_watched_at_the_end_are_those_not_forgotten() -> None:
    assert read_remains(["watch 11\n", "watch 12\n", "forget 11\n", "watch 13\n"]).groups == {12, 13}


def test_forgetting_a_stranger_and_watching_twice_are_harmless() -> None:
    assert read_remains(["forget 5\n", "watch 6\n", "watch 6\n", "forget 6\n"]).groups == set()


def test_no_input_means_nobody_to_end() -> None:
    remains = read_remains([])
    assert signal_groups(remains.groups, signal.SIGTERM) == set()
    assert not remains.directories


def test_directories_are_named_with_all_their_spaces() -> None:
    assert read_remains(["remove /tmp/a b \n", "remove /tmp/c\n"]).directories == ["/tmp/a b ", "/tmp/c"]
