"""The paper's rule, branch by branch, and what must hold for every fleet."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prfaas.config import PolicySettings
from prfaas.errors import NoWorkerAvailable
from prfaas.types import LinkView, Role, Route, WorkerId
from router.policy.costs import Kind, PrefillModel
from router.policy.decide import Rule, Verdict
from router.policy.threshold import ThresholdPolicy
from router.policy.view import FleetView, Link, RequestView, WorkerView
from tests.support.router_fleet import FAR, PD, fleet_view, request_view, worker_view

D = worker_view("d")
LOCAL = worker_view("p", Role.PD_PREFILL)
REMOTE = worker_view("r", Role.PREFILL, "far")
LINK = Link(FAR, PD)
NOW = 1.0


def decide(request: RequestView, view: FleetView, **settings: object) -> Verdict:
    return ThresholdPolicy(PolicySettings(**settings)).decide(request, view, NOW)  # type: ignore[arg-type]


def outcome(request: RequestView, view: FleetView, **settings: object) -> tuple[Route, Rule]:
    verdict = decide(request, view, **settings)
    return verdict.decision.route, verdict.rule


@pytest.mark.parametrize(
    ("tokens", "cached", "expected"),
    [
        (2049, {}, (Route.REMOTE, Rule.LONG)),
        (2048, {}, (Route.LOCAL, Rule.SHORT)),
        (33, {}, (Route.LOCAL, Rule.SHORT)),
        (32, {}, (Route.INLINE, Rule.CACHED)),
        (10_000, {"d": 9_968}, (Route.INLINE, Rule.CACHED)),
        (10_000, {"d": 9_900, "p": 9_900}, (Route.LOCAL, Rule.SHORT)),
        (10_000, {"p": 9_000}, (Route.LOCAL, Rule.SHORT)),
        (10_000, {"d": 9_000}, (Route.INLINE, Rule.APPEND)),
        (10_000, {"d": 7_000, "p": 7_951}, (Route.REMOTE, Rule.LONG)),
        (10_000, {"r": 9_000}, (Route.REMOTE, Rule.CACHE_COPY)),
        (10_000, {"r": 9_000, "p": 8_000}, (Route.LOCAL, Rule.SHORT)),
        (10_000, {"r": 7_000}, (Route.REMOTE, Rule.LONG)),
    ],
)
def test_the_rule_on_a_link_with_room(tokens: int, cached: dict[str, int], expected: tuple[Route, Rule]) -> None:
    assert outcome(request_view(tokens, **cached), fleet_view(D, LOCAL, REMOTE)) == expected


def test_on_a_scarce_link_each_site_is_judged_by_its_own_cache() -> None:
    request = request_view(10_000, r=9_000)
    assert outcome(request, fleet_view(D, LOCAL, REMOTE)) == (Route.REMOTE, Rule.CACHE_COPY)
    scarce = decide(request, fleet_view(D, LOCAL, REMOTE, scarce=(LINK,)))
    assert scarce.rule is Rule.LONG
    assert scarce.decision.uncached_tokens == 10_000
    short = request_view(2_000, r=1_990)
    assert outcome(short, fleet_view(D, LOCAL, REMOTE, scarce=(LINK,))) == (Route.LOCAL, Rule.SHORT)


def test_without_a_remote_site_the_pd_site_serves_alone() -> None:
    assert outcome(request_view(9_000), fleet_view(D, LOCAL)) == (Route.LOCAL, Rule.NO_REMOTE)
    assert outcome(request_view(9_000), fleet_view(D)) == (Route.INLINE, Rule.NO_REMOTE)
    assert outcome(request_view(9_000), fleet_view(D, LOCAL, REMOTE, folded=(LINK,))) == (Route.LOCAL, Rule.NO_REMOTE)


def test_without_a_local_prefill_worker_a_short_prompt_stalls_nobody() -> None:
    busy = worker_view("d", running=3)
    assert outcome(request_view(500), fleet_view(busy, REMOTE)) == (Route.REMOTE, Rule.NO_LOCAL)
    assert outcome(request_view(500), fleet_view(D, REMOTE)) == (Route.INLINE, Rule.NO_LOCAL)
    assert outcome(request_view(500), fleet_view(busy)) == (Route.INLINE, Rule.NO_LOCAL)


def test_reasons_carry_the_numbers() -> None:
    (reason,) = decide(request_view(500), fleet_view(D, LOCAL, REMOTE)).decision.reasons
    assert reason == "500 uncached tokens <= threshold 2048"


def threshold(local_s: float = 0.0, remote_s: float = 0.0, floor: int = 0, **settings: object) -> int:
    local = worker_view("p", Role.PD_PREFILL, queued_s=local_s)
    remote = worker_view("r", Role.PREFILL, "far", queued_s=remote_s)
    view = fleet_view(D, local, remote)
    view = replace(view, tuning=replace(view.tuning, floor_tokens=floor))
    return decide(request_view(500), view, ttft_slo_s=10.0, **settings).decision.threshold_tokens


class TestLean:
    def test_equal_waits_leave_the_planned_threshold(self) -> None:
        assert threshold() == threshold(3.0, 3.0) == 2048

    def test_the_threshold_leans_to_the_shorter_wait_and_no_further_than_a_factor_of_eight(self) -> None:
        waits = (0.0, 1.0, 2.0, 5.0, 10.0, 1000.0)
        up, down = [threshold(0.0, s) for s in waits], [threshold(s, 0.0) for s in waits]
        assert up == sorted(up)
        assert down == sorted(down, reverse=True)
        assert (up[-1], down[-1]) == (2048 * 8, 2048 // 8)
        assert up[3] == round(2048 * math.e), "half an objective is one factor of e"

    def test_it_never_goes_below_what_the_links_carry(self) -> None:
        assert threshold(1000.0, 0.0, floor=2000) == 2000

    def test_a_static_threshold_does_not_lean(self) -> None:
        assert threshold(1000.0, 0.0, adaptive=False) == 2048

    def test_with_one_kind_of_prefill_worker_there_is_nothing_to_lean_on(self) -> None:
        assert decide(request_view(500), fleet_view(D, LOCAL)).decision.threshold_tokens == 2048


class TestLateness:
    """Objective 10 s, of which forecasts may fill 9; both sites compute 10,000 tokens a second."""

    def decide(self, request: RequestView, local_s: float, remote_s: float, **settings: object) -> Verdict:
        local = worker_view("p", Role.PD_PREFILL, queued_s=local_s)
        remote = worker_view("r", Role.PREFILL, "far", queued_s=remote_s)
        model = PrefillModel(0.0, 1e-4, 0.0)
        models = {Kind(PD, Role.PD_PREFILL): model, Kind(FAR, Role.PREFILL): model}
        return decide(request, replace(fleet_view(D, local, remote), models=models), ttft_slo_s=10.0, **settings)

    def test_a_prompt_that_its_own_route_would_make_late_takes_the_other(self) -> None:
        verdict = self.decide(request_view(500), 9.0, 8.0)
        assert (verdict.decision.route, verdict.rule, verdict.late) == (Route.REMOTE, Rule.ON_TIME, False)
        verdict = self.decide(request_view(50_000), 3.0, 4.5)
        assert (verdict.decision.route, verdict.rule, verdict.late) == (Route.LOCAL, Rule.ON_TIME, False)

    def test_the_wait_so_far_and_the_deadline_count(self) -> None:
        assert not self.decide(request_view(500), 2.0, 2.0).late
        assert self.decide(replace(request_view(500), waited_s=7.0), 2.0, 2.0).late
        assert self.decide(replace(request_view(500), time_left_s=2.0), 2.0, 2.0).late

    def test_what_is_late_everywhere_keeps_the_rule_and_is_said_to_be_late(self) -> None:
        verdict = self.decide(request_view(500), 9.0, 9.0)
        assert (verdict.decision.route, verdict.rule, verdict.late) == (Route.LOCAL, Rule.SHORT, True)
        assert not self.decide(request_view(500), 9.0, 9.0, adaptive=False).late
        assert not self.decide(request_view(500), 9.0, 9.0, force_route="local").late

    def test_one_that_has_let_others_go_first_takes_the_worker_without_a_queue(self) -> None:
        patient = replace(request_view(500), patient=True, waited_s=20.0)
        assert self.decide(patient, 3.0, 0.0).decision.route is Route.REMOTE
        assert self.decide(patient, 0.0, 0.0).rule is Rule.LEFTOVER
        assert self.decide(patient, 3.0, 3.0).rule is Rule.SHORT

    def test_what_nobody_has_measured_is_not_called_late(self) -> None:
        busy = worker_view("p", Role.PD_PREFILL, queued_s=99.0)
        assert not decide(request_view(500), fleet_view(D, busy), ttft_slo_s=10.0).late

    def test_an_idle_fleet_sends_more_to_faster_chips(self) -> None:
        fast = {Kind(PD, Role.PD_PREFILL): PrefillModel(0.0, 1e-3, 0.0), Kind(FAR, Role.PREFILL): PrefillModel(0.0, 1e-4, 0.0)}
        view = replace(fleet_view(D, LOCAL, REMOTE), models=fast)
        leaned = decide(request_view(500), view, ttft_slo_s=10.0).decision.threshold_tokens
        assert leaned == round(2048 * math.exp(-2048 * 9e-4 / 5.0))
        slow = {kind: PrefillModel(0.0, model.per_token_s * 100, 0.0) for kind, model in fast.items()}
        both_late = decide(request_view(500), replace(view, models=slow), ttft_slo_s=10.0).decision.threshold_tokens
        assert both_late == 2048, "what takes longer than the objective on either side moves nothing"


class TestForced:
    @pytest.mark.parametrize("route", list(Route))
    def test_a_forced_route_is_taken_whatever_the_length(self, route: Route) -> None:
        for tokens in (1, 100_000):
            assert outcome(request_view(tokens), fleet_view(D, LOCAL, REMOTE), force_route=route.value) == (route, Rule.FORCED)

    def test_a_forced_route_that_does_not_exist_falls_back_with_a_reason(self) -> None:
        verdict = decide(request_view(100), fleet_view(D, LOCAL), force_route="remote")
        assert (verdict.decision.route, verdict.rule) == (Route.LOCAL, Rule.FORCED_UNAVAILABLE)
        assert "remote is forced" in verdict.decision.reasons[0]
        assert outcome(request_view(9), fleet_view(D, REMOTE), force_route="local") == (Route.REMOTE, Rule.FORCED_UNAVAILABLE)
        assert outcome(request_view(9), fleet_view(D), force_route="local") == (Route.INLINE, Rule.FORCED_UNAVAILABLE)


class TestDecodeChoice:
    def chosen(self, request: RequestView, *workers: WorkerView) -> str:
        return decide(request, fleet_view(*workers)).decision.decode_worker

    def test_load_counts(self) -> None:
        assert self.chosen(request_view(100), worker_view("a", running=6), worker_view("b", running=2)) == "b"

    def test_a_cached_prefix_outweighs_some_load_but_not_a_queue(self) -> None:
        request = request_view(8_000, a=7_900)
        assert self.chosen(request, worker_view("a", running=5), worker_view("b")) == "a"
        assert self.chosen(request, worker_view("a", running=16), worker_view("b")) == "b"

    def test_memory_counts(self) -> None:
        assert self.chosen(request_view(1_600), worker_view("a", free_tokens=1_615), worker_view("b", running=4)) == "b"
        assert self.chosen(request_view(1_600), worker_view("a", free_tokens=1_616), worker_view("b", running=4)) == "a"

    @pytest.mark.parametrize(
        "change",
        [
            {"draining": True},
            {"suspect": True},
            {"seen_s": NOW - 3.1},
            {"model": "other"},
            {"max_prompt_tokens": 99},
        ],
    )
    def test_a_worker_that_cannot_take_it_is_not_chosen(self, change: dict[str, object]) -> None:
        unable = worker_view("a", **change)
        assert self.chosen(request_view(100), unable, worker_view("b", running=8)) == "b"
        with pytest.raises(NoWorkerAvailable) as caught:
            decide(request_view(100), fleet_view(unable))
        assert caught.value.detail["role"] == "decode"

    def test_a_worker_that_failed_this_request_is_not_asked_again(self) -> None:
        request = RequestView("m", 100, 16, exclude=frozenset({WorkerId("a")}))
        assert self.chosen(request, worker_view("a"), worker_view("b", running=8)) == "b"


class TestLadder:
    def rungs(self, tokens: int, *workers: WorkerView, **settings: object) -> list[tuple[str, Route]]:
        links = (LinkView(FAR, PD, capacity_bytes_per_s=1e9, rtt_s=0.05), LinkView(WorkerId("deep"), PD, rtt_s=2.0))  # type: ignore[arg-type]
        decision = decide(request_view(tokens), fleet_view(*workers, links=links), **settings).decision
        return [(c.worker_id, c.route) for c in decision.candidates]

    def test_an_inline_route_needs_no_ladder(self) -> None:
        assert self.rungs(10, D, LOCAL, REMOTE) == []

    def test_the_last_rung_is_of_the_other_route(self) -> None:
        more = [worker_view(f"r{i}", Role.PREFILL, "far", queued_s=float(i)) for i in range(4)]
        assert self.rungs(9_000, D, LOCAL, *more) == [("r0", Route.REMOTE), ("r1", Route.REMOTE), ("p", Route.LOCAL)]
        assert self.rungs(9_000, D, *more) == [("r0", Route.REMOTE), ("r1", Route.REMOTE), ("r2", Route.REMOTE)]
        assert self.rungs(9_000, D, LOCAL, *more, max_candidates=1) == [("r0", Route.REMOTE)]

    def test_queues_and_links_order_the_workers_of_a_route(self) -> None:
        near_but_busy = worker_view("a", Role.PREFILL, "far", queued_s=5.0)
        far = worker_view("b", Role.PREFILL, "deep")
        assert self.rungs(9_000, D, near_but_busy, far)[0] == ("b", Route.REMOTE)
        near = worker_view("a", Role.PREFILL, "far", queued_s=0.5)
        assert self.rungs(9_000, D, near, far)[0] == ("a", Route.REMOTE)

    def test_a_worker_with_other_model_files_cannot_prefill(self) -> None:
        alien = worker_view("x", Role.PREFILL, "far", fingerprint_digest="other")
        assert self.rungs(9_000, D, alien) == []


flags = st.booleans()
prefillers = st.builds(
    lambda i, role, site, queue, draining, stale: worker_view(
        f"w{i}", role, site, queued_s=queue / 1000, draining=draining, seen_s=-10.0 if stale else NOW
    ),
    st.integers(0, 99),
    st.sampled_from([Role.PREFILL, Role.PD_PREFILL]),
    st.sampled_from(["pd", "far", "deep"]),
    st.integers(0, 100_000),
    flags,
    flags,
)
fleets = st.lists(prefillers, max_size=8, unique_by=lambda w: w.worker_id)
folds = st.sets(st.sampled_from([Link(FAR, PD), Link(WorkerId("deep"), PD)]))  # type: ignore[arg-type]


@settings(max_examples=300, deadline=None)
@given(
    workers=fleets,
    tokens=st.integers(1, 150_000),
    threshold=st.integers(0, 100_000),
    running=st.integers(0, 20),
    folded=folds,
    limit=st.integers(1, 5),
    forced=st.none() | st.sampled_from([r.value for r in Route]),
    cached=st.dictionaries(st.sampled_from(["d", *(f"w{i}" for i in range(10))]), st.integers(0, 150_000)),
)
def test_every_decision_can_be_carried_out(
    workers: list[WorkerView],
    tokens: int,
    threshold: int,
    running: int,
    folded: set[Link],
    limit: int,
    forced: str | None,
    cached: dict[str, int],
) -> None:
    decode = worker_view("d", running=running)
    view = fleet_view(decode, *workers, threshold=threshold, folded=tuple(folded))
    request = request_view(tokens, **{k: min(v, tokens - 1) for k, v in cached.items()})
    decision = decide(request, view, force_route=forced, max_candidates=limit).decision
    assert decision.decode_worker == "d"
    routes = [c.route for c in decision.candidates]
    if decision.route is Route.INLINE:
        assert routes == []
        return
    assert routes[0] is decision.route
    assert routes == sorted(routes, key=lambda r: r is not decision.route)
    assert 1 <= len(routes) <= limit
    assert len({c.worker_id for c in decision.candidates}) == len(routes)
    known = {w.worker_id: w for w in workers}
    for candidate in decision.candidates:
        worker = known[candidate.worker_id]
        assert not worker.draining
        assert worker.seen_s == NOW
        assert (worker.site == PD) == (candidate.route is Route.LOCAL)
        assert worker.site == PD or Link(worker.site, PD) not in folded


@given(tokens=st.integers(33, 150_000), low=st.integers(0, 150_000), more=st.integers(0, 50_000))
def test_a_higher_threshold_never_sends_more_away(tokens: int, low: int, more: int) -> None:
    at_low, at_high = (outcome(request_view(tokens), fleet_view(D, LOCAL, REMOTE, threshold=t))[0] for t in (low, low + more))
    assert (at_low is Route.REMOTE) == (tokens > low)
    assert not (at_low is Route.LOCAL and at_high is Route.REMOTE)
