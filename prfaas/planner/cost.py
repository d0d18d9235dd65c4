"""What a fleet costs per million tokens, and how much link to rent."""

from __future__ import annotations

from dataclasses import dataclass

from prfaas.planner.profile import ModelProfile
from prfaas.planner.throughput import PdSite, PrefillSite, Rates, Workload

SECONDS_PER_HOUR = 3600.0
LINK_UTILISATION_TARGET = 0.6  # P99 queueing explodes near a full link (arXiv:2608.14967), so rent well above the mean


@dataclass(frozen=True, slots=True)
class Cost:
    """In the currency of the prices. Tokens count input and output of finished requests."""

    per_hour: float
    egress_per_hour: float
    per_million_tokens: float
    per_million_output_tokens: float


def cost_of(sites: tuple[PrefillSite, ...], pd: PdSite, workload: Workload, rates: Rates) -> Cost:
    """Instances by the hour plus egress by the GB, at the plan's throughput. Egress splits evenly by link speed."""
    hourly = pd.instances * pd.price_per_instance_hour + sum(s.instances * s.price_per_instance_hour for s in sites)
    gbytes_per_hour = rates.egress_gbps / 8 * SECONDS_PER_HOUR
    total_link = sum(s.link_gbps for s in sites)
    egress = sum(gbytes_per_hour * s.link_gbps / total_link * s.price_per_gbyte for s in sites) if total_link > 0 else 0.0
    requests = rates.throughput_rps * SECONDS_PER_HOUR
    output = requests * workload.mean_output_tokens
    tokens = output + requests * workload.lengths.mean
    total = hourly + egress
    return Cost(
        per_hour=total,
        egress_per_hour=egress,
        per_million_tokens=total / tokens * 1e6 if tokens > 0 else 0.0,
        per_million_output_tokens=total / output * 1e6 if output > 0 else 0.0,
    )


def gbps_to_rent(rates: Rates, model: ModelProfile, hardware_gbps: float) -> float:
    """Link to rent for a plan: its mean egress over the utilisation target, but at least what one instance emits.

    `hardware_gbps` is Phi_kv of one instance at the mean offloaded length, so that a lone transfer is not slowed.
    """
    if rates.split.p_long <= 0 or model.kv_bytes(rates.split.mean_long) <= 0:
        return 0.0
    return max(rates.egress_gbps / LINK_UTILISATION_TARGET, hardware_gbps)
