"""The official OpenAI Python SDK against the gateway on loopback, over a scripted pipeline."""

from __future__ import annotations

import time
from dataclasses import replace

import openai
import pytest
from openai import OpenAI

from prfaas.errors import QueueFull, WorkerUnreachable
from tests.support.fake_pipeline import Script, logprob_of
from tests.support.http_server import ServedGateway

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is the capital of France?"}]
ANSWER = "Paris is the capital of France."


def test_models(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["test-model"]
    assert client.models.retrieve("test-model").owned_by == "prfaas"
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.models.retrieve("other")


def test_chat(client: OpenAI, gateway: ServedGateway) -> None:
    response = client.chat.completions.create(model="test-model", messages=MESSAGES, seed=7, temperature=0)
    choice = response.choices[0]
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", ANSWER, "stop")
    sent = gateway.pipeline.requests[-1]
    assert (sent.sampling.seed, sent.sampling.temperature) == (7, 0)
    usage = response.usage
    assert usage.prompt_tokens == len(sent.tokens)
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.prompt_tokens_details.cached_tokens == 3


def test_chat_stream_with_usage(client: OpenAI) -> None:
    stream = client.chat.completions.create(
        model="test-model", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == ANSWER
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens > 1
    assert all(c.usage is None for c in chunks[:-1])


def test_the_report_reaches_the_sdk(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="test-model", messages=MESSAGES, extra_body={"prfaas_report": True}, extra_headers={"x-request-id": "mine-1"}
    )
    assert raw.headers["x-request-id"] == "mine-1"
    assert raw.headers["x-prfaas-route"].startswith("remote; reason=")
    report = raw.parse().model_extra["prfaas"]
    assert report["route"] == "remote"
    assert report["ttft_s"] == pytest.approx(sum(report["stages"].values()))


def test_stop_n_and_logprobs(client: OpenAI, gateway: ServedGateway) -> None:
    gateway.pipeline.script = Script(replies=("one two three", "four two five"))
    response = client.chat.completions.create(
        model="test-model", messages=MESSAGES, n=2, stop=" two", logprobs=True, top_logprobs=2
    )
    assert [choice.message.content for choice in response.choices] == ["one", "four"]
    for choice in response.choices:
        content = choice.logprobs.content
        assert "".join(entry.token for entry in content) == choice.message.content
        assert all(len(entry.top_logprobs) == 2 for entry in content)
        first = gateway.pipeline.text.encode(content[0].token, add_special_tokens=False)[0]
        assert content[0].logprob == logprob_of(first)
        assert bytes(content[0].bytes).decode() == content[0].token


def test_completions(client: OpenAI) -> None:
    response = client.completions.create(model="test-model", prompt=["The", "A"], max_tokens=2, echo=True)
    assert [choice.text for choice in response.choices] == ["TheParis is", "AParis is"]
    assert {choice.finish_reason for choice in response.choices} == {"length"}
    streamed = client.completions.create(model="test-model", prompt="The", stream=True, max_tokens=64)
    assert "".join(chunk.choices[0].text for chunk in streamed) == ANSWER


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"messages": []}, "messages"),
        ({"max_tokens": -1}, "greater than or equal to 1"),
        ({"temperature": 9}, "temperature"),
        ({"extra_body": {"colour": "red"}}, "Unrecognized request argument supplied: colour"),
        ({"max_tokens": 4000}, "too many"),
    ],
)
def test_bad_requests(client: OpenAI, gateway: ServedGateway, fields: dict[str, object], says: str) -> None:
    before = len(gateway.pipeline.requests)
    with pytest.raises(openai.BadRequestError, match=says):
        client.chat.completions.create(**{"model": "test-model", "messages": MESSAGES, **fields})
    assert len(gateway.pipeline.requests) == before


def test_busy_and_broken(client: OpenAI, gateway: ServedGateway) -> None:
    gateway.pipeline.script = Script(fail_at="decide", error=QueueFull("full", retry_after_s=2.2))
    with pytest.raises(openai.RateLimitError) as busy:
        client.chat.completions.create(model="test-model", messages=MESSAGES)
    assert busy.value.response.headers["retry-after"] == "3"
    gateway.pipeline.script = Script(fail_at="token:2", error=WorkerUnreachable("gone"))
    stream = client.chat.completions.create(model="test-model", messages=MESSAGES, stream=True)
    with pytest.raises(openai.APIError, match="gone"):
        list(stream)


def test_closing_a_stream_cancels_at_once(client: OpenAI, gateway: ServedGateway) -> None:
    gateway.pipeline.script = replace(Script(), replies=("one two three four five six",), token_delay_s=0.1)
    gateway.pipeline.ended.clear()
    stream = client.chat.completions.create(model="test-model", messages=MESSAGES, stream=True)
    next(iter(stream))
    stream.close()
    started = time.monotonic()
    while not gateway.pipeline.ended and time.monotonic() - started < 2:
        time.sleep(0.005)
    assert gateway.pipeline.ended == ["closed"]
    assert time.monotonic() - started < 0.3
