"""Llama 3: the whole answer is `{"name": ..., "parameters": {...}}`, perhaps behind a tag, several joined by semicolons."""

from __future__ import annotations

from router.gateway.parsers.api import Piece
from router.gateway.parsers.calls import CallWriter, ObjectCall
from router.gateway.parsers.markers import Marker, MarkerScanner

TAG = "<|python_tag|>"
MARKERS = (TAG,)


class LlamaParser:
    """Parser for Llama 3.1 and later. An answer that does not begin as an object is text to its end."""

    def __init__(self) -> None:
        self._scanner = MarkerScanner(MARKERS)
        self._writer = CallWriter()
        self._call: ObjectCall | None = None
        self._is_text = False

    def feed(self, text: str) -> list[Piece]:
        pieces: list[Piece] = []
        for item in self._scanner.feed(text):
            if not isinstance(item, Marker):
                pieces += self._read(item)
        return pieces

    def finish(self) -> list[Piece]:
        pieces = self._read(self._scanner.finish())
        if self._call is not None and not self._call.ended:
            # Nothing marks it as a call, so as the first thing said it may be an answer in JSON.
            return pieces + self._writer.finish(self._call.unnamed)
        return pieces + self._writer.finish()

    def _read(self, text: str) -> list[Piece]:
        pieces: list[Piece] = []
        while text:
            if self._is_text:
                return pieces + self._writer.text(text)
            if self._call is None or self._call.ended:
                text = text.lstrip(" \t\r\n;")
                if not text:
                    break
                if text[0] != "{":
                    self._is_text = True
                    continue
                self._call = ObjectCall(self._writer)
            new, text = self._call.feed(text)
            pieces += new
        return pieces
