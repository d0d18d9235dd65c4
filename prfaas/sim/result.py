"""What a run says: rates, percentiles, the stage waterfall, utilisation, routes and cost, as values and as JSON.

Rates and percentiles count requests that arrived in the window between warm-up and the end of arrivals; throughput
counts those that ended in it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from prfaas.planner.cost import SECONDS_PER_HOUR
from prfaas.sim.deployment import BYTES_PER_GBIT, Deployment
from prfaas.sim.gaps import Histogram
from prfaas.sim.records import Journal, Outcome, RequestRecord
from prfaas.sim.scenario import Scenario
from prfaas.types import Role

JsonValue = str | int | float | bool | None | list["JsonValue"] | dict[str, "JsonValue"]
ITL_TOLERANCE = 1.05  # a request keeps the ITL objective up to this multiple of it: joining a batch waits for a step
STAGES = ("door", "room", "queue", "prefill", "wire", "decode_wait")
QUANTILES = (0.5, 0.9, 0.95, 0.99)


@dataclass(frozen=True, slots=True)
class Use:
    """Cumulative counters of a deployment at one moment."""

    busy_s: dict[str, float]
    carried_bytes: float
    capacity_bytes: float

    @staticmethod
    def of(made: Deployment) -> Use:
        for link in made.links:
            link.settle()
        busy: dict[str, float] = {}
        for name, role in (("prefill_remote", Role.PREFILL), ("prefill_local", Role.PD_PREFILL), ("decode", Role.DECODE)):
            busy[name] = sum(w.busy_s() for w in made.of_role(role))
        busy["decode_slots"] = sum(w.decode_slot_s() for w in made.of_role(Role.DECODE))
        return Use(busy, sum(x.use.carried_bytes for x in made.links), sum(x.use.capacity_bytes for x in made.links))


@dataclass(frozen=True, slots=True)
class Spread:
    """A sample's mean and quantiles in seconds; zeros when empty."""

    mean: float
    p50: float
    p90: float
    p95: float
    p99: float

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        if not values:
            return Spread(0.0, 0.0, 0.0, 0.0, 0.0)
        found = np.asarray(values)
        return Spread(float(found.mean()), *(float(np.quantile(found, q)) for q in QUANTILES))

    @staticmethod
    def of_histogram(histogram: Histogram) -> Spread:
        return Spread(histogram.mean_s, *(histogram.percentile_s(q) for q in QUANTILES))

    def to_json(self) -> dict[str, JsonValue]:
        return {"mean": self.mean, "p50": self.p50, "p90": self.p90, "p95": self.p95, "p99": self.p99}


@dataclass(frozen=True, slots=True)
class Cost:
    """In the currency of the case's prices, over the window."""

    instances_per_hour: float
    egress_per_hour: float
    per_million_tokens: float


@dataclass(frozen=True, slots=True)
class Result:
    """One run. `utilisation`: shares of time that stages were busy (`decode_slots`: of batch slots, `link`: of bytes)."""

    scenario: Scenario
    journal: Journal
    window_s: float
    outcomes: dict[str, int]
    offered_rps: float
    throughput_rps: float
    goodput_rps: float
    output_tokens_per_s: float
    ttft: Spread
    itl: Spread  # over tokens
    stages: dict[str, Spread]
    routes: dict[str, float]  # share of finished requests
    utilisation: dict[str, float]
    egress_gbps: float
    cost: Cost
    events: int

    @property
    def num_unfinished(self) -> int:
        """Requests of the whole run that did not get their answer."""
        return sum(not r.finished for r in self.journal.requests)


def summarise(made: Deployment, before: Use, after: Use) -> Result:
    """Take a finished run together. `before` and `after` bound the window."""
    scenario, journal = made.scenario, made.journal
    window_s = scenario.duration_s - scenario.warmup_s
    arrived = [r for r in journal.requests if r.at_s >= scenario.warmup_s]
    done = [r for r in arrived if r.finished]
    ended = [r for r in journal.requests if r.finished and scenario.warmup_s <= r.end_s <= scenario.duration_s]
    good = [r for r in ended if keeps_slo(r, scenario)]
    routes = Counter(r.route.value for r in done if r.route is not None)
    carried = after.carried_bytes - before.carried_bytes
    egress = carried / window_s / BYTES_PER_GBIT
    return Result(
        scenario=scenario,
        journal=journal,
        window_s=window_s,
        outcomes={o.value: sum(r.outcome is o for r in journal.requests) for o in Outcome},
        offered_rps=len(arrived) / window_s,
        throughput_rps=len(ended) / window_s,
        goodput_rps=len(good) / window_s,
        output_tokens_per_s=sum(r.answer_tokens for r in ended) / window_s,
        ttft=Spread.of([r.ttft_s for r in done]),
        itl=Spread.of_histogram(made.gaps),
        stages={name: Spread.of([_stage(name)(r) for r in done]) for name in STAGES},
        routes={name: count / len(done) for name, count in sorted(routes.items())},
        utilisation=_utilisation(made, before, after, window_s),
        egress_gbps=egress,
        cost=_cost(scenario, ended, carried, window_s),
        events=made.kernel.num_events,
    )


def keeps_slo(record: RequestRecord, scenario: Scenario) -> bool:
    """First token in time, and then tokens as fast as promised in the mean."""
    return record.ttft_s <= scenario.ttft_slo_s and record.itl_s <= scenario.itl_slo_s * ITL_TOLERANCE


def _stage(name: str) -> Callable[[RequestRecord], float]:
    pick: dict[str, Callable[[RequestRecord], float]] = {
        "door": lambda r: r.door_s,
        "room": lambda r: r.room_s,
        "queue": lambda r: r.queue_s,
        "prefill": lambda r: r.prefill_s,
        "wire": lambda r: r.wire_s,
        "decode_wait": lambda r: r.decode_wait_s,
    }
    return pick[name]


def _utilisation(made: Deployment, before: Use, after: Use, window_s: float) -> dict[str, float]:
    count = {
        "prefill_remote": len(made.of_role(Role.PREFILL)),
        "prefill_local": len(made.of_role(Role.PD_PREFILL)),
        "decode": len(made.of_role(Role.DECODE)),
        "decode_slots": len(made.of_role(Role.DECODE)),
    }
    used = {name: (after.busy_s[name] - before.busy_s[name]) / window_s / n if n else 0.0 for name, n in count.items()}
    capacity = after.capacity_bytes - before.capacity_bytes
    used["link"] = (after.carried_bytes - before.carried_bytes) / capacity if capacity > 0 else 0.0
    return used


def _cost(scenario: Scenario, ended: Sequence[RequestRecord], carried_bytes: float, window_s: float) -> Cost:
    """Every instance by the hour whether busy or not, and what each site sent by the GB (in proportion to what its
    requests shipped)."""
    fleet = scenario.fleet
    hourly = (fleet.num_prefill + fleet.num_decode) * fleet.pd.price_per_instance_hour
    hourly += sum(s.instances * s.price_per_instance_hour for s in fleet.sites)
    shipped = Counter[str]()
    for record in ended:
        shipped[record.prefill_worker.partition("/")[0]] += record.kv_bytes
    total = sum(shipped[s.name] for s in fleet.sites)
    per_gbyte = sum(shipped[s.name] / total * s.price_per_gbyte for s in fleet.sites) if total else 0.0
    egress = carried_bytes / 1e9 / window_s * SECONDS_PER_HOUR * per_gbyte
    tokens = sum(r.prompt_tokens + r.answer_tokens for r in ended) / window_s * SECONDS_PER_HOUR
    return Cost(hourly, egress, (hourly + egress) / tokens * 1e6 if tokens else 0.0)


def to_json(result: Result) -> dict[str, JsonValue]:
    """The documented JSON form; keys are stable, times in seconds, shares in [0, 1]."""
    scenario, fleet = result.scenario, result.scenario.fleet
    changes: list[JsonValue] = [{"at_s": c.at_s, "link": c.link, "state": c.state} for c in result.journal.link_changes]
    thresholds = [s.threshold_tokens for s in result.journal.samples] or [fleet.threshold_tokens]
    return {
        "case": scenario.case.name,
        "policy": scenario.policy.value,
        "workload": scenario.workload.kind.value,
        "rate_rps": scenario.rate_rps,
        "duration_s": scenario.duration_s,
        "warmup_s": scenario.warmup_s,
        "seed": scenario.seed,
        "slo": {"ttft_s": scenario.ttft_slo_s, "itl_s": scenario.itl_slo_s},
        "fleet": {
            "n_prefill_remote": sum(s.instances for s in fleet.sites),
            "n_prefill_local": fleet.num_prefill,
            "n_decode_local": fleet.num_decode,
            "threshold_tokens": fleet.threshold_tokens,
        },
        "requests": dict(result.outcomes),
        "offered_rps": result.offered_rps,
        "throughput_rps": result.throughput_rps,
        "goodput_rps": result.goodput_rps,
        "output_tokens_per_s": result.output_tokens_per_s,
        "ttft_s": result.ttft.to_json(),
        "itl_s": result.itl.to_json(),
        "stages_s": {name: spread.to_json() for name, spread in result.stages.items()},
        "routes": dict(result.routes),
        "utilisation": dict(result.utilisation),
        "egress_gbps": result.egress_gbps,
        "threshold_tokens": {"last": thresholds[-1], "min": min(thresholds), "max": max(thresholds)},
        "link_changes": changes,
        "rungs_failed": dict(result.journal.rungs_failed),
        "cost": {
            "instances_per_hour": result.cost.instances_per_hour,
            "egress_per_hour": result.cost.egress_per_hour,
            "per_million_tokens": result.cost.per_million_tokens,
        },
        "events": result.events,
    }
