"""The steady-state throughput model of Prefill-as-a-Service (arXiv:2604.15039, section 3).

    Theta_prfaas = min( N_prfaas / T_prefill(l_long), B_out / S_kv(l_long) )      summed over prefill sites
    Theta_pd_p   = N_p / T_prefill(l_short)
    Theta_pd_d   = N_d * BS_max / (T_decode * L_out)
    Lambda_max   = min( Theta_prfaas / p, Theta_pd_p / (1 - p), Theta_pd_d )

T_prefill is each chip's own profile. With p = 0 or p = 1 the term without traffic is left out. `Moments.PAPER` puts
mean lengths into the curves as the paper does; `Moments.EXACT` takes the mean of the curves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from prfaas.planner.lengths import Lengths, Split
from prfaas.planner.profile import Curve, HardwareProfile, ModelProfile

BITS_PER_BYTE = 8.0


class Moments(StrEnum):
    PAPER = "paper"  # T(E[L])
    EXACT = "exact"  # E[T(L)]


class Stage(StrEnum):
    PREFILL_REMOTE = "prefill_remote"
    LINK = "link"
    PREFILL_LOCAL = "prefill_local"
    DECODE = "decode"


@dataclass(frozen=True, slots=True)
class PrefillSite:
    """A prefill-only site and its link to the PD site. `price_*` in any one currency."""

    name: str
    instances: int
    hardware: HardwareProfile
    link_gbps: float
    rtt_s: float = 0.0
    price_per_instance_hour: float = 0.0
    price_per_gbyte: float = 0.0


@dataclass(frozen=True, slots=True)
class PdSite:
    """The site that decodes and can also prefill; its instances convert between the two roles."""

    name: str
    instances: int
    hardware: HardwareProfile
    price_per_instance_hour: float = 0.0


@dataclass(frozen=True, slots=True)
class Workload:
    """What arrives: uncached prompt lengths and the mean output length in tokens."""

    lengths: Lengths
    mean_output_tokens: float


@dataclass(frozen=True, slots=True)
class Rates:
    """Capacity of each stage in requests/s of its own traffic, and what they allow together.

    `theta_prefill_remote` already includes the link limit; `theta_link` is that limit alone.
    """

    split: Split
    theta_prefill_remote: float
    theta_link: float
    theta_prefill_local: float
    theta_decode: float
    throughput_rps: float
    binding: Stage
    egress_gbps: float  # at `throughput_rps`


def mean_of(curve: Curve, lengths: Lengths, mean_tokens: float, above: float, upto: float, moments: Moments) -> float:
    """T(E[L]) or E[T(L)] over the lengths in (above, upto]."""
    return curve(mean_tokens) if moments is Moments.PAPER else lengths.expect(curve, above=above, upto=upto)


def decode_rate(site: PdSite, num_decode: int, workload: Workload, batch: int | None = None) -> float:
    """Theta_pd_d: requests/s that `num_decode` instances finish at a batch of `batch` (default: the profile's maximum)."""
    size = site.hardware.max_batch if batch is None else batch
    return num_decode * size / (site.hardware.decode_step_s(size) * workload.mean_output_tokens)


def evaluate(
    sites: tuple[PrefillSite, ...],
    pd: PdSite,
    model: ModelProfile,
    workload: Workload,
    *,
    threshold_tokens: float,
    num_prefill: int,
    num_decode: int,
    moments: Moments = Moments.PAPER,
) -> Rates:
    """Rates at threshold t with `num_prefill` PD instances prefilling and `num_decode` decoding.

    Egress is what offloaded requests ship at the resulting throughput: Lambda * p * S_kv.
    """
    split = workload.lengths.split(threshold_tokens)
    lengths = workload.lengths
    p = split.p_long
    remote = link = 0.0
    compute_only = 0.0
    kv_bytes = 0.0
    if p > 0:
        kv_bytes = mean_of(model.kv_bytes, lengths, split.mean_long, threshold_tokens, math.inf, moments)
        for site in sites:
            seconds = mean_of(site.hardware.prefill_s, lengths, split.mean_long, threshold_tokens, math.inf, moments)
            compute = site.instances / seconds
            wire = site.link_gbps * 1e9 / BITS_PER_BYTE / kv_bytes if kv_bytes > 0 else math.inf
            compute_only += compute
            link += wire
            remote += min(compute, wire)
    local = 0.0
    if p < 1:
        seconds = mean_of(pd.hardware.prefill_s, lengths, split.mean_short, -1.0, threshold_tokens, moments)
        local = num_prefill / seconds if seconds > 0 else math.inf
    decode = decode_rate(pd, num_decode, workload)
    limits = {Stage.DECODE: decode}
    if p > 0:
        limits[Stage.LINK if remote < compute_only * (1 - 1e-12) else Stage.PREFILL_REMOTE] = remote / p
    if p < 1:
        limits[Stage.PREFILL_LOCAL] = local / (1 - p)
    binding = min(limits, key=lambda stage: limits[stage])
    rate = limits[binding]
    return Rates(split, remote, link, local, decode, rate, binding, rate * p * kv_bytes * BITS_PER_BYTE / 1e9)
