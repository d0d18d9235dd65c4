"""Server-sent events as bytes. Knows the framing, not what is said."""

from __future__ import annotations

import json
from typing import Any

KEEPALIVE = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"


def dump(document: Any) -> bytes:
    """Compact JSON, UTF-8. NaN and infinities are refused: they are not JSON."""
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def data(document: Any) -> bytes:
    """An unnamed event, as OpenAI's chat and completions send them."""
    return b"data: " + dump(document) + b"\n\n"


def event(name: str, document: Any) -> bytes:
    """A named event, as Anthropic's messages and OpenAI's responses send them."""
    return b"event: " + name.encode() + b"\ndata: " + dump(document) + b"\n\n"
