"""Output items of a response as they grow, with the event for each step. Knows no HTTP and no clock."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from router.gateway.parsers.api import CallArguments, CallStart, Piece, ReasoningPiece, TextPiece
from router.gateway.prompt import new_id

Event = dict[str, Any]


class OutputItems:
    """Consecutive pieces of a kind share an item; every call has its own. `items` is always a valid `output`."""

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []
        self._open = False

    def add(self, piece: Piece, logprobs: list[dict[str, Any]]) -> Iterator[Event]:
        """Events of one piece; `logprobs` of the tokens behind a text."""
        match piece:
            case TextPiece(text):
                yield from self._ensure("message")
                part = self._item["content"][0]
                part["text"] += text
                part["logprobs"] += logprobs
                yield self._part_event("response.output_text.delta", delta=text, logprobs=logprobs)
            case ReasoningPiece(text):
                yield from self._ensure("reasoning")
                self._item["content"][0]["text"] += text
                yield self._part_event("response.reasoning_text.delta", delta=text)
            case CallStart(_, call_id, name):
                yield from self.close("completed")
                yield from self._ensure("function_call", call_id=call_id, name=name)
            case CallArguments(_, text):
                self._item["arguments"] += text
                yield self._item_event("response.function_call_arguments.delta", delta=text)

    def close(self, status: str) -> Iterator[Event]:
        """End the item that is open: `completed`, or `incomplete` if the sample ran out of tokens."""
        if not self._open:
            return
        self._open = False
        item = self._item
        item["status"] = status
        if item["type"] == "function_call":
            arguments, name = item["arguments"], item["name"]
            yield self._item_event("response.function_call_arguments.done", arguments=arguments, name=name)
        else:
            part = item["content"][0]
            if item["type"] == "message":
                yield self._part_event("response.output_text.done", text=part["text"], logprobs=part["logprobs"])
            else:
                yield self._part_event("response.reasoning_text.done", text=part["text"])
            yield self._part_event("response.content_part.done", part=part)
        yield {"type": "response.output_item.done", "output_index": len(self.items) - 1, "item": item}

    @property
    def _item(self) -> dict[str, Any]:
        return self.items[-1]

    def _ensure(self, kind: str, **fields: str) -> Iterator[Event]:
        """An open item of this kind, opening one if need be."""
        if self._open and self._item["type"] == kind:
            return
        yield from self.close("completed")
        self._open = True
        self.items.append(_empty(kind, fields))
        added = {**self._item, **({} if kind == "function_call" else {"content": []})}
        yield {"type": "response.output_item.added", "output_index": len(self.items) - 1, "item": added}
        if kind != "function_call":
            yield self._part_event("response.content_part.added", part=dict(self._item["content"][0]))

    def _item_event(self, kind: str, **fields: Any) -> Event:
        return {"type": kind, "item_id": self._item["id"], "output_index": len(self.items) - 1, **fields}

    def _part_event(self, kind: str, **fields: Any) -> Event:
        return self._item_event(kind, content_index=0, **fields)


def _empty(kind: str, fields: dict[str, str]) -> dict[str, Any]:
    if kind == "message":
        part: dict[str, Any] = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        return {"id": new_id("msg"), "type": kind, "role": "assistant", "status": "in_progress", "content": [part]}
    if kind == "reasoning":
        thought = {"type": "reasoning_text", "text": ""}
        return {"id": new_id("rs"), "type": kind, "summary": [], "status": "in_progress", "content": [thought]}
    return {"id": new_id("fc"), "type": kind, "arguments": "", "status": "in_progress", **fields}


def output_message(items: list[dict[str, Any]]) -> dict[str, Any]:
    """The output as one assistant message for a chat template, to continue the conversation from."""
    message: dict[str, Any] = {"role": "assistant", "content": ""}
    for item in items:
        if item["type"] == "message":
            message["content"] += item["content"][0]["text"]
        elif item["type"] == "reasoning":
            message["reasoning_content"] = item["content"][0]["text"]
        else:
            function = {"name": item["name"], "arguments": item["arguments"]}
            message.setdefault("tool_calls", []).append({"id": item["call_id"], "type": "function", "function": function})
    return message
