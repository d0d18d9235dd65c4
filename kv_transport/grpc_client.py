"""The receiver's transport over gRPC: connections to senders, and fetches over them. Knows no transfer logic.

A peer has up to `max_lanes` connections, each a channel of its own; they are made when first needed and stay open.
"""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio

from kv_transport import messages, tcp_info
from kv_transport.api import FetchResult, PrefillOrder, Sink
from kv_transport.grpc_server import ATTACH, FINISH, PREFILL, SERVICE
from kv_transport.messages import Attach, Finish
from kv_transport.receive_service import ReceiveService
from kv_transport.wire import FrameStream
from prfaas import rpc
from prfaas.clock import Clock
from prfaas.config import TransportSettings
from prfaas.errors import PrfaasError, TransferBroken, WorkerUnreachable
from prfaas.metrics import MetricSet
from prfaas.pb import transfer_pb2
from prfaas.types import LinkView, SiteId

_NETWORK = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DEADLINE_EXCEEDED,
)
FINISH_TIMEOUT_S = 5.0
RETIRE_GRACE_S = 120.0  # for transfers that run over a connection with replaced certificates, or to a forgotten peer
# What a lane may have under way and unread. On a short path one chunk at a time suffices, and more would make a cut
# dearer, queue other transfers behind this one, and be held in memory when nobody reads. A long one needs a lane's share
# of bandwidth x delay; gRPC's own estimate of that counts queues as delay, so it is switched off.
MIN_WINDOW_BYTES = 256 * 1024
MAX_WINDOW_BYTES = 4 * 1024**2
LANE_BYTES_PER_S = 100e6
NEVER_MS = 2**31 - 1
MAX_PEERS = 256  # a prefill worker that starts again has a new address, and nobody says that the old one is gone


def window_bytes(rtt_s: float) -> int:
    """The receive window of one lane over a path of this round trip, 0 when unknown: a power of two."""
    wanted = MIN_WINDOW_BYTES
    while wanted < min(rtt_s * LANE_BYTES_PER_S, MAX_WINDOW_BYTES):
        wanted *= 2
    return wanted


def lane_options(window: int) -> rpc.Options:
    """Options of a lane's connection, which also stays open however long nothing is fetched over it."""
    return [
        ("grpc.http2.lookahead_bytes", window),
        ("grpc.http2.bdp_probe", 0),
        ("grpc.client_idle_timeout_ms", NEVER_MS),
    ]


class GrpcStream:
    """One lane's call over one channel."""

    def __init__(self, channel: grpc.aio.Channel, call: Any, address: str, connect_timeout_s: float) -> None:
        self._channel = channel
        self._call = call
        self._address = address
        self._connect_timeout_s = connect_timeout_s
        self._heard = False
        self._given_up = False

    async def read(self) -> bytes | None:
        if self._given_up:
            raise TransferBroken("the lane was given up")
        try:
            if not self._heard:
                await self._connected()
            frame = await self._call.read()
            self._heard = True
        except grpc.aio.AioRpcError as error:
            raise self._translated(error) from error
        except TimeoutError as error:
            self._call.cancel()
            message = f"no connection to {self._address} within {self._connect_timeout_s} s"
            raise WorkerUnreachable(message, address=self._address) from error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling() == 0:
                raise TransferBroken("the lane was given up") from None
            raise
        return frame if isinstance(frame, bytes) else None  # grpc.aio.EOF is not bytes

    async def _connected(self) -> None:
        """Wait for the connection only, not for an answer: a busy sender is not an absent one. A connection that was
        refused makes the call itself fail."""
        async with asyncio.timeout(self._connect_timeout_s):
            state = self._channel.get_state(try_to_connect=True)
            while state in (grpc.ChannelConnectivity.IDLE, grpc.ChannelConnectivity.CONNECTING):
                await self._channel.wait_for_state_change(state)
                state = self._channel.get_state()

    def cancel(self) -> None:
        self._given_up = True
        self._call.cancel()

    def _translated(self, error: grpc.aio.AioRpcError) -> PrfaasError:
        if rpc.carries_error(error) or error.code() not in _NETWORK:
            return rpc.from_rpc(error, worker_id=self._address)
        message = f"{self._address}: {error.details() or error.code().name}"
        if not self._heard and error.code() is grpc.StatusCode.UNAVAILABLE:
            return WorkerUnreachable(message, address=self._address)
        return TransferBroken(message, address=self._address)


class GrpcPeer:
    """The connections to one sender, by number. A connection keeps the certificate it was made with; when the files
    change, new calls go over new connections and the old ones close when their calls have ended."""

    def __init__(self, address: str, settings: TransportSettings, files: rpc.TlsFiles | None) -> None:
        self._address = address
        self._settings = settings
        self._files = files
        self._material = files.current() if files is not None else None
        self._window_bytes = MIN_WINDOW_BYTES
        self._channels: dict[int, grpc.aio.Channel] = {}
        self._retired: set[grpc.aio.Channel] = set()
        self._closing: set[asyncio.Task[None]] = set()

    def stream(self, number: int, method: str, request: bytes) -> FrameStream:
        """Call a streaming method over connection `number`."""
        channel = self._channel(number)
        call = channel.unary_stream(f"/{SERVICE}/{method}", None, None)(request)
        return GrpcStream(channel, call, self._address, self._settings.connect_timeout_s)

    async def finish(self, number: int, request: bytes) -> None:
        """Call Finish over connection `number`. Raises grpc's AioRpcError."""
        await self._channel(number).unary_unary(f"/{SERVICE}/{FINISH}", None, None)(request, timeout=FINISH_TIMEOUT_S)

    def _channel(self, number: int) -> grpc.aio.Channel:
        self._follow_certificates()
        channel = self._channels.get(number)
        if channel is None:
            self._follow_path()
            options = lane_options(self._window_bytes)
            channel = rpc.channel(
                self._address, self._settings.tls, own_connection=True, files=self._files, extra_options=options
            )
            self._channels[number] = channel
        return channel

    def rtt_s(self) -> float:
        """Smallest round trip of the open connections; 0 when there is none or the system does not tell."""
        return min((c.rtt_s for c in tcp_info.connections([self._address]) if c.rtt_s > 0), default=0.0)

    @property
    def num_connections(self) -> int:
        return len(self._channels)

    def drop(self, number: int, grace_s: float | None = None) -> None:
        """Close a connection, its calls after at most `grace_s`; what breaks resumes over the next one."""
        channel = self._channels.pop(number, None)
        if channel is not None:
            self._retired.add(channel)
            task = asyncio.create_task(self._close(channel, grace_s), name="transfer-drop")
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def retire(self) -> None:
        """Close every connection as soon as nothing runs over it."""
        for number in list(self._channels):
            self.drop(number, RETIRE_GRACE_S)

    @property
    def closing(self) -> bool:
        return bool(self._closing)

    async def close(self) -> None:
        """Close every connection now, retired ones too."""
        for channel in (*self._channels.values(), *self._retired):
            await channel.close(None)
        self._channels.clear()
        await asyncio.gather(*self._closing)

    async def _close(self, channel: grpc.aio.Channel, grace_s: float | None) -> None:
        try:
            await channel.close(grace_s)
        finally:
            self._retired.discard(channel)

    def _follow_path(self) -> None:
        """A connection keeps the window it was made with. What was made before the path's delay was known is replaced."""
        wanted = window_bytes(self.rtt_s())
        if wanted > self._window_bytes:
            self._window_bytes = wanted
            self.retire()

    def _follow_certificates(self) -> None:
        material = self._files.current() if self._files is not None else None
        if material != self._material:
            self._material = material
            self.retire()


class GrpcSender:
    """A sender as one fetch sees it. `base` spreads the main lanes of concurrent fetches over the connections."""

    def __init__(self, peer: GrpcPeer, address: str, settings: TransportSettings, base: int) -> None:
        self._peer = peer
        self._address = address
        self._settings = settings
        self._base = base

    def prefill(self, order: bytes, lane: int) -> FrameStream:
        return self._peer.stream(self._connection(lane), PREFILL, order)

    def attach(self, request: Attach) -> FrameStream:
        body = messages.to_pb_attach(request).SerializeToString()
        return self._peer.stream(self._connection(request.lane), ATTACH, body)

    def replace(self, lane: int) -> None:
        self._peer.drop(self._connection(lane))

    def rtt_s(self) -> float:
        return self._peer.rtt_s()

    async def finish(self, request: Finish) -> None:
        message = transfer_pb2.FinishRequest(
            transfer_id=request.transfer_id, committed=request.committed, reason=request.reason
        )
        try:
            await self._peer.finish(self._connection(0), message.SerializeToString())
        except grpc.aio.AioRpcError as error:
            raise rpc.from_rpc(error, worker_id=self._address) from error

    def _connection(self, lane: int) -> int:
        return (self._base + lane) % self._settings.max_lanes


class GrpcPrefillTransport:
    """Implements PrefillTransport. Created and used on one event loop."""

    def __init__(self, settings: TransportSettings, site: SiteId, clock: Clock, metrics: MetricSet | None = None) -> None:
        self._settings = settings
        self._files = rpc.TlsFiles(settings.tls, clock) if settings.tls.enabled else None
        self._receiver = ReceiveService(settings, site, clock, metrics)
        self._peers: dict[str, GrpcPeer] = {}  # the one used last is the last
        self._leaving: list[GrpcPeer] = []
        self._bases = 0

    async def fetch(self, order: PrefillOrder, address: str, sink: Sink) -> FetchResult:
        """See PrefillTransport.fetch."""
        return await self._receiver.fetch(order, self.sender(address), sink)

    def sender(self, address: str) -> GrpcSender:
        """The port to the sender at `address`, over this transport's connections."""
        peer = self._peers.pop(address, None) or GrpcPeer(address, self._settings, self._files)
        self._peers[address] = peer
        if len(self._peers) > MAX_PEERS:
            oldest = self._peers.pop(next(iter(self._peers)))
            oldest.retire()
            self._leaving = [each for each in (*self._leaving, oldest) if each.closing]
        return GrpcSender(peer, address, self._settings, self._next_base())

    def links(self) -> tuple[LinkView, ...]:
        """See PrefillTransport.links."""
        return self._receiver.links()

    def counters(self) -> dict[str, float]:
        """See PrefillTransport.counters; and open_connections."""
        connections = float(sum(peer.num_connections for peer in self._peers.values()))
        return {**self._receiver.counters(), "open_connections": connections}

    async def close(self) -> None:
        """See PrefillTransport.close. Releases at the senders are still sent."""
        await self._receiver.close()
        peers = [*self._peers.values(), *self._leaving]
        self._peers, self._leaving = {}, []
        for peer in peers:
            await peer.close()

    def _next_base(self) -> int:
        base, self._bases = self._bases, (self._bases + 1) % self._settings.max_lanes
        return base
