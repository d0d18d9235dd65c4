"""What a link's figures mean to the policy: capacity, a backlog's goodput, and what is not known."""

from __future__ import annotations

from prfaas.types import LinkView, SiteId
from router.policy.scorers import link_rate, stream_s

FAR, NEAR = SiteId("far"), SiteId("near")


def test_goodput_without_a_backlog_or_a_capacity_is_only_what_was_computed() -> None:
    busy = LinkView(FAR, NEAR, goodput_bytes_per_s=5e6, active_transfers=3)
    assert link_rate(busy) == 0.0
    assert stream_s(busy, 10**9) == 0.0


def test_a_known_capacity_counts_until_bytes_pile_up() -> None:
    assert link_rate(LinkView(FAR, NEAR, capacity_bytes_per_s=1e9, goodput_bytes_per_s=2e8)) == 1e9
    stuck = LinkView(FAR, NEAR, capacity_bytes_per_s=1e9, goodput_bytes_per_s=2e8, queued_bytes=10**9, active_transfers=2)
    assert link_rate(stuck) == 2e8
