"""Follows JSON text as it streams: where one value ends, and what a tool call's object says before it is complete."""

from __future__ import annotations

import json


class JsonValue:
    """Passes one JSON object or array through, character by character, and notices its end."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self.started = False
        self.ended = False

    @property
    def in_string(self) -> bool:
        """Whether the text read so far ends inside a string, where markup is data."""
        return self._in_string

    def feed(self, text: str) -> tuple[str, str]:
        """Split into (part of the value, what follows it). Text before the value's first bracket is dropped."""
        begin = 0
        if not self.started:
            begin = min((at for at in (text.find("{"), text.find("[")) if at >= 0), default=-1)
            if begin < 0:
                return "", ""
            self.started = True
        for at in range(begin, len(text)):
            self._step(text[at])
            if self._depth == 0:
                self.ended = True
                return text[begin : at + 1], text[at + 1 :]
        return text[begin:], ""

    def _step(self, char: str) -> None:
        if self._in_string:
            if self._escaped:
                self._escaped = False
            elif char == "\\":
                self._escaped = True
            elif char == '"':
                self._in_string = False
        elif char == '"':
            self._in_string = True
        elif char in "{[":
            self._depth += 1
        elif char in "}]":
            self._depth -= 1


class CallObject:
    """Reads `{"name": ..., "arguments": {...}}` (or "parameters") as it streams, in either order.

    `name` is known as soon as its string is complete; `take_arguments` then gives the raw text of the arguments as far
    as it has come. Other keys are skipped.
    """

    ARGUMENT_KEYS = ("arguments", "parameters")

    def __init__(self) -> None:
        self._value = JsonValue()
        self._text = ""
        self._at = 1  # behind the opening bracket
        self._key: str | None = None
        self._inner: JsonValue | None = None
        self._arguments = ""
        self.name: str | None = None
        self.broken = False

    @property
    def ended(self) -> bool:
        return self._value.ended

    @property
    def in_string(self) -> bool:
        """Whether the text read so far ends inside a string."""
        return self._value.in_string

    @property
    def raw(self) -> str:
        """Everything read of the object, for showing it as text when it turns out to be no call."""
        return self._text

    def feed(self, text: str) -> str:
        """Read on; returns what follows the object."""
        part, rest = self._value.feed(text)
        self._text += part
        while self._text and not self.broken and self._advance():
            pass
        return rest

    def take_arguments(self) -> str:
        """Arguments text that came since the last call; empty until the name is known."""
        if self.name is None:
            return ""
        taken, self._arguments = self._arguments, ""
        return taken

    def _advance(self) -> bool:
        """Consume one key, one value or one stretch of a value; False when more text is needed."""
        if self._inner is not None:
            return self._advance_inner(self._inner)
        if self._at < len(self._text) and self._text[self._at] in " \t\r\n,:":
            self._at += 1
            return True
        if self._at >= len(self._text) or self._text[self._at] == "}":
            return False
        if self._key in self.ARGUMENT_KEYS and self._text[self._at] == "{":
            self._inner = JsonValue()
            return True
        return self._advance_scalar()

    def _advance_inner(self, inner: JsonValue) -> bool:
        part, _ = inner.feed(self._text[self._at :])
        self._at += len(part)
        self._arguments += part
        if inner.ended:
            self._inner = self._key = None
        return bool(part)

    def _advance_scalar(self) -> bool:
        """A key, or a value that is not the arguments: wait until it is complete, then decode it."""
        try:
            value, end = json.JSONDecoder().raw_decode(self._text, self._at)
        except ValueError:
            self.broken = self.ended
            return False
        if end == len(self._text):
            return False  # a number may go on
        self._at = end
        if self._key is None:
            self.broken = not isinstance(value, str)
            self._key = value
            return not self.broken
        if self._key == "name" and isinstance(value, str):
            self.name = value
        elif self._key in self.ARGUMENT_KEYS:
            # Some models write the arguments object as a string, or nothing.
            self._arguments += value if isinstance(value, str) else json.dumps(value if value is not None else {})
        self._key = None
        return True
