"""What prefilling costs where: fitted to what workers measured, and priced in time, in load and in money.

T(u, k), the seconds to compute u tokens after k cached ones, is a fixed part, a part per token (projections, experts,
linear attention) and a part per pair of a new token and one it attends to (full attention). Three numbers per kind of
worker, fitted by weighted least squares with forgetting, so that a profile is never typed in and follows the hardware.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from prfaas.types import Role, SiteId

FORGET = 0.98  # weight of a measurement after each newer one: the last fifty or so count
MIN_SAMPLES = 4
RIDGE = 1e-9  # keeps the fit solvable while all prompts have one length
# Seconds per token where nothing is measured yet; only ratios between workers matter then.
UNKNOWN_S_PER_TOKEN = 1e-4
TYPICAL_TOKENS = 8192  # length at which a model is read as a speed


class Kind(NamedTuple):
    """Workers that are taken to be equally fast."""

    site: SiteId
    role: Role


@dataclass(frozen=True, slots=True)
class PrefillModel:
    """Seconds of one prompt alone: fixed + per new token + per (new, attended) pair."""

    fixed_s: float
    per_token_s: float
    per_pair_s: float

    def seconds(self, new_tokens: int, cached_tokens: int = 0) -> float:
        """T(new, cached)."""
        pairs = new_tokens * (cached_tokens + new_tokens / 2)
        return self.fixed_s + self.per_token_s * new_tokens + self.per_pair_s * pairs

    @property
    def per_queued_token_s(self) -> float:
        """Seconds per token of a queue of typical prompts."""
        return self.seconds(TYPICAL_TOKENS) / TYPICAL_TOKENS


Models = Mapping[Kind, PrefillModel]


_SCALE = (1.0, 1e4, 1e8)  # brings the three features to one magnitude


@dataclass(slots=True)
class PrefillFit:
    """Running fit of one kind of worker. Relative errors count, so that short prompts are not drowned by long ones.

    Plain floats: three unknowns are solved sooner than an array library is asked to.
    """

    num_samples: int = 0
    _gram: list[list[float]] = field(default_factory=lambda: [[0.0] * 3 for _ in range(3)])
    _moment: list[float] = field(default_factory=lambda: [0.0] * 3)

    def add(self, new_tokens: int, cached_tokens: int, seconds: float) -> None:
        """Take a measurement; durations of zero and prompts without new tokens say nothing and are ignored."""
        if new_tokens <= 0 or seconds <= 0:
            return
        pairs = new_tokens * (cached_tokens + new_tokens / 2)
        row = [1.0 / seconds, new_tokens / _SCALE[1] / seconds, pairs / _SCALE[2] / seconds]
        for i, own in enumerate(row):
            self._moment[i] = self._moment[i] * FORGET + own
            line = self._gram[i]
            for j, other in enumerate(row):
                line[j] = line[j] * FORGET + own * other
        self.num_samples += 1

    def model(self) -> PrefillModel | None:
        """The fit with no negative part, or None before there are enough measurements."""
        if self.num_samples < MIN_SAMPLES:
            return None
        used = [0, 1, 2]
        while used:
            ridge = RIDGE * sum(self._gram[i][i] for i in used) / len(used)
            lines = [[self._gram[i][j] + ridge * (i == j) for j in used] for i in used]
            solved = _solve(lines, [self._moment[i] for i in used])
            least = min(solved)
            if least >= 0:
                parts = [0.0] * 3
                for i, value in zip(used, solved, strict=True):
                    parts[i] = value / _SCALE[i]
                return PrefillModel(*parts)
            used.pop(solved.index(least))
        return None


def _solve(lines: list[list[float]], right: list[float]) -> list[float]:
    """Solve a symmetric positive definite system by elimination, which needs no pivots there. Uses up its arguments."""
    size = len(right)
    for i in range(size):
        for k in range(i + 1, size):
            factor = lines[k][i] / lines[i][i]
            for j in range(i, size):
                lines[k][j] -= factor * lines[i][j]
            right[k] -= factor * right[i]
    for i in reversed(range(size)):
        right[i] = (right[i] - sum(lines[i][j] * right[j] for j in range(i + 1, size))) / lines[i][i]
    return right


@dataclass(frozen=True, slots=True)
class Prices:
    """What the operator pays. Missing entries cost nothing. Currency units per instance-hour and per gigabyte sent."""

    instance_hour: Mapping[SiteId, float] = field(default_factory=dict)
    egress_gbyte: Mapping[SiteId, float] = field(default_factory=dict)  # by the sending site

    def of(self, site: SiteId, busy_s: float, sent_bytes: int) -> float:
        """Money for `busy_s` seconds of one instance of `site` and `sent_bytes` leaving it."""
        return self.instance_hour.get(site, 0.0) * busy_s / 3600 + self.egress_gbyte.get(site, 0.0) * sent_bytes / 1e9
