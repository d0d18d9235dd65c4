"""From records to figures: percentiles, throughput and goodput. Pure; knows no screen and no file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prfaas.cli.bench.record import Record
from prfaas.sim.result import Spread


@dataclass(frozen=True, slots=True)
class Objective:
    """What a request must keep to count for goodput; None asks for nothing. ITL is a request's mean, i.e. its TPOT."""

    ttft_s: float | None = None
    itl_s: float | None = None

    @property
    def given(self) -> bool:
        return self.ttft_s is not None or self.itl_s is not None

    def kept(self, record: Record) -> bool:
        if not record.good or (self.ttft_s is not None and record.ttft_s > self.ttft_s):
            return False
        return self.itl_s is None or record.tpot_s is None or record.tpot_s <= self.itl_s


@dataclass(frozen=True, slots=True)
class Figures:
    """A run. Latencies are of requests that ended well, in seconds; rates are over the whole run, from the first request
    sent to the last ended."""

    num_requests: int
    num_good: int
    errors: Mapping[str, int]
    duration_s: float
    ttft: Spread
    itl: Spread  # between pieces of output, all requests' gaps together
    tpot: Spread  # per request: time after the first token, by token
    e2e: Spread
    late: Spread  # how much later than wanted requests were sent: the generator's own delay
    requests_per_s: float
    output_tokens_per_s: float
    prompt_tokens_per_s: float
    mean_prompt_tokens: float
    mean_output_tokens: float
    cached_share: float  # of all prompt tokens
    goodput_rps: float | None  # None without an objective
    routes: Mapping[str, int]

    @staticmethod
    def of(records: Sequence[Record], objective: Objective) -> Figures:
        good = [record for record in records if record.good]
        begin_s = min((record.sent_s for record in records), default=0.0)
        duration_s = max((record.end_s for record in records), default=0.0) - begin_s
        per_s = 1.0 / duration_s if duration_s > 0 else 0.0
        prompt, output = sum(r.prompt_tokens for r in good), sum(r.output_tokens for r in good)
        return Figures(
            num_requests=len(records),
            num_good=len(good),
            errors=dict(Counter(r.error or "no tokens" for r in records if not r.good)),
            duration_s=duration_s,
            ttft=Spread.of([r.ttft_s for r in good]),
            itl=Spread.of([gap for r in good for gap in r.gaps_s]),
            tpot=Spread.of([r.tpot_s for r in good if r.tpot_s is not None]),
            e2e=Spread.of([r.e2e_s for r in good]),
            late=Spread.of([max(0.0, r.sent_s - r.due_s) for r in records]),
            requests_per_s=len(good) * per_s,
            output_tokens_per_s=output * per_s,
            prompt_tokens_per_s=prompt * per_s,
            mean_prompt_tokens=prompt / len(good) if good else 0.0,
            mean_output_tokens=output / len(good) if good else 0.0,
            cached_share=sum(r.cached_tokens for r in good) / prompt if prompt else 0.0,
            goodput_rps=sum(objective.kept(r) for r in records) * per_s if objective.given else None,
            routes=dict(Counter(r.route for r in good if r.route)),
        )
