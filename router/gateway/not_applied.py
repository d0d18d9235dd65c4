"""What a caller asked for that is accepted and changes nothing here. It is named in the header x-prfaas-not-applied, so
that nothing is ignored in silence."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from router.gateway.anthropic_schema import CountRequest, MessagesRequest, ThinkingEnabled
from router.gateway.body import Body
from router.gateway.openai_schema import ChatRequest, JsonSchemaFormat
from router.gateway.responses_schema import ResponsesRequest

HEADER = "x-prfaas-not-applied"
# Prefixes are found without hints, and kept as long as there is room; nobody is tracked for abuse.
_HINTS = ("prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "safety_identifier")


def of_chat(body: ChatRequest, template: str) -> dict[str, str]:
    """The header for a chat request to a model with this chat template; empty if everything is applied."""
    return _header((*_given(body), *_of_chat(body, template)))


def of_responses(body: ResponsesRequest) -> dict[str, str]:
    """As `of_chat`, for OpenAI's responses."""
    strict = ("tools.strict",) if body.tool_choice in (None, "auto") and any(t.strict for t in body.tools or ()) else ()
    return _header((*_given(body), *strict))


def of_messages(body: MessagesRequest) -> dict[str, str]:
    """As `of_chat`, for Anthropic's messages. There is one service tier, and every prefix is cached."""
    names = [] if body.service_tier is None else ["service_tier"]
    if isinstance(body.thinking, ThinkingEnabled):
        names.append("thinking.budget_tokens")  # max_tokens is the bound that holds
    if _marks_caches(body):
        names.append("cache_control")
    return _header(names)


def _header(names: Iterable[str]) -> dict[str, str]:
    line = ", ".join(names)
    return {HEADER: line} if line else {}


def _given(body: Body) -> Iterator[str]:
    return (name for name, value in body if name in _HINTS and value is not None)


def _of_chat(body: ChatRequest, template: str) -> Iterator[str]:
    for name in body.chat_template_kwargs or {}:
        if name not in template:
            yield f"chat_template_kwargs.{_spelled(name)}"
    if body.tool_choice in (None, "auto") and any(tool.function.strict for tool in body.tools or ()):
        yield "tools.strict"  # arguments follow their schema where a call is demanded
    form = body.response_format
    if isinstance(form, JsonSchemaFormat) and form.json_schema.description is not None:
        yield "response_format.json_schema.description"  # the grammar holds without words


def _spelled(name: str) -> str:
    """A caller's name as a header can carry it."""
    return "".join(char if char.isascii() and (char.isalnum() or char in "_-.") else "?" for char in name[:64])


def _marks_caches(body: CountRequest) -> bool:
    """Whether some part of the prompt is marked to be cached."""
    todo: list[object] = [body.model_dump(include={"cache_control", "system", "messages", "tools"})]
    while todo:
        node = todo.pop()
        if isinstance(node, Mapping):
            if node.get("cache_control") is not None:
                return True
            todo.extend(node.values())
        elif isinstance(node, list):
            todo.extend(node)
    return False
