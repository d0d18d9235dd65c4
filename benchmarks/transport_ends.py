"""The two ends of a measured transfer, each a process of its own: our transport, and a raw socket loop to compare with.

    python -m benchmarks.transport_ends sender|receiver|mixed|raw-sender|raw-receiver '{"port": 5000, ...}'

A sender prints one line when it listens and serves until its stdin closes; a receiver prints one JSON line of results.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from kv_transport.allocator import tune_allocator
from kv_transport.api import FirstTokens, GroupPlan, Offer, PrefillOrder, RangeReady, SourceEvent
from kv_transport.checksum import crc32c
from kv_transport.grpc_client import GrpcPrefillTransport
from kv_transport.grpc_server import serve_transfers
from kv_transport.testing.sources import FINGERPRINT
from prfaas import rpc
from prfaas.clock import MonotonicClock
from prfaas.config import TlsSettings, TransportSettings
from prfaas.modelspec import CacheGroup, DType, GroupKind, KvRange, TensorSpec
from prfaas.types import GenerationRequest, RequestId, SiteId, TokenOutput, WorkerId

ENTRY_BYTES = 2048  # one token of one layer: 8 KV heads of 64 in bfloat16, K and V
NUM_LAYERS = 32
RAW_PIECE_BYTES = 1024**2


@dataclass(frozen=True, slots=True)
class EndSettings:
    """What one end is to do. `certs` is a directory with ca.pem, cert.pem and key.pem; empty for plaintext."""

    port: int = 0
    host: str = "127.0.0.1"
    bind: str = "127.0.0.1"
    certs: str = ""
    size_bytes: int = 64 * 1024**2  # of each transfer
    repeat: int = 1
    warmup: int = 1
    compute_s: float = 0.0  # the emulated prefill spreads its layers over this long
    lanes: int = 0
    max_lanes: int = 16
    chunk_bytes: int = 1024**2
    streams: int = 1  # raw only: parallel connections
    crc: bool = True  # raw only
    seconds: float = 0.0  # receiver: repeat until this long has passed instead of `repeat` times
    small_bytes: int = 0  # receiver: size of the small transfers that are timed among the large ones
    large: int = 0  # receiver: transfers of `size_bytes` kept running meanwhile
    small: int = 0  # receiver: small transfers kept running at the same time
    egress_bytes_per_s: int = 0  # sender: pace traffic to the other site

    def transport(self) -> TransportSettings:
        certs = Path(self.certs)
        tls = TlsSettings()
        if self.certs:
            tls = TlsSettings(
                ca_file=certs / "ca.pem", cert_file=certs / "cert.pem", key_file=certs / "key.pem", server_name="bench"
            )
        tls = tls.model_copy(update={"allow_plaintext": True})
        return TransportSettings(
            chunk_bytes=self.chunk_bytes,
            lanes=self.lanes,
            max_lanes=self.max_lanes,
            egress_bytes_per_s=self.egress_bytes_per_s,
            tls=tls,
        )


def offer_of(size_bytes: int) -> Offer:
    """An offer of about `size_bytes` in 32 layers."""
    tokens = max(1, size_bytes // (NUM_LAYERS * ENTRY_BYTES))
    tensors = (TensorSpec("kv", (ENTRY_BYTES // 2,), DType.BF16),)
    group = CacheGroup("full", GroupKind.FULL, tuple(range(NUM_LAYERS)), tensors)
    return Offer(tokens, 0, (GroupPlan(group, 0, tokens, (), (DType.BF16,)),))


def span(offer: Offer, part: KvRange) -> slice:
    """Where a chunk's payload lies in a buffer laid out by layer and token: chunks are contiguous there."""
    layer_bytes = offer.num_tokens * ENTRY_BYTES
    start = part.layer_start * layer_bytes + part.token_start * ENTRY_BYTES
    stop = (part.layer_stop - 1) * layer_bytes + part.token_stop * ENTRY_BYTES
    return slice(start, stop)


@dataclass
class BufferSource:
    """A prefill whose cache is a buffer that is there already; `compute_s` delays each layer."""

    offer: Offer
    buffer: memoryview
    compute_s: float

    async def events(self) -> AsyncIterator[SourceEvent]:
        yield self.offer
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        for layer in range(NUM_LAYERS):
            if self.compute_s > 0:
                await asyncio.sleep(max(0.0, began_s + self.compute_s * (layer + 1) / NUM_LAYERS - loop.time()))
            yield RangeReady(KvRange("full", layer, layer + 1, 0, self.offer.num_tokens))
        yield FirstTokens((TokenOutput(0, 0, 1),), 0.0, self.compute_s)

    def read(self, wanted: KvRange) -> memoryview:
        return self.buffer[span(self.offer, wanted)]

    def release(self, *, committed: bool) -> None:
        del committed


class BufferHandler:
    """Serves any size out of one buffer; the size is the number of tokens that is asked for."""

    def __init__(self, buffer: memoryview, compute_s: float) -> None:
        self._buffer = buffer
        self._compute_s = compute_s

    async def open(self, order: PrefillOrder) -> BufferSource:
        size = len(order.request.tokens) * NUM_LAYERS * ENTRY_BYTES
        return BufferSource(offer_of(size), self._buffer[:size], self._compute_s)


@dataclass
class BufferSink:
    """Lands chunks in a preallocated buffer."""

    buffer: memoryview
    offer: Offer | None = None
    landed: int = field(default=0)

    def begin(self, offer: Offer) -> None:
        self.offer = offer

    def write(self, landed: KvRange, payload: memoryview, dtypes: Sequence[DType]) -> None:
        assert self.offer is not None
        del dtypes
        self.buffer[span(self.offer, landed)] = payload
        self.landed += len(payload)


def order_of(size_bytes: int, number: int) -> PrefillOrder:
    tokens = offer_of(size_bytes).num_tokens
    request = GenerationRequest(RequestId(f"bench-{number}"), "bench", (1,) * tokens)
    return PrefillOrder(request, FINGERPRINT, 0, ("as_is",), WorkerId("receiver"), SiteId("west"), max_lanes=64)


async def sender(end: EndSettings) -> None:
    settings = end.transport()
    server = rpc.server()
    buffer = memoryview(bytearray(os.urandom(1024**2) * (end.size_bytes // 1024**2 + 1)))
    transfers = serve_transfers(
        server,
        BufferHandler(buffer, end.compute_s),
        settings,
        worker_id=WorkerId("sender"),
        site=SiteId("east"),
        clock=MonotonicClock(),
    )
    port = rpc.bind(server, end.bind, end.port, settings.tls)
    await server.start()
    print(port, flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await transfers.close()
    await server.stop(None)


async def receiver(end: EndSettings) -> None:
    transport = GrpcPrefillTransport(end.transport(), SiteId("west"), MonotonicClock())
    address = f"{end.host}:{end.port}"
    tokens_bytes = offer_of(end.size_bytes).num_tokens * NUM_LAYERS * ENTRY_BYTES
    landing = bytearray(tokens_bytes)
    landing[:] = b"\x01" * tokens_bytes
    times, wires, lanes = [], [], []
    for number in range(end.warmup):
        await transport.fetch(order_of(end.size_bytes, number), address, BufferSink(memoryview(landing)))
    cpu = time.process_time()
    began = time.perf_counter()
    number = 0
    while number < end.repeat or (end.seconds and time.perf_counter() - began < end.seconds):
        sink = BufferSink(memoryview(landing))
        at = time.perf_counter()
        result = await transport.fetch(order_of(end.size_bytes, number), address, sink)
        times.append(time.perf_counter() - at)
        wires.append(result.wire_s)
        lanes.append(result.lanes)
        assert sink.landed == tokens_bytes
        number += 1
    report = {"times": times, "wire_s": wires, "lanes": lanes, "bytes": tokens_bytes, "cpu_s": time.process_time() - cpu}
    report["warmup"] = end.warmup
    links = transport.links()
    report["rtt_s"] = links[0].rtt_s if links else 0.0
    print(json.dumps(report), flush=True)
    await transport.close()


async def mixed(end: EndSettings) -> None:
    """Small transfers timed alone, then `small` at a time, then `small` at a time among `large` large ones."""
    transport = GrpcPrefillTransport(end.transport(), SiteId("west"), MonotonicClock())
    address = f"{end.host}:{end.port}"
    buffers = [memoryview(bytearray(end.small_bytes)) for _ in range(end.small)]
    sinkhole = memoryview(bytearray(end.size_bytes))

    async def small(buffer: memoryview, times: list[float]) -> None:
        at = time.perf_counter()
        await transport.fetch(order_of(end.small_bytes, 0), address, BufferSink(buffer))
        times.append(time.perf_counter() - at)

    alone: list[float] = []
    for _ in range(end.repeat):
        await small(buffers[0], alone)

    async def repeat(buffer: memoryview, times: list[float]) -> None:
        for _ in range(end.repeat):
            await small(buffer, times)
            await asyncio.sleep(0.02)

    together: list[float] = []
    await asyncio.gather(*(repeat(buffer, together) for buffer in buffers))
    moved = [0]

    async def large() -> None:
        while True:
            await transport.fetch(order_of(end.size_bytes, 0), address, BufferSink(sinkhole))
            moved[0] += end.size_bytes

    running = [asyncio.create_task(large()) for _ in range(end.large)]
    await asyncio.sleep(1.0)
    among: list[float] = []
    await asyncio.gather(*(repeat(buffer, among) for buffer in buffers))
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    report = {"alone": alone, "together": together, "among": among, "moved": moved[0], "peak_bytes": peak}
    print(json.dumps(report), flush=True)
    await transport.close()


def raw_sender(end: EndSettings) -> None:
    """Sends each connection's share in pieces, with a CRC in front of every piece."""
    listener = socket.create_server((end.bind, end.port), backlog=64)
    buffer = memoryview(bytearray(os.urandom(1024**2) * (end.size_bytes // 1024**2 + 1)))
    print(listener.getsockname()[1], flush=True)

    def serve(connection: socket.socket) -> None:
        with connection:
            while request := connection.recv(8):
                left, at = int.from_bytes(request, "little"), 0
                while left:
                    piece = buffer[at : at + min(RAW_PIECE_BYTES, left)]
                    connection.sendall((crc32c(piece) if end.crc else 0).to_bytes(4, "little"))
                    connection.sendall(piece)
                    left -= len(piece)
                    at += len(piece)

    def accept() -> None:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    sys.stdin.read()


def raw_receiver(end: EndSettings) -> None:
    landing = memoryview(bytearray(b"\x01" * end.size_bytes))
    connections = [socket.create_connection((end.host, end.port)) for _ in range(end.streams)]
    share = end.size_bytes // end.streams

    def pull(index: int) -> None:
        connection = connections[index]
        connection.sendall(share.to_bytes(8, "little"))
        at, stop = index * share, (index + 1) * share
        head = bytearray(4)
        while at < stop:
            piece = landing[at : min(at + RAW_PIECE_BYTES, stop)]
            for target in (memoryview(head), piece):
                filled = 0
                while filled < len(target):
                    filled += connection.recv_into(target[filled:])
            assert not end.crc or crc32c(piece) == int.from_bytes(head, "little")
            at += len(piece)

    def once() -> float:
        at = time.perf_counter()
        threads = [threading.Thread(target=pull, args=(index,)) for index in range(end.streams)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - at

    for _ in range(end.warmup):
        once()
    cpu = time.process_time()
    began = time.perf_counter()
    times: list[float] = []
    while len(times) < end.repeat or (end.seconds and time.perf_counter() - began < end.seconds):
        times.append(once())
    print(json.dumps({"times": times, "bytes": share * end.streams, "cpu_s": time.process_time() - cpu}), flush=True)


def main() -> None:
    kind, text = sys.argv[1:]
    end = replace(EndSettings(), **json.loads(text))
    tune_allocator()
    if kind == "sender":
        asyncio.run(sender(end))
    elif kind == "receiver":
        asyncio.run(receiver(end))
    elif kind == "mixed":
        asyncio.run(mixed(end))
    elif kind == "raw-sender":
        raw_sender(end)
    else:
        raw_receiver(end)


if __name__ == "__main__":
    main()
