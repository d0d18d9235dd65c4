"""Whose chunk goes next when many transfers share a sender's link. Knows no chunks, lanes or sockets.

Order: first transfers that are about to miss their deadline, the closest deadline first; then whoever has been served
least, in steps of `QUANTUM_BYTES`. Least-served-first lets short transfers pass long ones without knowing lengths and
shares evenly among equals. Bounds: so many turns at a time, so many bytes in flight, and egress budgets per receiving
site and per tenant. A turn that blocks on a slow receiver is given back while its bytes stay counted, and a transfer
with nothing in flight is never held back by bytes: a slow reader costs the others nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kv_transport.session.rate import RateMeter, TokenBucket
from prfaas.types import SiteId

QUANTUM_BYTES = 4 * 1024**2
URGENT_SLACK_S = 0.5


@dataclass(slots=True)
class Traffic:
    """One transfer's claim on the link. Owned by its transfer, updated by the order."""

    key: str
    tenant: str
    site: SiteId
    deadline_s: float | None = None  # on the sender's clock
    total_bytes: int = 0  # 0 until the manifest
    served_bytes: int = 0
    in_flight_bytes: int = 0
    waiting: int = 0


@dataclass(slots=True, eq=False)
class Ticket:
    """One chunk's place in the order."""

    traffic: Traffic
    num_bytes: int
    number: int
    admitted: bool = False
    has_turn: bool = field(default=False)
    admitted_s: float = 0.0


@dataclass(frozen=True, slots=True)
class SendBudget:
    """Bounds of one sender. Rates in bytes/s; 0 and missing tenants mean no cap. Traffic to `own_site` is not capped."""

    own_site: SiteId
    turns: int
    in_flight_bytes: int
    site_bytes_per_s: int = 0
    tenant_bytes_per_s: Mapping[str, int] = field(default_factory=dict)


class SendOrder:
    """Tickets that wait, and those that were admitted and are not done."""

    def __init__(self, budget: SendBudget) -> None:
        self._budget = budget
        self._waiting: list[Ticket] = []
        self._numbers = 0
        self._turns = 0
        self.in_flight_bytes = 0
        self._meter = RateMeter()
        self._site_meters: dict[SiteId, RateMeter] = {}
        self._sites: dict[SiteId, TokenBucket] = {}
        self._tenants = {name: TokenBucket(rate) for name, rate in budget.tenant_bytes_per_s.items()}

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def site_bytes_per_s(self, site: SiteId) -> float:
        """Rate at which this site has lately taken bytes while it had chunks to take; 0 when unknown."""
        meter = self._site_meters.get(site)
        return meter.bytes_per_s if meter is not None else 0.0

    def submit(self, traffic: Traffic, num_bytes: int) -> Ticket:
        """Join the queue with a chunk of about `num_bytes`."""
        self._numbers += 1
        ticket = Ticket(traffic, num_bytes, self._numbers)
        traffic.waiting += 1
        self._waiting.append(ticket)
        return ticket

    def withdraw(self, ticket: Ticket, now_s: float) -> None:
        """The chunk will not be sent, or has been: free all it holds. Idempotent."""
        if ticket in self._waiting:
            self._waiting.remove(ticket)
            ticket.traffic.waiting -= 1
        elif ticket.admitted:
            self.yield_turn(ticket)
            ticket.admitted = False
            ticket.traffic.in_flight_bytes -= ticket.num_bytes
            self.in_flight_bytes -= ticket.num_bytes

    def done(self, ticket: Ticket, sent_bytes: int, now_s: float) -> None:
        """The chunk has left with `sent_bytes` on the wire."""
        self.withdraw(ticket, now_s)
        ticket.traffic.served_bytes += sent_bytes
        self._meter.add(sent_bytes, now_s)
        meter = self._site_meters.setdefault(ticket.traffic.site, RateMeter())
        meter.add(sent_bytes, now_s, waited=meter.last_s is not None and ticket.admitted_s <= meter.last_s)
        for bucket in self._buckets(ticket.traffic):
            bucket.take(sent_bytes - ticket.num_bytes, now_s)  # the codec's saving is given back

    def yield_turn(self, ticket: Ticket) -> None:
        """The chunk is blocked by its receiver: let another one go meanwhile."""
        if ticket.has_turn:
            ticket.has_turn = False
            self._turns -= 1

    def admit(self, now_s: float) -> list[Ticket]:
        """Every ticket that may go now, best first; they hold a turn and their bytes until `done` or `withdraw`."""
        admitted = []
        while self._waiting and self._turns < self._budget.turns:
            eligible = [ticket for ticket in self._waiting if self._eligible(ticket, now_s)]
            if not eligible:
                break
            best = min(eligible, key=lambda ticket: self._rank(ticket, now_s))
            self._waiting.remove(best)
            best.traffic.waiting -= 1
            best.admitted = best.has_turn = True
            best.admitted_s = now_s
            self._turns += 1
            best.traffic.in_flight_bytes += best.num_bytes
            self.in_flight_bytes += best.num_bytes
            for bucket in self._buckets(best.traffic):
                bucket.take(best.num_bytes, now_s)
            admitted.append(best)
        return admitted

    def ready_in_s(self, now_s: float) -> float | None:
        """Seconds until a budget lets a waiting ticket go. None when only a `done` can."""
        if self._turns >= self._budget.turns:
            return None
        waits = [self._paced_s(ticket, now_s) for ticket in self._waiting if self._fits(ticket)]
        return min(waits) if waits else None

    def _eligible(self, ticket: Ticket, now_s: float) -> bool:
        return self._fits(ticket) and self._paced_s(ticket, now_s) <= 0

    def _fits(self, ticket: Ticket) -> bool:
        if ticket.traffic.in_flight_bytes == 0:
            return True
        return self.in_flight_bytes + ticket.num_bytes <= self._budget.in_flight_bytes

    def _paced_s(self, ticket: Ticket, now_s: float) -> float:
        return max((bucket.ready_in_s(now_s) for bucket in self._buckets(ticket.traffic)), default=0.0)

    def _buckets(self, traffic: Traffic) -> list[TokenBucket]:
        if traffic.site == self._budget.own_site:
            return []
        found = []
        if self._budget.site_bytes_per_s > 0:
            bucket = self._sites.get(traffic.site)
            if bucket is None:
                bucket = self._sites[traffic.site] = TokenBucket(self._budget.site_bytes_per_s)
            found.append(bucket)
        tenant = self._tenants.get(traffic.tenant)
        if tenant is not None:
            found.append(tenant)
        return found

    def _rank(self, ticket: Ticket, now_s: float) -> tuple[int, float, int]:
        traffic = ticket.traffic
        if traffic.deadline_s is not None:
            rate = self._meter.bytes_per_s
            left_bytes = max(0, traffic.total_bytes - traffic.served_bytes)
            needed_s = left_bytes / rate if rate > 0 else 0.0
            if traffic.deadline_s - now_s < needed_s + URGENT_SLACK_S:
                return (0, traffic.deadline_s, ticket.number)
        return (1, float(traffic.served_bytes // QUANTUM_BYTES), ticket.number)
