"""A path between two sites whose speed can be changed while bytes are on it, and a registry that leads workers' callers
over it. Loopback only; knows nothing of what passes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc.aio

from prfaas import rpc
from prfaas.clock import Clock
from prfaas.config import TlsSettings
from prfaas.pb import registry_pb2, registry_pb2_grpc

PIECE_BYTES = 32 * 1024
PLAIN = TlsSettings()
Context = grpc.aio.ServicerContext[Any, Any]


class Path:
    """What all connections share in the direction from the sender: `bytes_per_s`, 0 being an outage."""

    def __init__(self, clock: Clock, bytes_per_s: float) -> None:
        self._clock = clock
        self._rate = bytes_per_s
        self._free_s = clock.now_s()
        self._changed = asyncio.Event()

    def set_rate(self, bytes_per_s: float) -> None:
        self._rate = bytes_per_s
        self._free_s = min(self._free_s, self._clock.now_s())
        self._changed.set()
        self._changed = asyncio.Event()

    async def carry(self, num_bytes: int) -> None:
        """Wait until so many bytes are through."""
        while self._rate <= 0:
            await self._changed.wait()
        now_s = self._clock.now_s()
        self._free_s = max(self._free_s, now_s) + num_bytes / self._rate
        await asyncio.sleep(max(0.0, self._free_s - now_s))


class Detour(registry_pb2_grpc.RegistryServiceServicer):
    """Passes a worker's registration on to a router, under an address that leads over the path."""

    def __init__(self, router: grpc.aio.Channel, path: Path, stack: AsyncExitStack) -> None:
        self._router = registry_pb2_grpc.RegistryServiceStub(router)  # type: ignore[no-untyped-call]
        self._path = path
        self._stack = stack
        self._ports: dict[str, int] = {}

    async def Register(self, request: registry_pb2.WorkerInfo, context: Context) -> registry_pb2.RegisterReply:
        if request.address not in self._ports:
            target = int(request.address.rpartition(":")[2])
            self._ports[request.address] = await self._stack.enter_async_context(_listening(target, self._path))
        request.address = f"127.0.0.1:{self._ports[request.address]}"
        reply: registry_pb2.RegisterReply = await self._router.Register(request)
        return reply

    async def Heartbeat(self, request: registry_pb2.HeartbeatRequest, context: Context) -> registry_pb2.HeartbeatReply:
        reply: registry_pb2.HeartbeatReply = await self._router.Heartbeat(request)
        return reply

    async def PutCacheSnapshot(self, request: registry_pb2.CacheSnapshot, context: Context) -> registry_pb2.SnapshotReply:
        reply: registry_pb2.SnapshotReply = await self._router.PutCacheSnapshot(request)
        return reply

    async def Deregister(self, request: registry_pb2.DeregisterRequest, context: Context) -> registry_pb2.DeregisterReply:
        reply: registry_pb2.DeregisterReply = await self._router.Deregister(request)
        return reply


@asynccontextmanager
async def detour(router: str, path: Path) -> AsyncIterator[str]:
    """A registry's address for workers that are to be reached over `path`."""
    async with AsyncExitStack() as stack, rpc.channel(router, PLAIN) as channel:
        server = rpc.server()
        registry_pb2_grpc.add_RegistryServiceServicer_to_server(Detour(channel, path, stack), server)  # type: ignore[no-untyped-call]
        port = rpc.bind(server, "127.0.0.1", 0, PLAIN)
        await server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            await server.stop(None)


@asynccontextmanager
async def _listening(target: int, path: Path) -> AsyncIterator[int]:
    """A port whose connections go to 127.0.0.1:`target`; what comes back goes over the path."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", target)
        both = {asyncio.create_task(_pass(reader, far_writer, None)), asyncio.create_task(_pass(far_reader, writer, path))}
        tasks.update(both)
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            return  # the run is over; asyncio would report a cancelled handler as an error
        finally:
            for task in both:
                task.cancel()
                tasks.discard(task)
            writer.close()
            far_writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        server.close()
        for task in tasks:
            task.cancel()


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: Path | None) -> None:
    try:
        while data := await reader.read(PIECE_BYTES):
            if path is not None:
                await path.carry(len(data))
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        return
