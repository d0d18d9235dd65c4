"""Virtual time, shared links and workloads against hand-computed answers."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prfaas.planner.lengths import Lengths
from prfaas.sim.kernel import Kernel
from prfaas.sim.links import SimLink, loss_capped_rate
from prfaas.sim.workloads import AgentShape, agents, arrivals, diurnal, independent, swarm


def test_events_run_in_time_then_in_order() -> None:
    kernel, seen = Kernel(), []
    kernel.at(2.0, lambda: seen.append("late"))
    kernel.at(1.0, lambda: seen.append("a"))
    kernel.at(1.0, lambda: seen.append("b"))
    kernel.at(1.5, lambda: seen.append("never")).cancel()
    kernel.run(3.0)
    assert seen == ["a", "b", "late"]
    assert kernel.now_s() == 3.0
    with pytest.raises(ValueError, match="schedule"):
        kernel.at(1.0, lambda: None)


def test_two_flows_share_and_the_second_speeds_up_when_the_first_ends() -> None:
    kernel, done = Kernel(), {}
    link = SimLink(kernel, capacity_bytes_per_s=100.0, rtt_s=2.0)
    for name, size in (("small", 50.0), ("large", 150.0)):
        flow = link.open(lambda name=name: done.__setitem__(name, kernel.now_s()))
        link.offer(flow, size, last=True)
    kernel.run(100.0)
    assert done == {"small": pytest.approx(1.0 + 1.0), "large": pytest.approx(2.0 + 1.0)}
    assert link.use.carried_bytes == pytest.approx(200.0)


OFFERS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 40), st.integers(1, 300)), min_size=1, max_size=12
)  # flow, time in tenths of a second, kilobytes


@settings(max_examples=150, deadline=None)
@given(OFFERS, st.integers(0, 40))
def test_flows_end_when_sharing_step_by_step_says(offers: list[tuple[int, int, int]], brownout: int) -> None:
    """Against an independent walk from change to change, which gives every flow with bytes pending the same share."""
    kernel, done = Kernel(), dict[int, float]()
    link = SimLink(kernel, capacity_bytes_per_s=100e3)
    flows = {f: link.open(lambda f=f: done.__setitem__(f, kernel.now_s())) for f, _, _ in offers}
    offers = sorted(offers, key=lambda offer: offer[1])
    last = {f: max(i for i, offer in enumerate(offers) if offer[0] == f) for f in flows}
    kernel.at(brownout / 10, lambda: link.set_conditions(capacity_bytes_per_s=20e3))
    for i, (f, tenths, size) in enumerate(offers):
        kernel.at(tenths / 10, lambda i=i, f=f, size=size: link.offer(flows[f], size * 1e3, last=i == last[f]))
    kernel.run(1000.0)
    pending, ends, now = dict.fromkeys(flows, 0.0), dict[int, float](), 0.0
    changes = sorted({0.0, *(offer[1] / 10 for offer in offers), brownout / 10, 1000.0})
    for at, until in pairwise(changes):
        for f, tenths, size in offers:
            pending[f] += size * (tenths / 10 == at)
        now = at
        while sending := [f for f in flows if pending[f] > 1e-9]:
            share = (100.0 if at < brownout / 10 else 20.0) / len(sending)
            step = min(until - now, min(pending[f] for f in sending) / share)
            now += step
            for f in sending:
                pending[f] -= share * step
                if pending[f] <= 1e-9:
                    ends[f] = now
            if now >= until - 1e-12:
                break
    assert done == {f: pytest.approx(end, abs=1e-3) for f, end in ends.items()}
    assert link.use.carried_bytes == pytest.approx(sum(size * 1e3 for _, _, size in offers), abs=len(offers))


def test_a_flow_fed_slowly_ends_with_its_last_byte() -> None:
    kernel, done = Kernel(), []
    link = SimLink(kernel, capacity_bytes_per_s=100.0)
    flow = link.open(lambda: done.append(kernel.now_s()))
    for i in range(4):
        kernel.at(float(i), lambda i=i: link.offer(flow, 10.0, last=i == 3))
    kernel.run(10.0)
    assert done == [pytest.approx(3.1)]


def test_outage_holds_bytes_and_recovery_carries_them() -> None:
    kernel, done = Kernel(), []
    link = SimLink(kernel, capacity_bytes_per_s=100.0)
    link.offer(link.open(lambda: done.append(kernel.now_s())), 200.0, last=True)
    kernel.at(1.0, lambda: link.set_conditions(capacity_bytes_per_s=0.0))
    kernel.at(5.0, lambda: link.set_conditions(capacity_bytes_per_s=50.0))
    kernel.run(20.0)
    assert done == [pytest.approx(7.0)]


def test_loss_caps_a_flow_in_proportion_to_its_lanes() -> None:
    assert loss_capped_rate(0.04, 0.001, 8) == pytest.approx(8 * loss_capped_rate(0.04, 0.001, 1))
    # One flow at 56 ms and 1e-5 stays near 0.5 Gbit/s or below (arXiv:2608.14967).
    assert loss_capped_rate(0.056, 1e-5, 1) * 8 < 0.5e9


def test_arrivals_keep_their_rate_and_burstiness() -> None:
    for cv in (1.0, 3.0):
        times = np.array(list(arrivals(10.0, 4000.0, np.random.default_rng(1), cv=cv)))
        gaps = np.diff(times)
        assert len(times) / 4000.0 == pytest.approx(10.0, rel=0.06)
        assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.08)


def test_diurnal_moves_with_the_sun() -> None:
    times = np.array(list(diurnal(10.0, 1000.0, np.random.default_rng(1), swing=0.8, period_s=1000.0)))
    assert (times < 500).sum() > 2 * (times >= 500).sum()


def test_same_seed_same_requests_and_shared_prefixes_are_shared() -> None:
    lengths = Lengths.lognormal(8, 1, 128, 131072)

    def make() -> list[object]:
        rng = np.random.default_rng(7)
        return list(independent(arrivals(5.0, 60.0, rng), lengths, 256, rng, prefix_share=0.5, prefix_pool=3))

    assert make() == make()
    talk = agents([0.0, 1.0], AgentShape(turns=3), np.random.default_rng(3), systems=1)
    turns = [r for r in talk if r.session == 0]
    assert turns[1].prompt[: len(turns[0].prompt)] == turns[0].prompt
    crowd = swarm(
        start_s=0, sub_agents=10, shared_tokens=30_000, steps=40, step_tokens=50, gap_s=1, rng=np.random.default_rng(0)
    )
    assert len(crowd) == 40
    assert {r.prompt[0] for r in crowd} == {crowd[0].prompt[0]}
