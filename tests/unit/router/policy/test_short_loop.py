"""Links are folded and opened again without flapping, and the threshold follows the queues within bounds."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from prfaas.types import LinkView
from router.policy import short_loop
from router.policy.short_loop import LinkState, Observation, Outcomes, ShortLoop
from router.policy.view import Link, Tuning
from tests.support.router_fleet import FAR, PD

LINK = Link(FAR, PD)
TICK_S = 0.5
GBIT = 125e6
PLANNED = 20_000


def link(goodput: float = 50 * GBIT, queued: float = 0, *, loss: float = 0.0, active: int = 4, age_s: float = 0.0) -> LinkView:
    return LinkView(FAR, PD, 100 * GBIT, goodput, int(queued), 0.02, loss, active_transfers=active, age_s=age_s)


class Drive:
    """A short loop on a clock of ticks."""

    def __init__(self) -> None:
        self.loop = ShortLoop(PLANNED, slo_s=5.0)
        self.now_s = 0.0
        self.tuning = Tuning(PLANNED)

    def run(self, seconds: float, view: LinkView | None = None, **seen: object) -> Tuning:
        for _ in range(round(seconds / TICK_S)):
            self.now_s += TICK_S
            links = {} if view is None else {LINK: view}
            self.tuning = self.loop.step(Observation(links, **seen), self.now_s)  # type: ignore[arg-type]
        return self.tuning

    @property
    def state(self) -> LinkState:
        return self.loop.states().get(LINK, LinkState.OPEN)


def test_a_healthy_link_stays_open_and_the_plan_stays_in_force() -> None:
    drive = Drive()
    assert drive.run(60, link()) == Tuning(PLANNED)


def test_a_backlog_or_loss_makes_scarce_and_calm_opens_again_later() -> None:
    for strained in (link(queued=60 * GBIT), link(loss=0.03)):
        drive = Drive()
        drive.run(0.5, strained)
        assert drive.state is LinkState.OPEN
        assert drive.run(1.5, strained).scarce == {LINK}
        drive.run(short_loop.CALM_S - 1, link())
        assert drive.state is LinkState.SCARCE
        drive.run(1.5, link())
        assert drive.state is LinkState.OPEN


def test_a_full_link_is_scarce_by_its_egress() -> None:
    drive = Drive()
    sent = {LINK: Outcomes(landed=1, sent_bytes=int(90 * GBIT * TICK_S))}
    drive.run(20, link(), outcomes=sent)
    assert drive.state is LinkState.SCARCE
    drive.run(20, link(), outcomes={LINK: Outcomes(landed=1, sent_bytes=int(50 * GBIT * TICK_S))})
    assert drive.state is LinkState.OPEN


def test_a_signal_that_comes_and_goes_changes_nothing() -> None:
    drive = Drive()
    for _ in range(40):
        drive.run(0.5, link(queued=60 * GBIT))
        drive.run(0.5, link())
    assert drive.state is LinkState.OPEN


def test_silence_with_bytes_waiting_folds_within_two_seconds() -> None:
    drive = Drive()
    drive.run(5, link())
    drive.run(2, link(queued=30 * GBIT, age_s=1.5))
    assert drive.state is LinkState.FOLDED
    assert drive.tuning.folded == {LINK}


def test_silence_without_bytes_waiting_is_just_an_idle_link() -> None:
    drive = Drive()
    drive.run(20, link(queued=0, active=0, age_s=60.0))
    assert drive.state is LinkState.OPEN


def test_a_brown_out_folds_when_the_backlog_alone_would_miss_the_objective() -> None:
    drive = Drive()
    drive.run(3, link(goodput=5 * GBIT, queued=20 * GBIT))
    assert drive.state is LinkState.SCARCE
    drive.run(2, link(goodput=5 * GBIT, queued=60 * GBIT))
    assert drive.state is LinkState.FOLDED


def test_failed_transfers_fold_at_once_and_a_success_forgives_them() -> None:
    drive = Drive()
    failing, landing = {LINK: Outcomes(failed=1)}, {LINK: Outcomes(landed=1)}
    drive.run(1, outcomes=failing)
    drive.run(0.5, outcomes=landing)
    drive.run(1, outcomes=failing)
    assert drive.state is LinkState.OPEN
    drive.run(0.5, outcomes=failing)
    assert drive.state is LinkState.FOLDED


def test_a_folded_link_is_tried_as_scarce_and_every_relapse_doubles_the_hold() -> None:
    drive, holds = Drive(), []
    for _ in range(6):
        drive.run(0.5, outcomes={LINK: Outcomes(failed=3)})
        assert drive.state is LinkState.FOLDED
        start_s = drive.now_s
        while drive.state is LinkState.FOLDED:
            drive.run(0.5)
        assert drive.state is LinkState.SCARCE
        holds.append(drive.now_s - start_s)
    assert holds == [2.0, 4.0, 8.0, 8.0, 8.0, 8.0]
    drive.run(120, link())
    assert drive.state is LinkState.OPEN
    drive.run(0.5, outcomes={LINK: Outcomes(failed=3)})
    drive.run(2.5)
    assert drive.state is LinkState.SCARCE


def test_an_outage_of_a_minute_costs_few_changes_of_state() -> None:
    """100 -> 5 -> 0 -> 100 Gbit/s: folded while there is nothing, open within ten seconds of calm, never back and forth."""
    drive, changes, last = Drive(), 0, LinkState.OPEN
    script = [(20, link()), (10, link(5 * GBIT, 60 * GBIT)), (60, link(0, 60 * GBIT, age_s=2.0)), (40, link())]
    for seconds, view in script:
        for _ in range(round(seconds / TICK_S)):
            quiet = link(0, 0, active=0, age_s=5.0) if drive.state is LinkState.FOLDED else view
            drive.run(TICK_S, quiet)
            changes += drive.state is not last
            last = drive.state
    assert drive.state is LinkState.OPEN
    assert changes <= 20
    assert drive.tuning == Tuning(drive.tuning.threshold_tokens)


def test_the_threshold_rises_while_remote_is_behind_and_falls_while_local_is() -> None:
    drive = Drive()
    up = drive.run(3, link(), remote_backlog_s=8.0, local_backlog_s=1.0).threshold_tokens
    assert PLANNED < up <= PLANNED * 1.5**3
    down = drive.run(12, link(), remote_backlog_s=1.0, local_backlog_s=8.0).threshold_tokens
    assert down < PLANNED
    assert abs(drive.run(300, link(), remote_backlog_s=1.0, local_backlog_s=1.2).threshold_tokens - PLANNED) <= 1


def test_a_backed_up_link_counts_as_remote_backlog() -> None:
    drive = Drive()
    drive.run(3, link(10 * GBIT, 40 * GBIT), remote_backlog_s=0.0, local_backlog_s=0.0)
    assert drive.tuning.threshold_tokens > PLANNED


def test_one_burst_cannot_swing_the_threshold() -> None:
    drive = Drive()
    drive.run(0.5, link(), remote_backlog_s=0.0, local_backlog_s=0.0)
    tuning = drive.run(0.5, link(), remote_backlog_s=1e6, local_backlog_s=0.0)
    assert tuning.threshold_tokens <= PLANNED * 1.25


def test_without_local_prefill_there_is_nothing_to_balance() -> None:
    drive = Drive()
    assert drive.run(10, link(), remote_backlog_s=30.0, local_backlog_s=None).threshold_tokens == PLANNED


def test_a_new_plan_moves_the_threshold_by_the_same_factor() -> None:
    drive = Drive()
    before = drive.run(3, link(), remote_backlog_s=8.0, local_backlog_s=1.0).threshold_tokens
    drive.loop.plan(PLANNED // 2)
    after = drive.loop.step(Observation({LINK: link()}, {}, 1.0, 1.0), drive.now_s).threshold_tokens
    assert abs(after - before / 2) <= 1


def test_the_balance_of_a_fluid_model_settles_without_oscillating() -> None:
    """Backlogs that grow where too much is sent: the threshold must find the split and stay near it."""
    drive, remote, local, history = Drive(), 0.0, 0.0, []
    best = 30_000.0
    for _ in range(1200):
        share = drive.tuning.threshold_tokens / best  # above 1: local gets too much
        local = max(0.0, local + (share - 1) * 0.5 * TICK_S)
        remote = max(0.0, remote + (1 / share - 1) * 0.5 * TICK_S)
        drive.run(TICK_S, link(), remote_backlog_s=remote, local_backlog_s=local)
        history.append(drive.tuning.threshold_tokens)
    tail = history[-300:]
    assert 0.8 * best <= min(tail)
    assert max(tail) <= 1.2 * best


views = st.builds(
    link,
    st.floats(0, 2e10),
    st.floats(0, 1e12),
    loss=st.floats(0, 1),
    active=st.integers(0, 9),
    age_s=st.floats(0, 60),
)
backlogs = st.none() | st.floats(0, 1e6)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.none() | views, backlogs, backlogs, st.integers(0, 4), st.integers(0, 2), st.floats(0, 5))))
def test_whatever_is_seen_the_threshold_is_bounded_and_folded_is_scarce(
    seen: list[tuple[LinkView | None, float | None, float | None, int, int, float]],
) -> None:
    loop, now_s = ShortLoop(PLANNED, slo_s=5.0), 0.0
    for view, remote, local, failed, landed, step_s in seen:
        now_s += step_s
        links = {} if view is None else {LINK: view}
        tuning = loop.step(Observation(links, {LINK: Outcomes(landed, failed, landed * 1000)}, remote, local), now_s)
        assert PLANNED / 8.01 <= tuning.threshold_tokens <= PLANNED * 8.01
        assert tuning.folded <= tuning.scarce <= {LINK}
