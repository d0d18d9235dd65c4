"""The port between the transfer logic and what carries its frames: gRPC, or memory in tests and in the simulator."""

from __future__ import annotations

from typing import Protocol

from kv_transport.messages import Attach, Finish, Manifest, PathStats, Progress


class FrameStream(Protocol):
    """The receiving end of one lane."""

    async def read(self) -> bytes | None:
        """The next frame; None when the sender ended the stream well.

        Raises TransferBroken when the connection is lost or the stream was cancelled here, WorkerUnreachable when
        there was no connection at all, and otherwise the error that the sender raised.
        """
        ...

    def cancel(self) -> None:
        """Give the stream up: a pending and every later `read` raises TransferBroken. Idempotent."""
        ...


class SenderPort(Protocol):
    """One sender, seen from a receiver. Lane numbers pick the connection: different lanes, different connections."""

    def prefill(self, order: bytes, lane: int) -> FrameStream:
        """Start a prefill; its stream is the main lane."""
        ...

    def attach(self, request: Attach) -> FrameStream:
        """One more lane of a transfer, or a lane that replaces a broken one."""
        ...

    def replace(self, lane: int) -> None:
        """The lane's connection is silent or damages data: let the next `attach` of the lane use another one."""
        ...

    def rtt_s(self) -> float:
        """Round trip of the open connections to this sender, 0 when unknown."""
        ...

    async def finish(self, request: Finish) -> None:
        """Tell the sender to release. Best effort: the lease covers a message that is lost. Raises PrfaasError."""
        ...


class ReceiveMonitor(Protocol):
    """Told of everything a fetch sees; knows what the path has been like. One per fetch."""

    def began(self, manifest: Manifest) -> None: ...

    def landed(self, wire_bytes: int, codec: str, now_s: float) -> None: ...

    def progress(self, progress: Progress, landed_bytes: int) -> None: ...

    def resumed(self) -> None: ...

    def lanes_changed(self, change: int) -> None: ...

    def sender_path(self, path: PathStats) -> None: ...

    def round_trip(self, rtt_s: float) -> None:
        """A measured round trip; 0 is ignored."""
        ...

    @property
    def knows_rtt(self) -> bool:
        """Whether the path has a recent round trip."""
        ...

    def wanted_lanes(self, total_bytes: int) -> int:
        """How many lanes a transfer of this size should use on this path, at least 1."""
        ...

    def one_way_s(self) -> float:
        """The delay of the path, 0 when unknown."""
        ...
