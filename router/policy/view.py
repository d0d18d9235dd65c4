"""What a routing decision looks at: one request, and the fleet as it stood at one moment. Frozen values, no behaviour
beyond look-ups; they know nothing of heartbeats, indexes or sockets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from prfaas.modelspec import CacheSpec
from prfaas.types import LinkView, Role, SiteId, WorkerId
from router.policy.costs import Models

KEPT_SHARE = 0.9  # of the objective, that forecasts may fill


class Link(NamedTuple):
    """A directed path between two sites."""

    src: SiteId
    dst: SiteId


@dataclass(frozen=True, slots=True)
class RequestView:
    """One request, as far as routing cares. `cached_tokens` holds the usable block-aligned prefix of each worker that
    has one; workers without are absent."""

    model: str
    num_tokens: int
    max_tokens: int
    cached_tokens: Mapping[WorkerId, int] = field(default_factory=dict)
    exclude: frozenset[WorkerId] = frozenset()  # workers that already failed this request
    time_left_s: float | None = None  # of its deadline
    waited_s: float = 0.0  # since it came
    patient: bool = False  # it is late anyway and has let others go first: it may use what nobody else needs
    may_leave: bool = True  # its cache may cross a link: the tenant's egress budget is not used up

    def spare_s(self, slo_s: float) -> float:
        """What a forecast may use of the objective for the time to first token, after the wait so far and within the
        deadline. A share is kept back: under overload most of what is let in just makes it, or just does not."""
        left_s = slo_s * KEPT_SHARE - self.waited_s
        return left_s if self.time_left_s is None else min(left_s, self.time_left_s)


@dataclass(frozen=True, slots=True)
class WorkerView:
    """A worker at `seen_s`, the time of its last sign of life, with the router's own unreported dispatches added."""

    worker_id: WorkerId
    site: SiteId
    role: Role
    address: str
    model: str
    fingerprint_digest: str
    cache: CacheSpec
    max_prompt_tokens: int  # what context and cache can hold, one token of output included
    max_running: int
    seen_s: float
    running: int = 0  # sequences running or waiting
    waiting: int = 0  # of those, waiting
    free_tokens: int = 0  # room in free or reclaimable blocks, less what is promised to requests on their way
    queued_tokens: int = 0  # prompt tokens to compute before a new prompt's first
    queued_s: float = 0.0  # seconds until these are computed
    prefill_tokens_per_s: float = 0.0  # 0: unknown
    decode_step_s: float = 0.0  # 0: unknown
    draining: bool = False
    suspect: bool = False  # a call failed since the last heartbeat

    @property
    def load(self) -> float:
        """Sequences here for each seat of a full batch."""
        return self.running / self.max_running


@dataclass(frozen=True, slots=True)
class Tuning:
    """What the short loop has set: the threshold in uncached tokens, links with no bandwidth to spare, links that are
    folded (nothing is sent over them until they are opened again), and the least threshold at which what arrives fits
    through the rest (0: any)."""

    threshold_tokens: int
    scarce: frozenset[Link] = frozenset()
    folded: frozenset[Link] = frozenset()
    floor_tokens: int = 0


@dataclass(frozen=True, slots=True)
class FleetView:
    """All registered workers and the state of the links between sites. A worker is in exactly one of the two groups:
    those that decode, freest first (by `load`), and, site by site, those whose prefill door is open, shortest queue first
    (by `queued_s`): a policy looks at the first few, not at all of a large fleet."""

    decode: tuple[WorkerView, ...]
    prefill: Mapping[SiteId, tuple[WorkerView, ...]]
    links: Mapping[Link, LinkView]
    tuning: Tuning
    member_timeout_s: float
    models: Models = field(default_factory=dict)  # prefill time of each kind of worker, as measured
    promised_bytes: Mapping[Link, int] = field(default_factory=dict)  # ordered over a link and not landed whole
