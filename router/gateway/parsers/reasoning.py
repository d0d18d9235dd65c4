"""Splits thinking from answering at `<think>` and `</think>`, and passes the answer on to another parser."""

from __future__ import annotations

from router.gateway.parsers.api import Parser, Piece, ReasoningPiece
from router.gateway.parsers.markers import Marker, MarkerScanner

OPEN, CLOSE = "<think>", "</think>"
MARKERS = (OPEN, CLOSE)


class ThinkingParser:
    """Thinking comes first, if at all: after the first closing tag, or any text that is no tag, tags are plain text."""

    def __init__(self, answer: Parser, *, thinking: bool) -> None:
        """`thinking`: the prompt already opened the tag."""
        self._answer = answer
        self._scanner = MarkerScanner(MARKERS)
        self._thinking = thinking
        self._reasoned = False  # some thinking was shown
        self._decided = False  # the answer has begun
        self._blank = ""  # white space at the edges of the thinking, or before it

    @property
    def thinking(self) -> bool:
        """Whether the model is thinking now."""
        return self._thinking

    def feed(self, text: str) -> list[Piece]:
        if self._decided:  # tags are text from here on, also the part of one that was held back
            return self._answer.feed(self._scanner.finish() + text)
        pieces: list[Piece] = []
        for item in self._scanner.feed(text):
            pieces += self._take(item)
        return pieces

    def finish(self) -> list[Piece]:
        rest = self._scanner.finish()
        pieces = self._take(rest) if rest else []
        if not self._thinking and not self._decided:
            pieces += self._answer.feed(self._blank)
        return pieces + self._answer.finish()

    def _take(self, item: str | Marker) -> list[Piece]:
        if self._decided:
            return self._answer.feed(item.text if isinstance(item, Marker) else item)
        if isinstance(item, Marker):
            if item.text == OPEN:
                self._thinking, self._blank = True, ""
                return []
            self._thinking, self._decided, self._blank = False, True, ""
            self._answer = _Trimmed(self._answer)
            return []
        text = self._blank + item
        if self._thinking:
            text = text if self._reasoned else text.lstrip()
            kept = text.rstrip()
            self._blank, self._reasoned = text[len(kept) :], self._reasoned or bool(kept)
            return [ReasoningPiece(kept)] if kept else []
        if not text.strip():
            self._blank = text
            return []
        self._decided, self._blank = True, ""
        return self._answer.feed(text)


class _Trimmed:
    """Drops the blank lines between the closing tag and the answer."""

    def __init__(self, inner: Parser) -> None:
        self._inner = inner
        self._begun = False

    def feed(self, text: str) -> list[Piece]:
        if not self._begun:
            text = text.lstrip()
            self._begun = bool(text)
        return self._inner.feed(text) if text else []

    def finish(self) -> list[Piece]:
        return self._inner.finish()
