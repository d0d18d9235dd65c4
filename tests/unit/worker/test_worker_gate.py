"""A gate lets in only while open, and knows when it is empty."""

from __future__ import annotations

import asyncio

import pytest

from prfaas.errors import Draining
from prfaas.worker.gate import Gate


def opened() -> Gate:
    gate = Gate("decode")
    gate.open()
    return gate


def test_a_gate_is_closed_at_first() -> None:
    with pytest.raises(Draining, match="decode"):
        Gate("decode").admit()


def test_a_closed_gate_keeps_those_inside() -> None:
    gate = opened()
    leave = gate.admit()
    gate.close()
    with pytest.raises(Draining):
        gate.admit()
    assert gate.inside == 1
    leave()
    assert gate.inside == 0


def test_leaving_twice_counts_once() -> None:
    gate = opened()
    leave, other = gate.admit(), gate.admit()
    leave()
    leave()
    assert gate.inside == 1
    other()
    assert gate.inside == 0


def test_everybody_who_leaves_is_news() -> None:
    left: list[int] = []
    gate = Gate("decode", left=lambda: left.append(gate.inside))
    gate.open()
    leaves = [gate.admit(), gate.admit()]
    for leave in (*leaves, *leaves):
        leave()
    assert left == [1, 0]


async def test_waiting_ends_when_the_last_one_leaves() -> None:
    gate = opened()
    leaves = [gate.admit(), gate.admit()]
    waiting = asyncio.create_task(gate.wait_empty(60.0))
    leaves[0]()
    await asyncio.sleep(0)
    assert not waiting.done()
    leaves[1]()
    assert await waiting == 0


async def test_waiting_gives_up_and_says_how_many_are_left() -> None:
    gate = opened()
    gate.admit()
    assert await gate.wait_empty(0.0) == 1
