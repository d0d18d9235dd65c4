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
from dataclasses import dataclass, field
from itertools import count

from prfaas.errors import QueueFull, RateLimited

RATE_WINDOW_S = 10.0  # over which the speed of the queue is measured
SWEEP_TENANTS = 10_000  # balances to hold before looking for whole ones
_SMALL_HEAP = 64
LATE_SHARE = 0.02  # of the tokens let in, for those that are late while others are not
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
    late: dict[int, None] = field(default_factory=dict)  # ids of tickets that stepped back, in that order
    owed_tokens: float = 0.0  # that those may use although others wait


class AdmissionQueue:
    """Tickets wait here until `take` lets them go. Each offered ticket leaves once: taken, withdrawn or shed.

    One that was taken may step back once: it will be late whatever is done, and then waits for capacity that nobody needs who
    can be in time, or for its turn in a small share of all. Under overload those who ask for least find a place longest, so
    the fewest objectives are missed; whoever is late is answered later, or refused at its deadline.
    """

    def __init__(self, max_queued: int) -> None:
        self._max_queued = max_queued  # per class
        self._lanes = {klass: _Lane([], {}) for klass in (-1, 0, 1)}
        self._waiting: dict[int, Ticket] = {}
        self._taken: tuple[int, Ticket] | None = None  # the last, if it may step back
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
        if self._depth[klass] - len(self._lanes[klass].late) >= self._max_queued:
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

    def take(self, now_s: float, *, slack: bool = True) -> int | None:
        """The next ticket to start, or None when none may. Withdrawn tickets are skipped. Tickets that stepped back go when
        nobody else of their class waits and there is `slack`, or when their share of the tokens has come together."""
        for lane in self._lanes.values():
            late = self._waiting[next(iter(lane.late))] if lane.late else None
            if late is not None and lane.owed_tokens >= late.tokens:
                lane.owed_tokens -= late.tokens
                return self._take_late(lane, late, now_s)
            while lane.heap:
                start, number = heapq.heappop(lane.heap)
                ticket = self._waiting.get(number)
                if ticket is None:
                    continue
                lane.virtual = max(lane.virtual, start)
                self._remove(number, ticket)
                self._count(ticket.tokens, now_s)
                lane.owed_tokens += LATE_SHARE * ticket.tokens if lane.late else 0.0
                if not self._depth[ticket.klass]:  # an idle class forgets who had used how much
                    lane.finish.clear()
                    lane.heap.clear()
                self._taken = (number, ticket)
                return number
            if late is not None and slack:
                return self._take_late(lane, late, now_s)
        return None

    def _take_late(self, lane: _Lane, ticket: Ticket, now_s: float) -> int:
        number = next(iter(lane.late))
        self._remove(number, ticket)
        self._count(ticket.tokens, now_s)
        self._taken = None
        if not lane.late:
            lane.owed_tokens = 0.0
        return number

    def step_back(self, number: int) -> bool:
        """The ticket taken last is late and waits for what others leave. False, and nothing changes, where it is another or
        did so before.

        Raises:
            QueueFull: as many of its class wait like this as may wait; detail retry_after_s.
        """
        if self._taken is None or self._taken[0] != number:
            return False
        ticket, self._taken = self._taken[1], None
        lane = self._lanes[ticket.klass]
        self._rate -= ticket.tokens / RATE_WINDOW_S
        if len(lane.late) >= self._max_queued:
            raise self._full("it is late already, and too many others are", ticket, MAX_RETRY_S)
        lane.late[number] = None
        self._waiting[number] = ticket
        self._depth[ticket.klass] += 1
        return True

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
        late = self._lanes[ticket.klass].late
        if number in late:
            del late[number]
        else:
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
