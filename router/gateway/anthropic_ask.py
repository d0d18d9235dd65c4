"""From an Anthropic body to a ChatAsk: blocks become messages, tools and choices the neutral ones."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Sequence
from typing import Any

from prfaas.errors import InvalidRequest
from prfaas.types import Grammar, GrammarKind, SamplingParams
from router.gateway.anthropic_schema import (
    AssistantTurn,
    AutoChoice,
    CountRequest,
    MessagesRequest,
    NoChoice,
    TextBlock,
    ThinkingBlock,
    ToolChoice,
    ToolResultBlock,
    ToolUseBlock,
    UserTurn,
)
from router.gateway.chat import ChatAsk
from router.gateway.checks import check_depth, stop_strings
from router.gateway.core import GatewayCore
from router.gateway.thinking import Thinking
from router.gateway.tools import Tool, ToolMode, ToolUse


def count_ask(body: CountRequest) -> ChatAsk:
    """The prompt's part of a request. Raises InvalidRequest."""
    return ChatAsk(
        model=body.model,
        messages=tuple(_messages(body)),
        sampling=SamplingParams(),
        tools=_tool_use(body),
        thinking=Thinking(_enabled(body), None if body.output_config is None else body.output_config.effort),
    )


def messages_ask(core: GatewayCore, body: MessagesRequest) -> ChatAsk:
    """Raises InvalidRequest."""
    prompt = count_ask(body)
    sampling = SamplingParams(
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        top_k=body.top_k or 0,
        seed=secrets.randbits(63),
        grammar=_grammar(core, body),
    )
    return ChatAsk(
        model=prompt.model,
        messages=prompt.messages,
        sampling=sampling,
        max_tokens=body.max_tokens,
        stops=stop_strings(body.stop_sequences, core.settings.limits.max_stop_strings, name="stop_sequences"),
        tools=prompt.tools,
        thinking=prompt.thinking,
        tenant=(body.metadata.user_id if body.metadata is not None else None) or "",
    )


def _enabled(body: CountRequest) -> bool | None:
    if body.thinking is None or body.thinking.type == "adaptive":
        return None
    return body.thinking.type == "enabled"


def _grammar(core: GatewayCore, body: MessagesRequest) -> Grammar | None:
    form = None if body.output_config is None else body.output_config.format
    if form is None:
        return None
    check_depth("output_config", form.json_schema, core.settings.limits.max_schema_depth)
    return Grammar(GrammarKind.JSON_SCHEMA, json.dumps(form.json_schema))


def _messages(body: CountRequest) -> Iterator[dict[str, Any]]:
    if body.system:
        yield {"role": "system", "content": _text(body.system)}
    if isinstance(body.messages[-1], AssistantTurn):
        raise InvalidRequest("the last message must be the user's: an answer cannot be begun for the model", param="messages")
    for turn in body.messages:
        if isinstance(turn, UserTurn):
            yield from _user(turn)
        else:
            yield _assistant(turn)


def _user(turn: UserTurn) -> Iterator[dict[str, Any]]:
    """Results come first, each as a message of its own, as templates want them; then what the user says."""
    if isinstance(turn.content, str):
        yield {"role": "user", "content": turn.content}
        return
    for block in turn.content:
        if isinstance(block, ToolResultBlock):
            text = _text(block.content or "")
            content = f"Error: {text}" if block.is_error else text
            yield {"role": "tool", "tool_call_id": block.tool_use_id, "content": content}
    texts = [block for block in turn.content if isinstance(block, TextBlock)]
    if texts:
        yield {"role": "user", "content": _text(texts)}


def _assistant(turn: AssistantTurn) -> dict[str, Any]:
    if isinstance(turn.content, str):
        return {"role": "assistant", "content": turn.content}
    message: dict[str, Any] = {"role": "assistant"}
    message["content"] = "".join(block.text for block in turn.content if isinstance(block, TextBlock))
    thinking = "".join(block.thinking for block in turn.content if isinstance(block, ThinkingBlock))
    if thinking:
        message["reasoning_content"] = thinking
    calls = [
        {"id": block.id, "type": "function", "function": {"name": block.name, "arguments": block.input}}
        for block in turn.content
        if isinstance(block, ToolUseBlock)
    ]
    if calls:
        message["tool_calls"] = calls
    return message


def _text(content: str | Sequence[TextBlock]) -> str:
    return content if isinstance(content, str) else "\n".join(block.text for block in content)


def _tool_use(body: CountRequest) -> ToolUse:
    tools = tuple(Tool(tool.name, tool.description or "", tool.input_schema) for tool in body.tools or ())
    choice = body.tool_choice
    if choice is None:
        return ToolUse(tools, ToolMode.AUTO if tools else ToolMode.NONE)
    if isinstance(choice, NoChoice):
        return ToolUse(tools, ToolMode.NONE)
    parallel = not choice.disable_parallel_tool_use
    if isinstance(choice, ToolChoice):
        return ToolUse(tools, ToolMode.NAMED, choice.name, parallel)
    return ToolUse(tools, ToolMode.AUTO if isinstance(choice, AutoChoice) else ToolMode.REQUIRED, "", parallel)
