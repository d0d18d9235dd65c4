"""The gate drives the order of turns: waits, cancellations, blocked turns and pacing leave nothing behind."""

from __future__ import annotations

import asyncio

import pytest

from kv_transport.gate import YIELD_S, TurnGate
from kv_transport.session.send_order import SendBudget, SendOrder, Traffic
from prfaas.clock import MonotonicClock
from prfaas.types import SiteId

MIB = 1024**2


def gate_of(turns: int = 1, **changes: int) -> TurnGate:
    budget = SendBudget(SiteId("here"), turns=turns, in_flight_bytes=64 * MIB, **changes)
    return TurnGate(SendOrder(budget), MonotonicClock())


def traffic(key: str = "a") -> Traffic:
    return Traffic(key, "", SiteId("there"))


async def test_turns_are_taken_one_after_the_other() -> None:
    gate, inside, most = gate_of(), 0, 0

    async def use(flow: Traffic) -> None:
        nonlocal inside, most
        async with gate.slot(flow, MIB) as slot:
            slot.holds(100)
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0)
            inside -= 1
            slot.sent()

    flows = [traffic(str(i)) for i in range(5)]
    await asyncio.gather(*(use(flow) for flow in flows))
    assert most == 1
    assert [flow.served_bytes for flow in flows] == [100] * 5
    assert gate.held_bytes == gate.num_waiting == 0


async def test_a_cancelled_wait_and_a_failed_turn_leave_nothing_behind() -> None:
    gate, flow = gate_of(), traffic()

    async def fail() -> None:
        async with gate.slot(flow, MIB) as slot:
            slot.holds(100)
            raise RuntimeError("boom")

    async with gate.slot(traffic("first"), MIB):
        waiting = asyncio.create_task(fail())
        await asyncio.sleep(0)
        assert gate.num_waiting == 1
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert gate.num_waiting == 0
    with pytest.raises(RuntimeError):
        await fail()
    assert (flow.served_bytes, flow.in_flight_bytes, flow.waiting, gate.held_bytes) == (0, 0, 0, 0)
    async with asyncio.timeout(1), gate.slot(flow, MIB):
        pass


async def test_a_turn_that_blocks_is_given_on() -> None:
    gate = gate_of()
    async with gate.slot(traffic("stuck"), MIB) as stuck:
        stuck.holds(MIB)
        async with asyncio.timeout(YIELD_S * 100), gate.slot(traffic("other"), MIB):
            assert gate.held_bytes == MIB


async def test_pacing_waits_for_the_budget() -> None:
    gate = gate_of(turns=4, site_bytes_per_s=20 * MIB)
    clock, flow = MonotonicClock(), traffic()
    began_s = clock.now_s()
    for _ in range(5):
        async with gate.slot(flow, MIB) as slot:
            slot.holds(MIB)
            slot.sent()
    assert clock.now_s() - began_s == pytest.approx(0.18, abs=0.08)  # the first is the burst, four wait off 1/20 s each
