"""The two streaming dialects that are measured: what a request says, and what in its events is output."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Any

Message = Mapping[str, str]
_OUTPUTS = ("content", "reasoning_content", "reasoning", "tool_calls")


class Endpoint(StrEnum):
    CHAT = "chat"
    COMPLETIONS = "completions"

    @property
    def path(self) -> str:
        return "/v1/chat/completions" if self is Endpoint.CHAT else "/v1/completions"


def request_body(
    model: str, prompt: Sequence[Message] | str | Sequence[int], max_tokens: int | None, extra: Mapping[str, Any]
) -> bytes:
    """A streaming request with usage; `prompt` is messages for chat, text or token ids for completions."""
    is_chat = not isinstance(prompt, str) and any(isinstance(each, Mapping) for each in prompt)
    body: dict[str, Any] = {"model": model, "messages" if is_chat else "prompt": prompt}
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    body |= {} if max_tokens is None else {"max_tokens": max_tokens}
    return json.dumps({**body, **extra}).encode()


class EventReader:
    """Cuts a stream of server-sent events into pieces of output, each with the time its bytes came."""

    def __init__(self, piece: Callable[[float], None]) -> None:
        self._piece = piece
        self._rest = b""
        self._text: list[str] = []
        self.usage: Mapping[str, Any] = {}
        self.report: Mapping[str, Any] = {}  # a prfaas router's account of the request
        self.error = ""
        self.ended = False  # the stream said that it is over

    @property
    def text(self) -> str:
        """The answer so far, thinking and tool calls left out."""
        return "".join(self._text)

    def take(self, data: bytes, now_s: float) -> None:
        """Read what has arrived. Events that arrive together were one piece to whoever waits for them."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        spoke = False
        for line in lines:
            if line.startswith(b"data:"):
                spoke = self._event(line[5:].strip()) or spoke
        if spoke:
            self._piece(now_s)

    def _event(self, data: bytes) -> bool:
        """Whether the event brings output."""
        if data == b"[DONE]":
            self.ended = True
            return False
        try:
            event = json.loads(data)
        except ValueError:
            event = None
        if not isinstance(event, dict):
            self.error = self.error or "the server sent an event that is no JSON object"
            return False
        if event.get("error"):
            self.error = self.error or _message(event["error"])
            return False
        self.usage = event.get("usage") or self.usage
        report = event.get("prfaas")
        self.report = report if isinstance(report, dict) else self.report
        spoke = [self._choice(choice) for choice in event.get("choices") or ()]
        return any(spoke)

    def _choice(self, choice: Mapping[str, Any]) -> bool:
        # A last choice without text still tells of a token: the one that ended the answer.
        said = bool(choice.get("finish_reason"))
        delta = choice.get("delta") or {}
        text = choice.get("text") or delta.get("content")
        if text:
            self._text.append(text)
        return bool(text) or any(delta.get(kind) for kind in _OUTPUTS) or said


def refusal(status: int, body: bytes) -> str:
    """What a server says with an HTTP error, in one line."""
    try:
        said = _message(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        said = body.decode(errors="replace")
    return f"HTTP {status}: {' '.join(said.split())[:300]}"


def _message(error: Any) -> str:
    return str(error.get("message", error)) if isinstance(error, dict) else str(error)
