"""Server-sent events as bytes. Knows the framing, not what is said."""

from __future__ import annotations

import json
from typing import Any

KEEPALIVE = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"
# Where an envelope's text goes, in the document that it is made from: two characters that no name or id has.
TEXT_HERE = "\ue000\ue001"
_ENCODER = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def dump(document: Any) -> bytes:
    """Compact JSON, UTF-8. NaN and infinities are refused: they are not JSON."""
    return _ENCODER.encode(document).encode()


def data(document: Any) -> bytes:
    """An unnamed event, as OpenAI's chat and completions send them."""
    return b"data: " + dump(document) + b"\n\n"


def event(name: str, document: Any) -> bytes:
    """A named event, as Anthropic's messages and OpenAI's responses send them."""
    return b"event: " + name.encode() + b"\ndata: " + dump(document) + b"\n\n"


class Envelope:
    """Unnamed events that differ in one text only, so that the rest of their document is written once for a stream."""

    def __init__(self, document: Any) -> None:
        """`document` has TEXT_HERE in the place of the text."""
        self._before, here, self._after = data(document).partition(dump(TEXT_HERE))
        assert here

    def data(self, text: str) -> bytes:
        """The event with this text."""
        return self._before + dump(text) + self._after
