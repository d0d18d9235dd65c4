"""Lane counts on simulated paths: found within a few transfers, and not more than the path repays."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kv_transport.session.lane_tuner import LaneTuner

MIB = 1024**2


def settle(tuner: LaneTuner, path: Callable[[int], float], *, rtt_s: float = 0.04, transfers: int = 12) -> int:
    """Run transfers over a path that carries `path(lanes)` bytes/s; the lanes of the last one."""
    lanes = 0
    for _ in range(transfers):
        lanes = tuner.wanted(1024 * MIB, MIB, rtt_s)
        tuner.observe(lanes, path(lanes), rtt_s)
    return lanes


def test_a_clean_path_needs_few_lanes() -> None:
    assert settle(LaneTuner(max_lanes=16), lambda lanes: 120e6) <= 4


def test_a_lossy_path_gets_all_lanes() -> None:
    assert settle(LaneTuner(max_lanes=16), lambda lanes: min(120e6, 3e6 * lanes)) == 16


def test_lanes_stop_where_the_link_is_full() -> None:
    assert settle(LaneTuner(max_lanes=16), lambda lanes: min(120e6, 15e6 * lanes)) == 8


def test_known_loss_goes_to_the_limit_at_once_and_back_if_it_does_not_pay() -> None:
    tuner = LaneTuner(max_lanes=16)
    assert tuner.wanted(1024 * MIB, MIB, 0.04, 0.001) == 16
    assert tuner.wanted(1024 * MIB, MIB, 0.04, 0.0) == 16
    assert settle(tuner, lambda lanes: 120e6, transfers=200) <= 8


def test_a_local_network_has_one_lane() -> None:
    assert settle(LaneTuner(max_lanes=16), lambda lanes: 1e9 * lanes, rtt_s=0.0001) == 1


def test_a_path_whose_delay_becomes_known_later() -> None:
    tuner = LaneTuner(max_lanes=16)
    assert tuner.wanted(1024 * MIB, MIB, 0.0) == 1
    assert tuner.wanted(1024 * MIB, MIB, 0.04) == 4


def test_small_transfers_have_no_more_lanes_than_chunks() -> None:
    assert LaneTuner(max_lanes=8).wanted(3 * MIB, MIB, 0.04) == 3
    assert LaneTuner(max_lanes=8).wanted(100, MIB, 0.04) == 1


@pytest.mark.parametrize(("fixed", "expected"), [(3, 3), (99, 8)])
def test_fixed_lanes_are_not_tuned(fixed: int, expected: int) -> None:
    assert settle(LaneTuner(max_lanes=8, fixed=fixed), lambda lanes: 1e6 * lanes) == expected
