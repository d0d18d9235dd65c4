"""What single receivers report, put together: sums where they share, and no more often than needed."""

from __future__ import annotations

from dataclasses import replace

from prfaas.types import LinkView, WorkerId
from router.links import PICTURE_S, LinkBoard
from router.policy.view import Link
from tests.support.router_fleet import FAR, PD

LINK = Link(FAR, PD)
SEEN = LinkView(FAR, PD, 100.0, 10.0, 5, 0.02, 0.1, active_transfers=1, age_s=1.0)


def board(*views: LinkView) -> LinkBoard:
    made = LinkBoard(30.0)
    for number, view in enumerate(views):
        made.report(WorkerId(f"d{number}"), PD, (view,), 0.0)
    return made


def test_receivers_add_up_and_an_idle_one_does_not_count_its_last_speed() -> None:
    idle = replace(SEEN, active_transfers=0, queued_bytes=0, goodput_bytes_per_s=90.0, rtt_s=0.01)
    together = board(SEEN, SEEN, idle).views(0.0)[LINK]
    assert (together.goodput_bytes_per_s, together.queued_bytes, together.active_transfers) == (20.0, 10, 2)
    assert (together.capacity_bytes_per_s, together.rtt_s) == (100.0, 0.01)
    assert board(idle).views(0.0)[LINK].goodput_bytes_per_s == 90.0


def test_of_a_few_receivers_every_report_counts_at_once() -> None:
    made = board(*[SEEN] * 8)
    assert made.views(0.0)[LINK].queued_bytes == 40
    made.report(WorkerId("d3"), PD, (replace(SEEN, queued_bytes=0),), 0.0)
    assert made.views(0.0)[LINK].queued_bytes == 35


def test_of_many_receivers_an_eighth_must_have_reported_or_half_a_second_passed() -> None:
    made = board(*[SEEN] * 80)
    assert made.views(0.0)[LINK].queued_bytes == 400
    for number in range(9):
        made.report(WorkerId(f"d{number}"), PD, (replace(SEEN, queued_bytes=0),), 0.1)
    assert made.views(0.1)[LINK].queued_bytes == 400
    made.report(WorkerId("d9"), PD, (replace(SEEN, queued_bytes=0),), 0.1)
    assert made.views(0.1)[LINK].queued_bytes == 350
    made.report(WorkerId("d10"), PD, (replace(SEEN, queued_bytes=0),), 0.1)
    assert made.views(0.1 + PICTURE_S)[LINK].queued_bytes == 345


def test_what_waits_for_a_clogged_path_is_what_its_senders_say_where_that_is_more() -> None:
    made = board(SEEN, SEEN)
    for number, waiting in enumerate((700, 200)):
        sent = LinkView(FAR, PD, queued_bytes=waiting, active_transfers=3)
        made.report(WorkerId(f"p{number}"), FAR, (sent,), 0.0)
    together = made.views(0.0)[LINK]
    assert (together.queued_bytes, together.active_transfers) == (900, 6)
    assert (together.goodput_bytes_per_s, together.rtt_s, together.loss_ratio) == (20.0, 0.02, 0.1)
    made.report(WorkerId("p0"), FAR, (LinkView(FAR, PD, queued_bytes=0),), 0.0)
    made.forget(WorkerId("p1"))
    assert made.views(0.0)[LINK].queued_bytes == 10


def test_where_all_senders_have_bytes_waiting_their_speed_is_the_paths_if_it_is_less() -> None:
    def goodput(*senders: LinkView) -> float:
        made = board(SEEN)
        for number, view in enumerate(senders):
            made.report(WorkerId(f"r{number}"), FAR, (view,), 0.0)
        return made.views(0.0)[LINK].goodput_bytes_per_s

    slow = replace(SEEN, goodput_bytes_per_s=2.0, queued_bytes=7)
    assert goodput(slow, slow) == 4.0
    assert goodput(slow, replace(slow, goodput_bytes_per_s=50.0)) == 10.0
    assert goodput(slow, replace(slow, queued_bytes=0)) == 10.0, "another moves bytes without being held up"
    assert goodput(replace(slow, goodput_bytes_per_s=0.0)) == 10.0, "it cannot tell yet"


def test_a_sender_alone_makes_no_view_of_a_path() -> None:
    made = LinkBoard(30.0)
    made.report(WorkerId("p0"), FAR, (LinkView(FAR, PD, queued_bytes=9),), 0.0)
    assert made.views(0.0) == {}


def test_old_reports_and_forgotten_receivers_say_nothing() -> None:
    made = board(SEEN, SEEN)
    assert made.views(0.0)[LINK].age_s == 1.0
    made.forget(WorkerId("d0"))
    assert made.views(2.0)[LINK].queued_bytes == 5
    assert made.views(2.0)[LINK].age_s == 3.0
    assert made.views(31.0) == {}
