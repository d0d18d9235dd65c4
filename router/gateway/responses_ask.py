"""From a responses body to a ChatAsk: items become messages, flat tools and formats the neutral ones."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Sequence
from typing import Any

from prfaas.errors import InvalidRequest
from prfaas.types import Grammar, GrammarKind, SamplingParams
from router.gateway.chat import ChatAsk
from router.gateway.checks import check_depth
from router.gateway.core import GatewayCore
from router.gateway.openai_ask import TIER_PRIORITIES
from router.gateway.responses_schema import (
    FunctionCallItem,
    FunctionOutputItem,
    MessageItem,
    NamedFunction,
    ReasoningItem,
    ResponsesRequest,
    SchemaFormat,
    TextContent,
)
from router.gateway.thinking import Thinking
from router.gateway.tools import Tool, ToolMode, ToolUse


def responses_ask(core: GatewayCore, body: ResponsesRequest, earlier: Sequence[dict[str, Any]], tenant: str) -> ChatAsk:
    """`earlier`: the conversation of the previous response; its instructions are not carried over, as OpenAI has it.

    Raises:
        InvalidRequest.
    """
    said = [message for message in earlier if message["role"] != "system"]
    instructions = [{"role": "system", "content": body.instructions}] if body.instructions else []
    with_logprobs = bool(body.include)
    if body.top_logprobs and not with_logprobs:
        raise InvalidRequest("top_logprobs needs include=['message.output_text.logprobs']", param="top_logprobs")
    sampling = SamplingParams(
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        logprobs=(body.top_logprobs or 0) if with_logprobs else None,
        seed=secrets.randbits(63),
        grammar=_grammar(core, body),
    )
    return ChatAsk(
        model=body.model,
        messages=(*instructions, *said, *item_messages(body.input)),
        sampling=sampling,
        max_tokens=body.max_output_tokens,
        tools=_tool_use(body),
        thinking=Thinking(effort=None if body.reasoning is None else body.reasoning.effort),
        tenant=tenant,
        priority=TIER_PRIORITIES[body.service_tier or "auto"],
    )


def item_messages(
    items: str | Iterable[MessageItem | FunctionCallItem | FunctionOutputItem | ReasoningItem],
) -> list[dict[str, Any]]:
    """Input items as template messages; an assistant's thinking, text and calls become one message."""
    if isinstance(items, str):
        return [{"role": "user", "content": items}]
    messages: list[dict[str, Any]] = []
    for item in items:
        match item:
            case MessageItem(role="assistant"):
                _assistant(messages, opens=True)["content"] += _text(item.content)
            case MessageItem():
                role = "system" if item.role == "developer" else item.role
                messages.append({"role": role, "content": _text(item.content)})
            case ReasoningItem():
                thinking = "".join(part.text for part in item.content or ())
                if thinking:
                    _assistant(messages)["reasoning_content"] = thinking
            case FunctionCallItem():
                function = {"name": item.name, "arguments": _arguments(item.arguments)}
                calls = _assistant(messages).setdefault("tool_calls", [])
                calls.append({"id": item.call_id, "type": "function", "function": function})
            case FunctionOutputItem():
                messages.append({"role": "tool", "tool_call_id": item.call_id, "content": _text(item.output)})
    return messages


def _assistant(messages: list[dict[str, Any]], *, opens: bool = False) -> dict[str, Any]:
    """The assistant message being put together; a second text `opens` a new one."""
    last = messages[-1] if messages else None
    if last is None or last["role"] != "assistant" or (opens and last["content"]):
        messages.append({"role": "assistant", "content": ""})
    return messages[-1]


def _arguments(text: str) -> object:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, dict) else text


def _text(content: str | Sequence[TextContent]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


def _grammar(core: GatewayCore, body: ResponsesRequest) -> Grammar | None:
    form = None if body.text is None else body.text.format
    if isinstance(form, SchemaFormat):
        check_depth("text.format", form.json_schema, core.settings.limits.max_schema_depth)
        return Grammar(GrammarKind.JSON_SCHEMA, json.dumps(form.json_schema))
    return Grammar(GrammarKind.JSON_OBJECT) if form is not None and form.type == "json_object" else None


def _tool_use(body: ResponsesRequest) -> ToolUse:
    tools = tuple(Tool(tool.name, tool.description or "", tool.parameters or {}) for tool in body.tools or ())
    parallel = body.parallel_tool_calls if body.parallel_tool_calls is not None else True
    if isinstance(body.tool_choice, NamedFunction):
        return ToolUse(tools, ToolMode.NAMED, body.tool_choice.name, parallel)
    default = ToolMode.AUTO if tools else ToolMode.NONE
    return ToolUse(tools, default if body.tool_choice is None else ToolMode(body.tool_choice), "", parallel)
