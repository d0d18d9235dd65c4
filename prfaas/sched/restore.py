"""Restore or compute: whether a prefix that only host memory holds is copied back, or computed again where that is faster.

    restore_s = factor * (fixed_s + num_bytes * s_per_byte)     the start's measurement, corrected by each restore since
    compute_s = num_tokens * s_per_token                        this engine's own recent speed

The speed is the slope of recent prefill steps' times over their tokens, through the origin: full steps count most, and
the few new tokens of a chat's next turn, which take as long as a decode does, say little about a long prompt.
The tokens are those that the restore would spare, so of a hybrid prefix those up to its last snapshot; the bytes are all
that would be copied for them, states included. Knows no cache and no clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

_WEIGHT = 0.2  # of the newest restore in the correction
_FORGET = 0.05  # weight of the newest step's tokens in the speed, before they count by their number
_MAX_ERROR = 10.0  # one restore that took this many times longer, or shorter, counts no more than that


@dataclass(frozen=True, slots=True)
class CopyCost:
    """What copies from host memory to the device take: something for each restore, and something for each byte."""

    fixed_s: float
    s_per_byte: float

    def total_s(self, num_bytes: int) -> float:
        return self.fixed_s + num_bytes * self.s_per_byte


FREE = CopyCost(0.0, 0.0)


class Origin(StrEnum):
    """Whose prefix was found in host memory."""

    PROMPT = "prompt"
    PREEMPTION = "preemption"


class Outcome(StrEnum):
    """What was done with it."""

    RESTORED = "restored"
    COMPUTED = "computed"


class Reason(StrEnum):
    """Why."""

    FASTER = "faster"  # than the other way, by the forecast
    UNMEASURED = "unmeasured"  # nothing was computed yet to compare with
    NO_ROOM = "no_room"  # it was faster, but its blocks do not fit


@dataclass(frozen=True, slots=True)
class HostChoice:
    """One prefix found in host memory, and what became of it."""

    origin: Origin
    outcome: Outcome
    reason: Reason


class RestoreModel:
    """Forecasts both ways. Wrong forecasts cannot last: what is restored corrects them, and while nothing is restored the
    correction fades, so that restoring is tried again."""

    def __init__(self, cost: CopyCost) -> None:
        self._cost = cost
        self._factor = 1.0
        self._squares = 0.0  # of tokens, over recent steps
        self._products = 0.0  # of tokens and seconds

    def compute_s(self, num_tokens: int) -> float | None:
        """Forecast of computing `num_tokens`; None before the first prefill."""
        return num_tokens * self._products / self._squares if self._squares else None

    def restore_s(self, num_bytes: int) -> float:
        """Forecast of copying `num_bytes` to the device."""
        return self._factor * self._cost.total_s(num_bytes)

    def decide(self, origin: Origin, num_tokens: int, num_bytes: int) -> HostChoice:
        """What to do about `num_tokens` that `num_bytes` from host memory would spare."""
        compute_s = self.compute_s(num_tokens)
        if compute_s is None:
            return HostChoice(origin, Outcome.RESTORED, Reason.UNMEASURED)
        outcome = Outcome.RESTORED if self.restore_s(num_bytes) <= compute_s else Outcome.COMPUTED
        return HostChoice(origin, outcome, Reason.FASTER)

    def computed(self, num_tokens: int, took_s: float) -> None:
        """A step computed so many tokens of prompts (0: none) in that time."""
        if num_tokens > 0 and took_s > 0.0:
            self._squares += num_tokens * num_tokens - _FORGET * self._squares
            self._products += num_tokens * took_s - _FORGET * self._products

    def restored(self, num_bytes: int, took_s: float) -> None:
        """A restore of `num_bytes` took so long."""
        expected_s = self._cost.total_s(num_bytes)
        if expected_s <= 0.0:
            self._cost = CopyCost(0.0, took_s / num_bytes)
            return
        error = min(_MAX_ERROR, max(1 / _MAX_ERROR, took_s / expected_s / self._factor))
        self._factor *= 1 + _WEIGHT * (error - 1)

    def fade(self) -> None:
        """A prefix was computed rather than restored, and nothing was learnt of copies."""
        self._factor += _WEIGHT * (min(1.0, self._factor) - self._factor)
