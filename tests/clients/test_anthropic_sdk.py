"""The official Anthropic Python SDK against the gateway on loopback, over a scripted pipeline."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from prfaas.errors import EngineFailed, QueueFull
from prfaas.types import Grammar, GrammarKind
from tests.support.fake_pipeline import Script
from tests.support.http_server import ServedGateway

anthropic = pytest.importorskip("anthropic")

MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]
TOOL = {
    "name": "get_weather",
    "description": "Weather of a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}
CALL = 'I look. <tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}}</tool_call>'


@pytest.fixture
def client(gateway: ServedGateway) -> Iterator[Any]:
    gateway.pipeline.script = Script()
    with anthropic.Anthropic(base_url=gateway.url, api_key="unused", max_retries=0, timeout=20) as client:
        yield client


def test_message(client: Any, gateway: ServedGateway) -> None:
    message = client.messages.create(
        model="test-model",
        max_tokens=50,
        system=[{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        messages=MESSAGES,
        extra_body={"temperature": 0.5, "top_k": 3, "top_p": 0.9},
        output_config={"format": {"type": "json_schema", "schema": {"type": "string"}}},
        metadata={"user_id": "anna"},
    )
    assert (message.content[0].text, message.stop_reason) == ("Paris is the capital of France.", "end_turn")
    sent = gateway.pipeline.requests[-1]
    assert (sent.sampling.temperature, sent.sampling.top_k, sent.sampling.top_p, sent.sampling.max_tokens) == (0.5, 3, 0.9, 50)
    assert sent.tenant == "anna"
    assert sent.sampling.grammar == Grammar(GrammarKind.JSON_SCHEMA, '{"type": "string"}')
    assert "Be brief." in gateway.pipeline.text.decode(sent.tokens)
    assert message.usage.input_tokens + message.usage.cache_read_input_tokens == len(sent.tokens)
    assert message._request_id.startswith("req-")


def test_stream(client: Any) -> None:
    with client.messages.stream(model="test-model", max_tokens=50, messages=MESSAGES) as stream:
        texts = list(stream.text_stream)
        final = stream.get_final_message()
    assert "".join(texts) == "Paris is the capital of France." == final.content[0].text
    assert len(texts) > 3
    assert final.usage.output_tokens > 3


def test_stop_sequence_and_length(client: Any) -> None:
    stopped = client.messages.create(model="test-model", max_tokens=50, messages=MESSAGES, stop_sequences=["capital"])
    assert (stopped.stop_reason, stopped.stop_sequence, stopped.content[0].text) == (
        "stop_sequence",
        "capital",
        "Paris is the ",
    )
    cut = client.messages.create(model="test-model", max_tokens=2, messages=MESSAGES)
    assert (cut.stop_reason, cut.stop_sequence, cut.usage.output_tokens) == ("max_tokens", None, 2)


def test_tools(client: Any, gateway: ServedGateway) -> None:
    gateway.pipeline.script = Script(replies=(CALL,))
    message = client.messages.create(model="test-model", max_tokens=90, messages=MESSAGES, tools=[TOOL])
    assert message.stop_reason == "tool_use"
    assert [block.type for block in message.content] == ["text", "tool_use"]
    assert message.content[1].input == {"city": "Paris"}
    with client.messages.stream(model="test-model", max_tokens=90, messages=MESSAGES, tools=[TOOL]) as stream:
        streamed = stream.get_final_message()
    assert [block.type for block in streamed.content] == ["text", "tool_use"]
    assert streamed.content[1].input == {"city": "Paris"}
    gateway.pipeline.script = Script()
    result = {"type": "tool_result", "tool_use_id": message.content[1].id, "content": [{"type": "text", "text": "sunny"}]}
    turns = [*MESSAGES, {"role": "assistant", "content": message.content}, {"role": "user", "content": [result]}]
    assert client.messages.create(model="test-model", max_tokens=9, messages=turns, tools=[TOOL]).content
    prompt = gateway.pipeline.text.decode(gateway.pipeline.requests[-1].tokens)
    assert "<tool_response>\nsunny" in prompt


@pytest.mark.parametrize(
    "choice", [{"type": "any", "disable_parallel_tool_use": True}, {"type": "tool", "name": "get_weather"}]
)
def test_forced_tools(client: Any, gateway: ServedGateway, choice: dict[str, Any]) -> None:
    forced = '{"city": "Paris"}' if choice["type"] == "tool" else '[{"name": "get_weather", "parameters": {"city": "Paris"}}]'
    gateway.pipeline.script = Script(replies=(forced,))
    message = client.messages.create(model="test-model", max_tokens=90, messages=MESSAGES, tools=[TOOL], tool_choice=choice)
    assert message.content[0].input == {"city": "Paris"}
    grammar = gateway.pipeline.requests[-1].sampling.grammar
    assert grammar is not None
    assert grammar.kind is GrammarKind.JSON_SCHEMA
    assert ('"maxItems": 1' in grammar.source) == (choice["type"] == "any")


def test_count_tokens(client: Any, gateway: ServedGateway) -> None:
    counted = client.messages.count_tokens(model="test-model", messages=MESSAGES, tools=[TOOL], system="Be brief.")
    client.messages.create(model="test-model", max_tokens=9, messages=MESSAGES, tools=[TOOL], system="Be brief.")
    assert counted.input_tokens == len(gateway.pipeline.requests[-1].tokens)


def test_models(client: Any) -> None:
    (model,) = client.models.list()
    assert (model.type, model.id, model.display_name) == ("model", "test-model", "test-model")
    assert abs(model.created_at.timestamp() - time.time()) < 600
    assert client.models.retrieve("test-model") == model
    with pytest.raises(anthropic.NotFoundError, match="not_found_error"):
        client.models.retrieve("other")


def test_errors(client: Any, gateway: ServedGateway) -> None:
    with pytest.raises(anthropic.NotFoundError, match="not_found_error"):
        client.messages.create(model="other", max_tokens=9, messages=MESSAGES)
    with pytest.raises(anthropic.BadRequestError, match="colour: Extra inputs are not permitted"):
        client.messages.create(model="test-model", max_tokens=9, messages=MESSAGES, extra_body={"colour": 1})
    with pytest.raises(anthropic.BadRequestError, match="must be the user's"):
        client.messages.create(model="test-model", max_tokens=9, messages=[*MESSAGES, {"role": "assistant", "content": "P"}])
    gateway.pipeline.script = Script(fail_at="decide", error=QueueFull("full", retry_after_s=1.0))
    with pytest.raises(anthropic.RateLimitError, match="rate_limit_error"):
        client.messages.create(model="test-model", max_tokens=9, messages=MESSAGES)
    gateway.pipeline.script = Script(fail_at="token:2", error=EngineFailed("died"))
    with (
        pytest.raises(anthropic.APIStatusError, match="died"),
        client.messages.stream(model="test-model", max_tokens=9, messages=MESSAGES) as stream,
    ):
        list(stream.text_stream)
