"""From a chat completions body to a ChatAsk: OpenAI's words for tools, formats, thinking and tiers."""

from __future__ import annotations

import json
import re
from typing import Any

from prfaas.errors import InvalidRequest, UnsupportedParameter
from prfaas.types import Grammar, GrammarKind
from router.gateway.chat import ChatAsk
from router.gateway.checks import check_depth, stop_strings
from router.gateway.core import GatewayCore
from router.gateway.openai_messages import template_message
from router.gateway.openai_schema import (
    ChatRequest,
    FunctionTool,
    JsonSchemaFormat,
    NamedTool,
    ResponseFormat,
    StructuredOutputs,
)
from router.gateway.sampling import check_stream_options, sampling_params
from router.gateway.thinking import Thinking
from router.gateway.tools import Tool, ToolMode, ToolUse

TIER_PRIORITIES = {"auto": 0, "default": 0, "flex": 100, "priority": -100}
_REPLACED = {"functions": "use tools instead", "function_call": "use tool_choice instead"}


def chat_ask(core: GatewayCore, body: ChatRequest) -> ChatAsk:
    """Raises InvalidRequest and UnsupportedParameter."""
    _refuse_unsupported(body)
    _refuse_alone(body)
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    sampling = sampling_params(
        core, body, max_tokens=None, n=body.n or 1, logprobs=logprobs, grammar=output_grammar(core, body)
    )
    enabled = None if body.thinking is None else body.thinking.type == "enabled"
    return ChatAsk(
        model=body.model,
        messages=tuple(template_message(message) for message in body.messages),
        sampling=sampling,
        max_tokens=body.max_completion_tokens or body.max_tokens,
        stops=stop_strings(body.stop, core.settings.limits.max_stop_strings),
        tools=tool_use(body.tools, body.tool_choice, body.parallel_tool_calls),
        thinking=Thinking(enabled, body.reasoning_effort, body.preserve_thinking),
        variables=body.chat_template_kwargs or {},
        tenant=body.user or "",
        cache_salt=body.cache_salt or "",
        priority=(body.priority or 0) + TIER_PRIORITIES[body.service_tier or "auto"],
    )


def _refuse_unsupported(body: ChatRequest) -> None:
    for name, advice in _REPLACED.items():
        if name in body.model_fields_set:
            raise UnsupportedParameter(f"{name} is not supported; {advice}", param=name)
    values: dict[str, Any] = {"audio": body.audio, "prediction": body.prediction, "web_search_options": body.web_search_options}
    refused = [name for name, value in values.items() if value is not None]
    if body.store:
        refused.append("store")
    if body.modalities not in (None, ["text"]):
        refused.append("modalities")
    if body.verbosity not in (None, "medium"):
        refused.append("verbosity")
    if refused:
        raise UnsupportedParameter(f"this value of {refused[0]} is not supported; leave it out", param=refused[0])


def _refuse_alone(body: ChatRequest) -> None:
    """Fields that say nothing without another one: OpenAI refuses them too."""
    check_stream_options(body)
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs to be true", param="top_logprobs")
    if body.parallel_tool_calls is not None and not body.tools:
        raise InvalidRequest("parallel_tool_calls needs tools", param="parallel_tool_calls")


def output_grammar(core: GatewayCore, body: ChatRequest) -> Grammar | None:
    """The grammar that `response_format` or `structured_outputs` asks for."""
    limit = core.settings.limits.max_schema_depth
    if body.structured_outputs is None:
        return format_grammar(body.response_format, limit)
    if body.response_format is not None and body.response_format.type != "text":
        raise InvalidRequest("give response_format or structured_outputs, not both", param="structured_outputs")
    return _structured(body.structured_outputs, limit)


def format_grammar(form: ResponseFormat | None, max_depth: int) -> Grammar | None:
    """Grammar of OpenAI's `response_format`."""
    if isinstance(form, JsonSchemaFormat):
        schema = form.json_schema.json_schema
        check_depth("response_format", schema, max_depth)
        return Grammar(GrammarKind.JSON_SCHEMA, json.dumps(schema))
    return Grammar(GrammarKind.JSON_OBJECT) if form is not None and form.type == "json_object" else None


def _structured(outputs: StructuredOutputs, max_depth: int) -> Grammar:
    found: list[Grammar] = []
    if outputs.json_ is not None:
        check_depth("structured_outputs", outputs.json_, max_depth)
        found.append(Grammar(GrammarKind.JSON_SCHEMA, json.dumps(outputs.json_)))
    if outputs.regex is not None:
        found.append(Grammar(GrammarKind.REGEX, outputs.regex))
    if outputs.choice is not None:
        found.append(Grammar(GrammarKind.REGEX, "|".join(re.escape(choice) for choice in outputs.choice)))
    if outputs.grammar is not None:
        found.append(Grammar(GrammarKind.EBNF, outputs.grammar))
    if len(found) != 1:
        raise InvalidRequest(
            "structured_outputs needs exactly one of json, regex, choice and grammar", param="structured_outputs"
        )
    return found[0]


def tool_use(tools: list[FunctionTool] | None, choice: str | NamedTool | None, parallel: bool | None) -> ToolUse:
    """OpenAI's three tool fields as one value. Without a choice it is auto if there are tools, else none."""
    offered = tuple(
        Tool(tool.function.name, tool.function.description or "", tool.function.parameters or {}) for tool in tools or ()
    )
    several = parallel if parallel is not None else True
    if isinstance(choice, NamedTool):
        return ToolUse(offered, ToolMode.NAMED, choice.function.name, several)
    default = ToolMode.AUTO if offered else ToolMode.NONE
    return ToolUse(offered, default if choice is None else ToolMode(choice), "", several)
