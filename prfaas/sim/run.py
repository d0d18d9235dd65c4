"""Runs a scenario, and searches the highest rate that keeps an objective."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from prfaas.sim.demand import requests
from prfaas.sim.deployment import Deployment, deploy, every
from prfaas.sim.prompts import END, encode
from prfaas.sim.records import RequestRecord
from prfaas.sim.result import ITL_TOLERANCE, Result, Use, summarise
from prfaas.sim.sampler import Sampler
from prfaas.sim.scenario import Scenario
from prfaas.sim.trip import Trip
from prfaas.sim.workloads import SimRequest
from prfaas.types import GenerationRequest, RequestId, SamplingParams

DRAIN_STEP_S, MAX_DRAIN_S = 5.0, 1800.0
NUM_SAMPLES = 400
MIN_SAMPLE_S = 0.5
COLLECT_AFTER = 50_000  # new objects; as little as that may wait in cycles


def simulate(scenario: Scenario) -> Result:
    """Run a scenario to the end of its last request (at most half an hour after the last arrival).

    The same scenario gives the same result, on any machine.
    """
    with _few_collections():
        made = deploy(scenario)
        demand = _Demand(made)
        sampler = Sampler(made)
        every(made.kernel, max(MIN_SAMPLE_S, scenario.duration_s / NUM_SAMPLES), sampler.take)
        demand.start()
        made.kernel.run(scenario.warmup_s)
        before = Use.of(made)
        made.kernel.run(scenario.duration_s)
        after = Use.of(made)
        until_s = scenario.duration_s
        while demand.num_open and until_s < scenario.duration_s + MAX_DRAIN_S:
            until_s += DRAIN_STEP_S
            made.kernel.run(until_s)
        return summarise(made, before, after)


@contextmanager
def _few_collections() -> Iterator[None]:
    """Let the garbage collector look seldom: hardly anything of a run is garbage in a cycle, and to look means to walk
    through the token lists of every request under way."""
    before = gc.get_threshold()
    gc.set_threshold(COLLECT_AFTER, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


class _Demand:
    """Feeds requests into a deployment, each at its time, holding only those that are under way."""

    def __init__(self, made: Deployment) -> None:
        self._made = made
        self._requests: Iterator[SimRequest] = requests(made.scenario)
        self.num_open = 0

    def start(self) -> None:
        following = next(self._requests, None)
        if following is not None:
            self._made.kernel.at(following.at_s, lambda: self._arrive(following))

    def _arrive(self, request: SimRequest) -> None:
        self.start()
        made, number = self._made, len(self._made.journal.requests)
        tokens = encode(request.prompt, made.model.grain)
        sampling = SamplingParams(max_tokens=request.output_tokens, stop_token_ids=(END,), ignore_eos=True)
        asked = GenerationRequest(RequestId(str(number)), made.model.spec.name, tokens, sampling)
        record = RequestRecord(number, request.at_s, request.prompt_tokens, request.output_tokens)
        made.journal.requests.append(record)
        self.num_open += 1
        Trip(made.world, made.world.door.prompt(asked, request.prompt_tokens), record, self._ended).start()

    def _ended(self) -> None:
        self.num_open -= 1


@dataclass(frozen=True, slots=True)
class AtSlo:
    """The highest rate that kept an objective, and the run at that rate (None when no rate did)."""

    rate_rps: float
    result: Result | None


def throughput_at_slo(scenario: Scenario, *, ttft_s: float, max_rps: float, quantile_90: bool = True, rounds: int = 7) -> AtSlo:
    """Bisect the offered rate up to `max_rps`: P90 (or P99) TTFT at most `ttft_s`, the same quantile of the gaps between
    tokens at most the scenario's ITL objective, and every request answered. The seed stays, so that runs compare."""
    low, high = 0.0, max_rps
    best: Result | None = None
    for _ in range(rounds):
        middle = (low + high) / 2
        result = simulate(scenario.at_rate(middle))
        if _keeps(result, ttft_s, quantile_90=quantile_90):
            low, best = middle, result
        else:
            high = middle
    return AtSlo(low, best)


def _keeps(result: Result, ttft_s: float, *, quantile_90: bool) -> bool:
    ttft, itl = (result.ttft.p90, result.itl.p90) if quantile_90 else (result.ttft.p99, result.itl.p99)
    return ttft <= ttft_s and itl <= result.scenario.itl_slo_s * ITL_TOLERANCE and result.num_unfinished == 0
