"""What went through the gateway lately, for people to look at. Bounded memory; no clock of its own."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass

MAX_TRACES = 40


@dataclass(frozen=True, slots=True)
class Trace:
    """One finished request. Durations in seconds; `stages` sum to `ttft_s`; `ended_s` is on the router's clock."""

    request_id: str
    route: str
    worker: str
    ended_s: float
    ttft_s: float
    total_s: float
    stages: tuple[tuple[str, float], ...]
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    kv_bytes: int
    attempts: int  # failed rungs before the one that worked


class Activity:
    """Totals since the start, and the last requests."""

    def __init__(self) -> None:
        self.generated_tokens = 0
        self.finished: Counter[str] = Counter()  # requests by route
        self._traces: deque[Trace] = deque(maxlen=MAX_TRACES)

    def tokens(self, count: int) -> None:
        """Tokens were sent to a client."""
        self.generated_tokens += count

    def end(self, trace: Trace) -> None:
        """A request finished."""
        self.finished[trace.route] += 1
        self._traces.append(trace)

    def traces(self) -> tuple[Trace, ...]:
        """The last requests, newest first."""
        return tuple(reversed(self._traces))
