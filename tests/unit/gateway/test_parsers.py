"""Tool calls and thinking in streamed text: the same outcome for every way of cutting the text, and no markup shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.gateway.parsers.api import CallArguments, CallStart, Parser, PlainText, ReasoningPiece, TextPiece
from router.gateway.parsers.deepseek import DeepSeekParser
from router.gateway.parsers.forced import ForcedCall, RequiredCalls
from router.gateway.parsers.hermes import HermesParser
from router.gateway.parsers.json_scan import CallObject, JsonValue
from router.gateway.parsers.kimi_k2 import KimiK2Parser, name_of
from router.gateway.parsers.llama import LlamaParser
from router.gateway.parsers.reasoning import ThinkingParser

ARGUMENTS = '{"city": "Köln \\"am\\" Rhein }", "days": [1, {"a": "<tool_call>"}]}'
Outcome = tuple[str, str, list[tuple[str, str]]]


def outcome(parser: Parser, pieces: list[str]) -> Outcome:
    """(text, reasoning, [(name, arguments)]) of a whole stream."""
    found = [piece for part in pieces for piece in parser.feed(part)] + parser.finish()
    text = "".join(piece.text for piece in found if isinstance(piece, TextPiece))
    reasoning = "".join(piece.text for piece in found if isinstance(piece, ReasoningPiece))
    calls: list[tuple[str, str]] = []
    for piece in found:
        if isinstance(piece, CallStart):
            assert piece.call == len(calls)
            calls.append((piece.name, ""))
        elif isinstance(piece, CallArguments):
            calls[piece.call] = (calls[piece.call][0], calls[piece.call][1] + piece.text)
    return text, reasoning, calls


KIMI = (
    "Let me look.<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>"
    f"{ARGUMENTS}<|tool_call_end|><|tool_call_begin|>functions.now:1<|tool_call_argument_begin|>{{}}<|tool_call_end|>"
    "<|tool_calls_section_end|>"
)
HERMES = (
    f'Let me look.\n<tool_call>\n{{"name": "get_weather", "arguments": {ARGUMENTS}}}\n</tool_call>\n'
    '<tool_call>\n{"arguments": {}, "name": "now"}\n</tool_call>'
)
DEEPSEEK_V3 = (
    "Let me look.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n"
    f"{ARGUMENTS}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{{}}\n```"
    "<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
)
DEEPSEEK_V31 = (
    f"Let me look.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{ARGUMENTS}<｜tool▁call▁end｜>"
    "<｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
)
LLAMA = f'<|python_tag|>{{"name": "get_weather", "parameters": {ARGUMENTS}}}; {{"name": "now", "parameters": {{}}}}'
BOTH = [("get_weather", ARGUMENTS), ("now", "{}")]
CASES: list[tuple[Callable[[], Parser], str, Outcome]] = [
    (KimiK2Parser, KIMI, ("Let me look.", "", BOTH)),
    (HermesParser, HERMES, ("Let me look.", "", BOTH)),
    (DeepSeekParser, DEEPSEEK_V3, ("Let me look.", "", BOTH)),
    (DeepSeekParser, DEEPSEEK_V31, ("Let me look.", "", BOTH)),
    (LlamaParser, LLAMA, ("", "", BOTH)),
    (RequiredCalls, f'[{{"name": "get_weather", "parameters": {ARGUMENTS}}}, {{"name": "now", "parameters": {{}}}}]',
     ("", "", BOTH)),
    (lambda: ForcedCall("get_weather"), f" {ARGUMENTS} ", ("", "", BOTH[:1])),
    (HermesParser, "plain <b>text</b> with < and <tool and end", ("plain <b>text</b> with < and <tool and end", "", [])),
    (KimiK2Parser, "plain <|tool_ text ", ("plain <|tool_ text ", "", [])),
    (LlamaParser, "no { object", ("no { object", "", [])),
    (LlamaParser, '{"answer": 42}', ('{"answer": 42}', "", [])),
    (LlamaParser, "{not json}", ("{not json}", "", [])),
    (HermesParser, '<tool_call>{"nam": 1}</tool_call>', ('{"nam": 1}', "", [])),
    (HermesParser, '<tool_call>{"name": "f"}</tool_call>', ("", "", [("f", "{}")])),
    (HermesParser, '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', ("", "", [("f", '{"a": 1}')])),
    (HermesParser, '<tool_call>{"name": "f", "arguments": null}</tool_call>', ("", "", [("f", "{}")])),
    (HermesParser, '<tool_call>{"name": "f", "arguments": {"a": [1, ', ("", "", [("f", '{"a": [1, ')])),
    (KimiK2Parser, "<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_argument_begin|><|tool_call_end|>",
     ("", "", [("f", "{}")])),
    (lambda: ThinkingParser(HermesParser(), thinking=False), f"<think>\nHm, <b>.\n</think>\n\n{HERMES}",
     ("Let me look.", "Hm, <b>.", BOTH)),
    (lambda: ThinkingParser(PlainText(), thinking=True), "Hm.\n</think>\n\nYes </think> <think>.",
     ("Yes </think> <think>.", "Hm.", [])),
    (lambda: ThinkingParser(PlainText(), thinking=True), "Hm, no end", ("", "Hm, no end", [])),
    (lambda: ThinkingParser(PlainText(), thinking=False), "Just <think> an answer", ("Just <think> an answer", "", [])),
    (lambda: ThinkingParser(PlainText(), thinking=False), "<think></think>Yes", ("Yes", "", [])),
    (lambda: ThinkingParser(PlainText(), thinking=False), " \n", (" \n", "", [])),
]  # fmt: skip


@pytest.mark.parametrize(("make", "text", "expected"), CASES, ids=lambda value: value[:30] if isinstance(value, str) else "")
def test_whole_and_character_by_character(make: Callable[[], Parser], text: str, expected: Outcome) -> None:
    assert outcome(make(), [text]) == expected
    assert outcome(make(), list(text)) == expected


@given(st.sampled_from(CASES), st.lists(st.integers(1, 30), max_size=20))
def test_any_cut_gives_the_same(case: tuple[Callable[[], Parser], str, Outcome], sizes: list[int]) -> None:
    make, text, expected = case
    parts, at = [], 0
    for size in [*sizes, len(text)]:
        parts.append(text[at : at + size])
        at += size
    assert outcome(make(), parts) == expected


@given(st.sampled_from(CASES[:6]), st.integers(0, 400))
def test_a_stream_that_breaks_off_shows_no_markup(case: tuple[Callable[[], Parser], str, Outcome], size: int) -> None:
    make, text, _ = case
    shown, _, calls = outcome(make(), list(text[:size]))
    if calls:
        assert shown in ("Let me look.", "")
    elif make is not LlamaParser:
        before = text.partition("<")[0]
        assert before.startswith(shown) or len(shown) < len(before) + 30
        assert "get_weather" not in shown
    for name, arguments in calls:
        whole = dict(BOTH)[name]
        assert whole.startswith(arguments)


def test_kimi_keeps_the_models_ids_and_others_get_fresh_ones() -> None:
    starts = [piece for piece in KimiK2Parser().feed(KIMI) if isinstance(piece, CallStart)]
    assert [start.call_id for start in starts] == ["functions.get_weather:0", "functions.now:1"]
    made = [piece.call_id for piece in HermesParser().feed(HERMES) if isinstance(piece, CallStart)]
    assert len(set(made)) == 2
    assert all(call_id.startswith("call_") for call_id in made)


def test_kimi_names() -> None:
    assert [name_of(text) for text in ("functions.a.b:12", "a:0", "a", "functions.a:x")] == ["a.b", "a", "a", "a:x"]


def test_arguments_stream_as_they_come() -> None:
    parser = HermesParser()
    parser.feed('<tool_call>{"name": "f", "arguments": {"a": "lo')
    assert parser.feed("ng te") == [CallArguments(0, "ng te")]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=5), JSON, max_size=4), st.text(max_size=5))
def test_a_json_object_is_followed_to_its_end(value: dict[str, Any], rest: str) -> None:
    text, follower = json.dumps(value, ensure_ascii=False), JsonValue()
    assert follower.feed(text + rest) == (text, rest)
    assert follower.ended


@given(st.text(min_size=1, max_size=8), st.dictionaries(st.text(max_size=5), JSON, max_size=4), JSON, st.booleans())
def test_any_call_object_is_read(name: str, arguments: dict[str, Any], other: Any, name_first: bool) -> None:
    fields = {"other": other, "name": name, "arguments": arguments}
    if not name_first:
        fields = dict(reversed(fields.items()))
    call, taken = CallObject(), ""
    for char in json.dumps(fields):
        call.feed(char)
        taken += call.take_arguments()
    assert call.name == name
    assert call.ended
    assert json.loads(taken) == arguments
