"""What to simulate: a fleet, a policy, a workload and what happens to the links. Plain values."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum

from prfaas.config import AdmissionSettings, PolicySettings
from prfaas.errors import ConfigError
from prfaas.planner.cases import Case
from prfaas.planner.search import best_allocation, homogeneous, naive
from prfaas.planner.throughput import PdSite, PrefillSite
from prfaas.planner.traces import TraceRecord
from prfaas.sim.worker import SimEngineSettings
from prfaas.sim.workloads import AgentShape

DEFAULT_WARMUP_SHARE, MAX_WARMUP_S = 0.1, 180.0


class SimPolicy(StrEnum):
    """What routes: our two policies, and the two baselines without a choice."""

    THRESHOLD = "threshold"
    PREDICTIVE = "predictive"
    LOCAL_ONLY = "local-only"  # homogeneous PD: every prompt is prefilled where it is decoded
    ALL_REMOTE = "all-remote"  # naive: every prompt is prefilled in the prefill site


class WorkloadKind(StrEnum):
    """How requests arrive, and which prefixes they share."""

    PAPER = "paper"  # Poisson arrivals, the case's lengths
    BURSTY = "bursty"  # Gamma gaps with coefficient of variation `cv`
    DIURNAL = "diurnal"  # a rate that swings by `swing` over `period_s`
    AGENTS = "agents"  # conversations whose prompts grow, with shared system prompts
    SWARM = "swarm"  # sub-agents of one task that share a long prefix
    TRACE = "trace"  # a published trace, at `speed`


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests of one run. `rate_rps` is the mean rate; a trace has its own times and lengths."""

    kind: WorkloadKind = WorkloadKind.PAPER
    cv: float = 3.0
    swing: float = 0.5
    period_s: float = 3600.0
    prefix_share: float = 0.0  # share of each prompt taken from one of a few common texts (paper, bursty, diurnal)
    agent: AgentShape = field(default_factory=AgentShape)
    sub_agents: int = 300
    shared_tokens: int = 30_000
    step_tokens: int = 500
    speed: float = 1.0
    records: tuple[TraceRecord, ...] = ()

    @property
    def shares_prefixes(self) -> bool:
        own = self.kind in (WorkloadKind.PAPER, WorkloadKind.BURSTY, WorkloadKind.DIURNAL)
        return self.prefix_share > 0 if own else True


@dataclass(frozen=True, slots=True)
class LinkEvent:
    """From `at_s` on, every link has this capacity (0: an outage), and this loss if given."""

    at_s: float
    gbps: float
    loss_ratio: float | None = None


@dataclass(frozen=True, slots=True)
class FleetPlan:
    """Who is there. `threshold_tokens` is where the threshold starts and returns to."""

    sites: tuple[PrefillSite, ...]
    pd: PdSite
    num_prefill: int
    num_decode: int
    threshold_tokens: int

    @property
    def num_workers(self) -> int:
        return sum(s.instances for s in self.sites) + self.num_prefill + self.num_decode


@dataclass(frozen=True, slots=True)
class Scenario:
    """One run. Times in seconds of simulated time; statistics leave out the first `warmup_s`."""

    case: Case
    fleet: FleetPlan
    policy: SimPolicy
    rate_rps: float
    duration_s: float
    workload: Workload = field(default_factory=Workload)
    loss_ratio: float = 0.0
    lanes: int = 8
    link_events: tuple[LinkEvent, ...] = ()
    seed: int = 0
    warmup_s: float = 0.0
    adaptive: bool = True  # the short loop moves the threshold and folds links
    ttft_slo_s: float = 10.0
    itl_slo_s: float = 0.025
    heartbeat_s: float = 0.5
    connect_timeout_s: float = 3.0
    progress_timeout_s: float = 10.0
    grain: int = 64
    engine: SimEngineSettings = field(default_factory=SimEngineSettings)
    admission: AdmissionSettings = field(default_factory=AdmissionSettings)

    def __post_init__(self) -> None:
        if self.rate_rps <= 0 or self.duration_s <= 0:
            raise ConfigError("a simulation needs a rate and a duration above zero")
        if not 0 <= self.warmup_s < self.duration_s:
            raise ConfigError(f"the warm-up of {self.warmup_s:g} s must end before the run of {self.duration_s:g} s does")

    def policy_settings(self) -> PolicySettings:
        """The router's settings under which this scenario decides."""
        prices = {s.name: s.price_per_instance_hour for s in self.fleet.sites}
        prices[self.fleet.pd.name] = self.fleet.pd.price_per_instance_hour
        egress = {s.name: s.price_per_gbyte for s in self.fleet.sites}
        return PolicySettings(
            name="predictive" if self.policy is SimPolicy.PREDICTIVE else "threshold",
            threshold_tokens=self.fleet.threshold_tokens,
            adaptive=self.adaptive and self.policy in (SimPolicy.THRESHOLD, SimPolicy.PREDICTIVE),
            force_route="remote" if self.policy is SimPolicy.ALL_REMOTE else None,
            ttft_slo_s=self.ttft_slo_s,
            itl_slo_s=self.itl_slo_s,
            price_per_instance_hour=prices,
            price_per_egress_gbyte=egress,
        )

    def at_rate(self, rate_rps: float) -> Scenario:
        return replace(self, rate_rps=rate_rps)


def plan_fleet(case: Case, policy: SimPolicy) -> FleetPlan:
    """The planner's allocation of the case's instances for a policy; the local-only baseline has the case's own fleet."""
    if policy is SimPolicy.LOCAL_ONLY:
        found = homogeneous(case.baseline_pd, case.model, case.workload)
        return FleetPlan((), case.baseline_pd, found.num_prefill, found.num_decode, found.threshold_tokens)
    if policy is SimPolicy.ALL_REMOTE:
        found = naive(case.sites, case.pd, case.model, case.workload)
    else:
        found = best_allocation(case.sites, case.pd, case.model, case.workload)
    return FleetPlan(case.sites, case.pd, found.num_prefill, found.num_decode, found.threshold_tokens)


def scenario_for(
    case: Case, policy: SimPolicy, *, rate_rps: float, duration_s: float, workload: Workload | None = None, seed: int = 0
) -> Scenario:
    """A run of a case with its own objectives, and with the prefix cache on where prompts share prefixes."""
    workload = workload or Workload()
    return Scenario(
        case=case,
        fleet=plan_fleet(case, policy),
        policy=policy,
        rate_rps=rate_rps,
        duration_s=duration_s,
        workload=workload,
        seed=seed,
        warmup_s=min(MAX_WARMUP_S, duration_s * DEFAULT_WARMUP_SHARE),
        ttft_slo_s=case.ttft_slo_s,
        itl_slo_s=case.itl_slo_s,
        engine=SimEngineSettings(prefix_cache=workload.shares_prefixes),
    )
