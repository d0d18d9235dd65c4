"""Request bodies on their way in, whole before anything is done about them: so a client that sends slowly, or never ends,
holds no place that others wait for. Bounded in size, in time, and in what all of them hold together."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from starlette.types import Message, Receive

from prfaas.errors import QueueFull, RequestCancelled, RequestError

BODY_TIMEOUT_S = 60.0  # a megabyte arrives within it on any line that is worth serving
ARRIVING_BYTES = 512 * 1024**2


class BodyTooLarge(RequestError):
    """The body passes the limit; detail: limit_bytes."""

    code = "body_too_large"
    http_status = 413


class BodyTooSlow(RequestError):
    """The body did not end in time; detail: timeout_s."""

    code = "body_timeout"
    http_status = 408


class Arrivals:
    """All bodies that are being received. Owned by the event loop.

    `limit_bytes` bounds one body, `arriving_bytes` all unfinished ones, `timeout_s` how long one may take.
    """

    def __init__(self, *, limit_bytes: int, timeout_s: float = BODY_TIMEOUT_S, arriving_bytes: int = ARRIVING_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._timeout_s = timeout_s
        self._free_bytes = arriving_bytes
        self._arriving_bytes = arriving_bytes

    async def body(self, headers: Mapping[bytes, bytes], receive: Receive) -> bytes:
        """The whole body.

        Raises:
            BodyTooLarge: it is, or says that it will be, larger than one body may be.
            BodyTooSlow: it did not end within the time limit.
            QueueFull: the bodies that are arriving fill the room for all.
            RequestCancelled: the client left before the end.
        """
        declared = headers.get(b"content-length", b"")
        self._check_size(int(declared) if declared.isdigit() else 0)
        parts: list[bytes] = []
        held_bytes = 0
        try:
            async with asyncio.timeout(self._timeout_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise RequestCancelled("the client closed the connection before its request was whole")
                    part = message.get("body", b"")
                    self._check_size(held_bytes + len(part))
                    self._check_room(len(part))
                    self._free_bytes -= len(part)
                    held_bytes += len(part)
                    parts.append(part)
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError as error:
            raise BodyTooSlow(
                f"the request body did not end within {self._timeout_s:g} s; send it faster, or less of it",
                timeout_s=self._timeout_s,
            ) from error
        finally:
            self._free_bytes += held_bytes

    def _check_size(self, size_bytes: int) -> None:
        if size_bytes > self._limit_bytes:
            raise BodyTooLarge(
                f"the request body is larger than the limit of {self._limit_bytes} bytes; send less at once",
                limit_bytes=self._limit_bytes,
            )

    def _check_room(self, size_bytes: int) -> None:
        if size_bytes > self._free_bytes:
            raise QueueFull(
                "too many request bodies are arriving at once; retry shortly",
                depth=self._arriving_bytes - self._free_bytes,
                limit=self._arriving_bytes,
                retry_after_s=1.0,
            )


def replayed(body: bytes, receive: Receive) -> Receive:
    """A `receive` that hands out `body` first, and then what is left of the connection."""
    rest: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return rest.pop() if rest else await receive()

    return receive_again
