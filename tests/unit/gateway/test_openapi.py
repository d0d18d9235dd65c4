"""The OpenAPI document is complete, and answers are what it promises."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from router.gateway import documents
from tests.support.fake_pipeline import Script
from tests.unit.gateway.conftest import Bench

USER = [{"role": "user", "content": "hi"}]
CALL = 'I look. <tool_call>{"name": "f", "arguments": {}}</tool_call>'
TOOL = {"type": "function", "function": {"name": "f"}}
BASE: dict[str, Any] = {"model": "test-model"}
GOOD: list[tuple[str, str, dict[str, Any] | None, type[BaseModel]]] = [
    ("POST", "/v1/chat/completions", {**BASE, "messages": USER}, documents.ChatCompletion),
    (
        "POST",
        "/v1/chat/completions",
        {**BASE, "messages": USER, "tools": [TOOL], "logprobs": True, "top_logprobs": 2, "n": 2, "prfaas_report": True,
         "return_token_ids": True, "metadata": {"a": "b"}, "service_tier": "flex"},
        documents.ChatCompletion,
    ),
    ("POST", "/v1/completions", {**BASE, "prompt": ["a", "b"], "logprobs": 2, "echo": True, "prfaas_report": True,
                                 "return_token_ids": True}, documents.Completion),
    ("POST", "/v1/messages", {**BASE, "messages": USER, "max_tokens": 90, "prfaas_report": True,
                              "tools": [{"name": "f", "input_schema": {}}]}, documents.AnthropicMessage),
    ("POST", "/v1/messages/count_tokens", {**BASE, "messages": USER}, documents.CountedTokens),
    ("POST", "/v1/responses", {**BASE, "input": "hi", "prfaas_report": True}, documents.StoredDocument),
    ("POST", "/tokenize", {**BASE, "prompt": "hi", "return_token_strs": True}, documents.Tokenized),
    ("POST", "/detokenize", {**BASE, "tokens": [70]}, documents.Detokenized),
    ("GET", "/v1/models", None, documents.ModelList),
    ("GET", "/v1/models/test-model", None, documents.ModelObject),
    ("GET", "/health", None, documents.Health),
    ("GET", "/live/state", None, documents.LiveState),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "body", "promise"), GOOD, ids=lambda value: str(value)[:24])
async def test_answers_keep_their_promise(
    bench: Bench, method: str, path: str, body: dict[str, Any] | None, promise: type[BaseModel]
) -> None:
    bench.pipeline.script = Script(replies=(CALL,))
    response = await bench.client.request(method, path, json=body)
    assert response.status_code == 200, response.text
    promise.model_validate_json(response.content)
    described = (await bench.client.get("/openapi.json")).json()
    template = "/v1/models/{model}" if path == "/v1/models/test-model" else path
    content = described["paths"][template][method.lower()]["responses"]["200"]["content"]
    schema = content["application/json"]["schema"]
    assert promise.__name__ in [each["$ref"].rpartition("/")[2] for each in schema.get("anyOf", [schema])]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/tokenize"])
async def test_errors_keep_their_promise(bench: Bench, path: str) -> None:
    response = await bench.client.post(path, json={})
    promise = documents.AnthropicError if path == "/v1/messages" else documents.OpenAIError
    promise.model_validate_json(response.content)
    assert response.status_code == 400


async def test_headers_are_described(bench: Bench) -> None:
    """And those that come are among them."""
    responses = (await bench.client.get("/openapi.json")).json()["paths"]["/v1/chat/completions"]["post"]["responses"]
    fields = {"prompt_cache_key": "k"}
    good = await bench.chat(**fields)
    assert set(responses["200"]["headers"]) <= set(good.headers)
    bench.fleet.context = None
    assert set(responses["5XX"]["headers"]) <= set((await bench.chat()).headers)


async def test_the_document_promises_no_status_that_never_comes(bench: Bench) -> None:
    document = (await bench.client.get("/openapi.json")).json()
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert "422" not in operation["responses"], path
    assert {"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"} <= set(document["paths"])
    assert "additionalProperties" in document["components"]["schemas"]["ChatRequest"]
