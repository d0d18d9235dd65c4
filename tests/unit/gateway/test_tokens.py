"""Counting and converting tokens over HTTP."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.gateway.conftest import Bench


async def test_prompt_there_and_back(bench: Bench) -> None:
    text = "größer <|im_end|>"
    found = (
        await bench.client.post("/tokenize", json={"model": "test-model", "prompt": text, "return_token_strs": True})
    ).json()
    assert found["count"] == len(found["tokens"]) == len(found["token_strs"])
    assert found["max_model_len"] == 512
    for skip, expected in ((False, text), (True, "größer ")):
        body = {"model": "test-model", "tokens": found["tokens"], "skip_special_tokens": skip}
        assert (await bench.client.post("/detokenize", json=body)).json() == {"prompt": expected}


async def test_messages_count_as_the_chat_counts_them(bench: Bench) -> None:
    messages = [{"role": "user", "content": "hi"}]
    found = (await bench.client.post("/tokenize", json={"model": "test-model", "messages": messages})).json()
    usage = (await bench.chat(messages=messages)).json()["usage"]
    assert found["count"] == usage["prompt_tokens"]
    assert found["tokens"] == list(bench.pipeline.requests[0].tokens)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/tokenize", {}, 400),
        ("/tokenize", {"prompt": "x", "messages": [{"role": "user", "content": "x"}]}, 400),
        ("/tokenize", {"prompt": "x", "model": "other"}, 404),
        ("/detokenize", {"tokens": [99999]}, 400),
        ("/detokenize", {"tokens": ["1"]}, 400),
    ],
)
async def test_refusals(bench: Bench, path: str, body: dict[str, Any], status: int) -> None:
    assert (await bench.client.post(path, json={"model": "test-model", **body})).status_code == status
