"""Messages as chat templates expect them, from what the OpenAI dialect allows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from router.gateway.openai_schema import AssistantMessage, Message, TextPart, ToolCall, ToolMessage


def template_message(message: Message) -> dict[str, Any]:
    """A message as templates know it: roles that publishers train on, content as text, arguments as objects."""
    role = "system" if message.role == "developer" else message.role
    rendered: dict[str, Any] = {"role": role, "content": text_of(message.content)}
    if isinstance(message, ToolMessage):
        rendered["tool_call_id"] = message.tool_call_id
        return rendered
    if message.name is not None:
        rendered["name"] = message.name
    if isinstance(message, AssistantMessage):
        if message.tool_calls:
            rendered["tool_calls"] = [_tool_call(call) for call in message.tool_calls]
        if message.reasoning_content is not None:
            rendered["reasoning_content"] = message.reasoning_content
    return rendered


def text_of(content: str | Sequence[TextPart] | None) -> str:
    """Content as one text; parts are joined without a separator, none is empty."""
    if content is None:
        return ""
    return content if isinstance(content, str) else "".join(part.text for part in content)


def _tool_call(call: ToolCall) -> dict[str, Any]:
    """Templates print arguments through `tojson`, so they want the object; text that is no JSON object stays text."""
    arguments: Any = call.function.arguments
    try:
        parsed = json.loads(arguments)
        arguments = parsed if isinstance(parsed, dict) else arguments
    except ValueError:
        pass
    return {"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": arguments}}
