"""What is refused, with which status and words, and that no worker hears of it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.gateway.conftest import Bench

USER = {"role": "user", "content": "x"}
CHAT_CASES: list[tuple[dict[str, Any], int, str, str | None, str]] = [
    ({"model": "other"}, 404, "model_not_found", "model", "this service has 'test-model'"),
    ({"messages": []}, 400, "invalid_value", "messages", "at least 1 item"),
    ({"messages": "hi"}, 400, "invalid_value", "messages", "valid list"),
    ({"messages": [{"role": "king", "content": "x"}]}, 400, "invalid_value", "messages.0", "'user'"),
    ({"messages": [{"role": "user"}]}, 400, "missing_required_parameter", "messages.0.content", "Missing"),
    ({"messages": [{**USER, "colour": 1}]}, 400, "unknown_parameter", "messages.0.colour", "Unrecognized"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, 400, "invalid_value",
     "messages.0.content.0.type", "should be 'text'"),
    ({"max_tokens": -1}, 400, "invalid_value", "max_tokens", "greater than or equal to 1"),
    ({"max_tokens": 1.5}, 400, "invalid_value", "max_tokens", "valid integer"),
    ({"max_tokens": "5"}, 400, "invalid_value", "max_tokens", "valid integer"),
    ({"max_tokens": 10_000}, 400, "context_length_exceeded", "messages", "too many"),
    ({"temperature": "hot"}, 400, "invalid_value", "temperature", "valid number"),
    ({"temperature": 2.5}, 400, "invalid_value", "temperature", "less than or equal to 2"),
    ({"top_p": 0}, 400, "invalid_value", "top_p", "greater than 0"),
    ({"stream": "yes"}, 400, "invalid_value", "stream", "valid boolean"),
    ({"stop": ""}, 400, "invalid_request", "stop", "must not be empty"),
    ({"stop": ["x"] * 17}, 400, "invalid_request", "stop", "the limit is 16"),
    ({"stop": 5}, 400, "invalid_value", "stop", "valid string, or input should be a valid list"),
    ({"n": 17}, 400, "invalid_request", "n", "the limit is 16"),
    ({"n": 0}, 400, "invalid_value", "n", "greater than or equal to 1"),
    ({"logit_bias": {"x": 1}}, 400, "invalid_request", "logit_bias", "token ids"),
    ({"logit_bias": {"99999": 1}}, 400, "invalid_request", "logit_bias", "ids are 0 to"),
    ({"logit_bias": {"5": 101}}, 400, "invalid_value", "logit_bias.5", "less than or equal to 100"),
    ({"stop_token_ids": [99999]}, 400, "invalid_request", "stop_token_ids", "ids are 0 to"),
    ({"min_tokens": 9, "max_tokens": 8}, 400, "invalid_request", "min_tokens", "more than the 8 allowed"),
    ({"top_logprobs": 21}, 400, "invalid_value", "top_logprobs", "less than or equal to 20"),
    ({"stream": True, "stream_options": {"include_obfuscation": 0.0}}, 400, "invalid_value",
     "stream_options.include_obfuscation", "valid boolean"),
    ({"stream": True, "stream_options": {"include_obfuscation": True}}, 400, "invalid_value",
     "stream_options.include_obfuscation", "only false"),
    ({"frobnicate": True}, 400, "unknown_parameter", "frobnicate", "Unrecognized request argument supplied: frobnicate"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "status", "code", "param", "says"), CHAT_CASES, ids=lambda v: str(v)[:40])
async def test_chat_refusals(bench: Bench, fields: dict[str, Any], status: int, code: str, param: str, says: str) -> None:
    response = await bench.chat(**fields)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (status, code, param)
    assert error["type"] == "invalid_request_error"
    assert says in error["message"]
    assert bench.pipeline.requests == []
    assert bench.metric("prfaas_requests_total", outcome="rejected", reason=code) == 1


@pytest.mark.parametrize(
    ("content", "headers", "code"),
    [
        (b"{not json", {"content-type": "application/json"}, "invalid_json"),
        (b"", {"content-type": "application/json"}, "invalid_request"),
        (b"[1]", {"content-type": "application/json"}, "invalid_request"),
        (b'{"model": "test-model"}', {"content-type": "text/plain"}, "invalid_request"),
        (b'{"model": "test-model", "temperature": NaN, "messages": []}', {"content-type": "application/json"}, "invalid_value"),
        (b'{"model": "\xff"}', {"content-type": "application/json"}, "invalid_body"),
    ],
)
async def test_bodies_that_are_no_json_object(bench: Bench, content: bytes, headers: dict[str, str], code: str) -> None:
    response = await bench.client.post("/v1/chat/completions", content=content, headers=headers)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == code


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("/v1/chat/completions", rb'"messages": [{"role": "user", "content": "\ud800"}]'),
        ("/v1/chat/completions", rb'"messages": [{"role": "user", "content": "x"}], "user": "\uDFFF"'),
        ("/v1/chat/completions", rb'"messages": [{"role": "user", "content": "x"}], "chat_template_kwargs": {"a": "\ud83d x"}'),
        ("/v1/completions", rb'"prompt": ["fine", "\ude00\ud83d"]'),
        ("/v1/messages", rb'"max_tokens": 4, "messages": [{"role": "user", "content": "\ud800"}]'),
        ("/v1/responses", rb'"input": "\ud800"'),
        ("/tokenize", rb'"prompt": "\ud800"'),
    ],
)
async def test_half_a_surrogate_pair_is_no_text(bench: Bench, path: str, content: bytes) -> None:
    body = b'{"model": "test-model", ' + content + b"}"
    response = await bench.client.post(path, content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert "surrogate" in response.json()["error"]["message"]
    assert bench.pipeline.requests == []


async def test_whole_surrogate_pairs_and_their_spelling_are_text(bench: Bench) -> None:
    for content in (rb"\ud83d\ude00", rb"\\ud800"):
        body = b'{"model": "test-model", "messages": [{"role": "user", "content": "%s"}]}' % content
        response = await bench.client.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
        assert response.status_code == 200


async def test_a_long_prompt_says_by_how_many_tokens(bench: Bench) -> None:
    for fields, excess in (({"prompt": [65] * 600}, 89), ({"prompt": [65] * 500, "max_tokens": 20}, 8)):
        error = (await bench.complete(**fields)).json()["error"]
        assert error["code"] == "context_length_exceeded"
        assert f"that is {excess} too many" in error["message"]
    exact = await bench.complete(prompt=[65] * 500, max_tokens=12)
    assert exact.status_code == 200


async def test_the_default_shrinks_to_what_is_left(bench: Bench) -> None:
    await bench.complete(prompt=[65] * 507)
    assert bench.pipeline.requests[0].sampling.max_tokens == 5


async def test_no_worker_is_503_before_the_pipeline(bench: Bench) -> None:
    bench.fleet.context = None
    response = await bench.chat()
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert bench.pipeline.requests == []


COMPLETION_CASES: list[tuple[dict[str, Any], str, str]] = [
    ({"prompt": []}, "prompt", "empty"),
    ({"prompt": ""}, "prompt", "empty"),
    ({"prompt": [[]]}, "prompt", "empty"),
    ({"prompt": [400_000]}, "prompt", "ids are 0 to"),
    ({"prompt": ["x"] * 17}, "prompt", "17 prompts with 1 answers each make 17, the limit is 16"),
    ({"n": 17}, "n", "the limit is 16"),
    ({"best_of": 1, "n": 2}, "best_of", "less than n"),
    ({"best_of": 2, "stream": True}, "best_of", "cannot be streamed"),
    ({"prompt": {"a": 1}}, "prompt", "valid string"),
    ({"suffix": "x"}, "suffix", "Unrecognized"),
]


@pytest.mark.parametrize(("fields", "param", "says"), COMPLETION_CASES, ids=lambda v: str(v)[:40])
async def test_completion_refusals(bench: Bench, fields: dict[str, Any], param: str, says: str) -> None:
    response = await bench.complete(**fields)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param)
    assert says in error["message"]
    assert bench.pipeline.requests == []


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/images/generations", "/v1/audio/speech", "/v1/batches/b1"])
async def test_what_the_dialect_has_and_this_service_has_not_is_said(bench: Bench, path: str) -> None:
    response = await bench.client.post(path, json={"model": "test-model", "input": "x"})
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (404, "unsupported_endpoint")
    assert "not supported: this service generates text" in error["message"]


async def test_unknown_places_and_methods(bench: Bench) -> None:
    missing = await bench.client.get("/v1/nothing")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "unknown_url")
    wrong = await bench.client.get("/v1/chat/completions")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "method_not_allowed")


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'{"max_tokens": ' + b"9" * 10_000 + b"}", "number that is too long"),
        (b'{"model": "\xff\xfe"}', "not UTF-8"),
    ],
)
async def test_what_cannot_be_read_says_why(bench: Bench, body: bytes, why: str) -> None:
    response = await bench.client.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert why in response.json()["error"]["message"]
