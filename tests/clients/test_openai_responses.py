"""The responses API through the official OpenAI Python SDK, over a scripted pipeline."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from openai import OpenAI

from prfaas.errors import EngineFailed
from prfaas.types import GrammarKind
from tests.support.fake_pipeline import Script
from tests.support.http_server import ServedGateway

ANSWER = "Paris is the capital of France."
TOOL: Any = {
    "type": "function",
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": False,
}
CALL = 'I look. <tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}}</tool_call>'


def prompt(gateway: ServedGateway) -> str:
    return gateway.pipeline.text.decode(gateway.pipeline.requests[-1].tokens)


def test_text_in_text_out(client: OpenAI, gateway: ServedGateway) -> None:
    response = client.responses.create(
        model="test-model",
        input="What is the capital of France?",
        instructions="Be brief.",
        max_output_tokens=50,
        temperature=0.5,
        metadata={"a": "b"},
        extra_body={"prfaas_report": True},
    )
    assert (response.output_text, response.status, response.metadata) == (ANSWER, "completed", {"a": "b"})
    sent = gateway.pipeline.requests[-1]
    assert (sent.sampling.max_tokens, sent.sampling.temperature) == (50, 0.5)
    assert prompt(gateway).split()[:3] == ["system", "Be", "brief."]
    assert response.usage is not None
    assert response.usage.input_tokens == len(sent.tokens)
    assert response.usage.input_tokens_details.cached_tokens == 3
    assert response.model_extra is not None
    assert response.model_extra["prfaas"]["route"] == "remote"


def test_the_stream_is_numbered_and_ends_with_the_whole(client: OpenAI) -> None:
    events = list(client.responses.create(model="test-model", input="Hi", stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == ANSWER
    assert events[-1].response.output_text == ANSWER
    with client.responses.stream(model="test-model", input="Hi") as stream:
        assert stream.get_final_response().output_text == ANSWER


def test_a_conversation_goes_on_from_what_was_stored(client: OpenAI, gateway: ServedGateway) -> None:
    first = client.responses.create(model="test-model", input="One?", instructions="Old rules.")
    second = client.responses.create(model="test-model", input="Two?", previous_response_id=first.id, instructions="New rules.")
    text = prompt(gateway)
    assert [text.find(part) >= 0 for part in ("One?", ANSWER, "Two?", "New rules.", "Old rules.")] == [True] * 4 + [False]
    assert client.responses.retrieve(second.id).output_text == ANSWER
    client.responses.delete(second.id)
    with pytest.raises(openai.NotFoundError, match="send the whole conversation"):
        client.responses.retrieve(second.id)
    unstored = client.responses.create(model="test-model", input="Three?", store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="test-model", input="x", previous_response_id=unstored.id)


def test_tools_round_trip(client: OpenAI, gateway: ServedGateway) -> None:
    gateway.pipeline.script = Script(replies=(CALL,))
    response = client.responses.create(model="test-model", input="Weather?", tools=[TOOL])
    assert [item.type for item in response.output] == ["message", "function_call"]
    call: Any = response.output[1]
    assert (call.name, call.arguments, call.status) == ("get_weather", '{"city": "Paris"}', "completed")
    events = list(client.responses.create(model="test-model", input="Weather?", tools=[TOOL], stream=True))
    deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert "".join(deltas) == '{"city": "Paris"}'
    gateway.pipeline.script = Script()
    items: Any = [
        {"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
        *[item.model_dump(exclude_none=True) for item in response.output],
        {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"},
    ]
    client.responses.create(model="test-model", input=items, tools=[TOOL])
    text = prompt(gateway)
    assert text.index("I look.") < text.index('"arguments": {"city": "Paris"}') < text.index("<tool_response>\nsunny")


def test_formats_choices_and_limits(client: OpenAI, gateway: ServedGateway) -> None:
    form: Any = {"format": {"type": "json_schema", "name": "x", "schema": {"type": "object"}, "strict": True}}
    client.responses.create(model="test-model", input="x", text=form)
    grammar = gateway.pipeline.requests[-1].sampling.grammar
    assert grammar is not None
    assert (grammar.kind, grammar.source) == (GrammarKind.JSON_SCHEMA, '{"type": "object"}')
    gateway.pipeline.script = Script(replies=('{"city": "Paris"}',))
    forced = client.responses.create(
        model="test-model", input="x", tools=[TOOL], tool_choice={"type": "function", "name": "get_weather"}
    )
    assert [item.type for item in forced.output] == ["function_call"]
    gateway.pipeline.script = Script()
    cut = client.responses.create(model="test-model", input="x", max_output_tokens=2)
    assert (cut.status, cut.output_text) == ("incomplete", "Paris is")
    assert cut.incomplete_details is not None
    assert cut.incomplete_details.reason == "max_output_tokens"


def test_logprobs(client: OpenAI) -> None:
    response = client.responses.create(model="test-model", input="x", include=["message.output_text.logprobs"], top_logprobs=2)
    part: Any = response.output[0].content[0]  # type: ignore[union-attr,index]
    assert "".join(entry.token for entry in part.logprobs) == ANSWER
    assert all(len(entry.top_logprobs) == 2 for entry in part.logprobs)


def test_errors(client: OpenAI, gateway: ServedGateway) -> None:
    with pytest.raises(openai.BadRequestError, match="Unrecognized request argument supplied: conversation"):
        client.responses.create(model="test-model", input="x", conversation="c")
    with pytest.raises(openai.BadRequestError, match="needs include"):
        client.responses.create(model="test-model", input="x", top_logprobs=2)
    with pytest.raises(openai.BadRequestError, match="background"):
        client.responses.create(model="test-model", input="x", background=True)
    gateway.pipeline.script = Script(fail_at="token:2", error=EngineFailed("died"))
    last: Any = list(client.responses.create(model="test-model", input="x", stream=True))[-1]
    assert (last.type, last.code) == ("error", "engine_failed")
    assert "died" in last.message
