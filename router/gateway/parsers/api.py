"""The pieces that a model's output is made of, and the port of the parsers that find them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class TextPiece:
    """Text meant for the reader."""

    text: str


@dataclass(frozen=True, slots=True)
class ReasoningPiece:
    """Text the model wrote while thinking."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """A tool call begins: its place among the sample's calls, its id, and the function's name."""

    call: int
    call_id: str
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """More of a call's arguments, as JSON text."""

    call: int
    text: str


Piece = TextPiece | ReasoningPiece | CallStart | CallArguments


class Parser(Protocol):
    """Reads one sample's text as it comes. Markup is never shown, not even half of it."""

    def feed(self, text: str) -> list[Piece]:
        """Pieces that are certain now."""
        ...

    def finish(self) -> list[Piece]:
        """The sample ended: what was held back, as what it most likely is."""
        ...


class PlainText:
    """The parser of a request without tools: everything is text."""

    def feed(self, text: str) -> list[Piece]:
        return [TextPiece(text)] if text else []

    def finish(self) -> list[Piece]:
        return []
