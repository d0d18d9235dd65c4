"""Distributions of uncached prompt length L: tail probability, conditional means and expectations of functions of L.

A distribution is a set of weighted points on the length axis. Analytic distributions are cut into equal-probability
cells, each represented by its conditional mean, so that tails and means are exact to the cell's resolution.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from prfaas.errors import ConfigError
from prfaas.planner.profile import Curve, FloatArray

DEFAULT_CELLS = 20_000


@dataclass(frozen=True, slots=True)
class Split:
    """A distribution cut at a threshold t: p = P(L > t), and the mean lengths on both sides (0 for an empty side)."""

    threshold_tokens: float
    p_long: float
    mean_long: float
    mean_short: float


@dataclass(frozen=True, slots=True)
class Lengths:
    """Weighted lengths, ascending; weights sum to one. `prefix_*` are running sums for O(log n) cuts."""

    values: FloatArray
    weights: FloatArray
    prefix_weight: FloatArray
    prefix_tokens: FloatArray

    @staticmethod
    def weighted(values: FloatArray, weights: FloatArray) -> Lengths:
        """From parallel arrays. Raises ConfigError when empty, negative or without weight."""
        if values.size == 0 or float(weights.sum()) <= 0 or float(values.min()) < 0 or float(weights.min()) < 0:
            raise ConfigError("a length distribution needs at least one non-negative length with a positive weight")
        order = np.argsort(values, kind="stable")
        v = values[order].astype(np.float64)
        w = weights[order].astype(np.float64) / float(weights.sum())
        zero = np.zeros(1)
        return Lengths(v, w, np.concatenate([zero, np.cumsum(w)]), np.concatenate([zero, np.cumsum(v * w)]))

    @staticmethod
    def empirical(tokens: Iterable[float]) -> Lengths:
        """Every observed length with equal weight."""
        values = np.fromiter(tokens, dtype=np.float64)
        return Lengths.weighted(values, np.ones_like(values))

    @staticmethod
    def lognormal(mu: float, sigma: float, low: float, high: float, *, cells: int = DEFAULT_CELLS) -> Lengths:
        """Log-normal(mu, sigma) truncated to [low, high] tokens, in `cells` equal-probability cells."""
        if not (0 < low < high) or sigma <= 0:
            raise ConfigError(f"a log-normal needs 0 < low < high and sigma > 0, got [{low}, {high}], sigma {sigma}")
        normal = NormalDist()
        a, b = (math.log(low) - mu) / sigma, (math.log(high) - mu) / sigma
        edges_p = np.linspace(normal.cdf(a), normal.cdf(b), cells + 1)
        z = np.array([a, *(normal.inv_cdf(p) for p in edges_p[1:-1]), b])
        # E[L; cell] of a log-normal is exp(mu + sigma^2/2) * (Phi(z1 - sigma) - Phi(z0 - sigma)).
        shifted = np.array([normal.cdf(v - sigma) for v in z])
        cell_p = edges_p[1] - edges_p[0]
        means = math.exp(mu + sigma * sigma / 2) * np.diff(shifted) / cell_p
        return Lengths.weighted(means, np.full(cells, 1.0 / cells))

    @property
    def mean(self) -> float:
        return float(self.prefix_tokens[-1])

    def split(self, threshold_tokens: float) -> Split:
        """Cut at t: lengths above t are long."""
        i = int(np.searchsorted(self.values, threshold_tokens, side="right"))
        w_short, s_short = float(self.prefix_weight[i]), float(self.prefix_tokens[i])
        w_long, s_long = max(0.0, 1.0 - w_short), self.mean - s_short
        if i == len(self.values):
            w_long = 0.0
        return Split(
            threshold_tokens=threshold_tokens,
            p_long=w_long,
            mean_long=s_long / w_long if w_long > 0 else 0.0,
            mean_short=s_short / w_short if w_short > 0 else 0.0,
        )

    def expect(self, curve: Curve, *, above: float = -1.0, upto: float = math.inf) -> float:
        """E[curve(L) | above < L <= upto]; 0 when no length falls there."""
        mask = (self.values > above) & (self.values <= upto)
        weight = float(self.weights[mask].sum())
        if weight <= 0:
            return 0.0
        return float((curve.values(self.values[mask]) * self.weights[mask]).sum()) / weight

    def quantile(self, q: float) -> float:
        """The length that a share `q` of requests does not exceed."""
        i = int(np.searchsorted(self.prefix_weight[1:], q, side="left"))
        return float(self.values[min(i, len(self.values) - 1)])

    def reduced(self, max_points: int) -> Lengths:
        """At most `max_points` points with the same mean, for repeated numeric integration."""
        if len(self.values) <= max_points:
            return self
        chunks = np.array_split(np.arange(len(self.values)), max_points)
        weights = np.array([float(self.weights[c].sum()) for c in chunks])
        means = np.array([float((self.values[c] * self.weights[c]).sum()) for c in chunks]) / np.maximum(weights, 1e-300)
        return Lengths.weighted(means, weights)
