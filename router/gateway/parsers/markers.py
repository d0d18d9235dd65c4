"""Cuts streamed text at literal markers, holding back what may become one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Marker:
    """A marker was read."""

    text: str


class MarkerScanner:
    """The earliest marker wins, at one place the longest. Text and markers come out in order."""

    def __init__(self, markers: Sequence[str]) -> None:
        self._markers = tuple(markers)
        self._held = ""

    def feed(self, text: str) -> list[str | Marker]:
        """Non-empty texts and markers."""
        self._held += text
        found: list[str | Marker] = []
        while True:
            hits = [(at, -len(marker), marker) for marker in self._markers if (at := self._held.find(marker)) >= 0]
            if not hits:
                break
            at, _, marker = min(hits)
            if at:
                found.append(self._held[:at])
            found.append(Marker(marker))
            self._held = self._held[at + len(marker) :]
        cut = len(self._held) - max((_tail(self._held, marker) for marker in self._markers), default=0)
        if cut:
            found.append(self._held[:cut])
        self._held = self._held[cut:]
        return found

    def finish(self) -> str:
        """What was held back."""
        rest, self._held = self._held, ""
        return rest


def _tail(text: str, marker: str) -> int:
    """Length of the longest proper prefix of `marker` that `text` ends with."""
    for size in range(min(len(marker) - 1, len(text)), 0, -1):
        if text.endswith(marker[:size]):
            return size
    return 0
