"""A client that goes away, at every phase of a request: within a second nobody computes or holds anything for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from prfaas.types import GenerationRequest, Role, Route
from router.decode_stream import DecodeCall
from tests.support.worker_processes import Fleet, Worker, fleet, greedy, prompt

pytestmark = [pytest.mark.fault, pytest.mark.e2e]

WITHIN_S = 1.0
TRANSPORT = {"egress_bytes_per_s": 400_000, "lease_s": 30.0}
LONG = prompt(4000, seed=3)  # four seconds of prefill
QUICK = {"engine": {"time_scale": 0.02}}
ONE_AT_A_TIME = {"engine": {"max_running": 1}}


@dataclass
class Pair:
    """The two workers that serve one request."""

    fleet: Fleet
    decode: Worker
    far: Worker

    async def settled(self) -> None:
        await asyncio.gather(self.decode.settled(WITHIN_S), self.far.settled(WITHIN_S))


@pytest_asyncio.fixture
async def pair(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Pair]:
    far_changes, decode_changes = request.param
    async with fleet(tmp_path, transport=TRANSPORT) as workers:
        far, decode = await asyncio.gather(
            workers.start("far", Role.PREFILL, "prefill-dc", **far_changes),
            workers.start("decode", Role.DECODE, "pd-dc", **decode_changes),
        )
        yield Pair(workers, decode, far)


async def computing_far(pair: Pair, _call: DecodeCall) -> None:
    await pair.far.reached("computing", sequences_running=1)


async def landing(pair: Pair, _call: DecodeCall) -> None:
    await pair.decode.received_bytes()


async def on_the_wire(pair: Pair, _call: DecodeCall) -> None:
    await pair.far.computed()


async def computing_here(pair: Pair, _call: DecodeCall) -> None:
    await pair.decode.reached("computing", sequences_running=1)


async def decoding(_pair: Pair, call: DecodeCall) -> None:
    for _ in range(3):
        await call.take()


Phase = Callable[[Pair, DecodeCall], Awaitable[None]]
SLOW_BOTH: tuple[dict[str, Any], dict[str, Any]] = ({}, {})


@pytest.mark.parametrize(
    ("pair", "route", "request_", "phase"),
    [
        (SLOW_BOTH, Route.REMOTE, greedy(LONG), computing_far),
        (SLOW_BOTH, Route.REMOTE, greedy(LONG), landing),
        ((QUICK, {}), Route.REMOTE, greedy(LONG), on_the_wire),
        (SLOW_BOTH, Route.INLINE, greedy(LONG), computing_here),
        (SLOW_BOTH, Route.INLINE, greedy(prompt(10), max_tokens=4000), decoding),
        ((QUICK, {}), Route.REMOTE, greedy(prompt(10), max_tokens=4000), decoding),
    ],
    indirect=["pair"],
    ids=["computing-far", "landing", "on-the-wire", "computing-here", "decoding", "decoding-after-transfer"],
)
async def test_everything_stops_within_a_second(pair: Pair, route: Route, request_: GenerationRequest, phase: Phase) -> None:
    candidates = [] if route is Route.INLINE else [pair.far.candidate(route)]
    call = pair.decode.call(request_, *candidates)
    await phase(pair, call)
    assert (await pair.decode.counters())["decode_inside"] == 1
    call.cancel()
    await pair.settled()
    # Both workers still serve.
    again = greedy(prompt(20, seed=9), request_id="again", max_tokens=2)
    answer = await pair.decode.generate(again, pair.far.candidate(Route.REMOTE))
    assert (answer.report.route, len(answer.tokens)) == (Route.REMOTE, 2)


@pytest.mark.parametrize("pair", [(ONE_AT_A_TIME, {})], indirect=True)
async def test_one_that_waits_in_the_far_queue_leaves_it(pair: Pair) -> None:
    ahead = pair.decode.call(greedy(LONG, request_id="ahead"), pair.far.candidate(Route.REMOTE))
    await pair.far.reached("computing", sequences_running=1)
    behind = pair.decode.call(greedy(prompt(50, seed=5), request_id="behind"), pair.far.candidate(Route.REMOTE))
    await pair.far.reached("a queue", sequences_waiting=1)
    behind.cancel()
    counters = await pair.far.comes_to("an empty queue", lambda now: not now["sequences_waiting"], WITHIN_S)
    assert counters["sequences_running"] == 1
    ahead.cancel()
    await pair.settled()


@pytest.mark.parametrize("pair", [({}, ONE_AT_A_TIME)], indirect=True)
async def test_one_that_waits_for_the_decode_engine_leaves_it(pair: Pair) -> None:
    ahead = pair.decode.call(greedy(LONG, request_id="ahead"))
    await pair.decode.reached("computing", sequences_running=1)
    behind = pair.decode.call(greedy(prompt(50, seed=5), request_id="behind"))
    await pair.decode.reached("a queue", sequences_waiting=1)
    behind.cancel()
    ahead.cancel()
    await pair.settled()


# A quick sender on an unlimited link, and a decode worker that cannot hold 8,000 and 5,000 tokens at once.
SMALL_DECODE = (
    {"engine": {"time_scale": 0.02}, "transport": {"egress_bytes_per_s": 0}},
    {"engine": {"cache_bytes": 24 * 1024**2}},
)


@pytest.mark.parametrize("pair", [SMALL_DECODE], indirect=True, ids=["room-for-12000"])
async def test_one_that_waits_for_room_to_land_leaves_the_line(pair: Pair) -> None:
    ahead = pair.decode.call(greedy(prompt(8000, seed=4), request_id="ahead"))
    await pair.decode.reached("computing", sequences_running=1)
    behind = pair.decode.call(greedy(prompt(5000, seed=5), request_id="behind"), pair.far.candidate(Route.REMOTE))
    await pair.decode.reached("two inside", decode_inside=2)
    assert (await pair.decode.counters())["landings"] == 0
    assert (await pair.far.counters())["prefill_inside"] == 0
    behind.cancel()
    await pair.decode.comes_to("one inside", lambda now: now["decode_inside"] == 1, WITHIN_S)
    ahead.cancel()
    await pair.settled()


@pytest.mark.parametrize("pair", [SMALL_DECODE], indirect=True, ids=["room-for-12000"])
async def test_room_that_comes_free_is_landed_in(pair: Pair) -> None:
    ahead = pair.decode.call(greedy(prompt(8000, seed=4), request_id="ahead"))
    await pair.decode.reached("computing", sequences_running=1)
    asked = greedy(prompt(5000, seed=5), request_id="behind")
    behind = asyncio.create_task(pair.decode.generate(asked, pair.far.candidate(Route.REMOTE)))
    await pair.decode.reached("two inside", decode_inside=2)
    ahead.cancel()
    answer = await asyncio.wait_for(behind, 20.0)
    assert (answer.report.route, answer.report.attempts) == (Route.REMOTE, ())
    await pair.settled()


@pytest.mark.parametrize("pair", [SLOW_BOTH], indirect=True)
async def test_prefill_for_nobody_is_counted(pair: Pair) -> None:
    call = pair.decode.call(greedy(LONG), pair.far.candidate(Route.REMOTE))
    await landing(pair, call)
    call.cancel()
    await pair.settled()
    wasted = await pair.far.metric("prfaas_wasted_prefill_tokens_total")
    assert 128 <= wasted < len(LONG)


@pytest.mark.parametrize("pair", [({"transport": {"lease_s": 1.0}}, {})], indirect=True, ids=["lease-1s"])
async def test_a_decode_worker_that_dies_is_forgotten_after_the_lease(pair: Pair) -> None:
    call = pair.decode.call(greedy(LONG), pair.far.candidate(Route.REMOTE))
    await landing(pair, call)
    pair.decode.kill()
    await pair.far.settled(6.0)
    assert await pair.far.metric("prfaas_kv_leases_active") == 0
