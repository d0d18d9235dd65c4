"""What hardware does, as measured: prefill seconds and KV bytes against length, decode step seconds against batch.

Curves are piecewise linear through measured points and extrapolated with the slope of the last segment (first point's
value below the first point is scaled by the first segment's slope, never under zero). Units: tokens, seconds, bytes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from prfaas.errors import ConfigError

FloatArray = npt.NDArray[np.float64]
MIB = 1024.0**2


@dataclass(frozen=True, slots=True)
class Curve:
    """A continuous piecewise-linear function through (x, y) points with strictly rising x."""

    x: tuple[float, ...]
    y: tuple[float, ...]

    @staticmethod
    def through(points: Iterable[tuple[float, float]], what: str) -> Curve:
        """Build from points in any order. Raises ConfigError for fewer than two, repeated x, or negative values."""
        ordered = sorted(points)
        if len(ordered) < 2:
            raise ConfigError(f"{what} needs at least two points, got {len(ordered)}")
        xs = tuple(float(p[0]) for p in ordered)
        ys = tuple(float(p[1]) for p in ordered)
        if any(b <= a for a, b in pairwise(xs)):
            raise ConfigError(f"{what} has two points at the same length")
        if xs[0] < 0 or min(ys) < 0:
            raise ConfigError(f"{what} has a negative length or value")
        return Curve(xs, ys)

    def __call__(self, x: float) -> float:
        """Value at `x`, never negative."""
        i = min(max(bisect_right(self.x, x) - 1, 0), len(self.x) - 2)
        x0, x1, y0, y1 = self.x[i], self.x[i + 1], self.y[i], self.y[i + 1]
        return max(0.0, y0 + (x - x0) * (y1 - y0) / (x1 - x0))

    def values(self, x: FloatArray) -> FloatArray:
        """Values at every element of `x` (any shape)."""
        i = np.clip(np.searchsorted(self.x, x, side="right") - 1, 0, len(self.x) - 2)
        xs, ys = np.asarray(self.x), np.asarray(self.y)
        y: FloatArray = ys[i] + (x - xs[i]) * (ys[i + 1] - ys[i]) / (xs[i + 1] - xs[i])
        return np.clip(y, 0.0, None)

    def scaled(self, factor: float) -> Curve:
        return Curve(self.x, tuple(v * factor for v in self.y))


@dataclass(frozen=True, slots=True)
class HardwareProfile:
    """One kind of instance running one model.

    prefill_s: uncached prompt tokens -> seconds for one prompt alone. decode_step_s: batch size -> seconds for a step.
    """

    name: str
    prefill_s: Curve
    decode_step_s: Curve
    max_batch: int


@dataclass(frozen=True, slots=True)
class ModelProfile:
    """One model's cache: prompt tokens -> bytes to ship (S_kv), constant-size states included."""

    name: str
    kv_bytes: Curve

    def phi_gbps(self, hardware: HardwareProfile, tokens: float) -> float:
        """Phi_kv(l) = S_kv(l) / T_prefill(l) in Gbit/s: what one prefilling instance emits (arXiv:2604.15039, sec. 2)."""
        return self.kv_bytes(tokens) * 8e-9 / hardware.prefill_s(tokens)


def refine(curve: Curve, samples: Sequence[tuple[float, float]], *, weight: float = 0.3) -> Curve:
    """Blend live measurements into a profile: each point moves toward the mean ratio of the samples nearest to it.

    `samples` are (x, measured y). The curve keeps its shape where nothing was measured. weight in (0, 1].
    """
    sums = [0.0] * len(curve.x)
    counts = [0] * len(curve.x)
    for x, measured in samples:
        expected = curve(x)
        if expected <= 0 or measured <= 0:
            continue
        nearest = min(range(len(curve.x)), key=lambda i: abs(curve.x[i] - x))
        sums[nearest] += measured / expected
        counts[nearest] += 1
    factors = [1 + weight * (s / c - 1) if c else 1.0 for s, c in zip(sums, counts, strict=True)]
    return Curve(curve.x, tuple(y * f for y, f in zip(curve.y, factors, strict=True)))
