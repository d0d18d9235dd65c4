"""Finds stop strings in streamed text and cuts there. Knows text only, no tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StopResult:
    """`text` may be shown now; `matched` is the stop string that ended the sample, if one did."""

    text: str
    matched: str | None = None


class StopMatcher:
    """Holds back the shortest tail that could still become a stop string, and nothing more.

    The match that ends first wins, and among those the longest: so the outcome is the same however the text was cut
    into pieces. After a match nothing more is emitted.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """`stops` must be non-empty strings; none at all passes text straight through."""
        if not all(stops):
            raise ValueError("an empty stop string would stop everything")
        self._stops = tuple(stops)
        self._held = ""
        self._matched: str | None = None

    def feed(self, text: str) -> StopResult:
        """Take more text; returns what is certain now."""
        if self._matched is not None:
            return StopResult("", self._matched)
        if not self._stops:
            return StopResult(text)
        self._held += text
        hits = [(at + len(stop), at, stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if hits:
            _, at, stop = min(hits)
            shown, self._held, self._matched = self._held[:at], "", stop
            return StopResult(shown, stop)
        keep = max(_overlap(self._held, stop) for stop in self._stops)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return StopResult(shown)

    def finish(self) -> str:
        """The sample ended for another reason: what was held back is text after all."""
        rest, self._held = self._held, ""
        return rest


def _overlap(text: str, stop: str) -> int:
    """Length of the longest proper prefix of `stop` that `text` ends with."""
    for size in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
