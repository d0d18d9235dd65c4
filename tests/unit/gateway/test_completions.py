"""POST /v1/completions: prompts of all spellings, echo, best_of, logprobs, token ids."""

from __future__ import annotations

from itertools import chain
from typing import Any

import pytest

from prfaas.errors import EngineFailed
from tests.support.fake_pipeline import Script, logprob_of
from tests.unit.gateway.conftest import Bench
from tests.unit.gateway.test_chat import events

ANSWER = "Paris is the capital of France."


async def test_prompts_in_four_spellings(bench: Bench) -> None:
    ids = list(bench.text.encode("The capital", add_special_tokens=True))
    for prompt, count in (("The capital", 1), (ids, 1), (["The capital", "The capital"], 2), ([ids, ids, ids], 3)):
        bench.pipeline.requests.clear()
        body = (await bench.complete(prompt=prompt)).json()
        assert [choice["index"] for choice in body["choices"]] == list(range(count))
        assert [list(request.tokens) for request in bench.pipeline.requests] == [ids] * count
        assert len({request.request_id for request in bench.pipeline.requests}) == count
        assert body["usage"]["prompt_tokens"] == len(ids) * count
        assert body["id"].startswith("cmpl-")


async def test_sixteen_tokens_by_default(bench: Bench) -> None:
    await bench.complete()
    assert bench.pipeline.requests[0].sampling.max_tokens == 16


@pytest.mark.parametrize("logprobs", [None, 2])
@pytest.mark.parametrize("echo", [False, True])
async def test_the_stream_adds_up_to_the_document(bench: Bench, echo: bool, logprobs: int | None) -> None:
    fields = {"prompt": ["The capital", "Hello"], "n": 2, "echo": echo, "logprobs": logprobs, "return_token_ids": True}
    whole = (await bench.complete(**fields)).json()
    chunks = events((await bench.complete(**fields, stream=True, stream_options={"include_usage": True})).text)
    assert len(whole["choices"]) == 4
    for index, choice in enumerate(whole["choices"]):
        parts = [part for chunk in chunks for part in chunk["choices"] if part["index"] == index]
        assert "".join(part["text"] for part in parts) == choice["text"]
        assert list(chain.from_iterable(part["token_ids"] for part in parts)) == choice["token_ids"]
        assert parts[0]["prompt_token_ids"] == choice["prompt_token_ids"]
        assert parts[-1]["finish_reason"] == choice["finish_reason"] == "stop"
        for key in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            if logprobs is not None:
                assert list(chain.from_iterable(part["logprobs"][key] for part in parts)) == choice["logprobs"][key]
    assert {**chunks[-1]["usage"]} == whole["usage"]


async def test_echo_with_logprobs_covers_the_prompt(bench: Bench) -> None:
    choice = (await bench.complete(echo=True, logprobs=1, max_tokens=1)).json()["choices"][0]
    prompt = bench.text.encode("The capital", add_special_tokens=True)
    assert choice["text"] == "The capitalParis"
    assert choice["logprobs"]["tokens"] == ["The", " capital", "Paris"]
    assert choice["logprobs"]["token_logprobs"][:2] == [None, logprob_of(prompt[1])]
    assert choice["logprobs"]["text_offset"] == [0, 3, 11]
    assert bench.pipeline.requests[0].sampling.prompt_logprobs == 1


async def test_token_ids_include_the_stop_token(bench: Bench) -> None:
    choice = (await bench.complete(return_token_ids=True)).json()["choices"][0]
    assert choice["token_ids"] == [*bench.text.encode(ANSWER, add_special_tokens=False), bench.pipeline.eos_token_id]


async def test_best_of_keeps_the_likeliest(bench: Bench) -> None:
    replies = ("Hello", "Paris is", "the dog", "a")
    scores = {
        reply: sum(map(logprob_of, ids)) / len(ids)
        for reply in replies
        if (ids := bench.text.encode(reply, add_special_tokens=False))
    }
    bench.pipeline.script = Script(replies=replies)
    body = (await bench.complete(best_of=4, n=2)).json()
    best = sorted(replies, key=lambda reply: scores[reply], reverse=True)[:2]
    assert [choice["text"] for choice in body["choices"]] == best
    assert [choice["index"] for choice in body["choices"]] == [0, 1]
    assert all(choice["logprobs"] is None for choice in body["choices"])
    assert body["usage"]["completion_tokens"] > 4


async def test_half_characters_have_names_of_their_own(bench: Bench) -> None:
    bench.pipeline.script = Script(replies=("€",))
    choice = (await bench.complete(logprobs=0)).json()["choices"][0]
    assert choice["text"] == "€"
    assert choice["logprobs"]["tokens"] == ["bytes:\\xe2", "bytes:\\x82", "bytes:\\xac"]


async def test_one_failure_ends_all_prompts(bench: Bench) -> None:
    bench.pipeline.script = Script(fail_at="token:1", error=EngineFailed("died"), token_delay_s=0.001)
    response = await bench.complete(prompt=["a", "b", "c"])
    assert response.status_code == 500
    assert len(bench.pipeline.ended) == 3
    assert "failed" in bench.pipeline.ended


async def test_report_per_prompt(bench: Bench) -> None:
    one = (await bench.complete(prfaas_report=True)).json()["prfaas"]
    many = (await bench.complete(prompt=["a", "b"], prfaas_report=True)).json()["prfaas"]
    assert one["route"] == "remote"
    assert [each["route"] for each in many] == ["remote", "remote"]


async def test_chat_gives_token_ids_too(bench: Bench) -> None:
    whole = (await bench.chat(return_token_ids=True)).json()
    chunks = events((await bench.chat(return_token_ids=True, stream=True)).text)
    assert whole["prompt_token_ids"] == list(bench.pipeline.requests[0].tokens) == chunks[0]["prompt_token_ids"]
    streamed: list[Any] = list(chain.from_iterable(chunk["choices"][0]["token_ids"] for chunk in chunks))
    assert streamed == whole["choices"][0]["token_ids"]
    assert bench.text.decode(streamed) == ANSWER
