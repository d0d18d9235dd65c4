"""Hermes and Qwen: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, any number, between text."""

from __future__ import annotations

from router.gateway.parsers.api import Piece
from router.gateway.parsers.calls import CallWriter, ObjectCall
from router.gateway.parsers.markers import Marker, MarkerScanner

OPEN, CLOSE = "<tool_call>", "</tool_call>"
MARKERS = (OPEN, CLOSE)


class HermesParser:
    """Parser for models trained on the Hermes format."""

    def __init__(self) -> None:
        self._scanner = MarkerScanner(MARKERS)
        self._writer = CallWriter()
        self._call: ObjectCall | None = None

    def feed(self, text: str) -> list[Piece]:
        pieces: list[Piece] = []
        for item in self._scanner.feed(text):
            if isinstance(item, Marker) and self._call is not None and self._call.in_string:
                pieces += self._call.feed(item.text)[0]
            elif isinstance(item, Marker):
                pieces += self._close()
                self._call = ObjectCall(self._writer) if item.text == OPEN else None
            elif self._call is None:
                pieces += self._writer.text(item)
            elif not self._call.ended:
                pieces += self._call.feed(item)[0]
        return pieces

    def finish(self) -> list[Piece]:
        rest = self._scanner.finish()
        if self._call is None:
            return self._writer.finish(rest)
        return (self._call.feed(rest)[0] if self._call.in_string else []) + self._writer.finish()

    def _close(self) -> list[Piece]:
        return self._call.close() if self._call is not None and not self._call.ended else []
