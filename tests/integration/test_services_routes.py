"""A prefill worker and a decode worker as two processes: every route gives the same tokens and an honest report.

The engines are emulated: a token depends on every cache entry that a model would read, in every layer of every group,
so a byte that lands in a wrong place shows as a wrong token.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import pytest
import pytest_asyncio

from prfaas.errors import DeadlineExceeded, Draining, InvalidRequest, PromptTooLong
from prfaas.modelspec import GroupKind
from prfaas.types import FinishReason, PrefillCandidate, Role, Route, SamplingParams, SiteId, WorkerId
from tests.support.emulated_hybrid import CACHE, write_profile
from tests.support.worker_processes import Answer, Fleet, Worker, fleet, greedy, prompt

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.e2e]

NOWHERE = PrefillCandidate(WorkerId("nowhere"), SiteId("pd"), "127.0.0.1:1", Route.LOCAL)


@dataclass
class System:
    """The workers under test."""

    fleet: Fleet
    far: Worker
    near: Worker
    decode: Worker

    def candidates(self, route: Route) -> list[PrefillCandidate]:
        if route is Route.INLINE:
            return []
        return [(self.far if route is Route.REMOTE else self.near).candidate(route)]

    async def settled(self) -> None:
        for worker in (self.far, self.near, self.decode):
            await worker.settled()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[System]:
    async with fleet(tmp_path_factory.mktemp("workers"), engine={"time_scale": 0.05}) as workers:
        far, near, decode = await asyncio.gather(
            workers.start("far", Role.PREFILL, "prefill-dc"),
            workers.start("near", Role.PD_PREFILL, "pd-dc"),
            workers.start("decode", Role.DECODE, "pd-dc"),
        )
        yield System(workers, far, near, decode)
        await System(workers, far, near, decode).settled()


@pytest.mark.parametrize("num_tokens", [1, 2, 15, 16, 17, 39, 40, 41, 500])
async def test_every_route_gives_the_same_tokens(system: System, num_tokens: int) -> None:
    tokens = prompt(num_tokens, seed=num_tokens)
    answers = {}
    for route in Route:
        asked = greedy(tokens, request_id=f"{route}-{num_tokens}", cache_salt=f"equal-{route}-{num_tokens}")
        answers[route] = await system.decode.generate(asked, *system.candidates(route))
    assert answers[Route.LOCAL].tokens == answers[Route.REMOTE].tokens == answers[Route.INLINE].tokens
    assert len(answers[Route.INLINE].tokens) == 8
    for route, answer in answers.items():
        report = answer.report
        assert (report.route, report.attempts) == (route, ())
        assert answer.usages[0].prompt_tokens == num_tokens
        assert answer.usages[0].completion_tokens == 8
        positions = [output.position for output in answer.outputs]
        assert positions == list(range(8))
        if route is not Route.INLINE:
            assert report.worker_id == system.candidates(route)[0].worker_id
            assert report.kv_bytes >= CACHE.request_bytes(num_tokens)
        else:
            assert (report.worker_id, report.kv_bytes) == ("decode", 0)


async def test_different_prompts_at_once_do_not_mix(system: System) -> None:
    prompts = [prompt(length, seed=length) for length in (3, 33, 64, 65, 120, 121, 300, 301)]

    async def ask(route: Route, index: int) -> list[int]:
        asked = greedy(prompts[index], request_id=f"mix-{route}-{index}", cache_salt=f"mix-{route}")
        return (await system.decode.generate(asked, *system.candidates(route))).tokens

    alone = [await ask(Route.INLINE, index) for index in range(len(prompts))]
    for route in (Route.LOCAL, Route.REMOTE):
        together = await asyncio.gather(*(ask(route, index) for index in range(len(prompts))))
        assert list(together) == alone


async def test_only_what_is_missing_travels(system: System) -> None:
    """Turn two of a conversation: the decode worker holds turn one and its answer."""
    first = prompt(320, seed=77)
    one = greedy(first, request_id="turn-1", cache_salt="turns", max_tokens=16)
    answer = await system.decode.generate(one, *system.candidates(Route.REMOTE))
    second = (*first, *answer.tokens, *prompt(40, seed=78))
    two = greedy(second, request_id="turn-2", cache_salt="turns")
    continued = await system.decode.generate(two, *system.candidates(Route.REMOTE))
    fresh = await system.decode.generate(replace(two, cache_salt="other"), *system.candidates(Route.REMOTE))
    assert continued.tokens == fresh.tokens
    assert continued.report.cached_tokens >= 320
    assert continued.usages[0].cached_tokens == continued.report.cached_tokens
    held = continued.report.cached_tokens
    assert CACHE.request_bytes(len(second), held) <= continued.report.kv_bytes < fresh.report.kv_bytes
    assert fresh.report.cached_tokens == 0


async def test_a_prefix_known_only_at_the_other_site_is_counted(system: System) -> None:
    tokens = prompt(200, seed=5)
    far = system.candidates(Route.REMOTE)
    await system.decode.generate(greedy(tokens, request_id="warm", cache_salt="far-only"), *far)
    other = await system.fleet.start("other", Role.DECODE, "pd-dc")
    again = greedy((*tokens, 9), request_id="again", cache_salt="far-only")
    answer = await other.generate(again, *far)
    assert answer.report.cached_tokens == 192  # whole blocks of the 200
    assert answer.usages[0].cached_tokens == 192
    assert answer.report.kv_bytes >= CACHE.request_bytes(201)
    await other.settled()
    other.kill()


PLAIN = SamplingParams(max_tokens=6, temperature=0.0, ignore_eos=True)
SAMPLING = {
    "samples": replace(PLAIN, temperature=1.0, seed=11, n=3),
    "one-token": replace(PLAIN, max_tokens=1),
    "logprobs": replace(PLAIN, logprobs=2),
    "prompt-logprobs": replace(PLAIN, prompt_logprobs=1),
    "seed": replace(PLAIN, temperature=0.7, seed=2**64 - 1),
}


async def on_every_route(system: System, name: str, sampling: SamplingParams) -> list[Answer]:
    answers = []
    for route in Route:
        asked = replace(
            greedy(prompt(90, seed=4), request_id=f"{name}-{route}", cache_salt=f"{name}-{route}"), sampling=sampling
        )
        answers.append(await system.decode.generate(asked, *system.candidates(route)))
    return answers


@pytest.mark.parametrize("name", SAMPLING)
async def test_every_route_gives_the_same_outputs(system: System, name: str) -> None:
    """Not only the tokens: finish reasons, logprobs of first token and prompt, every sample."""
    inline, local, remote = await on_every_route(system, name, SAMPLING[name])
    assert inline.by_sample() == local.by_sample() == remote.by_sample()
    assert len(inline.by_sample()) == SAMPLING[name].n
    assert inline.usages == local.usages == remote.usages
    assert all(outputs[-1].finish_reason is FinishReason.LENGTH for outputs in inline.by_sample().values())


async def test_samples_differ(system: System) -> None:
    (answer, *_) = await on_every_route(system, "differ", SAMPLING["samples"])
    assert len({tuple(o.token_id for o in outputs) for outputs in answer.by_sample().values()}) == 3
    assert answer.usages[0].completion_tokens == 18


async def test_logprobs_are_there(system: System) -> None:
    (answer, *_) = await on_every_route(system, "there", replace(PLAIN, logprobs=2, prompt_logprobs=1))
    assert all(output.logprob is not None and len(output.top_logprobs) == 2 for output in answer.outputs)
    assert answer.outputs[0].prompt_logprobs is not None
    assert len(answer.outputs[0].prompt_logprobs) == 89


async def test_a_stop_on_the_first_token_holds_on_every_route(system: System) -> None:
    """The first token is drawn at the prefilling worker, the decoding one decides that it ends the request."""
    (plain, *_) = await on_every_route(system, "unstopped", PLAIN)
    first = plain.outputs[0].token_id
    stopped = await on_every_route(system, "stopped", replace(PLAIN, stop_token_ids=(first,)))
    for answer in stopped:
        assert [(output.token_id, output.finish_reason) for output in answer.outputs] == [(first, FinishReason.STOP)]
    forced = await on_every_route(system, "forced", replace(PLAIN, stop_token_ids=(first,), min_tokens=2))
    for answer in forced:
        assert answer.outputs[0].token_id != first
        assert answer.by_sample() == forced[0].by_sample()


async def test_a_dead_candidate_costs_a_rung(system: System) -> None:
    asked = greedy(prompt(100, seed=9), request_id="dead", cache_salt="dead")
    answer = await system.decode.generate(asked, NOWHERE, system.far.candidate(Route.REMOTE))
    assert answer.report.attempts == ("nowhere:worker_unreachable",)
    assert (answer.report.route, answer.report.worker_id) == (Route.REMOTE, "far")


async def test_without_any_live_candidate_the_prompt_is_prefilled_here(system: System) -> None:
    tokens = prompt(100, seed=9)
    alone = await system.decode.generate(greedy(tokens, request_id="alone", cache_salt="alone"))
    asked = greedy(tokens, request_id="last", cache_salt="last")
    answer = await system.decode.generate(asked, NOWHERE)
    assert answer.tokens == alone.tokens
    assert (answer.report.route, answer.report.attempts) == (Route.INLINE, ("nowhere:worker_unreachable",))


async def test_a_worker_with_other_weights_is_refused(system: System) -> None:
    other = write_profile(system.fleet.directory / "other.json", architecture="another")
    stranger = await system.fleet.start("stranger", Role.PREFILL, "prefill-dc", engine={"profile": str(other)})
    asked = greedy(prompt(100, seed=10), request_id="stranger", cache_salt="stranger")
    answer = await system.decode.generate(asked, stranger.candidate(Route.REMOTE))
    assert answer.report.attempts == ("stranger:fingerprint_mismatch",)
    assert answer.report.kv_bytes == 0
    await stranger.settled()
    stranger.kill()


async def test_a_prefill_door_is_not_a_decode_door(system: System) -> None:
    """And the other way round: a decode worker refuses to prefill for others."""
    asked = greedy(prompt(60, seed=12), request_id="doors", cache_salt="doors")
    answer = await system.decode.generate(asked, replace(system.decode.candidate(Route.LOCAL), worker_id=WorkerId("self")))
    assert answer.report.attempts == ("self:draining",)
    with pytest.raises(Draining, match="decode"):
        await system.far.generate(asked)


async def test_impossible_requests_end_with_their_own_error(system: System) -> None:
    far = system.candidates(Route.REMOTE)
    with pytest.raises(PromptTooLong):
        await system.decode.generate(greedy(prompt(9000), request_id="long"), *far)
    with pytest.raises(InvalidRequest):
        await system.decode.generate(greedy((), request_id="empty"), *far)


async def test_the_deadline_holds_across_workers(system: System) -> None:
    """A prompt of 8,000 tokens takes 0.4 s here."""
    asked = greedy(prompt(8000, seed=13), request_id="late", cache_salt="late", deadline_s=0.15)
    with pytest.raises(DeadlineExceeded):
        await system.decode.generate(asked, *system.candidates(Route.REMOTE))
    await system.settled()


async def test_workers_say_who_they_are(system: System) -> None:
    status = await system.decode.status()
    assert (status.info.worker_id, status.info.role, status.info.site) == ("decode", "decode", "pd-dc")
    assert status.info.total_blocks == status.counters["blocks_total"]
    kinds = {group.name: group.kind for group in status.info.cache_groups}
    assert kinds == {"full": GroupKind.FULL, "window": GroupKind.SLIDING, "state": GroupKind.STATE}
    assert {info.fingerprint_digest for info in system.fleet.router.registered if info.worker_id in {"far", "near"}} == {
        status.info.fingerprint_digest
    }
