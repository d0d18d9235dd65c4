"""DeepSeek: a section of calls between full-width marks. V3 writes kind, name and fenced JSON; V3.1 name and JSON."""

from __future__ import annotations

from router.gateway.parsers.api import Piece
from router.gateway.parsers.calls import CallWriter, RawArguments
from router.gateway.parsers.markers import Marker, MarkerScanner

SECTION_BEGIN, SECTION_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL_BEGIN, SEPARATOR, CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
MARKERS = (SECTION_BEGIN, SECTION_END, CALL_BEGIN, SEPARATOR, CALL_END)
_KIND = "function"  # V3 writes it where V3.1 has the name


class DeepSeekParser:
    """Parser for DeepSeek V3, R1 and V3.1."""

    def __init__(self) -> None:
        self._scanner = MarkerScanner(MARKERS)
        self._writer = CallWriter()
        self._in_section = False
        self._header: str | None = None  # text before the separator
        self._name: str | None = None  # V3: text behind the separator, up to the line's end
        self._arguments: RawArguments | None = None

    def feed(self, text: str) -> list[Piece]:
        pieces: list[Piece] = []
        for item in self._scanner.feed(text):
            pieces += self._mark(item.text) if isinstance(item, Marker) else self._read(item)
        return pieces

    def finish(self) -> list[Piece]:
        rest = self._scanner.finish()
        if self._arguments is not None:
            return self._arguments.feed(rest)
        return self._writer.finish("" if self._in_section else rest)

    def _read(self, text: str) -> list[Piece]:
        if self._arguments is not None:
            return self._arguments.feed(text)
        if self._name is not None:
            self._name += text
            name, newline, rest = self._name.partition("\n")
            return [*self._start(name), *self._read(rest)] if newline else []
        if self._header is not None:
            self._header += text
            return []
        return [] if self._in_section else self._writer.text(text)

    def _mark(self, marker: str) -> list[Piece]:
        if marker == SEPARATOR and self._header is not None:
            header, self._header = self._header.strip(), None
            if header != _KIND:
                return self._start(header)
            self._name = ""
            return []
        pieces = self._close()
        self._in_section = marker != SECTION_END
        self._header = "" if marker == CALL_BEGIN else None
        return pieces

    def _start(self, name: str) -> list[Piece]:
        self._name, self._arguments = None, RawArguments(self._writer)
        return self._writer.start(name.strip())

    def _close(self) -> list[Piece]:
        call, self._arguments, self._name = self._arguments, None, None
        return call.close() if call is not None else []
