"""Where requests wait for room in the fleet: the admission queue with an event loop around it. Contains no policy."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prfaas import metrics as m
from prfaas.clock import Clock
from prfaas.config import AdmissionSettings, TenantSettings
from prfaas.errors import QueueFull
from prfaas.log import logger
from prfaas.metrics import MetricSet
from router.fleet import Fleet
from router.policy.admission import AdmissionQueue, Budget, Budgets, Ticket
from router.policy.room import has_room, has_slack

_log = logger(__name__)

TICK_S = 0.05  # how often waiting requests are looked at without any other occasion
CLASS_NAMES = {-1: "high", 0: "normal", 1: "low"}


class Door:
    """Lets requests in one at a time: the next only once the one before stands in the fleet's books, so that each
    admission sees the load of all earlier ones."""

    def __init__(self, *, fleet: Fleet, settings: AdmissionSettings, slo_s: float, metrics: MetricSet, clock: Clock) -> None:
        self._fleet = fleet
        self._settings = settings
        self._slo_s = slo_s
        self._metrics = metrics
        self._clock = clock
        self._queue = AdmissionQueue(settings.max_queued)
        tenants = {name: _budget(tenant) for name, tenant in settings.tenants.items()}
        self._budgets = Budgets(tenants, _budget(settings.default_tenant))
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._inside: set[int] = set()
        self._starting: int | None = None  # the place that is let in and not yet in the fleet's books

    @asynccontextmanager
    async def admitted(self, ticket: Ticket) -> AsyncIterator[int]:
        """Wait for room, then hold a place until the block ends; yields the place's number for `booked`.

        Raises:
            RateLimited: the tenant's token budget is used up.
            QueueFull: the queue of its class is full, or its deadline is too near or passed while it waited.
        """
        now_s = self._clock.now_s()
        self._budgets.charge_tokens(ticket.tenant, ticket.tokens, now_s)
        try:
            number = self._queue.offer(ticket, now_s)
        except QueueFull:
            self._budgets.refund_tokens(ticket.tenant, ticket.tokens)
            raise
        try:
            await self._turn(number)
            yield number
        finally:
            if number not in self._inside:
                self._budgets.refund_tokens(ticket.tenant, ticket.tokens)
            self._leave(number)

    async def step_back(self, place: int) -> bool:
        """The request in this place is late whatever is done: wait until there is capacity that nobody in time needs. False at
        once where it has stepped back before, or is in the books already.

        Raises:
            QueueFull: its deadline passed while it waited.
        """
        if self._starting != place or not self._queue.step_back(place):
            return False
        self._inside.discard(place)
        self._starting = None
        await self._turn(place)
        return True

    def booked(self, place: int) -> None:
        """The request in this place is in the fleet's books. Idempotent."""
        if self._starting == place:
            self._starting = None
            self._pump()

    def sent(self, tenant: str, num_bytes: int) -> None:
        """KV bytes crossed a link for this tenant."""
        self._budgets.charge_egress(tenant, num_bytes, self._clock.now_s())

    def may_leave(self, tenant: str) -> bool:
        """Whether the tenant's caches may cross a link now."""
        return self._budgets.may_send(tenant, self._clock.now_s())

    async def run(self) -> None:
        """Look after waiting requests until cancelled: heartbeats free room, and deadlines pass."""
        while True:
            await asyncio.sleep(TICK_S)
            try:
                self._pump()
            except Exception:  # noqa: BLE001 -- the loop must outlive one bad round
                _log.exception("admission failed; trying again")

    async def _turn(self, number: int) -> None:
        turn = self._waiting[number] = asyncio.get_running_loop().create_future()
        self._pump()
        await turn

    def _leave(self, number: int) -> None:
        self._queue.withdraw(number)
        self._waiting.pop(number, None)
        self._inside.discard(number)
        if self._starting == number:
            self._starting = None
        self._pump()

    def _pump(self) -> None:
        now_s = self._clock.now_s()
        for number, error in self._queue.shed(now_s):
            self._waiting.pop(number).set_exception(error)
        while self._starting is None and len(self._queue) and self._has_room(now_s):
            taken = self._queue.take(now_s, slack=has_slack(self._fleet.view(), self._slo_s, now_s))
            if taken is None:
                break
            self._let_in(taken)
        for klass, name in CLASS_NAMES.items():
            self._metrics.set(m.QUEUED, self._queue.depth(klass), priority=name)

    def _let_in(self, number: int) -> None:
        turn = self._waiting.pop(number)
        if not turn.done():  # one that is done was cancelled, and leaves by itself
            turn.set_result(None)
            self._inside.add(number)
            self._starting = number

    def _has_room(self, now_s: float) -> bool:
        settings = self._settings
        backlog_s = settings.max_backlog_slos * self._slo_s
        return has_room(self._fleet.view(), len(self._inside), settings.requests_per_slot, backlog_s, now_s)


def _budget(tenant: TenantSettings) -> Budget:
    return Budget(tenant.tokens_per_s, tenant.egress_bytes_per_s, tenant.burst_s)
