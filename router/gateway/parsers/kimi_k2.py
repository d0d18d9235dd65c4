"""Kimi K2: a section of calls, each `functions.NAME:IDX`, then its arguments as JSON; the header is the call's id."""

from __future__ import annotations

from router.gateway.parsers.api import Piece
from router.gateway.parsers.calls import CallWriter, RawArguments
from router.gateway.parsers.markers import Marker, MarkerScanner

SECTION_BEGIN, SECTION_END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
CALL_BEGIN, ARGUMENT_BEGIN, CALL_END = "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"
MARKERS = (SECTION_BEGIN, SECTION_END, CALL_BEGIN, ARGUMENT_BEGIN, CALL_END)


class KimiK2Parser:
    """Parser for Kimi K2 and its successors."""

    def __init__(self) -> None:
        self._scanner = MarkerScanner(MARKERS)
        self._writer = CallWriter()
        self._in_section = False
        self._header: str | None = None  # text between call begin and argument begin
        self._arguments: RawArguments | None = None

    def feed(self, text: str) -> list[Piece]:
        pieces: list[Piece] = []
        for item in self._scanner.feed(text):
            if isinstance(item, Marker):
                pieces += self._mark(item.text)
            elif self._arguments is not None:
                pieces += self._arguments.feed(item)
            elif self._header is not None:
                self._header += item
            elif not self._in_section:
                pieces += self._writer.text(item)
        return pieces

    def finish(self) -> list[Piece]:
        rest = self._scanner.finish()
        if self._arguments is not None:
            return self._arguments.feed(rest)
        return self._writer.finish("" if self._in_section else rest)

    def _mark(self, marker: str) -> list[Piece]:
        if marker == ARGUMENT_BEGIN and self._header is not None:
            call_id, self._header = self._header.strip(), None
            self._arguments = RawArguments(self._writer)
            return self._writer.start(name_of(call_id), call_id)
        pieces = self._close()
        self._in_section = marker != SECTION_END
        self._header = "" if marker == CALL_BEGIN else None
        return pieces

    def _close(self) -> list[Piece]:
        call, self._arguments = self._arguments, None
        return call.close() if call is not None else []


def name_of(call_id: str) -> str:
    """`functions.get_weather:0` names `get_weather`; dots inside a name stay."""
    name, _, index = call_id.rpartition(":")
    return (name if index.isdigit() and name else call_id).removeprefix("functions.")
