"""kill -9 of the prefilling worker, at every phase of a request: the right answer all the same, and nothing kept."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from prfaas.types import Role, Route
from tests.support.worker_processes import Answer, Fleet, Worker, fleet, greedy, prompt

pytestmark = [pytest.mark.fault, pytest.mark.e2e]

TRANSPORT = {"connect_timeout_s": 1.0, "progress_timeout_s": 2.0, "max_resumes": 1, "egress_bytes_per_s": 400_000}
FAST, SLOW = 0.02, 1.0  # time scales
PROMPT = prompt(1000, seed=3)


@dataclass
class Pair:
    """A sender that is about to die, and its receiver."""

    fleet: Fleet
    decode: Worker
    far: Worker


@pytest_asyncio.fixture
async def pair(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Pair]:
    async with fleet(tmp_path, engine={"time_scale": FAST}, transport=TRANSPORT) as workers:
        far, decode = await asyncio.gather(
            workers.start("far", Role.PREFILL, "prefill-dc", engine={"time_scale": request.param, "max_running": 1}),
            workers.start("decode", Role.DECODE, "pd-dc"),
        )
        yield Pair(workers, decode, far)


async def is_queued(pair: Pair) -> None:
    await pair.far.reached("a queue", sequences_waiting=1)


async def is_computing(pair: Pair) -> None:
    await pair.far.reached("computing", sequences_running=1)
    await pair.decode.reached("an open landing", landings=1, active_transfers=1)


async def is_landing(pair: Pair) -> None:
    """The first chunks have landed, later layers still compute."""
    await pair.decode.received_bytes()
    assert (await pair.far.counters())["sequences_running"] == 1


async def is_on_the_wire(pair: Pair) -> None:
    """Everything is computed, the link is what takes time."""
    await pair.far.computed()


@pytest.mark.parametrize(
    ("pair", "phase"),
    [(SLOW, is_queued), (SLOW, is_computing), (SLOW, is_landing), (FAST, is_on_the_wire)],
    indirect=["pair"],
    ids=["queued", "computing", "landing", "on-the-wire"],
)
async def test_the_answer_is_right_and_nothing_is_kept(pair: Pair, phase: Callable[[Pair], Awaitable[None]]) -> None:
    expected = (await pair.decode.generate(greedy(PROMPT, request_id="alone", cache_salt="alone"))).tokens
    others: list[asyncio.Task[Answer]] = []
    if phase is is_queued:  # one sequence at a time: this one is ahead
        blocker = greedy(prompt(2000, seed=4), request_id="ahead", cache_salt="ahead")
        others.append(asyncio.create_task(pair.decode.generate(blocker, pair.far.candidate(Route.REMOTE))))
        await pair.far.reached("computing", sequences_running=1)
    asked = greedy(PROMPT, request_id="hit", cache_salt="hit")
    hit = asyncio.create_task(pair.decode.generate(asked, pair.far.candidate(Route.REMOTE)))
    await phase(pair)
    assert not hit.done()
    pair.far.kill()
    answer = await asyncio.wait_for(hit, 20.0)
    await asyncio.gather(*others)
    assert answer.tokens == expected
    assert answer.report.route is Route.INLINE
    assert answer.report.attempts
    assert {attempt.partition(":")[0] for attempt in answer.report.attempts} == {"far"}
    assert {attempt.partition(":")[2] for attempt in answer.report.attempts} <= {"transfer_broken", "worker_unreachable"}
    assert await pair.decode.metric("prfaas_prefill_rungs_failed_total", route="remote") >= len(answer.report.attempts)
    await pair.decode.settled()


@pytest.mark.parametrize("pair", [FAST], indirect=True)
async def test_once_committed_the_sender_is_not_needed(pair: Pair) -> None:
    asked = greedy(PROMPT, max_tokens=300, request_id="decoding", cache_salt="decoding")
    call = pair.decode.call(asked, pair.far.candidate(Route.REMOTE))
    answer = Answer()

    def kill() -> None:
        if pair.far.process.poll() is None and answer.outputs:
            pair.far.kill()

    await answer.hear_all(call, kill)
    assert answer.report.route is Route.REMOTE
    assert len(answer.tokens) == 300
    await pair.decode.settled()


@pytest.mark.parametrize("pair", [SLOW], indirect=True)
async def test_the_next_candidate_takes_over_in_mid_transfer(pair: Pair) -> None:
    near = await pair.fleet.start("near", Role.PD_PREFILL, "pd-dc")
    expected = (await pair.decode.generate(greedy(PROMPT, request_id="alone", cache_salt="alone"))).tokens
    asked = greedy(PROMPT, request_id="hit", cache_salt="hit")
    ladder = (pair.far.candidate(Route.REMOTE), near.candidate(Route.LOCAL))
    hit = asyncio.create_task(pair.decode.generate(asked, *ladder))
    await is_landing(pair)
    pair.far.kill()
    answer = await asyncio.wait_for(hit, 20.0)
    assert answer.tokens == expected
    assert (answer.report.route, answer.report.worker_id) == (Route.LOCAL, "near")
    assert answer.report.attempts[0] == "far:transfer_broken"
    await pair.decode.settled()
    await near.settled()
