"""No parameter is ignored in silence: changing it changes the request, the answer or its headers, or it is refused by name.

Every field that a dialect's schema accepts has a row here; a new field without one fails the test.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from prfaas.text import TextModel, load_text_model
from router.gateway.anthropic_schema import CountRequest, MessagesRequest
from router.gateway.openai_schema import ChatRequest, CompletionRequest
from router.gateway.responses_schema import ResponsesRequest
from router.gateway.tokens import DetokenizeRequest, TokenizeRequest
from tests.support.fake_pipeline import Script
from tests.support.text_models import CHATML, write_text_model
from tests.unit.gateway.conftest import Bench

Fields = dict[str, Any]
USER = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
FLAT_TOOL = {"type": "function", "name": "f", "parameters": {"type": "object"}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
# A model that can be told to think, how much, and to keep what it thought.
THINKER = (
    "{% if enable_thinking is defined %}switch {{ enable_thinking }} {% endif %}"
    "{% if preserve_thinking is defined %}keep {{ preserve_thinking }} {% endif %}"
    "{% if tools %}{% for tool in tools %}{{ tool | tojson }}{% endfor %}{% endif %}"
    "{# <tool_call> <think></think> #}"
) + CHATML

SAMPLING: dict[str, tuple[Fields, Fields]] = {
    "model": ({}, {"model": "other"}),
    "stream": ({}, {"stream": True}),
    "stream_options": ({"stream": True}, {"stream_options": {"include_usage": True}}),
    "temperature": ({}, {"temperature": 0.5}),
    "top_p": ({}, {"top_p": 0.5}),
    "n": ({}, {"n": 2}),
    "stop": ({}, {"stop": " is"}),
    "seed": ({"seed": 1}, {"seed": 2}),
    "frequency_penalty": ({}, {"frequency_penalty": 1}),
    "presence_penalty": ({}, {"presence_penalty": 1}),
    "logit_bias": ({}, {"logit_bias": {"5": 1}}),
    "max_tokens": ({}, {"max_tokens": 2}),
    "user": ({}, {"user": "anna"}),
    "top_k": ({}, {"top_k": 5}),
    "min_p": ({}, {"min_p": 0.1}),
    "repetition_penalty": ({}, {"repetition_penalty": 1.1}),
    "min_tokens": ({}, {"min_tokens": 2}),
    "stop_token_ids": ({}, {"stop_token_ids": [300]}),
    "ignore_eos": ({}, {"ignore_eos": True}),
    "cache_salt": ({}, {"cache_salt": "x"}),
    "priority": ({}, {"priority": 1}),
    "return_token_ids": ({}, {"return_token_ids": True}),
    "prfaas_report": ({}, {"prfaas_report": True}),
}
CHAT = {
    **SAMPLING,
    "messages": ({}, {"messages": [{"role": "user", "content": "ho"}]}),
    "max_completion_tokens": ({"max_tokens": 5}, {"max_completion_tokens": 2}),
    "logprobs": ({}, {"logprobs": True}),
    "top_logprobs": ({"logprobs": True}, {"top_logprobs": 2}),
    "response_format": ({}, {"response_format": {"type": "json_object"}}),
    "structured_outputs": ({}, {"structured_outputs": {"regex": "a+"}}),
    "tools": ({}, {"tools": [TOOL]}),
    "tool_choice": ({"tools": [TOOL]}, {"tool_choice": "required"}),
    "parallel_tool_calls": ({"tools": [TOOL], "tool_choice": "required"}, {"parallel_tool_calls": False}),
    "reasoning_effort": ({}, {"reasoning_effort": "none"}),
    "thinking": ({}, {"thinking": {"type": "disabled"}}),
    "preserve_thinking": ({}, {"preserve_thinking": True}),
    "chat_template_kwargs": ({}, {"chat_template_kwargs": {"unheard_of": 1}}),
    "metadata": ({}, {"metadata": {"a": "b"}}),
    "service_tier": ({}, {"service_tier": "priority"}),
    "prompt_cache_key": ({}, {"prompt_cache_key": "k"}),
    "prompt_cache_retention": ({}, {"prompt_cache_retention": "24h"}),
    "prompt_cache_options": ({}, {"prompt_cache_options": {}}),
    "safety_identifier": ({}, {"safety_identifier": "s"}),
    "store": ({}, {"store": True}),
    "modalities": ({}, {"modalities": ["audio"]}),
    "verbosity": ({}, {"verbosity": "low"}),
    "audio": ({}, {"audio": {}}),
    "prediction": ({}, {"prediction": {}}),
    "web_search_options": ({}, {"web_search_options": {}}),
    "functions": ({}, {"functions": []}),
    "function_call": ({}, {"function_call": "auto"}),
}
COMPLETION = {
    **SAMPLING,
    "prompt": ({}, {"prompt": "ho"}),
    "best_of": ({}, {"best_of": 2}),
    "echo": ({}, {"echo": True}),
    "logprobs": ({}, {"logprobs": 1}),
}
RESPONSES: dict[str, tuple[Fields, Fields]] = {
    "model": ({}, {"model": "other"}),
    "input": ({}, {"input": "ho"}),
    "instructions": ({}, {"instructions": "Be brief."}),
    "previous_response_id": ({}, {"previous_response_id": "resp_unknown"}),
    "store": ({}, {"store": False}),
    "stream": ({}, {"stream": True}),
    "max_output_tokens": ({}, {"max_output_tokens": 2}),
    "temperature": ({}, {"temperature": 0.5}),
    "top_p": ({}, {"top_p": 0.5}),
    "top_logprobs": ({"include": ["message.output_text.logprobs"]}, {"top_logprobs": 2}),
    "include": ({}, {"include": ["message.output_text.logprobs"]}),
    "tools": ({}, {"tools": [FLAT_TOOL]}),
    "tool_choice": ({"tools": [FLAT_TOOL]}, {"tool_choice": "required"}),
    "parallel_tool_calls": ({"tools": [FLAT_TOOL], "tool_choice": "required"}, {"parallel_tool_calls": False}),
    "reasoning": ({}, {"reasoning": {"effort": "none"}}),
    "text": ({}, {"text": {"format": {"type": "json_object"}}}),
    "truncation": ({}, {"truncation": "auto"}),
    "background": ({}, {"background": True}),
    "metadata": ({}, {"metadata": {"a": "b"}}),
    "service_tier": ({}, {"service_tier": "priority"}),
    "user": ({}, {"user": "anna"}),
    "prompt_cache_key": ({}, {"prompt_cache_key": "k"}),
    "prompt_cache_retention": ({}, {"prompt_cache_retention": "24h"}),
    "prompt_cache_options": ({}, {"prompt_cache_options": {}}),
    "safety_identifier": ({}, {"safety_identifier": "s"}),
    "prfaas_report": ({}, {"prfaas_report": True}),
}
ANTHROPIC_TOOL = {"name": "f", "input_schema": {"type": "object"}}
COUNT: dict[str, tuple[Fields, Fields]] = {
    "model": ({}, {"model": "other"}),
    "messages": ({}, {"messages": [{"role": "user", "content": "hello there"}]}),
    "system": ({}, {"system": "Be brief."}),
    "tools": ({}, {"tools": [ANTHROPIC_TOOL]}),
    "tool_choice": ({"tools": [ANTHROPIC_TOOL]}, {"tool_choice": {"type": "none"}}),
    "thinking": ({}, {"thinking": {"type": "disabled"}}),
    "output_config": ({}, {"output_config": {"effort": "low"}}),
}
MESSAGES = {
    **COUNT,
    "cache_control": ({}, {"cache_control": {"type": "ephemeral"}}),
    "max_tokens": ({}, {"max_tokens": 2}),
    "stop_sequences": ({}, {"stop_sequences": [" is"]}),
    "stream": ({}, {"stream": True}),
    "temperature": ({}, {"temperature": 0.5}),
    "top_p": ({}, {"top_p": 0.5}),
    "top_k": ({}, {"top_k": 5}),
    "metadata": ({}, {"metadata": {"user_id": "anna"}}),
    "service_tier": ({}, {"service_tier": "standard_only"}),
    "prfaas_report": ({}, {"prfaas_report": True}),
}
TOKENIZE: dict[str, tuple[Fields, Fields]] = {
    "model": ({}, {"model": "other"}),
    "prompt": ({}, {"prompt": "hello there"}),
    "messages": ({}, {"prompt": None, "messages": USER}),
    "tools": ({"prompt": None, "messages": USER}, {"tools": [TOOL]}),
    "chat_template_kwargs": ({"prompt": None, "messages": USER}, {"chat_template_kwargs": {"enable_thinking": False}}),
    "return_token_strs": ({}, {"return_token_strs": True}),
}
DETOKENIZE: dict[str, tuple[Fields, Fields]] = {
    "model": ({}, {"model": "other"}),
    "tokens": ({}, {"tokens": [80]}),
    "skip_special_tokens": ({"tokens": [1, 70]}, {"skip_special_tokens": True}),
}
BASE: dict[str, tuple[type[BaseModel], Fields, dict[str, tuple[Fields, Fields]]]] = {
    "/v1/chat/completions": (ChatRequest, {"messages": USER}, CHAT),
    "/v1/completions": (CompletionRequest, {"prompt": "hi"}, COMPLETION),
    "/v1/responses": (ResponsesRequest, {"input": "hi"}, RESPONSES),
    "/v1/messages": (MessagesRequest, {"messages": USER, "max_tokens": 60}, MESSAGES),
    "/v1/messages/count_tokens": (CountRequest, {"messages": USER}, COUNT),
    "/tokenize": (TokenizeRequest, {"prompt": "hi"}, TOKENIZE),
    "/detokenize": (DetokenizeRequest, {"tokens": [70]}, DETOKENIZE),
}
# What has no effect and need not have any: a cache mark changes no token count, and a byte-level tokenizer adds nothing.
WITHOUT_EFFECT = {"/v1/messages/count_tokens": {"cache_control"}, "/tokenize": {"add_special_tokens"}}
ROWS = [(path, name, base, change) for path, (_, _, rows) in BASE.items() for name, (base, change) in rows.items()]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> TextModel:
    directory: Path = tmp_path_factory.mktemp("thinker")
    return load_text_model(str(write_text_model(directory, template=THINKER)))


@pytest.mark.parametrize("path", BASE)
def test_every_field_has_a_row(path: str) -> None:
    model, _, rows = BASE[path]
    assert set(rows) | WITHOUT_EFFECT.get(path, set()) == set(model.model_fields)


@pytest.mark.parametrize(("path", "name", "base", "change"), ROWS, ids=lambda value: value if isinstance(value, str) else "")
async def test_a_parameter_changes_something_or_is_refused(
    bench: Bench, path: str, name: str, base: Fields, change: Fields
) -> None:
    bench.pipeline.script = Script(replies=("Paris is the capital. </think> Paris is the capital.",))
    fixed = {"model": "test-model", **BASE[path][1], **base}
    status, before = await seen(bench, path, fixed)
    assert status == 200, before
    status, after = await seen(bench, path, {**fixed, **change})
    assert after != before
    if status != 200:
        body = json.loads(after[1])
        assert status in (400, 404), body
        assert name in json.dumps(body) or "other" in json.dumps(body) or "resp_unknown" in json.dumps(body)


async def seen(bench: Bench, path: str, body: Fields) -> tuple[int, tuple[str, str, str]]:
    """Status, and all that can be seen of a request but what differs by itself: the pipeline's view, the answer, headers."""
    bench.pipeline.requests.clear()
    response = await bench.client.post(path, json=body)
    requests = [asdict(request) for request in bench.pipeline.requests]
    for request in requests:
        for own in ("request_id", "deadline_s"):
            del request[own]
        if "seed" not in body:
            del request["sampling"]["seed"]
    answer = re.sub(r'("(?:id|item_id|created|created_at|completed_at)": ?)("[^"]*"|[0-9.]+)', r"\1X", response.text)
    answer = re.sub(r"(chatcmpl-|cmpl-|msg_|resp_|rs_)[0-9a-f]{16,}", "X", answer)
    return response.status_code, (repr(requests), answer, response.headers.get("x-prfaas-not-applied", ""))


NAMED = [
    ("/v1/chat/completions", {"prompt_cache_key": "k", "safety_identifier": "s"}, "prompt_cache_key, safety_identifier"),
    ("/v1/chat/completions", {"prompt_cache_key": None}, ""),
    ("/v1/chat/completions", {"chat_template_kwargs": {"enable_thinking": True}}, ""),
    ("/v1/chat/completions", {"chat_template_kwargs": {"x y": 1}}, "chat_template_kwargs.x?y"),
    ("/v1/chat/completions", {"tools": [{**TOOL, "function": {"name": "f", "strict": True}}]}, "tools.strict"),
    (
        "/v1/chat/completions",
        {"tools": [{**TOOL, "function": {"name": "f", "strict": True}}], "tool_choice": "required"},
        "",
    ),
    (
        "/v1/chat/completions",
        {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "description": "d"}}},
        "response_format.json_schema.description",
    ),
    ("/v1/responses", {"tools": [{**FLAT_TOOL, "strict": True}], "prompt_cache_key": "k"}, "prompt_cache_key, tools.strict"),
    ("/v1/messages", {"thinking": {"type": "enabled", "budget_tokens": 2000}}, "thinking.budget_tokens"),
    ("/v1/messages", {"tools": [{**ANTHROPIC_TOOL, "cache_control": {"type": "ephemeral"}}]}, "cache_control"),
    ("/v1/messages", {"system": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}]}, "cache_control"),
    ("/v1/messages", {"service_tier": "auto"}, "service_tier"),
]


@pytest.mark.parametrize(("path", "fields", "header"), NAMED)
@pytest.mark.parametrize("stream", [False, True])
async def test_what_is_accepted_and_not_applied_is_named(
    bench: Bench, path: str, fields: Fields, header: str, stream: bool
) -> None:
    body = {"model": "test-model", **BASE[path][1], **fields, "stream": stream}
    response = await bench.client.post(path, json=body)
    assert response.status_code == 200, response.text
    assert response.headers.get("x-prfaas-not-applied", "") == header


ALONE = [
    ("/v1/chat/completions", {"stream_options": {"include_usage": True}}, "stream_options"),
    ("/v1/completions", {"stream_options": {"include_usage": True}}, "stream_options"),
    ("/v1/chat/completions", {"top_logprobs": 1}, "top_logprobs"),
    ("/v1/chat/completions", {"parallel_tool_calls": True}, "parallel_tool_calls"),
    ("/v1/responses", {"top_logprobs": 1}, "top_logprobs"),
]


@pytest.mark.parametrize(("path", "fields", "param"), ALONE)
async def test_what_says_nothing_without_another_field_is_refused(bench: Bench, path: str, fields: Fields, param: str) -> None:
    response = await bench.client.post(path, json={"model": "test-model", **BASE[path][1], **fields})
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_usage_in_every_chunk(bench: Bench, path: str) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {"model": "test-model", **BASE[path][1], "stream": True, "stream_options": options}
    text = (await bench.client.post(path, json=body)).text
    lines = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    counts = [line["usage"]["completion_tokens"] for line in lines]
    assert counts == sorted(counts)
    assert counts[0] <= 1 < counts[-1]
    assert counts[-2] == counts[-1]
