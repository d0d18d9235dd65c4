"""Waiting in front of a stage, and the TTFT percentiles that follow: what the paper's bare prefill times leave out.

A stage is an M/G/c queue. The probability of waiting is Erlang's C; the mean wait is scaled for the variability of
arrivals and service by Allen and Cunneen, (Ca^2 + Cs^2) / 2; given that it waits, a request waits exponentially long.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from prfaas.planner.lengths import Lengths
from prfaas.planner.profile import FloatArray, ModelProfile
from prfaas.planner.throughput import PdSite, PrefillSite, Workload

INTEGRATION_POINTS = 400


def erlang_c(servers: int, offered: float) -> float:
    """P(wait > 0) in M/M/c with `offered` = lambda * E[S] Erlangs; 1 at and past saturation."""
    if offered >= servers:
        return 1.0
    blocking = 1.0
    for k in range(1, servers + 1):
        blocking = offered * blocking / (k + offered * blocking)
    rho = offered / servers
    return blocking / (1 - rho * (1 - blocking))


@dataclass(frozen=True, slots=True)
class Wait:
    """Distribution of a wait: zero with probability 1 - p_wait, else exponential with `mean_if_waiting_s`."""

    utilisation: float
    p_wait: float
    mean_if_waiting_s: float

    @property
    def mean_s(self) -> float:
        return self.p_wait * self.mean_if_waiting_s

    def cdf(self, x: FloatArray) -> FloatArray:
        """P(W <= x) elementwise; 0 for negative x."""
        if math.isinf(self.mean_if_waiting_s):
            tail = np.full_like(x, self.p_wait)
        elif self.mean_if_waiting_s <= 0:
            tail = np.zeros_like(x)
        else:
            tail = self.p_wait * np.exp(-np.maximum(x, 0.0) / self.mean_if_waiting_s)
        return np.where(x < 0, 0.0, 1.0 - tail)


def wait_in(servers: int, rate: float, mean_s: float, cv2_service: float, cv2_arrivals: float = 1.0) -> Wait:
    """The wait before `servers` equal servers at `rate` requests/s; infinite when they cannot keep up."""
    if rate <= 0:
        return Wait(0.0, 0.0, 0.0)
    if servers == 0:
        return Wait(math.inf, 1.0, math.inf)
    offered = rate * mean_s
    rho = offered / servers
    if rho >= 1:
        return Wait(rho, 1.0, math.inf)
    mean_if = mean_s / (servers * (1 - rho)) * (cv2_arrivals + cv2_service) / 2
    return Wait(rho, erlang_c(servers, offered), mean_if)


@dataclass(frozen=True, slots=True)
class Branch:
    """One route's share of the traffic: its wait, and for weighted lengths the time after the wait."""

    share: float
    wait: Wait
    service_s: FloatArray
    weights: FloatArray

    def cdf(self, x: float) -> float:
        return float((self.wait.cdf(x - self.service_s) * self.weights).sum())

    @property
    def mean_s(self) -> float:
        return self.wait.mean_s + float((self.service_s * self.weights).sum())


@dataclass(frozen=True, slots=True)
class Latency:
    """TTFT over all requests, as a mixture of branches."""

    branches: tuple[Branch, ...]

    @property
    def stable(self) -> bool:
        return all(b.wait.utilisation < 1 for b in self.branches if b.share > 0)

    @property
    def mean_s(self) -> float:
        return sum(b.share * b.mean_s for b in self.branches) if self.stable else math.inf

    def percentile_s(self, q: float) -> float:
        """Smallest x with P(TTFT <= x) >= q, by bisection; infinite when a stage cannot keep up."""
        if not self.stable:
            return math.inf
        high = 1e-3
        while self._cdf(high) < q and high < 1e7:
            high *= 2
        low = 0.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (low, middle) if self._cdf(middle) >= q else (middle, high)
        return high

    def _cdf(self, x: float) -> float:
        return sum(b.share * b.cdf(x) for b in self.branches if b.share > 0)


def latency(
    sites: tuple[PrefillSite, ...],
    pd: PdSite,
    model: ModelProfile,
    workload: Workload,
    *,
    threshold_tokens: float,
    num_prefill: int,
    rate_rps: float,
    cv2_arrivals: float = 1.0,
) -> Latency:
    """TTFT at `rate_rps` offered. Offloaded requests are spread over sites in proportion to their compute.

    A transfer is pipelined with the prefill, so only what the link could not carry meanwhile is added: with bandwidth
    share B * (1 - utilisation), max(0, S_kv / B' - T_prefill), plus one round trip.
    """
    lengths = workload.lengths
    p = lengths.split(threshold_tokens).p_long
    branches = []
    if p > 0:
        points = _part(lengths, threshold_tokens, long=True)
        speeds = [s.instances / float((s.hardware.prefill_s.values(points.values) * points.weights).sum()) for s in sites]
        for site, speed in zip(sites, speeds, strict=True):
            share = p * speed / sum(speeds)
            branches.append(_remote_branch(site, model, points, share, rate_rps, cv2_arrivals))
    if p < 1:
        points = _part(lengths, threshold_tokens, long=False)
        service = pd.hardware.prefill_s.values(points.values)
        mean, cv2 = _moments(service, points.weights)
        wait = wait_in(num_prefill, rate_rps * (1 - p), mean, cv2, cv2_arrivals)
        branches.append(Branch(1 - p, wait, service, points.weights))
    return Latency(tuple(branches))


def _remote_branch(
    site: PrefillSite, model: ModelProfile, points: Lengths, share: float, rate_rps: float, cv2_arrivals: float
) -> Branch:
    service = site.hardware.prefill_s.values(points.values)
    kv_bytes = model.kv_bytes.values(points.values)
    mean, cv2 = _moments(service, points.weights)
    wait = wait_in(site.instances, rate_rps * share, mean, cv2, cv2_arrivals)
    bytes_per_s = site.link_gbps * 1e9 / 8
    used = rate_rps * share * float((kv_bytes * points.weights).sum())
    if used >= bytes_per_s:
        wait = Wait(used / bytes_per_s if bytes_per_s > 0 else math.inf, 1.0, math.inf)
        return Branch(share, wait, service, points.weights)
    exposed = np.maximum(0.0, kv_bytes / (bytes_per_s - used) - service)
    return Branch(share, wait, service + exposed + site.rtt_s, points.weights)


def _part(lengths: Lengths, threshold_tokens: float, *, long: bool) -> Lengths:
    mask = lengths.values > threshold_tokens if long else lengths.values <= threshold_tokens
    return Lengths.weighted(lengths.values[mask], lengths.weights[mask]).reduced(INTEGRATION_POINTS)


def _moments(values: FloatArray, weights: FloatArray) -> tuple[float, float]:
    mean = float((values * weights).sum())
    variance = float(((values - mean) ** 2 * weights).sum())
    return mean, variance / (mean * mean) if mean > 0 else 0.0


def rate_at_slo(
    sites: tuple[PrefillSite, ...],
    pd: PdSite,
    model: ModelProfile,
    workload: Workload,
    *,
    threshold_tokens: float,
    num_prefill: int,
    max_rps: float,
    ttft_slo_s: float,
    quantile: float = 0.9,
) -> float:
    """The highest rate up to `max_rps` at which the TTFT quantile keeps the SLO; 0 when none does."""

    def keeps(rate: float) -> bool:
        found = latency(sites, pd, model, workload, threshold_tokens=threshold_tokens, num_prefill=num_prefill, rate_rps=rate)
        return found.percentile_s(quantile) <= ttft_slo_s

    low, high = 0.0, max_rps
    if keeps(high * (1 - 1e-6)):
        return high
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if keeps(middle) else (low, middle)
    return low
