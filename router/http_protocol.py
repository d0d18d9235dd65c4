"""HTTP connections of strangers: uvicorn's protocol with a bound on the header block, in bytes and in time.

The parser below gathers a header block of any length, and waits for its end for ever.
"""

from __future__ import annotations

from asyncio import TimerHandle, Transport

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADER_BYTES = 64 * 1024
HEADER_TIMEOUT_S = 30.0


class GuardedHttpProtocol(HttpToolsProtocol):
    """Answers 431 to a header block of more than HEADER_BYTES (and what two reads bring beyond), and 408 to one that does not
    end within HEADER_TIMEOUT_S of its first byte, or of the connection's beginning. Both close the connection."""

    _header_bytes = 0
    _heads = 0  # messages begun; what one read brings of several is not counted against the last
    _in_headers = True
    _deadline: TimerHandle | None = None

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_clock()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._in_headers and self._header_bytes > HEADER_BYTES:
            self._refuse(b"431 Request Header Fields Too Large")
            return
        heads = self._heads
        super().data_received(data)
        if self._in_headers and self._heads == heads:
            self._header_bytes += len(data)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._heads += 1
        self._expect_headers()

    def on_headers_complete(self) -> None:
        self._in_headers = False
        self._stop_clock()
        super().on_headers_complete()

    def _expect_headers(self) -> None:
        self._in_headers = True
        self._header_bytes = 0
        self._stop_clock()
        self._deadline = self.loop.call_later(HEADER_TIMEOUT_S, self._refuse, b"408 Request Timeout")

    def _stop_clock(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _refuse(self, status: bytes) -> None:
        if self.transport.is_closing():
            return
        self._stop_clock()
        self.transport.write(b"HTTP/1.1 " + status + b"\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        self.transport.close()
