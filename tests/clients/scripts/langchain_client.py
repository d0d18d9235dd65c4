"""langchain-openai: invoke, stream, batch, async, tools, JSON schema, logprobs, n, stop, cancel, errors."""

import asyncio
import os

import openai
from asked import QUESTION, SCHEMA, TOOL
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI

MODEL = os.environ["MODEL"]
TITLED = {"title": "answer", **SCHEMA}  # the library names a schema by its title


def conversations() -> None:
    model = ChatOpenAI(model=MODEL, max_retries=0, temperature=0, max_tokens=16)
    answer = model.invoke(QUESTION)
    assert answer.content, answer
    assert answer.usage_metadata["output_tokens"] <= 16
    assert "".join(chunk.content for chunk in model.stream(QUESTION)) == answer.content
    assert len(model.batch([QUESTION, "Name a river."])) == 2
    word = answer.content.split()[1]
    assert word not in model.invoke(QUESTION, stop=[word]).content
    scored = model.bind(logprobs=True, top_logprobs=1).invoke(QUESTION)
    assert scored.response_metadata["logprobs"]["content"][0]["top_logprobs"]
    two = ChatOpenAI(model=MODEL, max_retries=0, temperature=1.5, max_tokens=8, n=2).generate([[HumanMessage(QUESTION)]])
    assert len(two.generations[0]) == 2
    forced = model.bind_tools([TOOL], tool_choice="get_weather").invoke(QUESTION)
    assert forced.tool_calls[0]["args"]["city"] in ("Paris", "Rome"), forced
    shaped = model.with_structured_output(TITLED, method="json_schema").invoke(QUESTION)
    assert shaped["big"] in (True, False), shaped


async def cancel() -> None:
    """All that is asynchronous: the package keeps one client for one event loop."""
    model = ChatOpenAI(model=MODEL, max_retries=0, max_tokens=400)
    assert (await model.ainvoke(QUESTION, max_tokens=4)).content
    stream = model.astream(QUESTION)
    assert await anext(stream) is not None
    await stream.aclose()


def refusal(model: ChatOpenAI, kind: type[Exception]) -> str:
    try:
        model.invoke("x")
    except kind as error:
        return str(error)
    raise AssertionError("the request was accepted")


def errors() -> None:
    assert "does not exist" in refusal(ChatOpenAI(model="other", max_retries=0), openai.NotFoundError)
    odd = ChatOpenAI(model=MODEL, max_retries=0, extra_body={"colour": "red"})
    assert "Unrecognized request argument" in refusal(odd, openai.BadRequestError)


if __name__ == "__main__":
    conversations()
    asyncio.run(cancel())
    errors()
    print("langchain-openai passed")
