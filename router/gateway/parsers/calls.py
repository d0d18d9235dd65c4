"""Parts that the tool parsers share: numbering calls, and keeping blank text between calls to themselves."""

from __future__ import annotations

from uuid import uuid4

from router.gateway.parsers.api import CallArguments, CallStart, Piece, TextPiece
from router.gateway.parsers.json_scan import CallObject, JsonValue


class CallWriter:
    """Turns what a parser finds into pieces.

    Blank text before and between calls is markup, so white space is held back until real text follows it.
    """

    def __init__(self) -> None:
        self.num_calls = 0
        self._blank = ""

    def text(self, text: str) -> list[Piece]:
        """Text outside of calls."""
        text = self._blank + text
        kept = text.rstrip()
        self._blank = text[len(kept) :]
        return [TextPiece(kept)] if kept else []

    def start(self, name: str, call_id: str | None = None) -> list[Piece]:
        """A call begins; without an id of the model's own, one is made."""
        self._blank = ""
        self.num_calls += 1
        return [CallStart(self.num_calls - 1, call_id or f"call_{uuid4().hex[:24]}", name)]

    def arguments(self, text: str) -> list[Piece]:
        """More of the last call's arguments."""
        return [CallArguments(self.num_calls - 1, text)] if text else []

    def finish(self, rest: str = "") -> list[Piece]:
        """The end. Blanks and the start of a marker, `rest`, are text unless calls were made: then they are markup."""
        rest, self._blank = self._blank + rest, ""
        return [TextPiece(rest)] if rest and self.num_calls == 0 else []


class ObjectCall:
    """One call written as `{"name": ..., "arguments": {...}}`: shown as soon as its name is known."""

    def __init__(self, writer: CallWriter) -> None:
        self._writer = writer
        self._object = CallObject()
        self._shown = False
        self._wrote = False

    @property
    def ended(self) -> bool:
        return self._object.ended

    @property
    def in_string(self) -> bool:
        """Whether the object is inside a string, where markup is data."""
        return self._object.in_string

    def feed(self, text: str) -> tuple[list[Piece], str]:
        """Pieces, and what follows the object."""
        rest = self._object.feed(text)
        pieces: list[Piece] = []
        if self._object.name is not None and not self._shown:
            self._shown = True
            pieces += self._writer.start(self._object.name)
        if self._shown:
            arguments = self._object.take_arguments()
            self._wrote |= bool(arguments)
            pieces += self._writer.arguments(arguments)
        if self.ended:
            pieces += self.close()
        return pieces, rest

    @property
    def unnamed(self) -> str:
        """The object's text as long as it is not known to be a call."""
        return "" if self._shown else self._object.raw

    def close(self) -> list[Piece]:
        """The object is complete: without a name it was no call, and is shown as it was written. One that breaks off is
        not to be closed: its arguments stay as far as they came."""
        if not self._shown:
            self._shown = True
            return self._writer.text(self._object.raw)
        if not self._wrote:
            self._wrote = True
            return self._writer.arguments("{}")
        return []


class RawArguments:
    """A call's arguments written as bare JSON, perhaps inside a code fence: exactly the JSON passes."""

    def __init__(self, writer: CallWriter) -> None:
        self._writer = writer
        self._value = JsonValue()

    def feed(self, text: str) -> list[Piece]:
        return [] if self._value.ended else self._writer.arguments(self._value.feed(text)[0])

    def close(self) -> list[Piece]:
        """The call is complete; one without any arguments gets an empty object."""
        return [] if self._value.started else self._writer.arguments("{}")
