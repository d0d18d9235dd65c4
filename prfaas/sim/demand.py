"""From a scenario's workload to its requests, in order of arrival. All randomness of a run is here, from its seed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from prfaas.sim.scenario import Scenario, WorkloadKind
from prfaas.sim.workloads import SimRequest, agents, arrivals, diurnal, independent, replay, swarm


def requests(scenario: Scenario) -> Iterator[SimRequest]:
    """Requests that arrive within the run."""
    for request in _all(scenario, np.random.default_rng(scenario.seed)):
        if request.at_s >= scenario.duration_s:
            return
        yield request


def _all(scenario: Scenario, rng: np.random.Generator) -> Iterable[SimRequest]:
    load, rate, duration_s = scenario.workload, scenario.rate_rps, scenario.duration_s
    match load.kind:
        case WorkloadKind.TRACE:
            return replay(sorted(load.records, key=lambda r: r.at_s), speed=load.speed)
        case WorkloadKind.AGENTS:
            return agents(arrivals(rate / load.agent.turns, duration_s, rng), load.agent, rng)
        case WorkloadKind.SWARM:
            steps = max(load.sub_agents, round(rate * duration_s))
            gap_s = duration_s * load.sub_agents / steps
            return swarm(
                start_s=0.0, sub_agents=load.sub_agents, shared_tokens=load.shared_tokens, steps=steps,
                step_tokens=load.step_tokens, gap_s=gap_s, rng=rng,
            )  # fmt: skip
        case WorkloadKind.DIURNAL:
            times = diurnal(rate, duration_s, rng, swing=load.swing, period_s=load.period_s)
        case WorkloadKind.BURSTY:
            times = arrivals(rate, duration_s, rng, cv=load.cv)
        case WorkloadKind.PAPER:
            times = arrivals(rate, duration_s, rng)
    base = scenario.case.workload
    return independent(times, base.lengths, base.mean_output_tokens, rng, prefix_share=load.prefix_share)
