"""litellm: completion, stream, n, tools, JSON schema, logprobs, stop, text completion, cancel, errors."""

import json
import os

import litellm
from asked import MESSAGES, SCHEMA, TOOL

MODEL = os.environ["MODEL"]
BASE = {"model": f"openai/{MODEL}", "api_base": os.environ["OPENAI_BASE_URL"], "num_retries": 0, "messages": MESSAGES}


def conversations() -> None:
    short = {**BASE, "temperature": 0, "max_tokens": 16}
    whole = litellm.completion(seed=1, **short)
    text = whole.choices[0].message.content
    assert text, whole
    chunks = list(litellm.completion(stream=True, stream_options={"include_usage": True}, **short))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == text
    assert len(litellm.completion(n=2, **short).choices) == 2
    assert text.split()[1] not in litellm.completion(stop=[text.split()[1]], **short).choices[0].message.content
    scored = litellm.completion(logprobs=True, top_logprobs=2, **short).choices[0].logprobs
    assert len(scored.content[0].top_logprobs) == 2, scored
    forced = litellm.completion(tools=[TOOL], tool_choice={"type": "function", "function": {"name": "get_weather"}}, **short)
    assert json.loads(forced.choices[0].message.tool_calls[0].function.arguments)["city"] in ("Paris", "Rome"), forced
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
    assert json.loads(litellm.completion(response_format=form, **short).choices[0].message.content)["big"] in (True, False)
    prompt = litellm.text_completion(
        model=f"text-completion-openai/{MODEL}", api_base=BASE["api_base"], prompt="The capital of", max_tokens=2
    )
    assert prompt.choices[0].text, prompt


def cancel() -> None:
    stream = litellm.completion(stream=True, max_tokens=400, **BASE)
    assert next(iter(stream)).id
    stream.completion_stream.close()


def errors() -> None:
    refused = (
        ({"max_tokens": 10_000_000}, (litellm.ContextWindowExceededError, litellm.BadRequestError)),
        ({"model": "openai/other"}, litellm.NotFoundError),
    )
    for fields, kind in refused:
        try:
            litellm.completion(**{**BASE, **fields})
        except kind as error:
            print("refused as it should be:", type(error).__name__)
        else:
            raise AssertionError(f"{fields} was accepted")


if __name__ == "__main__":
    conversations()
    cancel()
    errors()
    print("litellm passed")
