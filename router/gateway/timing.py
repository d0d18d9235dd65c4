"""Where the time to the first token went. The stages of a request sum to its TTFT by construction.

The workers measure queue, prefill, wire and commit on their own clocks; the gateway measures the rest on its own. What
nobody claimed is `decode_first`: the way of the request and of the first token between the machines, and the landing.
Durations measured elsewhere can never claim more than passed here; if they try, they are scaled down together.
"""

from __future__ import annotations

from dataclasses import dataclass

from prfaas.clock import Clock
from prfaas.types import PrefillReport


@dataclass(frozen=True, slots=True)
class TtftStages:
    """Parts of one request's TTFT, in seconds, in the order in which they happen."""

    tokenize: float
    decide: float
    queue: float
    prefill: float
    wire: float
    commit: float
    decode_first: float

    def items(self) -> tuple[tuple[str, float], ...]:
        return (
            ("tokenize", self.tokenize),
            ("decide", self.decide),
            ("queue", self.queue),
            ("prefill", self.prefill),
            ("wire", self.wire),
            ("commit", self.commit),
            ("decode_first", self.decode_first),
        )

    @property
    def total_s(self) -> float:
        return sum(seconds for _, seconds in self.items())


class Stopwatch:
    """Marks the moments of one request. Each mark is made once, in the order of the methods below."""

    def __init__(self, clock: Clock, arrived_s: float) -> None:
        self._clock = clock
        self.arrived_s = arrived_s
        self._tokenized_s = arrived_s
        self._decided_s = arrived_s
        self._decide_s = 0.0
        self.first_s: float | None = None
        self.last_s: float | None = None

    def copy(self) -> Stopwatch:
        """A watch of the same arrival and tokenizing, for another prompt of the same request."""
        twin = Stopwatch(self._clock, self.arrived_s)
        twin._tokenized_s = twin._decided_s = self._tokenized_s
        return twin

    def tokenized(self) -> None:
        self._tokenized_s = self._decided_s = self._clock.now_s()

    def decided(self, decide_s: float) -> None:
        """`decide_s`: what the decision itself took; the rest since tokenizing was spent in the router's queue."""
        self._decided_s = self._clock.now_s()
        self._decide_s = min(decide_s, self._decided_s - self._tokenized_s)

    def token(self) -> float | None:
        """A token arrived; returns the seconds since the previous one, None for the first."""
        now = self._clock.now_s()
        gap = None if self.last_s is None else now - self.last_s
        if self.first_s is None:
            self.first_s = now
        self.last_s = now
        return gap

    def elapsed_s(self) -> float:
        return self._clock.now_s() - self.arrived_s

    @property
    def tokenize_s(self) -> float:
        """Arrival to token ids: reading, checking, templating, tokenizing."""
        return self._tokenized_s - self.arrived_s

    def ttft_s(self) -> float | None:
        """Arrival to first token, None before it."""
        return None if self.first_s is None else self.first_s - self.arrived_s

    def stages(self, report: PrefillReport | None) -> TtftStages | None:
        """The parts of TTFT, None before the first token. Without a report the workers' share is all decode_first."""
        if self.first_s is None:
            return None
        waited_s = self._decided_s - self._tokenized_s - self._decide_s
        left_s = self.first_s - self._decided_s
        parts = [0.0, 0.0, 0.0, 0.0]
        if report is not None:
            parts = [max(0.0, part) for part in (report.queue_s, report.prefill_s, report.wire_s, report.commit_s)]
        claimed_s = sum(parts)
        if claimed_s > left_s:
            parts = [part * left_s / claimed_s for part in parts]
        queue_s, prefill_s, wire_s, commit_s = parts
        rest_s = max(0.0, left_s - sum(parts))
        return TtftStages(self.tokenize_s, self._decide_s, waited_s + queue_s, prefill_s, wire_s, commit_s, rest_s)
