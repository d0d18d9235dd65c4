"""The receive windows of lanes: small on short paths, a lane's share of bandwidth x delay on long ones."""

from __future__ import annotations

import pytest

from kv_transport.grpc_client import LANE_BYTES_PER_S, MAX_WINDOW_BYTES, MIN_WINDOW_BYTES, lane_options, window_bytes


def test_an_unknown_or_short_path_has_the_smallest_window() -> None:
    assert window_bytes(0.0) == window_bytes(0.0005) == MIN_WINDOW_BYTES


@pytest.mark.parametrize("rtt_s", [0.003, 0.01, 0.03])
def test_a_long_path_has_a_lanes_share_of_bandwidth_and_delay(rtt_s: float) -> None:
    assert rtt_s * LANE_BYTES_PER_S <= window_bytes(rtt_s) < 2 * rtt_s * LANE_BYTES_PER_S


def test_no_path_has_more_than_what_may_be_held_for_a_reader_that_does_not_read() -> None:
    assert window_bytes(10.0) == MAX_WINDOW_BYTES


def test_a_lanes_window_is_told_to_grpc_which_does_not_change_it() -> None:
    options = dict(lane_options(MIN_WINDOW_BYTES))
    assert (options["grpc.http2.lookahead_bytes"], options["grpc.http2.bdp_probe"]) == (MIN_WINDOW_BYTES, 0)
