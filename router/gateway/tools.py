"""Tools: what a caller offers and demands, which format a model speaks, and how a demand becomes a grammar.

The format is read off the chat template, which names the markers the model was trained on. A model without tools in its
template is told the Hermes format in words.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from prfaas.errors import InvalidRequest
from prfaas.types import Grammar, GrammarKind
from router.gateway.parsers import deepseek, hermes, kimi_k2, llama
from router.gateway.parsers.api import Parser, PlainText
from router.gateway.parsers.forced import ForcedCall, RequiredCalls


class ToolMode(StrEnum):
    NONE = "none"
    AUTO = "auto"
    REQUIRED = "required"  # at least one call
    NAMED = "named"  # exactly one call of the named function


@dataclass(frozen=True, slots=True)
class Tool:
    """A function the model may call; `parameters` is a JSON schema."""

    name: str
    description: str
    parameters: Mapping[str, Any]

    @property
    def template_object(self) -> dict[str, Any]:
        """As chat templates expect it: OpenAI's form."""
        function = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class ToolUse:
    """What a request says about tools. `name` is set for NAMED; `parallel` allows more than one call."""

    tools: tuple[Tool, ...] = ()
    mode: ToolMode = ToolMode.NONE
    name: str = ""
    parallel: bool = True

    @property
    def offered(self) -> tuple[Tool, ...]:
        """The tools the model hears of."""
        return () if self.mode is ToolMode.NONE else self.tools


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """How a model writes calls. `native`: its chat template takes tools; else they are described in words."""

    name: str
    markers: tuple[str, ...]
    make: Callable[[], Parser]
    native: bool


_KIMI = ToolFormat("kimi_k2", kimi_k2.MARKERS, kimi_k2.KimiK2Parser, native=True)
_DEEPSEEK = ToolFormat("deepseek", deepseek.MARKERS, deepseek.DeepSeekParser, native=True)
_HERMES = ToolFormat("hermes", hermes.MARKERS, hermes.HermesParser, native=True)
_LLAMA = ToolFormat("llama", llama.MARKERS, llama.LlamaParser, native=True)
_IN_WORDS = ToolFormat("hermes", hermes.MARKERS, hermes.HermesParser, native=False)


def tool_format(template: str) -> ToolFormat:
    """The format that a chat template shows."""
    for marker, found in (
        (kimi_k2.CALL_BEGIN, _KIMI),
        (deepseek.CALL_BEGIN, _DEEPSEEK),
        (hermes.OPEN, _HERMES),
        (llama.TAG, _LLAMA),
    ):
        if marker in template and "tools" in template:
            return found
    return _LLAMA if "tools" in template and "ipython" in template else _IN_WORDS


def tool_parser(use: ToolUse, form: ToolFormat) -> Parser:
    """A parser for one sample of a request."""
    if use.mode is ToolMode.NAMED:
        return ForcedCall(use.name)
    if use.mode is ToolMode.REQUIRED:
        return RequiredCalls()
    return form.make() if use.offered else PlainText()


def check_tools(use: ToolUse) -> None:
    """Raises InvalidRequest for a demand that the offered tools cannot meet."""
    names = [tool.name for tool in use.tools]
    if len(set(names)) < len(names):
        raise InvalidRequest("two tools have the same name", param="tools")
    if use.mode in (ToolMode.REQUIRED, ToolMode.NAMED) and not names:
        raise InvalidRequest("tool_choice demands a call, but there are no tools", param="tool_choice")
    if use.mode is ToolMode.NAMED and use.name not in names:
        raise InvalidRequest(f"tool_choice names '{use.name[:64]}', which is none of the tools", param="tool_choice")


def forcing_grammar(use: ToolUse) -> Grammar | None:
    """What output satisfies the demand: bare arguments for a named function, an array of calls when some call is required."""
    if use.mode is ToolMode.NAMED:
        tool = next(tool for tool in use.tools if tool.name == use.name)
        return Grammar(GrammarKind.JSON_SCHEMA, json.dumps(dict(tool.parameters) or {"type": "object"}))
    if use.mode is not ToolMode.REQUIRED:
        return None
    definitions: dict[str, Any] = {}
    calls = [_call_schema(tool, definitions) for tool in use.tools]
    schema: dict[str, Any] = {"type": "array", "minItems": 1, "items": {"anyOf": calls}, **definitions}
    if not use.parallel:
        schema["maxItems"] = 1
    return Grammar(GrammarKind.JSON_SCHEMA, json.dumps(schema))


def _call_schema(tool: Tool, definitions: dict[str, Any]) -> dict[str, Any]:
    """The schema of one call; local definitions move to the root, where their references point."""
    parameters = dict(tool.parameters) or {"type": "object"}
    for key in ("$defs", "definitions"):
        for name, found in parameters.pop(key, {}).items():
            if definitions.setdefault(key, {}).setdefault(name, found) != found:
                raise InvalidRequest(f"two tools define '{name[:64]}' differently in {key}; rename one", param="tools")
    properties = {"name": {"enum": [tool.name]}, "parameters": parameters}
    return {"type": "object", "properties": properties, "required": ["name", "parameters"], "additionalProperties": False}


def in_words(messages: Sequence[Mapping[str, Any]], tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """The conversation for a template that knows no tools: they are described, and calls and results written out."""
    described = [_written(message) for message in messages]
    if not tools:
        return described
    listing = "\n".join(json.dumps(tool.template_object["function"]) for tool in tools)
    text = (
        "You may call functions. They are listed here, one JSON object a line:\n"
        f"{listing}\n"
        f'To call one, answer with {hermes.OPEN}{{"name": "...", "arguments": {{...}}}}{hermes.CLOSE} and nothing else.'
    )
    if described and described[0]["role"] == "system":
        first = {**described[0], "content": f"{described[0]['content']}\n\n{text}"}
        return [first, *described[1:]]
    return [{"role": "system", "content": text}, *described]


def _written(message: Mapping[str, Any]) -> dict[str, Any]:
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"}
    calls = message.get("tool_calls")
    if not calls:
        return dict(message)
    lines = [f"{hermes.OPEN}{json.dumps(call['function'])}{hermes.CLOSE}" for call in calls]
    content = "\n".join(filter(None, (message["content"], *lines)))
    return {"role": message["role"], "content": content}
