"""Makes lanes wait for their turn: the pure order of turns, driven by an event loop and a clock."""

from __future__ import annotations

import asyncio
from types import TracebackType

from kv_transport.session.send_order import SendOrder, Ticket, Traffic
from prfaas.clock import Clock
from prfaas.types import SiteId

YIELD_S = 0.001  # a chunk that its receiver has not taken by then gives its turn to the next


class TurnGate:
    """Turns at a shared resource: a sender's link, a receiver's processor. Used from one event loop."""

    def __init__(self, order: SendOrder, clock: Clock) -> None:
        self._order = order
        self._clock = clock
        self._waiters: dict[Ticket, asyncio.Future[None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._crowd = 0
        self.held_bytes = 0  # frames that were built and have not left

    @property
    def contended(self) -> bool:
        """Whether more than one transfer uses the gate."""
        return self._order.num_waiting > 0 or self._crowd > 1

    def join(self) -> None:
        """One more transfer uses the gate."""
        self._crowd += 1

    def quit(self) -> None:
        """It no longer does."""
        self._crowd -= 1

    @property
    def num_waiting(self) -> int:
        return self._order.num_waiting

    def site_bytes_per_s(self, site: SiteId) -> float:
        """What the path to a site has lately carried while it was the bottleneck; 0 when unknown."""
        return self._order.site_bytes_per_s(site)

    def slot(self, traffic: Traffic, num_bytes: int) -> Slot:
        """`async with gate.slot(...)` waits for a turn to send about `num_bytes`."""
        return Slot(self, traffic, num_bytes)

    async def enter(self, traffic: Traffic, num_bytes: int) -> Ticket:
        """Wait for a turn. Cancelling the wait leaves nothing behind."""
        ticket = self._order.submit(traffic, num_bytes)
        turn = self._waiters[ticket] = asyncio.get_running_loop().create_future()
        self._admit()
        try:
            await turn
        except BaseException:
            self._waiters.pop(ticket, None)
            self.leave(ticket, 0)
            raise
        return ticket

    def yield_turn(self, ticket: Ticket) -> None:
        self._order.yield_turn(ticket)
        self._admit()

    def leave(self, ticket: Ticket, sent_bytes: int) -> None:
        """The turn is over; `sent_bytes` is 0 when nothing was sent."""
        now_s = self._clock.now_s()
        if sent_bytes > 0:
            self._order.done(ticket, sent_bytes, now_s)
        else:
            self._order.withdraw(ticket, now_s)
        self._admit()

    def _admit(self) -> None:
        now_s = self._clock.now_s()
        for ticket in self._order.admit(now_s):
            turn = self._waiters.pop(ticket)
            if not turn.done():
                turn.set_result(None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        wait_s = self._order.ready_in_s(now_s)
        if wait_s is not None and self._waiters:
            self._timer = asyncio.get_running_loop().call_later(max(wait_s, 0.0005), self._admit)


class Slot:
    """One turn: from the wait for it until the frame has left."""

    def __init__(self, gate: TurnGate, traffic: Traffic, num_bytes: int) -> None:
        self._gate = gate
        self._traffic = traffic
        self._num_bytes = num_bytes
        self._ticket: Ticket | None = None
        self._held_bytes = 0
        self._sent_bytes = 0
        self._yield_timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Slot:
        self._ticket = await self._gate.enter(self._traffic, self._num_bytes)
        return self

    def holds(self, num_bytes: int) -> None:
        """A frame of this size now waits to leave."""
        if self._ticket is None:
            raise RuntimeError("the slot was not entered")
        self._held_bytes = num_bytes
        self._gate.held_bytes += num_bytes
        loop = asyncio.get_running_loop()
        self._yield_timer = loop.call_later(YIELD_S, self._gate.yield_turn, self._ticket)

    def sent(self) -> None:
        """The frame has left."""
        self._sent_bytes = self._held_bytes

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._yield_timer is not None:
            self._yield_timer.cancel()
        self._gate.held_bytes -= self._held_bytes
        if self._ticket is not None:
            self._gate.leave(self._ticket, self._sent_bytes)
