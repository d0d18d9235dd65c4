"""The forecasting policy: time, money and load decide, and every decision can be carried out."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prfaas.config import PolicySettings
from prfaas.errors import NoWorkerAvailable
from prfaas.types import LinkView, Role, Route, SiteId
from router.policy.costs import Kind, PrefillModel
from router.policy.decide import Rule, Verdict
from router.policy.predictive import PredictivePolicy, far_price
from router.policy.view import FleetView, Link, RequestView, Tuning, WorkerView
from tests.support.router_fleet import FAR, PD, fleet_view, request_view, worker_view

SLOW, FAST = PrefillModel(0.01, 2e-4, 0.0), PrefillModel(0.01, 0.5e-4, 0.0)
MODELS = {
    Kind(PD, Role.DECODE): SLOW,
    Kind(PD, Role.PD_PREFILL): SLOW,
    Kind(FAR, Role.PREFILL): FAST,
}
D = worker_view("d", running=4)


def world(*, local_s: float = 0.0, remote_s: float = 0.0, decode: WorkerView = D, **link: float) -> FleetView:
    values = {"capacity_bytes_per_s": 1e9, "rtt_s": 0.05, **link}
    workers = (
        decode,
        worker_view("p", Role.PD_PREFILL, queued_s=local_s),
        worker_view("r", Role.PREFILL, "far", queued_s=remote_s),
    )
    return replace(fleet_view(*workers, links=(LinkView(FAR, PD, **values),)), models=MODELS)  # type: ignore[arg-type]


def decide(request: RequestView, view: FleetView, **settings: object) -> Verdict:
    return PredictivePolicy(PolicySettings(name="predictive", **settings)).decide(request, view, 1.0)  # type: ignore[arg-type]


def route(request: RequestView, view: FleetView, **settings: object) -> Route:
    return decide(request, view, **settings).decision.route


def test_an_idle_fleet_answers_where_it_is_fastest() -> None:
    assert route(request_view(100), world()) is Route.LOCAL  # 30 ms here, 65 ms there
    assert route(request_view(20_000), world()) is Route.REMOTE  # 4 s here, 1 s there


def test_load_moves_the_split_smoothly() -> None:
    lengths = (1_000, 2_000, 4_000, 8_000, 16_000)

    def remote_share(**load: float) -> int:
        return sum(route(request_view(n), world(**load), ttft_slo_s=60.0) is Route.REMOTE for n in lengths)

    shares = [remote_share(remote_s=s) for s in (0.0, 2.0, 4.0, 8.0, 16.0)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > shares[-1]
    assert len(set(shares)) > 2
    shares = [remote_share(local_s=s) for s in (0.0, 1.0, 4.0, 30.0)]
    assert shares == sorted(shares)


def test_far_work_costs_what_it_saves_at_the_planned_threshold() -> None:
    curved = replace(SLOW, per_pair_s=4e-8)
    view = replace(world(), models={**MODELS, Kind(PD, Role.PD_PREFILL): curved})
    far, decode = view.prefill[FAR][0], view.decode[0]

    def price(threshold: int, view: FleetView = view) -> float:
        return far_price(replace(view, tuning=Tuning(threshold)), far, decode)

    assert price(8_000) == pytest.approx(curved.seconds(8_000) / FAST.seconds(8_000))
    assert price(8_000) < price(64_000) <= 8.0
    assert price(8_000, replace(view, models={})) == 1.0
    alone = replace(view, prefill={FAR: view.prefill[FAR]})
    assert price(8_000, alone) == 1.0


def test_a_higher_threshold_keeps_more_prompts_near() -> None:
    view = replace(world(), models={**MODELS, Kind(PD, Role.PD_PREFILL): replace(SLOW, per_pair_s=4e-8)})

    def remote(threshold: int) -> list[int]:
        tuned = replace(view, tuning=Tuning(threshold))
        return [n for n in range(1_000, 100_000, 3_000) if route(request_view(n), tuned, ttft_slo_s=1e4) is Route.REMOTE]

    low, high = remote(4_000), remote(40_000)
    assert set(high) < set(low)
    assert max(low) == max(high), "the longest gain most"


def test_a_slow_or_backed_up_link_keeps_prompts_near() -> None:
    prompt = request_view(16_000)
    assert route(prompt, world()) is Route.REMOTE
    assert route(prompt, world(capacity_bytes_per_s=1e6)) is Route.LOCAL
    assert route(prompt, world(queued_bytes=10**10, goodput_bytes_per_s=1e9, active_transfers=5)) is Route.LOCAL


def test_a_cached_prefix_draws_the_request() -> None:
    assert route(request_view(20_000, p=19_800), world()) is Route.LOCAL
    assert route(request_view(20_000, d=19_980), world()) is Route.INLINE
    assert route(request_view(20_000, r=19_000), world()) is Route.REMOTE


def test_an_inline_prefill_that_would_stall_running_sequences_is_the_last_resort() -> None:
    busy, idle = worker_view("d", running=4), worker_view("d")
    prompt = request_view(2_000)
    assert route(prompt, world(decode=busy, local_s=50.0, remote_s=50.0)) is not Route.INLINE
    assert route(prompt, world(decode=idle, local_s=50.0, remote_s=50.0)) is Route.INLINE
    assert route(prompt, replace(fleet_view(busy), models=MODELS)) is Route.INLINE
    short = request_view(10_000, d=9_900)
    assert route(short, world(decode=busy, local_s=9.0, remote_s=9.0)) is Route.INLINE  # 30 ms: nobody notices


def test_the_cheapest_that_keeps_the_objective_wins() -> None:
    prices = {"price_per_instance_hour": {"pd": 10.0, "far": 1000.0}}
    prompt = request_view(16_000)
    assert route(prompt, world(), **prices) is Route.LOCAL  # 3.2 s here keeps 5 s, at a hundredth of the price
    dear = decide(prompt, world(), ttft_slo_s=2.0, **prices)
    assert (dear.decision.route, dear.rule) == (Route.REMOTE, Rule.CHEAPEST)
    egress = {"price_per_egress_gbyte": {"far": 100.0}}
    assert route(prompt, world(), **egress) is Route.LOCAL


def test_of_several_sites_the_cheapest_that_keeps_the_objective_wins() -> None:
    dear, cheap = worker_view("r", Role.PREFILL, "far"), worker_view("s", Role.PREFILL, "deep")
    deep = SiteId("deep")
    links = (LinkView(FAR, PD, 1e9, rtt_s=0.05), LinkView(deep, PD, 1e9, rtt_s=0.05))
    view = fleet_view(D, dear, cheap, links=links)
    view = replace(view, models={**MODELS, Kind(deep, Role.PREFILL): PrefillModel(0.01, 1e-4, 0.0)})
    prompt = request_view(16_000)  # 0.8 s in far, 1.6 s in deep

    def first(**settings: object) -> str:
        return decide(prompt, view, **settings).decision.candidates[0].worker_id

    machines = {"price_per_instance_hour": {"far": 30.0, "deep": 10.0, "pd": 1000.0}}
    assert first() == "r", "without prices the faster one"
    assert first(**machines) == "s", "twice as slow at a third of the price"
    assert first(**machines, ttft_slo_s=1.0) == "r", "1.6 s do not keep 1 s"
    assert first(**machines, price_per_egress_gbyte={"deep": 100.0}) == "r", "what its cache costs to send counts too"


def test_when_nothing_keeps_the_objective_the_least_burden_wins_and_it_is_said() -> None:
    verdict = decide(request_view(16_000), world(), ttft_slo_s=0.1)
    assert verdict.rule is Rule.FASTEST
    assert "nothing keeps" in verdict.decision.reasons[0]


def test_forecasts_of_all_routes_travel_with_the_decision() -> None:
    decision = decide(request_view(16_000), world(local_s=1.0)).decision
    predicted = dict(decision.predicted_ttft_s)
    assert predicted[Route.LOCAL] == pytest.approx(1.0 + 0.01 + 3.2)
    assert predicted[Route.REMOTE] == pytest.approx(0.01 + 0.8 + 0.05)
    assert predicted[Route.INLINE] == pytest.approx(0.01 + 3.2)
    assert "local 4.210 s" in decision.reasons[0]


def test_forced_and_folded_and_egress_limits_are_obeyed() -> None:
    prompt = request_view(16_000)
    assert route(prompt, world(), force_route="inline") is Route.INLINE
    folded = replace(world(), tuning=replace(world().tuning, folded=frozenset({Link(FAR, PD)})))
    assert route(prompt, folded) is Route.LOCAL
    assert route(replace(prompt, may_leave=False), world()) is Route.LOCAL


def test_below_the_floor_nothing_is_sent_where_there_are_near_workers() -> None:
    prompt, view = request_view(16_000), world()
    floored = replace(view, tuning=replace(view.tuning, floor_tokens=16_000))
    assert (route(prompt, view), route(prompt, floored)) == (Route.REMOTE, Route.LOCAL)
    alone = replace(floored, prefill={FAR: floored.prefill[FAR]})
    assert route(prompt, alone) is Route.REMOTE


def test_below_the_floor_a_link_is_still_used_where_nothing_else_keeps_the_objective() -> None:
    prompt = request_view(16_000)
    view = world(local_s=3.0)
    floored = replace(view, tuning=replace(view.tuning, floor_tokens=16_000))
    assert route(prompt, floored, ttft_slo_s=10.0) is Route.LOCAL
    assert route(prompt, floored, ttft_slo_s=5.0) is Route.REMOTE


def test_what_nothing_keeps_in_time_is_late_and_when_patient_takes_what_is_idle() -> None:
    prompt = request_view(16_000)
    view = world(local_s=20.0, remote_s=20.0)
    late = decide(prompt, view, ttft_slo_s=10.0)
    assert (late.rule, late.late) == (Rule.FASTEST, True)
    assert not decide(prompt, view, ttft_slo_s=10.0, adaptive=False).late
    assert not decide(prompt, world(), ttft_slo_s=10.0).late
    assert decide(replace(prompt, waited_s=9.0), world(), ttft_slo_s=10.0).late
    patient = decide(replace(prompt, patient=True), world(local_s=0.0, remote_s=20.0), ttft_slo_s=2.0)
    assert (patient.decision.route, patient.rule) == (Route.LOCAL, Rule.LEFTOVER)


def test_while_a_kind_of_worker_is_unmeasured_the_papers_rule_decides() -> None:
    near_only = replace(world(), models={Kind(PD, Role.PD_PREFILL): SLOW})
    assert decide(request_view(3000), near_only).rule is Rule.LONG
    assert decide(request_view(2000), near_only).rule is Rule.SHORT
    both = replace(near_only, models={**near_only.models, Kind(FAR, Role.PREFILL): FAST})
    assert decide(request_view(3000), both).rule is Rule.CHEAPEST
    assert decide(request_view(9_000), replace(both, tuning=replace(both.tuning, floor_tokens=10**6))).decision.route is not (
        Route.INLINE
    ), "what nobody has measured is not guessed at where there are others"


def test_bytes_promised_to_a_link_count_as_if_they_waited_on_it() -> None:
    prompt, way = request_view(16_000), Link(FAR, PD)
    view = world()
    booked = replace(view, promised_bytes={way: 5 * 10**9})
    assert (route(prompt, view), route(prompt, booked)) == (Route.REMOTE, Route.LOCAL)


def test_no_decode_worker_is_an_error() -> None:
    with pytest.raises(NoWorkerAvailable):
        decide(request_view(10), fleet_view(worker_view("p", Role.PD_PREFILL)))


@settings(max_examples=200, deadline=None)
@given(
    tokens=st.integers(1, 150_000),
    cached=st.tuples(*[st.integers(0, 150_000)] * 3),
    local_s=st.floats(0, 100),
    remote_s=st.floats(0, 100),
    running=st.integers(0, 40),
    queued=st.integers(0, 10**11),
    goodput=st.floats(0, 1e10),
)
def test_every_decision_can_be_carried_out(
    tokens: int, cached: tuple[int, int, int], local_s: float, remote_s: float, running: int, queued: int, goodput: float
) -> None:
    view = world(
        local_s=local_s,
        remote_s=remote_s,
        decode=worker_view("d", running=running),
        queued_bytes=queued,
        goodput_bytes_per_s=goodput,
        active_transfers=1,
    )
    held = {name: min(value, tokens - 1) for name, value in zip("dpr", cached, strict=True)}
    verdict = decide(request_view(tokens, **held), view)
    decision = verdict.decision
    expected = {Route.INLINE: [], Route.LOCAL: ["p", "r"], Route.REMOTE: ["r", "p"]}[decision.route]
    assert [c.worker_id for c in decision.candidates] == expected
    first = expected[0] if expected else "d"
    assert decision.uncached_tokens == tokens - held[first]
    assert verdict.compute_s >= 0
    assert all(seconds >= 0 for _, seconds in decision.predicted_ttft_s)
