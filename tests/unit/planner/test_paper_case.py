"""The published case study is reproduced from the model, not typed in: arXiv:2604.15039, table 6."""

from __future__ import annotations

import pytest

from prfaas.planner.cases import paper_case
from prfaas.planner.plan import Plan, make_plan, plan_json


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan(paper_case())


def test_threshold_and_split(plan: Plan) -> None:
    found = plan.prfaas.allocation
    assert found.threshold_tokens == pytest.approx(19_400, rel=0.01)
    assert (found.num_prefill, found.num_decode) == (3, 5)
    assert (plan.homogeneous.allocation.num_prefill, plan.homogeneous.allocation.num_decode) == (9, 3)
    assert (plan.naive.allocation.num_prefill, plan.naive.allocation.num_decode) == (0, 8)


@pytest.mark.parametrize(
    ("system", "theta_remote", "theta_local", "theta_decode", "throughput"),
    [
        ("prfaas", 1.61, 1.64, 3.91, 3.24),
        ("homogeneous", 0.0, 2.11, 2.35, 2.11),
        ("naive", 2.45, 0.0, 6.25, 2.45),
    ],
)
def test_rates(
    plan: Plan, system: str, theta_remote: float, theta_local: float, theta_decode: float, throughput: float
) -> None:
    rates = {"prfaas": plan.prfaas, "homogeneous": plan.homogeneous, "naive": plan.naive}[system].allocation.rates
    assert rates.theta_prefill_remote == pytest.approx(theta_remote, rel=0.01)
    assert rates.theta_prefill_local == pytest.approx(theta_local, rel=0.01)
    assert rates.theta_decode == pytest.approx(theta_decode, rel=0.01)
    assert rates.throughput_rps == pytest.approx(throughput, rel=0.01)


def test_ratios_and_egress(plan: Plan) -> None:
    base = plan.homogeneous.allocation.rates.throughput_rps
    assert plan.prfaas.allocation.rates.throughput_rps / base == pytest.approx(1.54, rel=0.01)
    assert plan.naive.allocation.rates.throughput_rps / base == pytest.approx(1.16, rel=0.01)
    assert plan.prfaas.allocation.rates.egress_gbps == pytest.approx(13, rel=0.1)
    assert plan.prfaas.allocation.rates.split.p_long == pytest.approx(0.496, abs=0.001)
    assert plan.prfaas.allocation.rates.split.mean_long == pytest.approx(44 * 1024, rel=0.01)


def test_bare_ttft_matches_the_published_latencies(plan: Plan) -> None:
    assert plan.prfaas.ttft_bare_s == pytest.approx((2.22, 3.51), rel=0.01)
    assert plan.homogeneous.ttft_bare_s == pytest.approx((4.44, 9.73), rel=0.01)
    assert plan.naive.ttft_bare_s == pytest.approx((1.74, 3.51), rel=0.04)


def test_json_has_one_complete_object_per_system(plan: Plan) -> None:
    document = plan_json(plan)
    needed = {
        "threshold_tokens", "n_prefill_remote", "n_prefill_local", "n_decode_local", "throughput_rps", "theta_rps",
        "egress_gbps", "binding_stage",
    }  # fmt: skip
    for system in ("prfaas", "homogeneous", "naive"):
        part = document[system]
        assert isinstance(part, dict)
        assert needed <= part.keys()
