"""A transport without a network, for tests and tools: the same logic on both ends, frames handed over in memory.

Faults are injected between the ends, frame by frame, where a network would.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from enum import Enum
from typing import Protocol

from kv_transport import messages
from kv_transport.api import FetchResult, PrefillOrder, Sink
from kv_transport.messages import Attach, Finish
from kv_transport.receive_service import ReceiveService
from kv_transport.send_service import SendService
from kv_transport.wire import FrameStream
from prfaas.clock import Clock
from prfaas.config import TransportSettings
from prfaas.errors import PrfaasError, TransferBroken, WorkerUnreachable
from prfaas.metrics import MetricSet
from prfaas.types import LinkView, SiteId

QUEUE_FRAMES = 2  # what a connection holds in flight


class Trouble(Enum):
    """What may happen to a connection instead of a frame."""

    CUT = "cut"  # it breaks
    STALL = "stall"  # it stays open and carries nothing any more
    END = "end"  # it ends as if all had been said


class Faults(Protocol):
    """Decides the fate of frames. Stateful: a frame that is kept back may be returned later."""

    def deliver(self, lane: int, frame: bytes) -> Sequence[bytes | Trouble]:
        """What the receiver gets where the sender sent `frame`: nothing, the frame, several frames, or trouble."""
        ...


class NoFaults:
    """A perfect network."""

    def deliver(self, lane: int, frame: bytes) -> Sequence[bytes | Trouble]:
        return (frame,)


class MemoryStream:
    """One lane: a task moves frames from the sender's generator into a short queue."""

    def __init__(self, frames: AsyncGenerator[bytes, None], lane: int, faults: Faults) -> None:
        self._queue: asyncio.Queue[bytes | PrfaasError | None] = asyncio.Queue(QUEUE_FRAMES)
        self._given_up = asyncio.Event()
        self._mover = asyncio.create_task(self._move(frames, lane, faults), name=f"memory-lane-{lane}")

    async def read(self) -> bytes | None:
        got = asyncio.ensure_future(self._queue.get())
        gone = asyncio.ensure_future(self._given_up.wait())
        try:
            await asyncio.wait((got, gone), return_when=asyncio.FIRST_COMPLETED)
            if self._given_up.is_set() or not got.done():
                raise TransferBroken("the lane was given up")
            item = got.result()
        finally:
            got.cancel()
            gone.cancel()
        if isinstance(item, PrfaasError):
            raise item
        return item

    def cancel(self) -> None:
        self._given_up.set()
        self._mover.cancel()

    async def _move(self, frames: AsyncGenerator[bytes, None], lane: int, faults: Faults) -> None:
        try:
            async with aclosing(frames):
                async for frame in frames:
                    for item in faults.deliver(lane, frame):
                        if item is Trouble.CUT:
                            raise TransferBroken("the connection was cut")
                        if item is Trouble.END:
                            await self._queue.put(None)
                            return
                        if isinstance(item, bytes):
                            await self._queue.put(item)
                        else:
                            await asyncio.Event().wait()
            await self._queue.put(None)
        except PrfaasError as error:
            await self._queue.put(error)


class MemorySender:
    """A SendService seen through a faulty network."""

    def __init__(self, service: SendService, faults: Faults) -> None:
        self._service = service
        self._faults = faults

    def prefill(self, order: bytes, lane: int) -> FrameStream:
        return MemoryStream(self._service.prefill(order), lane, self._faults)

    def attach(self, request: Attach) -> FrameStream:
        body = messages.to_pb_attach(request).SerializeToString()
        return MemoryStream(self._service.attach(body), request.lane, self._faults)

    def replace(self, lane: int) -> None:
        """Every stream here is a connection of its own; there is nothing to replace."""

    def rtt_s(self) -> float:
        return 0.0

    async def finish(self, request: Finish) -> None:
        self._service.finish(request)


class MemoryPrefillTransport:
    """Implements PrefillTransport between services of one process. Addresses are the names given to `connect`."""

    def __init__(self, settings: TransportSettings, site: SiteId, clock: Clock, metrics: MetricSet | None = None) -> None:
        self._receiver = ReceiveService(settings, site, clock, metrics)
        self._senders: dict[str, MemorySender] = {}

    def connect(self, address: str, service: SendService, faults: Faults | None = None) -> None:
        """Make `service` reachable at `address`, through `faults`."""
        self._senders[address] = MemorySender(service, faults or NoFaults())

    async def fetch(self, order: PrefillOrder, address: str, sink: Sink) -> FetchResult:
        """See PrefillTransport.fetch."""
        return await self._receiver.fetch(order, self.sender(address), sink)

    def sender(self, address: str) -> MemorySender:
        """The port to the sender at `address`. Raises WorkerUnreachable when nobody was connected there."""
        sender = self._senders.get(address)
        if sender is None:
            raise WorkerUnreachable(f"nobody is at {address}", address=address)
        return sender

    def links(self) -> tuple[LinkView, ...]:
        """See PrefillTransport.links."""
        return self._receiver.links()

    def counters(self) -> dict[str, float]:
        """See PrefillTransport.counters."""
        return self._receiver.counters()

    async def close(self) -> None:
        """See PrefillTransport.close."""
        await self._receiver.close()
