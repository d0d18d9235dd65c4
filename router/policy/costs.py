"""What prefilling costs where: fitted to what workers measured, and priced in time, in load and in money.

T(u, k), the seconds to compute u tokens after k cached ones, is a fixed part, a part per token (projections, experts,
linear attention) and a part per pair of a new token and one it attends to (full attention). Three numbers per kind of
worker, fitted by weighted least squares with forgetting, so that a profile is never typed in and follows the hardware.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

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


@dataclass(slots=True)
class PrefillFit:
    """Running fit of one kind of worker. Relative errors count, so that short prompts are not drowned by long ones."""

    num_samples: int = 0
    _gram: NDArray[np.float64] = field(default_factory=lambda: np.zeros((3, 3)))
    _moment: NDArray[np.float64] = field(default_factory=lambda: np.zeros(3))

    def add(self, new_tokens: int, cached_tokens: int, seconds: float) -> None:
        """Take a measurement; durations of zero and prompts without new tokens say nothing and are ignored."""
        if new_tokens <= 0 or seconds <= 0:
            return
        row = _features(new_tokens, cached_tokens) / seconds
        self._gram = self._gram * FORGET + np.outer(row, row)
        self._moment = self._moment * FORGET + row
        self.num_samples += 1

    def model(self) -> PrefillModel | None:
        """The fit with no negative part, or None before there are enough measurements."""
        if self.num_samples < MIN_SAMPLES:
            return None
        used = [0, 1, 2]
        while used:
            gram = self._gram[np.ix_(used, used)]
            scale = RIDGE * np.trace(gram) / len(used)
            solved = np.linalg.solve(gram + scale * np.eye(len(used)), self._moment[used])
            if (solved >= 0).all():
                parts = np.zeros(3)
                parts[used] = solved / _SCALE[used]
                return PrefillModel(*map(float, parts))
            used.pop(int(np.argmin(solved)))
        return None


_SCALE = np.array([1.0, 1e4, 1e8])  # brings the three features to one magnitude


def _features(new_tokens: int, cached_tokens: int) -> NDArray[np.float64]:
    pairs = new_tokens * (cached_tokens + new_tokens / 2)
    row: NDArray[np.float64] = np.array([1.0, new_tokens, pairs]) / _SCALE
    return row


@dataclass(frozen=True, slots=True)
class Prices:
    """What the operator pays. Missing entries cost nothing. Currency units per instance-hour and per gigabyte sent."""

    instance_hour: Mapping[SiteId, float] = field(default_factory=dict)
    egress_gbyte: Mapping[SiteId, float] = field(default_factory=dict)  # by the sending site

    def of(self, site: SiteId, busy_s: float, sent_bytes: int) -> float:
        """Money for `busy_s` seconds of one instance of `site` and `sent_bytes` leaving it."""
        return self.instance_hour.get(site, 0.0) * busy_s / 3600 + self.egress_gbyte.get(site, 0.0) * sent_bytes / 1e9
