"""Room and slack: when the door lets somebody in, and when somebody who is late anyway."""

from __future__ import annotations

from dataclasses import replace

import pytest

from prfaas.types import LinkView, Role
from router.policy.room import has_room, has_slack
from router.policy.view import FleetView, Link
from tests.support.router_fleet import FAR, PD, fleet_view, worker_view

SLO_S = 10.0


class TestRoom:
    def test_there_is_room_until_slots_are_covered_or_everybody_is_behind(self) -> None:
        d, far = worker_view("d", max_running=4), worker_view("r", Role.PREFILL, "far", queued_s=9.0)
        near = worker_view("p", Role.PD_PREFILL, queued_s=11.0)
        view = fleet_view(d, far, near)
        assert has_room(view, 7, 2.0, 10.0, 0.0)
        assert not has_room(view, 8, 2.0, 10.0, 0.0)
        assert not has_room(view, 0, 2.0, 8.0, 0.0)

    def test_decode_workers_alone_are_measured_by_their_own_queues(self) -> None:
        assert not has_room(fleet_view(worker_view("d", queued_s=11.0)), 0, 2.0, 10.0, 0.0)
        assert has_room(fleet_view(worker_view("d")), 0, 2.0, 10.0, 0.0)

    def test_workers_behind_a_folded_link_are_no_room(self) -> None:
        workers = (worker_view("d"), worker_view("p", Role.PD_PREFILL, queued_s=11.0), worker_view("r", Role.PREFILL, "far"))
        assert has_room(fleet_view(*workers), 0, 2.0, 10.0, 0.0)
        assert not has_room(fleet_view(*workers, folded=(Link(FAR, PD),)), 0, 2.0, 10.0, 0.0)

    def test_an_empty_fleet_has_room_for_a_proper_error(self) -> None:
        assert has_room(fleet_view(), 99, 2.0, 10.0, 0.0)
        assert has_room(fleet_view(worker_view("d", draining=True)), 99, 2.0, 10.0, 0.0)


class TestSlack:
    def world(self, near_s: float, far_s: float, *, queued: int = 0, promised: int = 0, folded: int = 0) -> FleetView:
        near, far = worker_view("p", Role.PD_PREFILL, queued_s=near_s), worker_view("r", Role.PREFILL, "far", queued_s=far_s)
        link = LinkView(FAR, PD, capacity_bytes_per_s=1e9, goodput_bytes_per_s=1e9, queued_bytes=queued, active_transfers=1)
        view = fleet_view(worker_view("d"), near, far, links=(link,), folded=(Link(FAR, PD),) * folded)
        return replace(view, promised_bytes={Link(FAR, PD): promised})

    def test_one_worker_with_next_to_nothing_before_it_is_slack(self) -> None:
        assert has_slack(self.world(0.0, 9.0), SLO_S, 0.0)
        assert has_slack(self.world(9.0, 0.4), SLO_S, 0.0)
        assert not has_slack(self.world(0.6, 0.6), SLO_S, 0.0)

    @pytest.mark.parametrize("trouble", [{"queued": 2 * 10**9}, {"promised": 2 * 10**9}, {"folded": 1}])
    def test_a_far_worker_is_no_slack_while_its_link_is_full(self, trouble: dict[str, int]) -> None:
        assert not has_slack(self.world(9.0, 0.0, **trouble), SLO_S, 0.0)
        assert has_slack(self.world(0.0, 0.0, **trouble), SLO_S, 0.0)

    def test_silent_workers_are_no_slack_and_decode_workers_are_where_nobody_else_prefills(self) -> None:
        assert not has_slack(self.world(0.0, 0.0), SLO_S, 1000.0)
        assert has_slack(fleet_view(worker_view("d")), SLO_S, 0.0)
        assert not has_slack(fleet_view(worker_view("d", queued_s=2.0)), SLO_S, 0.0)
