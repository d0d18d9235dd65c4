"""Links are folded and opened again without flapping; a broken link and a full one are not mixed up."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from prfaas.types import LinkView
from router.policy.link_health import CALM_S, Fold, LinkHealth, LinkState, Outcomes, Sighting
from tests.support.router_fleet import FAR, PD

TICK_S = 0.5
GBIT = 125e6
SLO_S = 5.0


def link(goodput: float = 50 * GBIT, queued: float = 0, *, loss: float = 0.0, active: int = 4, age_s: float = 0.0) -> LinkView:
    return LinkView(FAR, PD, 100 * GBIT, goodput, int(queued), 0.02, loss, active_transfers=active, age_s=age_s)


class Drive:
    """One link's health on a clock of ticks."""

    def __init__(self) -> None:
        self.health, self.now_s = LinkHealth(), 0.0

    def run(
        self, seconds: float, view: LinkView | None = None, outcomes: Outcomes | None = None, *, alive: bool = True
    ) -> None:
        for _ in range(round(seconds / TICK_S)):
            self.now_s += TICK_S
            self.health = self.health.after(Sighting(view, outcomes or Outcomes(), alive), self.now_s, SLO_S)

    @property
    def state(self) -> LinkState:
        return self.health.state


def test_a_healthy_link_stays_open_and_has_no_limit() -> None:
    drive = Drive()
    drive.run(60, link())
    assert (drive.state, drive.health.limit) == (LinkState.OPEN, None)
    assert drive.health.rate(link()) == 100 * GBIT


def test_a_backlog_or_loss_makes_scarce_and_calm_opens_again_later() -> None:
    for strained in (link(queued=60 * GBIT), link(loss=0.03)):
        drive = Drive()
        drive.run(0.5, strained)
        assert drive.state is LinkState.OPEN
        drive.run(1.5, strained)
        assert drive.state is LinkState.SCARCE
        drive.run(CALM_S - 1, link())
        assert drive.state is LinkState.SCARCE
        drive.run(1.5 if strained.loss_ratio else 25, link())
        assert drive.state is LinkState.OPEN, "nothing is remembered of a loss, and what it carried is for a while of a backlog"


def test_a_full_link_is_scarce_by_its_egress() -> None:
    drive = Drive()
    drive.run(20, link(), Outcomes(landed=1, sent_bytes=int(95 * GBIT * TICK_S)))
    assert drive.state is LinkState.SCARCE
    drive.run(20, link(), Outcomes(landed=1, sent_bytes=int(50 * GBIT * TICK_S)))
    assert drive.state is LinkState.OPEN


def test_a_signal_that_comes_and_goes_changes_nothing() -> None:
    drive = Drive()
    for _ in range(40):
        drive.run(0.5, link(queued=60 * GBIT))
        drive.run(0.5, link())
    assert drive.state is LinkState.OPEN


def test_what_a_backed_up_link_carries_is_its_limit_until_calm_lets_it_grow() -> None:
    drive = Drive()
    drive.run(8, link(5 * GBIT, 15 * GBIT))
    assert drive.health.rate(link()) == 5 * GBIT
    drive.run(CALM_S - TICK_S, link(4 * GBIT))
    assert drive.health.rate(link()) == 5 * GBIT
    drive.run(6, link(4 * GBIT))
    assert 5.5 * GBIT < (drive.health.limit or 0) < 8 * GBIT
    drive.run(120, link())
    assert drive.health.limit is None


def test_a_limit_that_proves_true_is_left_alone_for_longer_each_time() -> None:
    drive, waits = Drive(), []
    for _ in range(5):
        drive.run(6, link(5 * GBIT, 15 * GBIT))
        began_s, limit = drive.now_s, drive.health.limit
        while drive.health.limit == limit:
            drive.run(TICK_S, link(4 * GBIT))
        waits.append(drive.now_s - began_s)
    assert waits == [3.5, 6.5, 12.5, 24.5, 24.5]


def test_silence_with_bytes_waiting_folds_as_broken_within_two_seconds() -> None:
    drive = Drive()
    drive.run(5, link())
    drive.run(2, link(queued=30 * GBIT, age_s=1.5))
    assert (drive.state, drive.health.fold) == (LinkState.FOLDED, Fold.BROKEN)


def test_silence_without_bytes_waiting_is_just_an_idle_link() -> None:
    drive = Drive()
    drive.run(20, link(queued=0, active=0, age_s=60.0))
    assert drive.state is LinkState.OPEN


def test_a_link_that_is_full_beyond_the_objective_is_folded_until_its_bytes_are_through() -> None:
    drive = Drive()
    drive.run(3, link(goodput=5 * GBIT, queued=20 * GBIT))
    assert drive.state is LinkState.SCARCE
    drive.run(2, link(goodput=5 * GBIT, queued=60 * GBIT))
    assert (drive.state, drive.health.fold) == (LinkState.FOLDED, Fold.FULL)
    drive.run(20, link(goodput=5 * GBIT, queued=10 * GBIT))
    assert drive.state is LinkState.FOLDED
    drive.run(0.5, link(goodput=5 * GBIT, queued=4 * GBIT))
    assert drive.state is LinkState.SCARCE
    drive.run(2, link(goodput=5 * GBIT, queued=60 * GBIT))
    drive.run(0.5, link(goodput=5 * GBIT, queued=0))
    assert drive.state is LinkState.SCARCE, "being full again is no relapse of a fault: no hold"


def test_failed_transfers_fold_at_once_and_a_success_forgives_them() -> None:
    drive, failing = Drive(), Outcomes(failed=1)
    drive.run(1, None, failing)
    drive.run(0.5, None, Outcomes(landed=1))
    drive.run(1, None, failing)
    assert drive.state is LinkState.OPEN
    drive.run(0.5, None, failing)
    assert drive.state is LinkState.FOLDED


def test_a_broken_link_is_probed_after_a_hold_that_grows_with_every_relapse() -> None:
    drive, holds = Drive(), []
    for _ in range(4):
        drive.run(0.5, None, Outcomes(failed=3))
        assert not drive.health.in_use
        start_s = drive.now_s
        while not drive.health.in_use:
            drive.run(0.5)
        assert drive.state is LinkState.FOLDED, "nothing has come through yet"
        holds.append(drive.now_s - start_s)
    assert holds == [2.0, 4.0, 5.0, 5.0]
    drive.run(0.5, None, Outcomes(landed=1))
    assert drive.state is LinkState.SCARCE
    drive.run(120, link())
    assert drive.state is LinkState.OPEN
    drive.run(0.5, None, Outcomes(failed=3))
    drive.run(2.5)
    assert drive.health.in_use


def test_a_probe_that_moves_opens_the_link_and_one_that_stands_still_folds_it() -> None:
    drive, silent = Drive(), link(queued=1 * GBIT, age_s=9.0)
    drive.run(2, silent)
    assert (drive.state, drive.health.fold) == (LinkState.FOLDED, Fold.BROKEN)
    drive.run(30, silent)
    assert not drive.health.in_use, "bytes wait in silence: that says enough"
    drive.run(1, link(queued=0, active=0, age_s=30.0))
    assert drive.health.in_use
    drive.run(2, silent)
    assert not drive.health.in_use
    drive.run(6, link(queued=0, active=0, age_s=40.0))
    assert drive.health.in_use
    drive.run(0.5, link(goodput=5 * GBIT, queued=1 * GBIT))
    assert drive.state is LinkState.SCARCE


def test_a_link_behind_which_nobody_lives_does_not_become_open_by_being_idle() -> None:
    drive = Drive()
    drive.run(3, link(goodput=5 * GBIT, queued=20 * GBIT))
    assert drive.state is LinkState.SCARCE
    drive.run(600, link(), alive=False)
    assert drive.state is LinkState.SCARCE
    drive.run(10, link())
    assert drive.state is LinkState.OPEN


def test_nobody_knocks_at_a_site_that_gives_no_sign_of_life() -> None:
    drive = Drive()
    drive.run(0.5, None, Outcomes(failed=3))
    drive.run(300, None, alive=False)
    assert not drive.health.in_use
    drive.run(0.5, None)
    assert drive.health.in_use


def test_a_link_of_unknown_capacity_forgets_its_limit_too() -> None:
    unknown = replace(link(goodput=5 * GBIT, queued=20 * GBIT), capacity_bytes_per_s=0.0)
    drive = Drive()
    drive.run(4, unknown)
    assert drive.health.rate(unknown) == 5 * GBIT
    drive.run(60, replace(unknown, queued_bytes=0))
    assert drive.health.rate(unknown) is None


views = st.builds(
    link, st.floats(0, 2e10), st.floats(0, 1e12), loss=st.floats(0, 1), active=st.integers(0, 9), age_s=st.floats(0, 60)
)
looks = st.tuples(st.none() | views, st.integers(0, 4), st.integers(0, 2), st.booleans(), st.floats(0, 5))


@settings(max_examples=200, deadline=None)
@given(st.lists(looks))
def test_whatever_is_seen_a_fold_has_a_reason_and_a_limit_is_a_rate(
    seen: list[tuple[LinkView | None, int, int, bool, float]],
) -> None:
    health, now_s = LinkHealth(), 0.0
    for view, failed, landed, alive, step_s in seen:
        now_s += step_s
        health = health.after(Sighting(view, Outcomes(landed, failed, landed * 1000), alive), now_s, SLO_S)
        assert (health.state is LinkState.FOLDED) == (health.fold is not None)
        assert health.limit is None or health.limit > 0
        assert 2.0 <= health.hold_s <= 5.0
        assert health.fold is Fold.BROKEN or not health.probing
