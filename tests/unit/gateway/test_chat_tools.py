"""Tools, thinking and output formats of chat completions: what the model is told, constrained to, and read as."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prfaas.text import TextModel, load_text_model
from prfaas.types import Grammar, GrammarKind
from router.gateway.tools import tool_format
from tests.support.fake_pipeline import Script
from tests.support.text_models import CHATML, byte_level_tokenizer, write_text_model
from tests.unit.gateway.conftest import Bench
from tests.unit.gateway.test_chat import events

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
NOW = {"type": "function", "function": {"name": "now"}}
CALL = '<tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}}</tool_call>'
NATIVE = "{% if tools %}<tool_call>TOOLS {{ tools | tojson }}\n{% endif %}" + CHATML
THINKING = "{% if not enable_thinking | default(true) %}NOTHINK {% endif %}" + CHATML + "{# <think></think> #}"


def prompt_of(bench: Bench) -> str:
    return bench.text.decode(bench.pipeline.requests[-1].tokens, keep_special=True)


def grammar_of(bench: Bench) -> Grammar | None:
    return bench.pipeline.requests[-1].sampling.grammar


class TestInWords:
    """The default test model has no tools in its template."""

    async def test_calls_are_read_and_finish_says_so(self, bench: Bench) -> None:
        bench.pipeline.script = Script(replies=(f"I look. {CALL}",))
        choice = (await bench.chat(tools=[WEATHER, NOW])).json()["choices"][0]
        assert choice["finish_reason"] == "tool_calls"
        assert choice["message"]["content"] == "I look."
        call = choice["message"]["tool_calls"][0]
        assert call["type"] == "function"
        assert call["function"] == {"name": "get_weather", "arguments": '{"city": "Paris"}'}
        assert call["id"].startswith("call_")
        assert '"name": "get_weather"' in prompt_of(bench)
        assert prompt_of(bench).startswith("<|im_start|>system\nYou may call functions.")

    async def test_the_stream_gives_the_same_call_in_pieces(self, bench: Bench) -> None:
        bench.pipeline.script = Script(replies=(CALL,))
        chunks = events((await bench.chat(tools=[WEATHER], stream=True)).text)
        deltas = [call for chunk in chunks for call in chunk["choices"][0]["delta"].get("tool_calls", [])]
        assert deltas[0]["function"] == {"name": "get_weather", "arguments": ""}
        assert "".join(delta["function"].get("arguments", "") for delta in deltas) == '{"city": "Paris"}'
        assert len(deltas) > 3
        assert [chunk["choices"][0]["finish_reason"] for chunk in chunks][-1] == "tool_calls"
        assert not any(chunk["choices"][0]["delta"].get("content") for chunk in chunks)

    async def test_a_conversation_with_results_is_written_out(self, bench: Bench) -> None:
        call = {"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
        messages = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "sunny", "tool_call_id": "1"},
        ]
        assert (await bench.chat(messages=messages, tools=[WEATHER])).status_code == 200
        prompt = prompt_of(bench)
        assert prompt.startswith("<|im_start|>system\nBe brief.\n\nYou may call functions.")
        assert CALL in prompt
        assert "<|im_start|>user\n<tool_response>\nsunny\n</tool_response>" in prompt

    async def test_none_keeps_tools_from_the_model(self, bench: Bench) -> None:
        bench.pipeline.script = Script(replies=(CALL,))
        choice = (await bench.chat(tools=[WEATHER], tool_choice="none")).json()["choices"][0]
        assert choice["message"]["content"] == CALL
        assert "get_weather" not in prompt_of(bench)

    async def test_no_parallel_calls(self, bench: Bench) -> None:
        bench.pipeline.script = Script(replies=(CALL + CALL,))
        for parallel, count in ((None, 2), (True, 2), (False, 1)):
            body = (await bench.chat(tools=[WEATHER], parallel_tool_calls=parallel)).json()
            assert len(body["choices"][0]["message"]["tool_calls"]) == count

    async def test_required_forces_an_array_of_calls(self, bench: Bench) -> None:
        bench.pipeline.script = Script(replies=('[{"name": "get_weather", "parameters": {"city": "Paris"}}]',))
        for parallel in (True, False):
            response = await bench.chat(tools=[WEATHER, NOW], tool_choice="required", parallel_tool_calls=parallel)
            choice = response.json()["choices"][0]
            assert choice["finish_reason"] == "tool_calls"
            assert choice["message"]["tool_calls"][0]["function"]["arguments"] == '{"city": "Paris"}'
            grammar = grammar_of(bench)
            assert grammar is not None
            schema = json.loads(grammar.source)
            assert [item["properties"]["name"]["enum"] for item in schema["items"]["anyOf"]] == [["get_weather"], ["now"]]
            assert schema.get("maxItems") == (None if parallel else 1)

    async def test_a_named_function_forces_its_arguments(self, bench: Bench) -> None:
        bench.pipeline.script = Script(replies=('{"city": "Paris"}',))
        choice = {"type": "function", "function": {"name": "get_weather"}}
        body = (await bench.chat(tools=[WEATHER, NOW], tool_choice=choice)).json()["choices"][0]
        assert body["message"]["tool_calls"][0]["function"] == {"name": "get_weather", "arguments": '{"city": "Paris"}'}
        assert body["finish_reason"] == "stop"
        grammar = grammar_of(bench)
        assert grammar is not None
        assert json.loads(grammar.source) == WEATHER["function"]["parameters"]

    async def test_local_definitions_move_to_the_root(self, bench: Bench) -> None:
        def tool(name: str, inner: dict[str, Any]) -> dict[str, Any]:
            parameters = {"type": "object", "properties": {"a": {"$ref": "#/$defs/A"}}, "$defs": {"A": inner}}
            return {"type": "function", "function": {"name": name, "parameters": parameters}}

        bench.pipeline.script = Script(replies=('[{"name": "f", "parameters": {}}]',))
        tools = [tool("f", {"type": "string"}), tool("g", {"type": "string"})]
        assert (await bench.chat(tools=tools, tool_choice="required")).status_code == 200
        grammar = grammar_of(bench)
        assert grammar is not None
        assert json.loads(grammar.source)["$defs"] == {"A": {"type": "string"}}
        clash = await bench.chat(tools=[tools[0], tool("g", {"type": "number"})], tool_choice="required")
        assert clash.status_code == 400

    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"tool_choice": "required"}, "tool_choice"),
            ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
            ({"tools": [WEATHER, WEATHER]}, "tools"),
            ({"tools": [WEATHER], "response_format": {"type": "json_object"}}, "tools"),
            ({"tools": [{"type": "function", "function": {"name": "bad name"}}]}, "tools.0.function.name"),
            ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ],
    )
    async def test_demands_that_cannot_be_met(self, bench: Bench, fields: dict[str, Any], param: str) -> None:
        response = await bench.chat(**fields)
        assert (response.status_code, response.json()["error"]["param"]) == (400, param)


class TestNative:
    @pytest.fixture
    def text(self, tmp_path: Path) -> TextModel:
        """A model whose template takes tools, and whose call markers are special tokens."""
        tokenizer = byte_level_tokenizer(("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>"))
        return load_text_model(str(write_text_model(tmp_path / "m", template=NATIVE, tokenizer=tokenizer)))

    async def test_the_template_gets_the_tools_and_special_markers_are_seen(self, bench: Bench) -> None:
        bench.pipeline.script = Script(replies=(CALL,))
        choice = (await bench.chat(tools=[WEATHER])).json()["choices"][0]
        assert choice["message"]["tool_calls"][0]["function"]["name"] == "get_weather"
        assert prompt_of(bench).startswith('<tool_call>TOOLS [{"type": "function"')

    async def test_without_tools_special_markers_stay_silent(self, bench: Bench) -> None:
        bench.pipeline.script = Script(replies=("<tool_call>x</tool_call>",))
        assert (await bench.chat()).json()["choices"][0]["message"]["content"] == "x"


class TestThinking:
    @pytest.fixture
    def text(self, tmp_path: Path) -> TextModel:
        return load_text_model(str(write_text_model(tmp_path / "m", template=THINKING)))

    async def test_thinking_is_split_off_and_counted(self, bench: Bench) -> None:
        bench.pipeline.script = Script(replies=("<think>\nHm, France.\n</think>\n\nParis.",))
        body = (await bench.chat()).json()
        message = body["choices"][0]["message"]
        assert (message["reasoning_content"], message["content"]) == ("Hm, France.", "Paris.")
        assert 3 < body["usage"]["completion_tokens_details"]["reasoning_tokens"] < body["usage"]["completion_tokens"]
        chunks = events((await bench.chat(stream=True)).text)
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
        assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "Hm, France."
        assert "".join(delta.get("content") or "" for delta in deltas) == "Paris."

    @pytest.mark.parametrize(
        ("fields", "off"),
        [
            ({}, False),
            ({"thinking": {"type": "disabled"}}, True),
            ({"thinking": {"type": "enabled"}}, False),
            ({"reasoning_effort": "none"}, True),
            ({"reasoning_effort": "high"}, False),
            ({"chat_template_kwargs": {"enable_thinking": False}}, True),
        ],
    )
    async def test_switches_reach_the_template(self, bench: Bench, fields: dict[str, Any], off: bool) -> None:
        assert (await bench.chat(**fields)).status_code == 200
        assert prompt_of(bench).startswith("NOTHINK") == off

    async def test_what_the_template_lacks_is_refused(self, bench: Bench) -> None:
        response = await bench.chat(preserve_thinking=True)
        assert (response.status_code, response.json()["error"]["code"]) == (400, "unsupported_parameter")


async def test_a_model_that_cannot_think_says_so(bench: Bench) -> None:
    assert (await bench.chat(reasoning_effort="high")).json()["error"]["param"] == "reasoning_effort"
    assert (await bench.chat(thinking={"type": "enabled"})).json()["error"]["param"] == "thinking"
    assert (await bench.chat(reasoning_effort="none")).status_code == 200


async def test_template_variables(bench: Bench) -> None:
    refused = await bench.chat(chat_template_kwargs={"messages": []})
    assert refused.json()["error"]["param"] == "chat_template_kwargs"


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("fields", "grammar"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, Grammar(GrammarKind.JSON_OBJECT)),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}},
            Grammar(GrammarKind.JSON_SCHEMA, json.dumps(SCHEMA)),
        ),
        ({"structured_outputs": {"json": SCHEMA}}, Grammar(GrammarKind.JSON_SCHEMA, json.dumps(SCHEMA))),
        ({"structured_outputs": {"regex": "a+"}}, Grammar(GrammarKind.REGEX, "a+")),
        ({"structured_outputs": {"choice": ["a.b", "c"]}}, Grammar(GrammarKind.REGEX, r"a\.b|c")),
        ({"structured_outputs": {"grammar": "start: 'a'"}}, Grammar(GrammarKind.EBNF, "start: 'a'")),
    ],
)
async def test_output_formats_become_grammars(bench: Bench, fields: dict[str, Any], grammar: Grammar | None) -> None:
    assert (await bench.chat(**fields)).status_code == 200
    assert grammar_of(bench) == grammar


async def test_bad_output_formats(bench: Bench) -> None:
    deep: dict[str, Any] = {}
    for _ in range(40):
        deep = {"properties": deep}
    nested = {"type": "json_schema", "json_schema": {"name": "x", "schema": deep}}
    assert "deeper than the limit of 32" in (await bench.chat(response_format=nested)).json()["error"]["message"]
    both = {"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}}
    for fields in ({"structured_outputs": {}}, {"structured_outputs": {"regex": "a", "grammar": "b"}}, both):
        assert (await bench.chat(**fields)).json()["error"]["param"] == "structured_outputs"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("functions", []),
        ("function_call", "auto"),
        ("audio", {"voice": "x"}),
        ("prediction", {}),
        ("web_search_options", {}),
        ("store", True),
        ("modalities", ["audio"]),
        ("verbosity", "high"),
        ("top_logprobs", 3),
    ],
)
async def test_known_but_unsupported_parameters_are_refused(bench: Bench, name: str, value: Any) -> None:
    response = await bench.chat(**{name: value})
    assert (response.status_code, response.json()["error"]["param"]) == (400, name)
    assert bench.pipeline.requests == []


async def test_values_that_ask_for_what_happens_anyway_pass(bench: Bench) -> None:
    assert (await bench.chat(store=False, modalities=["text"], verbosity="medium", audio=None)).status_code == 200


async def test_hints_are_named_as_not_applied(bench: Bench) -> None:
    response = await bench.chat(prompt_cache_key="k", safety_identifier="s")
    assert response.headers["x-prfaas-not-applied"] == "prompt_cache_key, safety_identifier"
    assert "x-prfaas-not-applied" not in (await bench.chat()).headers
    assert "prompt_cache_key" in (await bench.chat(prompt_cache_key="k", stream=True)).headers["x-prfaas-not-applied"]


async def test_metadata_and_tier_come_back(bench: Bench) -> None:
    body = (await bench.chat(metadata={"a": "b"}, service_tier="flex")).json()
    assert (body["metadata"], body["service_tier"]) == ({"a": "b"}, "flex")
    await bench.chat(service_tier="priority")
    flex, priority = (request.priority for request in bench.pipeline.requests)
    assert priority < 0 < flex


@pytest.mark.parametrize(
    ("template", "name", "native"),
    [
        ("{{ tools }}<|tool_call_begin|>", "kimi_k2", True),
        ("{{ tools }}<｜tool▁call▁begin｜>", "deepseek", True),
        ("{{ tools }}<tool_call>", "hermes", True),
        ("{{ tools }} ipython", "llama", True),
        ("{{ messages }}", "hermes", False),
    ],
)
def test_the_format_is_read_off_the_template(template: str, name: str, native: bool) -> None:
    form = tool_format(template)
    assert (form.name, form.native) == (name, native)
