"""Whole simulated runs: against the planner, against themselves, and through brown-outs and outages."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import pytest

from prfaas.planner.cases import paper_case
from prfaas.planner.throughput import Moments, evaluate
from prfaas.sim.parsing import parse_workload
from prfaas.sim.records import RequestRecord
from prfaas.sim.report import write_report
from prfaas.sim.result import Result, keeps_slo, to_json
from prfaas.sim.run import simulate, throughput_at_slo
from prfaas.sim.scenario import LinkEvent, Scenario, SimPolicy, scenario_for
from prfaas.sim.traces import trace_events
from prfaas.types import Route


def small(policy: SimPolicy = SimPolicy.THRESHOLD, **changes: object) -> Scenario:
    made = scenario_for(paper_case(), policy, rate_rps=1.5, duration_s=60.0)
    return replace(made, warmup_s=5.0, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("policy", [SimPolicy.THRESHOLD, SimPolicy.LOCAL_ONLY, SimPolicy.ALL_REMOTE])
def test_a_saturated_fleet_serves_what_the_planner_expects(policy: SimPolicy) -> None:
    case = paper_case()
    scenario = scenario_for(case, policy, rate_rps=4.0, duration_s=420.0)
    scenario = replace(scenario, adaptive=False, warmup_s=120.0)
    fleet = scenario.fleet
    expected = evaluate(
        fleet.sites, fleet.pd, case.model, case.workload, num_prefill=fleet.num_prefill, num_decode=fleet.num_decode,
        threshold_tokens=fleet.threshold_tokens if fleet.num_prefill else -1, moments=Moments.EXACT,
    )  # fmt: skip
    result = simulate(scenario)
    # A short run's own mix of lengths moves its capacity by a few per cent; hence not the last digit.
    assert result.throughput_rps == pytest.approx(expected.throughput_rps, rel=0.05)
    assert result.outcomes["failed"] == result.outcomes["open"] == 0
    assert result.outcomes["rejected"] > 0 or result.ttft.p90 > scenario.ttft_slo_s


def test_the_same_seed_gives_the_same_run_and_another_one_another() -> None:
    first, again, other = (to_json(simulate(small(seed=seed))) for seed in (3, 3, 4))
    assert json.dumps(first) == json.dumps(again)
    assert first["ttft_s"] != other["ttft_s"]


def test_the_stages_of_a_first_token_add_up_and_fit_the_profiles() -> None:
    scenario = small()
    result = simulate(scenario)
    assert result.num_unfinished == 0
    for record in result.journal.requests:
        total = record.door_s + record.room_s + record.queue_s + record.prefill_s + record.wire_s
        assert record.ttft_s == pytest.approx(total)
        hardware = scenario.fleet.sites[0].hardware if record.route is Route.REMOTE else scenario.fleet.pd.hardware
        assert record.prefill_s >= hardware.prefill_s(record.prompt_tokens) * 0.999
        assert record.end_s - record.at_s - record.ttft_s >= 0.025 * (record.answer_tokens - 1) * 0.999
        if record.route is Route.REMOTE:
            assert record.wire_s >= scenario.fleet.sites[0].rtt_s * 0.999


def test_what_crosses_the_link_is_the_cache_of_the_prompt() -> None:
    scenario = small(SimPolicy.ALL_REMOTE)
    result = simulate(scenario)
    for record in result.journal.requests:
        assert record.route is Route.REMOTE
        assert record.kv_bytes == pytest.approx(scenario.case.model.kv_bytes(record.prompt_tokens), rel=0.03)


def test_local_only_never_leaves_its_site() -> None:
    assert set(simulate(small(SimPolicy.LOCAL_ONLY)).routes) == {"local"}


def test_an_outage_fails_no_request_and_the_link_is_used_again() -> None:
    events = (LinkEvent(40.0, 5.0), LinkEvent(70.0, 0.0), LinkEvent(110.0, 100.0))
    scenario = scenario_for(paper_case(), SimPolicy.THRESHOLD, rate_rps=1.0, duration_s=240.0)
    result = simulate(replace(scenario, link_events=events))
    assert result.num_unfinished == 0

    def remote(begin_s: float, end_s: float) -> list[RequestRecord]:
        return [r for r in result.journal.requests if begin_s <= r.at_s + r.door_s < end_s and r.route is Route.REMOTE]

    assert remote(0.0, 40.0)
    assert not remote(76.0, 106.0), "nothing is sent over a link that is known to be down"
    assert remote(150.0, 240.0)
    assert sum(result.journal.rungs_failed.values()) > 0


@pytest.mark.parametrize("policy", [SimPolicy.THRESHOLD, SimPolicy.PREDICTIVE])
def test_from_full_speed_to_a_twentieth_to_nothing_and_back_costs_little_beside_the_best_static_threshold(
    policy: SimPolicy,
) -> None:
    """No request fails, each phase keeps nine tenths of what the best static threshold keeps, and after ten seconds the
    threshold and the link's state stay where they are."""
    borders = (0.0, 60.0, 120.0, 170.0, 260.0)
    events = tuple(LinkEvent(at_s, gbps) for at_s, gbps in zip(borders[1:-1], (5.0, 0.0, 100.0), strict=True))
    scenario = scenario_for(paper_case(), SimPolicy.THRESHOLD, rate_rps=0.6, duration_s=borders[-1])
    scenario = replace(scenario, link_events=events, warmup_s=1.0)

    def kept(result: Result) -> list[int]:
        phases = pairwise(borders)
        return [sum(a <= r.at_s < b and keeps_slo(r, scenario) for r in result.journal.requests) for a, b in phases]

    static = [replace(scenario, adaptive=False, fleet=replace(scenario.fleet, threshold_tokens=t)) for t in (19_400, 40_000)]
    best = [max(counts) for counts in zip(*(kept(simulate(s)) for s in static), strict=True)]
    result = simulate(replace(scenario, policy=policy))
    assert result.num_unfinished == 0
    assert all(mine >= 0.9 * theirs - 1 for mine, theirs in zip(kept(result), best, strict=True))
    for begin, end in pairwise(borders):
        settled = [s.threshold_tokens for s in result.journal.samples if begin + 10 <= s.at_s < end]
        assert max(settled) <= 1.25 * min(settled)
        assert sum(begin + 10 <= c.at_s < end for c in result.journal.link_changes) <= 1


def test_agents_find_their_conversations_in_the_caches() -> None:
    scenario = scenario_for(
        paper_case(), SimPolicy.THRESHOLD, rate_rps=1.5, duration_s=120.0, workload=parse_workload("agents")
    )
    result = simulate(scenario)
    assert result.num_unfinished == 0
    cached = sum(r.cached_tokens for r in result.journal.requests)
    assert cached > 0.3 * sum(r.prompt_tokens for r in result.journal.requests)
    cold = simulate(replace(scenario, engine=replace(scenario.engine, prefix_cache=False)))
    assert all(r.cached_tokens == 0 for r in cold.journal.requests)
    assert result.ttft.mean < cold.ttft.mean


def test_bursts_make_requests_wait_longer() -> None:
    runs = []
    for text in ("paper", "bursty:cv=4"):
        scenario = scenario_for(
            paper_case(), SimPolicy.THRESHOLD, rate_rps=2.4, duration_s=240.0, workload=parse_workload(text)
        )
        runs.append(simulate(scenario))
    assert runs[1].stages["queue"].p90 > runs[0].stages["queue"].p90


def test_the_search_finds_a_rate_that_keeps_the_objective_and_no_much_higher_one() -> None:
    scenario = small(SimPolicy.ALL_REMOTE)
    found = throughput_at_slo(scenario, ttft_s=8.0, max_rps=4.0, rounds=4)
    assert found.result is not None
    assert found.result.ttft.p90 <= 8.0
    assert simulate(scenario.at_rate(found.rate_rps + 0.5)).ttft.p90 > 8.0


def test_reports_and_traces_hold_every_request(tmp_path) -> None:  # type: ignore[no-untyped-def]
    pytest.importorskip("matplotlib")
    result = simulate(small())
    path = tmp_path / "report.html"
    write_report(result, path)
    text = path.read_text()
    assert text.count("<svg") == 5
    assert "http://" not in text.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    )
    events = json.loads(json.dumps(trace_events(result)))
    begun = [e["id"] for e in events if e["ph"] == "b" and e["name"].startswith("request")]
    assert sorted(begun) == [r.number for r in result.journal.requests]
    assert sum(e["ph"] == "b" for e in events) == sum(e["ph"] == "e" for e in events)
