"""langchain-openai against OPENAI_BASE_URL: invoke, stream, batch, tools, JSON schema, logprobs, errors."""

import asyncio

import openai
from langchain_openai import ChatOpenAI

ANSWER = "Paris is the capital of France."


def main() -> None:
    model = ChatOpenAI(model="test-model", max_retries=0)
    answer = model.invoke("What is the capital of France?")
    assert answer.content == ANSWER, answer
    assert answer.usage_metadata["input_token_details"]["cache_read"] == 3, answer.usage_metadata
    assert "".join(chunk.content for chunk in model.stream("What is the capital of France?")) == ANSWER
    assert [each.content for each in model.batch(["a", "b"])] == [ANSWER, ANSWER]
    assert asyncio.run(model.ainvoke("x")).content == ANSWER
    assert model.invoke("x", stop=[" capital"]).content == "Paris is the"
    scored = model.bind(logprobs=True, top_logprobs=1).invoke("x")
    assert scored.response_metadata["logprobs"]["content"][0]["token"] == "Paris"

    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    told = model.bind_tools([tool]).invoke("x")
    assert told.content == ANSWER
    assert told.tool_calls == []
    try:
        model.bind(extra_body={"colour": "red"}).invoke("x")
    except openai.BadRequestError as error:
        refusal = str(error)
    else:
        raise AssertionError("an unknown parameter was accepted")
    assert "Unrecognized request argument" in refusal, refusal
    try:
        ChatOpenAI(model="other", max_retries=0).invoke("x")
    except openai.NotFoundError:
        pass
    else:
        raise AssertionError("an unknown model was accepted")
    print("langchain-openai passed")


if __name__ == "__main__":
    main()
