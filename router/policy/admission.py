"""Who may start when the fleet is busy: bounded queues, fairness between tenants, budgets, and early refusals.

Three classes by priority (negative first, then zero, then positive), each with a bounded queue. Within a class tenants
share in uncached prompt tokens: start-time fair queueing (Goyal, Vin and Cheng, 1996), so that a tenant with one short
prompt waits for at most one prompt of each other tenant, however many those have queued. A request whose wait would
outlast its deadline is refused at once, with the time after which trying again makes sense. Pure: time is an argument.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count

from prfaas.errors import QueueFull, RateLimited
from prfaas.types import SiteId
from router.policy.view import FleetView, Link, WorkerView

RATE_WINDOW_S = 10.0  # over which the speed of the queue is measured
SWEEP_TENANTS = 10_000  # balances to hold before looking for whole ones
_SMALL_HEAP = 64
MIN_RETRY_S, MAX_RETRY_S = 0.5, 60.0


@dataclass(frozen=True, slots=True)
class Ticket:
    """A request at the door. `tokens` are those nobody has cached; `deadline_s` is a time, not a duration."""

    tenant: str
    priority: int
    tokens: int
    deadline_s: float | None = None

    @property
    def klass(self) -> int:
        """-1, 0 or 1: clients name any number, queues are three."""
        return (self.priority > 0) - (self.priority < 0)


@dataclass(frozen=True, slots=True)
class Budget:
    """What a tenant may use on average; 0 is no limit. Up to `burst_s` seconds' worth may be saved up."""

    tokens_per_s: float = 0.0
    egress_bytes_per_s: float = 0.0
    burst_s: float = 60.0


class _Bucket:
    """A balance that refills at a rate up to a maximum; it may be overdrawn, and is then waited for."""

    def __init__(self, rate: float, burst_s: float, now_s: float) -> None:
        self._rate, self._most = rate, rate * burst_s
        self._balance, self._at_s = self._most, now_s

    def wait_s(self, now_s: float) -> float:
        """Seconds until the balance is positive; 0 where there is no limit."""
        if self._rate <= 0:
            return 0.0
        self._balance = min(self._most, self._balance + self._rate * max(0.0, now_s - self._at_s))
        self._at_s = max(self._at_s, now_s)
        return 0.0 if self._balance > 0 else -self._balance / self._rate + 1e-3

    def spend(self, amount: float) -> None:
        self._balance -= amount

    def whole(self, now_s: float) -> bool:
        """Whether nothing is missing."""
        self.wait_s(now_s)
        return self._balance >= self._most


class _Buckets:
    """A bucket for each tenant that used its budget lately: a whole one is the same as none."""

    def __init__(self) -> None:
        self._of: dict[str, _Bucket] = {}
        self._sweep_at = SWEEP_TENANTS

    def __len__(self) -> int:
        return len(self._of)

    def get(self, tenant: str) -> _Bucket | None:
        return self._of.get(tenant)

    def take(self, tenant: str, rate: float, burst_s: float, now_s: float) -> _Bucket:
        """The tenant's bucket, a whole one if it had none."""
        found = self._of.get(tenant)
        if found is None:
            if len(self._of) >= self._sweep_at:
                self._of = {name: bucket for name, bucket in self._of.items() if not bucket.whole(now_s)}
                self._sweep_at = max(SWEEP_TENANTS, 2 * len(self._of))
            found = self._of[tenant] = _Bucket(rate, burst_s, now_s)
        return found


class Budgets:
    """Every tenant's balances; tenants that are not named have the default budget.

    Clients name tenants as they like, so only those that used their budgets lately take room.
    """

    def __init__(self, named: Mapping[str, Budget], default: Budget) -> None:
        self._named, self._default = named, default
        self._tokens, self._egress = _Buckets(), _Buckets()

    @property
    def num_balances(self) -> int:
        """Balances that are not known to be whole."""
        return len(self._tokens) + len(self._egress)

    def charge_tokens(self, tenant: str, tokens: int, now_s: float) -> None:
        """Raises RateLimited while the tenant's balance is used up."""
        budget = self._of(tenant)
        if budget.tokens_per_s <= 0:
            return
        bucket = self._tokens.take(tenant, budget.tokens_per_s, budget.burst_s, now_s)
        wait_s = bucket.wait_s(now_s)
        if wait_s > 0:
            raise RateLimited(
                f"the tenant's budget of {budget.tokens_per_s:g} uncached prompt tokens per second is used up",
                retry_after_s=round(wait_s, 3),
            )
        bucket.spend(tokens)

    def refund_tokens(self, tenant: str, tokens: int) -> None:
        """The request was not let in after all."""
        bucket = self._tokens.get(tenant)
        if bucket is not None:
            bucket.spend(-tokens)

    def charge_egress(self, tenant: str, num_bytes: int, now_s: float) -> None:
        """Book bytes that crossed a link for this tenant."""
        budget = self._of(tenant)
        if budget.egress_bytes_per_s > 0 and num_bytes > 0:
            bucket = self._egress.take(tenant, budget.egress_bytes_per_s, budget.burst_s, now_s)
            bucket.wait_s(now_s)
            bucket.spend(num_bytes)

    def may_send(self, tenant: str, now_s: float) -> bool:
        """Whether the tenant's prompts may be prefilled in another site now."""
        bucket = self._egress.get(tenant)
        return bucket is None or bucket.wait_s(now_s) <= 0

    def _of(self, tenant: str) -> Budget:
        return self._named.get(tenant, self._default)


@dataclass(slots=True)
class _Lane:
    """One class: a heap of (start tag, ticket id), the virtual time, and each tenant's last finish tag."""

    heap: list[tuple[float, int]]
    finish: dict[str, float]
    virtual: float = 0.0


class AdmissionQueue:
    """Tickets wait here until `take` lets them go. Each offered ticket leaves once: taken, withdrawn or shed."""

    def __init__(self, max_queued: int) -> None:
        self._max_queued = max_queued  # per class
        self._lanes = {klass: _Lane([], {}) for klass in (-1, 0, 1)}
        self._waiting: dict[int, Ticket] = {}
        self._depth: Counter[int] = Counter()
        self._tokens: Counter[int] = Counter()  # waiting tokens by class
        self._ids = count()
        self._rate = 0.0  # tokens let go per second, fading
        self._rate_s: float | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def depth(self, klass: int) -> int:
        """Tickets waiting in a class."""
        return self._depth[klass]

    def wait_s(self, klass: int, now_s: float) -> float:
        """About how long a new ticket of this class would wait; 0 when nothing waits, or nothing is known yet."""
        ahead = sum(tokens for k, tokens in self._tokens.items() if k <= klass)
        rate = self._speed(now_s)
        return ahead / rate if ahead and rate > 0 else 0.0

    def offer(self, ticket: Ticket, now_s: float) -> int:
        """Queue a ticket and return its id.

        Raises:
            QueueFull: its class is full, or it would wait past its deadline; detail retry_after_s.
        """
        klass, wait_s = ticket.klass, self.wait_s(ticket.klass, now_s)
        if self._depth[klass] >= self._max_queued:
            raise self._full("the queue is full", ticket, wait_s)
        if wait_s > 0 and ticket.deadline_s is not None and now_s + wait_s > ticket.deadline_s:
            raise self._full(f"it would wait about {wait_s:.1f} s, longer than its deadline allows", ticket, wait_s)
        lane, number = self._lanes[klass], next(self._ids)
        start = max(lane.virtual, lane.finish.get(ticket.tenant, 0.0))
        lane.finish[ticket.tenant] = start + max(1, ticket.tokens)
        heapq.heappush(lane.heap, (start, number))
        self._waiting[number] = ticket
        self._depth[klass] += 1
        self._tokens[klass] += ticket.tokens
        return number

    def take(self, now_s: float) -> int | None:
        """The next ticket to start, or None when none waits. Withdrawn tickets are skipped."""
        for lane in self._lanes.values():
            while lane.heap:
                start, number = heapq.heappop(lane.heap)
                ticket = self._waiting.get(number)
                if ticket is None:
                    continue
                lane.virtual = max(lane.virtual, start)
                self._remove(number, ticket)
                self._count(ticket.tokens, now_s)
                if not self._depth[ticket.klass]:  # an idle class forgets who had used how much
                    lane.finish.clear()
                    lane.heap.clear()
                return number
        return None

    def withdraw(self, number: int) -> None:
        """The request went away. Idempotent, also after `take`."""
        ticket = self._waiting.get(number)
        if ticket is not None:
            self._remove(number, ticket)
            self._compact(self._lanes[ticket.klass])

    def shed(self, now_s: float) -> list[tuple[int, QueueFull]]:
        """Tickets whose deadline passed while they waited, with the error they are to be given."""
        late = [n for n, t in self._waiting.items() if t.deadline_s is not None and now_s > t.deadline_s]
        refused = []
        for number in late:
            ticket = self._waiting[number]
            refused.append((number, self._full("its deadline passed", ticket, self.wait_s(ticket.klass, now_s))))
            self._remove(number, ticket)
            self._compact(self._lanes[ticket.klass])
        return refused

    def _remove(self, number: int, ticket: Ticket) -> None:
        del self._waiting[number]
        self._depth[ticket.klass] -= 1
        self._tokens[ticket.klass] -= ticket.tokens

    def _compact(self, lane: _Lane) -> None:
        """Drop entries of tickets that left otherwise, once they are the greater part."""
        if len(lane.heap) > 2 * len(self._waiting) + _SMALL_HEAP:
            lane.heap = [entry for entry in lane.heap if entry[1] in self._waiting]
            heapq.heapify(lane.heap)

    def _full(self, why: str, ticket: Ticket, wait_s: float) -> QueueFull:
        depth = self._depth[ticket.klass]
        return QueueFull(
            f"too many requests are waiting ({depth} of this priority): {why}",
            depth=depth,
            limit=self._max_queued,
            retry_after_s=round(min(MAX_RETRY_S, max(MIN_RETRY_S, wait_s)), 3),
        )

    def _speed(self, now_s: float) -> float:
        """Tokens per second let go of late. It fades as the inverse of the silence: what was let go, over the time since."""
        if self._rate_s is None:
            return 0.0
        return self._rate * RATE_WINDOW_S / (RATE_WINDOW_S + max(0.0, now_s - self._rate_s))

    def _count(self, tokens: int, now_s: float) -> None:
        self._rate = self._speed(now_s) + tokens / RATE_WINDOW_S
        self._rate_s = now_s


def has_room(view: FleetView, dispatched: int, per_slot: float, max_backlog_s: float, now_s: float) -> bool:
    """Whether the fleet should be given another request now, or is better left to work off what it has.

    There is room while fewer than `per_slot` requests per decode slot are under way, and the least backed-up worker that may
    prefill is less than `max_backlog_s` behind; over a folded link nobody may. A fleet without decode workers has room:
    deciding says what is wrong.
    """
    oldest_s = now_s - view.member_timeout_s
    seats, some = 0, False
    for worker in view.decode:
        if _alive(worker, oldest_s):
            some, seats = True, seats + worker.max_running
            if dispatched < per_slot * seats:
                break
    else:
        return not some
    near = [_shortest(site, view, oldest_s) for site in view.prefill if _near(site, view, oldest_s)]
    queues = [worker.queued_s for worker in near if worker is not None]
    queues = queues or [worker.queued_s for worker in view.decode if _alive(worker, oldest_s)]
    return min(queues) < max_backlog_s


def _near(site: SiteId, view: FleetView, oldest_s: float) -> bool:
    """Whether some decode worker can be reached from a site."""
    folded = view.tuning.folded
    return not folded or any(
        worker.site == site or Link(site, worker.site) not in folded for worker in view.decode if _alive(worker, oldest_s)
    )


def _shortest(site: SiteId, view: FleetView, oldest_s: float) -> WorkerView | None:
    """The site's worker with the shortest queue of those that may prefill."""
    return next((worker for worker in view.prefill[site] if _alive(worker, oldest_s)), None)


def _alive(worker: WorkerView, oldest_s: float) -> bool:
    return worker.seen_s >= oldest_s and not (worker.draining or worker.suspect)
