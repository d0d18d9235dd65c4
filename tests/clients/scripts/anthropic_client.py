"""The official Anthropic package: message, stream, tools, JSON schema, stop, token count, cancel, errors."""

import json
import os

import anthropic
from asked import CITY, MESSAGES, SCHEMA

MODEL = os.environ["MODEL"]
TOOL = {"name": "get_weather", "input_schema": CITY}


def conversations(client: anthropic.Anthropic) -> None:
    base = {"model": MODEL, "messages": MESSAGES, "extra_body": {"temperature": 0}, "max_tokens": 16}
    whole = client.messages.create(**base, system="Be brief.")
    assert whole.content[0].text, whole
    text = client.messages.create(**base).content[0].text
    with client.messages.stream(**base) as stream:
        assert "".join(stream.text_stream) == text
        assert stream.get_final_message().usage.output_tokens <= 16
    stopped = client.messages.create(**base, stop_sequences=[text.split()[1]])
    assert stopped.stop_reason == "stop_sequence", stopped
    forced = client.messages.create(**base, tools=[TOOL], tool_choice={"type": "tool", "name": "get_weather"})
    call = forced.content[0]
    assert (call.type, call.name, forced.stop_reason) == ("tool_use", "get_weather", "tool_use"), forced
    assert call.input["city"] in ("Paris", "Rome")
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "sunny"}]}
    turns = [*MESSAGES, {"role": "assistant", "content": forced.content}, result]
    assert client.messages.create(**{**base, "messages": turns}, tools=[TOOL]).usage.input_tokens > 0
    shaped = client.messages.create(**base, output_config={"format": {"type": "json_schema", "schema": SCHEMA}})
    assert json.loads(shaped.content[0].text)["big"] in (True, False), shaped
    counted = client.messages.count_tokens(model=MODEL, messages=MESSAGES)
    usage = client.messages.create(**base).usage
    assert counted.input_tokens == usage.input_tokens + usage.cache_read_input_tokens


def cancel(client: anthropic.Anthropic) -> None:
    with client.messages.stream(model=MODEL, messages=MESSAGES, max_tokens=400) as stream:
        next(iter(stream.text_stream))


def errors(client: anthropic.Anthropic) -> None:
    refused = (
        ({"model": "other"}, anthropic.NotFoundError, "not_found_error"),
        ({"messages": []}, anthropic.BadRequestError, "messages"),
        ({"max_tokens": 10_000_000}, anthropic.BadRequestError, "too many"),
        ({"extra_body": {"colour": 1}}, anthropic.BadRequestError, "Extra inputs are not permitted"),
    )
    for fields, kind, says in refused:
        assert says in refusal(client, fields, kind), fields


def refusal(client: anthropic.Anthropic, fields: dict[str, object], kind: type[Exception]) -> str:
    try:
        client.messages.create(**{"model": MODEL, "messages": MESSAGES, "max_tokens": 8, **fields})
    except kind as error:
        return str(error)
    raise AssertionError(f"{fields} was accepted")


if __name__ == "__main__":
    with anthropic.Anthropic(max_retries=0, timeout=120) as session:
        conversations(session)
        cancel(session)
        errors(session)
    print("anthropic passed")
