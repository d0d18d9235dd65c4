"""Link views: what fetches report about a path, and what is unknown."""

from __future__ import annotations

import pytest

from kv_transport.links import RTT_WINDOW_S, FetchMonitor, Paths
from kv_transport.messages import Manifest, PathStats, Progress
from kv_transport.meter import RECEIVE, TransferMeter
from kv_transport.testing.sources import hybrid_offer
from prfaas import metrics
from prfaas.clock import ManualClock
from prfaas.metrics import Emitter, MetricSet
from prfaas.types import SiteId, TransferId, WorkerId

MANIFEST = Manifest(TransferId("t"), WorkerId("p"), SiteId("east"), hybrid_offer(), "as_is", 4)


def paths_of(clock: ManualClock, capacity: float = 0.0) -> Paths:
    return Paths(SiteId("west"), clock, max_lanes=8, fixed_lanes=0, capacity_bytes_per_s=capacity)


def test_a_fetch_leaves_its_marks_and_takes_its_load_away() -> None:
    clock, metric_set = ManualClock(), MetricSet(Emitter.WORKER)
    paths, meter = paths_of(clock), TransferMeter(RECEIVE, metric_set)
    monitor = FetchMonitor(paths, meter, clock, 1000)
    assert monitor.wanted_lanes(10**9) == 1
    monitor.began(MANIFEST)
    monitor.lanes_changed(+1)
    for _ in range(200):
        clock.advance(0.01)
        monitor.landed(10_000, "as_is", clock.now_s())
    monitor.progress(Progress(3_000_000, 2_500_000), 2_000_000)
    monitor.sender_path(PathStats(0.04, 2_000_000, 20_000))
    (view,) = paths.views()
    assert view.goodput_bytes_per_s == pytest.approx(1e6, rel=0.05)
    assert (view.active_transfers, view.queued_bytes, view.rtt_s, view.loss_ratio) == (1, 1_000_000, 0.04, 0.01)
    assert monitor.one_way_s() == 0.02
    assert monitor.wanted_lanes(10**9) == 8  # loss is known
    monitor.lanes_changed(-1)
    monitor.ended(link_bound=True)
    clock.advance(3.0)
    (view,) = paths.views()
    assert (view.active_transfers, view.queued_bytes, view.age_s) == (0, 0, pytest.approx(3.0))
    assert view.capacity_bytes_per_s == pytest.approx(1e6, rel=0.05)  # the best seen
    labels = {"direction": "receive", "codec": "as_is"}
    assert metric_set.registry.get_sample_value(metrics.TRANSFER_BYTES.name, labels) == 2_000_000
    assert meter.counters() == {"active_transfers": 0, "buffered_bytes": 0, "open_lanes": 0}


def test_a_configured_capacity_is_believed() -> None:
    paths = paths_of(ManualClock(), capacity=5e6)
    paths.to(SiteId("east"))
    assert paths.views()[0].capacity_bytes_per_s == 5e6


def test_the_smallest_recent_round_trip_counts() -> None:
    clock = ManualClock()
    path = paths_of(clock).to(SiteId("east"))
    assert not path.knows_rtt(clock.now_s())
    for rtt_s in (0.05, 0.03, 0.04):
        path.round_trip(rtt_s, clock.now_s())
    assert path.rtt_s == 0.03
    assert path.knows_rtt(clock.now_s())
    clock.advance(RTT_WINDOW_S + 1)
    assert not path.knows_rtt(clock.now_s())
    path.round_trip(0.06, clock.now_s())
    assert path.rtt_s == 0.06


def test_a_fetch_that_never_began_changes_nothing() -> None:
    clock = ManualClock()
    paths = paths_of(clock)
    monitor = FetchMonitor(paths, TransferMeter(RECEIVE, None), clock, 1000)
    monitor.landed(5, "as_is", 0.0)
    monitor.ended(link_bound=False)
    assert paths.views() == ()


def test_a_transfer_that_waited_for_compute_says_nothing_of_the_capacity() -> None:
    clock = ManualClock()
    paths = paths_of(clock)
    monitor = FetchMonitor(paths, TransferMeter(RECEIVE, MetricSet(Emitter.WORKER)), clock, 1000)
    monitor.began(MANIFEST)
    for _ in range(200):
        clock.advance(0.01)
        monitor.landed(10_000, "as_is", clock.now_s())
    monitor.ended(link_bound=False)
    (view,) = paths.views()
    assert view.goodput_bytes_per_s == pytest.approx(1e6, rel=0.05)
    assert view.capacity_bytes_per_s == 0.0
