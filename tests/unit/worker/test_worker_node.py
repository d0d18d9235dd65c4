"""Draining and changing roles: who is let in when, and what the router hears."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from prfaas.errors import Draining
from prfaas.types import CacheGroupInfo, GroupKind, LinkView, Role, SiteId, WorkerId, WorkerInfo, WorkerLoad
from prfaas.worker.gate import Gate
from prfaas.worker.node import Doors, Node, cache_groups
from tests.support.scripted import ScriptedEngine, ScriptedTransport
from tests.support.waiting import until


class Sender:
    """A sending half with two transfers."""

    def counters(self) -> Mapping[str, float]:
        return {"active_transfers": 2.0}

    def links(self) -> tuple[LinkView, ...]:
        return (LinkView(SiteId("pd"), SiteId("far"), queued_bytes=7),)


class Bench:
    """A node of a given role over a scripted engine."""

    def __init__(self, role: Role) -> None:
        info = WorkerInfo(
            worker_id=WorkerId("w1"),
            incarnation="i",
            site=SiteId("pd"),
            role=role,
            address="a:1",
            model="m",
            fingerprint_digest="f",
            max_context_tokens=10,
            block_tokens=4,
            total_blocks=8,
            max_running=2,
            device="cpu",
        )
        self.engine = ScriptedEngine()
        self.doors = Doors(prefill=Gate("prefill"), decode=Gate("decode"))
        self.news = asyncio.Event()
        self.node = Node(info, self.doors, engine=self.engine, transport=ScriptedTransport(), sender=Sender(), news=self.news)

    def open_doors(self) -> tuple[bool, bool]:
        """(prefill, decode)"""
        return self.doors.prefill.is_open, self.doors.decode.is_open


@pytest.mark.parametrize(
    ("role", "expected"), [(Role.PREFILL, (True, False)), (Role.PD_PREFILL, (True, False)), (Role.DECODE, (False, True))]
)
def test_the_role_says_which_door_is_open(role: Role, expected: tuple[bool, bool]) -> None:
    assert Bench(role).open_doors() == expected


async def test_draining_closes_tells_and_waits() -> None:
    bench = Bench(Role.DECODE)
    leave = bench.doors.decode.admit()
    draining = asyncio.create_task(bench.node.drain(60.0))
    await until(lambda: not bench.doors.decode.is_open)
    assert bench.news.is_set()
    assert bench.node.load().draining
    with pytest.raises(Draining):
        bench.doors.decode.admit()
    assert not draining.done()
    leave()
    assert await draining == 0


async def test_draining_gives_up_in_time() -> None:
    bench = Bench(Role.DECODE)
    bench.doors.decode.admit()
    assert await bench.node.drain(0.0) == 1
    assert bench.node.load().draining


async def test_a_converted_node_opens_the_other_door_only_when_the_first_is_empty() -> None:
    bench = Bench(Role.DECODE)
    leave = bench.doors.decode.admit()
    changing = asyncio.create_task(bench.node.set_role(Role.PD_PREFILL, 60.0))
    await until(lambda: not bench.doors.decode.is_open)
    assert bench.open_doors() == (False, False)
    assert bench.node.info().role is Role.DECODE
    leave()
    assert await changing == 0
    assert bench.open_doors() == (True, False)
    assert bench.node.info().role is Role.PD_PREFILL
    assert not bench.node.load().draining


async def test_what_does_not_end_in_time_goes_on_behind_the_closed_door() -> None:
    bench = Bench(Role.DECODE)
    bench.doors.decode.admit()
    assert await bench.node.set_role(Role.PD_PREFILL, 0.0) == 1
    assert bench.open_doors() == (True, False)
    assert bench.node.counters()["decode_inside"] == 1


async def test_a_role_behind_the_same_door_needs_no_drain() -> None:
    bench = Bench(Role.PREFILL)
    bench.doors.prefill.admit()
    assert await bench.node.set_role(Role.PD_PREFILL, 60.0) == 0
    assert bench.open_doors() == (True, False)
    assert bench.news.is_set()


async def test_a_drained_worker_is_opened_again_by_its_role() -> None:
    bench = Bench(Role.DECODE)
    await bench.node.drain(0.0)
    assert await bench.node.set_role(Role.DECODE, 0.0) == 0
    assert bench.open_doors() == (False, True)
    assert not bench.node.load().draining


async def test_a_change_nobody_waits_for_is_undone() -> None:
    bench = Bench(Role.DECODE)
    bench.doors.decode.admit()
    changing = asyncio.create_task(bench.node.set_role(Role.PD_PREFILL, 60.0))
    await until(lambda: not bench.doors.decode.is_open)
    changing.cancel()
    await asyncio.wait([changing])
    assert bench.open_doors() == (False, True)
    assert bench.node.info().role is Role.DECODE
    assert not bench.node.load().draining


async def test_a_cancelled_change_leaves_a_drained_worker_drained() -> None:
    bench = Bench(Role.DECODE)
    bench.doors.decode.admit()
    await bench.node.drain(0.0)
    changing = asyncio.create_task(bench.node.set_role(Role.PD_PREFILL, 60.0))
    await asyncio.sleep(0.01)
    changing.cancel()
    await asyncio.wait([changing])
    assert bench.open_doors() == (False, False)


def test_load_and_counters_cover_engine_and_transport() -> None:
    bench = Bench(Role.DECODE)
    bench.engine.now = WorkerLoad(running=3, free_blocks=5)
    assert bench.node.load() == WorkerLoad(running=3, free_blocks=5, active_transfers=2)
    counters = bench.node.counters()
    assert counters["blocks_total"] == 8
    assert counters["active_transfers"] == 2
    assert counters["open_lanes"] == 0
    assert (counters["prefill_inside"], counters["decode_inside"]) == (0, 0)


def test_cache_groups_count_all_their_layers() -> None:
    assert cache_groups(ScriptedEngine()) == (
        CacheGroupInfo("full", GroupKind.FULL, 16, None),
        CacheGroupInfo("state", GroupKind.STATE, 16, None),
    )


def test_a_node_tells_of_paths_to_it_and_of_paths_from_it() -> None:
    assert Bench(Role.PD_PREFILL).node.links() == (LinkView(SiteId("pd"), SiteId("far"), queued_bytes=7),)
