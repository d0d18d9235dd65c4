"""The running engine over the emulated backend: what it answers, alone, in a batch and turn after turn."""

from __future__ import annotations

import asyncio

import pytest

from prfaas.engine.api import Admitted, Finished, TokensOut
from prfaas.types import FinishReason
from tests.support.engine_streams import ANSWER, answers, ask, assert_nothing_held, drain, prompt, truth
from tests.support.tiny_specs import SHAPES, emulated_engine, tiny_spec


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("length", [1, 3, 4, 5, 37, 64])
async def test_generate_ends_well_and_frees_everything(shape: str, length: int) -> None:
    engine = emulated_engine(tiny_spec(shape))
    events = await drain(engine.submit(ask(prompt(length))))
    assert isinstance(events[0], Admitted)
    assert isinstance(events[-1], Finished)
    assert events[-1].usage.prompt_tokens == length
    assert events[-1].usage.completion_tokens == ANSWER == len(answers(events))
    last = [event for event in events if isinstance(event, TokensOut)][-1].outputs[0]
    assert last.finish_reason is FinishReason.LENGTH
    assert_nothing_held(engine)
    await engine.close()


@pytest.mark.parametrize("shape", SHAPES)
async def test_answers_do_not_depend_on_the_batch(shape: str) -> None:
    spec = tiny_spec(shape)
    requests = [ask(prompt(5 + 9 * i, seed=i), name=str(i)) for i in range(8)]
    engine = emulated_engine(spec, blocks=40, slots=6)
    together = await asyncio.gather(*(drain(engine.submit(request)) for request in requests))
    assert_nothing_held(engine)
    await engine.close()
    for request, events in zip(requests, together, strict=True):
        assert answers(events) == answers(await truth(spec, request))


@pytest.mark.parametrize("shape", SHAPES)
async def test_the_next_turn_finds_prompt_and_answer(shape: str) -> None:
    spec = tiny_spec(shape)
    engine = emulated_engine(spec)
    first = ask(prompt(13))
    answer = answers(await drain(engine.submit(first)))
    second = ask([*first.tokens, *answer, *prompt(5, seed=9)])
    expected = (13 + ANSWER - 1) // 4 * 4  # the last token of an answer is not computed
    assert engine.match(second) == expected
    events = await drain(engine.submit(second))
    assert isinstance(events[0], Admitted)
    assert events[0].cached_tokens == expected
    assert answers(events) == answers(await truth(spec, second))
    assert_nothing_held(engine)
    await engine.close()


async def test_samples_share_one_prefill_and_differ() -> None:
    spec = tiny_spec("everything")
    engine = emulated_engine(spec)
    events = await drain(engine.submit(ask(prompt(21), n=3, temperature=0.7, seed=11)))
    texts = [answers(events, index) for index in range(3)]
    assert len({tuple(text) for text in texts}) == 3
    usage = events[-1]
    assert isinstance(usage, Finished)
    assert usage.usage.completion_tokens == 3 * ANSWER
    assert_nothing_held(engine)
    await engine.close()


async def test_prompt_logprobs_cover_the_prompt_whatever_is_cached() -> None:
    spec = tiny_spec("kimi")
    engine = emulated_engine(spec)
    request = ask(prompt(37), prompt_logprobs=2, logprobs=1)
    for _ in range(2):
        events = await drain(engine.submit(request))
        first = next(event for event in events if isinstance(event, TokensOut)).outputs[0]
        assert first.prompt_logprobs is not None
        assert [entry[0].token_id for entry in first.prompt_logprobs] == list(request.tokens[1:])
        assert {len(entry) for entry in first.prompt_logprobs} == {3}
        assert len(first.top_logprobs) == 1
        assert isinstance(events[-1], Finished)
        assert events[-1].usage.cached_tokens == 0
    await engine.close()
