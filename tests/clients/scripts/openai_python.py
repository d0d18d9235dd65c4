"""The official OpenAI package for Python: chat, stream, tools, JSON schema, logprobs, n, stop, cancel, responses, errors."""

import json
import os

import openai
from asked import MESSAGES, SCHEMA, TOOL

MODEL = os.environ["MODEL"]


def conversations(client: openai.OpenAI) -> None:
    base = {"model": MODEL, "messages": MESSAGES, "temperature": 0, "max_tokens": 16}
    whole = client.chat.completions.create(**base)
    text = whole.choices[0].message.content
    assert text, whole
    assert whole.usage.completion_tokens <= 16
    again = client.chat.completions.create(**base, stop=text.split()[1])
    assert text.split()[1] not in again.choices[0].message.content
    assert again.usage.prompt_tokens == whole.usage.prompt_tokens

    chunks = list(client.chat.completions.create(**base, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == text
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens

    scored = client.chat.completions.create(**base, logprobs=True, top_logprobs=2).choices[0]
    assert len(scored.logprobs.content) == len(client.chat.completions.create(
        **base, logprobs=True).choices[0].logprobs.content)  # fmt: skip
    assert "".join(entry.token for entry in scored.logprobs.content).startswith(text[:4])
    assert all(entry.top_logprobs[0].logprob >= entry.logprob - 1e-6 for entry in scored.logprobs.content)

    two = client.chat.completions.create(**{**base, "temperature": 1.5, "seed": 3}, n=2).choices
    assert [choice.index for choice in two] == [0, 1]
    assert two[0].message.content != two[1].message.content

    forced = client.chat.completions.create(
        **base, tools=[TOOL], tool_choice={"type": "function", "function": {"name": "get_weather"}}
    )
    call = forced.choices[0].message.tool_calls[0]
    assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome"), call
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    turns = [*MESSAGES, forced.choices[0].message, result]
    assert client.chat.completions.create(**{**base, "messages": turns}, tools=[TOOL]).choices[0].message

    shaped = client.chat.completions.create(
        **base, response_format={"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
    )
    assert json.loads(shaped.choices[0].message.content)["big"] in (True, False)

    response = client.responses.create(model=MODEL, input="Name a river.", max_output_tokens=8)
    assert response.output_text
    more = client.responses.create(model=MODEL, input="Another.", previous_response_id=response.id, max_output_tokens=8)
    assert more.usage.input_tokens > response.usage.input_tokens

    assert client.completions.create(model=MODEL, prompt="The capital of", max_tokens=4).choices[0].text


def cancel(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True, extra_body={"ignore_eos": True})
    next(iter(stream))
    stream.close()


def errors(client: openai.OpenAI) -> None:
    refused = (
        ({"model": "other"}, openai.NotFoundError, "does not exist"),
        ({"messages": []}, openai.BadRequestError, "messages"),
        ({"max_tokens": 10_000_000}, openai.BadRequestError, "too many"),
        ({"extra_body": {"colour": "red"}}, openai.BadRequestError, "Unrecognized request argument"),
    )
    for fields, kind, says in refused:
        assert says in refusal(client, fields, kind), fields


def refusal(client: openai.OpenAI, fields: dict[str, object], kind: type[Exception]) -> str:
    try:
        client.chat.completions.create(**{"model": MODEL, "messages": MESSAGES, **fields})
    except kind as error:
        return str(error)
    raise AssertionError(f"{fields} was accepted")


if __name__ == "__main__":
    with openai.OpenAI(max_retries=0, timeout=120) as session:
        conversations(session)
        cancel(session)
        errors(session)
    print("openai for Python passed")
