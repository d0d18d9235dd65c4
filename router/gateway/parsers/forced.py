"""Calls that a grammar forced: the output is bare JSON, whatever format the model was trained on."""

from __future__ import annotations

from router.gateway.parsers.api import Piece
from router.gateway.parsers.calls import CallWriter, ObjectCall, RawArguments


class ForcedCall:
    """The caller named the function; the whole output is its arguments."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._writer = CallWriter()
        self._arguments = RawArguments(self._writer)

    def feed(self, text: str) -> list[Piece]:
        started = self._writer.start(self._name) if self._writer.num_calls == 0 and text.strip() else []
        return started + self._arguments.feed(text)

    def finish(self) -> list[Piece]:
        return []


class RequiredCalls:
    """The output is an array of `{"name": ..., "parameters": {...}}`."""

    def __init__(self) -> None:
        self._writer = CallWriter()
        self._call: ObjectCall | None = None

    def feed(self, text: str) -> list[Piece]:
        pieces: list[Piece] = []
        while text:
            if self._call is None or self._call.ended:
                start = text.find("{")
                if start < 0:
                    break
                text, self._call = text[start:], ObjectCall(self._writer)
            new, text = self._call.feed(text)
            pieces += new
        return pieces

    def finish(self) -> list[Piece]:
        return []
