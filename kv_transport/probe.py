"""Measures the path to a sender, for people: round trip, bandwidth by number of lanes, loss, MTU, clock skew, TLS.

Knows no transfers. Bandwidth probes move real bytes through the sender's own turns and budgets.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import grpc
import grpc.aio

from kv_transport import tcp_info
from kv_transport.grpc_client import lane_options, window_bytes
from kv_transport.grpc_server import PROBE, SERVICE
from kv_transport.session.lane_tuner import GAIN
from kv_transport.tls_cost import tls_s_per_gbyte
from prfaas import rpc
from prfaas.clock import Clock, unix_time_s
from prfaas.config import TransportSettings
from prfaas.errors import WorkerUnreachable
from prfaas.pb import transfer_pb2

NUM_ROUND_TRIPS = 10
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class LaneRate:
    """What so many connections together carried."""

    lanes: int
    bytes_per_s: float


@dataclass(frozen=True, slots=True)
class LinkReport:
    """One probed path. Seconds and bytes; zero where the system does not tell."""

    address: str
    worker_id: str
    site: str
    tls: bool
    connect_s: float  # TCP, and TLS where it is on, up to the first answer
    tls_connect_s: float  # the part of it that TLS adds
    tls_s_per_gbyte: float  # processor seconds to seal and open a GB on this machine; 0 without TLS
    rtt_s: float  # smallest application-level round trip on an open connection
    rtt_median_s: float
    clock_skew_s: float  # the sender's wall clock minus ours
    path_mtu_bytes: int
    loss_ratio: float  # bytes the sender retransmitted, of those it sent
    rates: tuple[LaneRate, ...]
    recommended_lanes: int


@dataclass(frozen=True, slots=True)
class _Pull:
    reply: transfer_pb2.ProbeReply
    num_bytes: int


async def probe_link(
    address: str,
    settings: TransportSettings,
    clock: Clock,
    *,
    probe_bytes: int = 32 * 1024**2,
    progress: Progress | None = None,
) -> LinkReport:
    """Measure the path to the sender at "host:port". `probe_bytes` is moved once for each lane count.

    Raises what a transfer's connection would: WorkerUnreachable, ConfigError.
    """
    say = progress or (lambda _: None)
    channels = [rpc.channel(address, settings.tls, own_connection=True)]
    try:
        tcp_connect_s = await _tcp_connect_s(address, settings, clock)
        began_s = clock.now_s()
        await _pull(channels[0], address, 0, settings)
        connect_s = clock.now_s() - began_s
        trips, skews = [], []
        for _ in range(NUM_ROUND_TRIPS):
            before_s, before_unix_s = clock.now_s(), unix_time_s()
            pull = await _pull(channels[0], address, 0, settings)
            trips.append(clock.now_s() - before_s)
            skews.append(pull.reply.unix_time_s - (before_unix_s + trips[-1] / 2))
        say(f"round trip {min(trips) * 1e3:.2f} ms")
        options = lane_options(window_bytes(min(trips)))
        lanes_of = rpc.TlsFiles(settings.tls, clock) if settings.tls.enabled else None
        for _ in range(settings.max_lanes):
            channel = rpc.channel(address, settings.tls, own_connection=True, files=lanes_of, extra_options=options)
            channels.append(channel)
        await asyncio.gather(*(_pull(channel, address, 0, settings) for channel in channels[1:]))
        rates, sent, retransmitted = [], 0, 0
        for lanes in _lane_counts(settings.max_lanes):
            began_s = clock.now_s()
            share = probe_bytes // lanes
            pulls = await asyncio.gather(*(_pull(channel, address, share, settings) for channel in channels[1 : lanes + 1]))
            rates.append(LaneRate(lanes, sum(p.num_bytes for p in pulls) / (clock.now_s() - began_s)))
            sent += sum(p.reply.path.sent_bytes for p in pulls)
            retransmitted += sum(p.reply.path.retransmitted_bytes for p in pulls)
            say(f"{lanes} lanes {rates[-1].bytes_per_s / 1e6:.1f} MB/s")
        mtus = [c.path_mtu_bytes for c in tcp_info.connections([address])]
        return LinkReport(
            address=address,
            worker_id=pulls[0].reply.worker_id,
            site=pulls[0].reply.site,
            tls=settings.tls.enabled,
            connect_s=connect_s,
            tls_connect_s=max(0.0, connect_s - tcp_connect_s - min(trips)) if settings.tls.enabled else 0.0,
            tls_s_per_gbyte=tls_s_per_gbyte(settings.tls, clock),
            rtt_s=min(trips),
            rtt_median_s=statistics.median(trips),
            clock_skew_s=skews[trips.index(min(trips))],
            path_mtu_bytes=min(mtus, default=0),
            loss_ratio=retransmitted / sent if sent else 0.0,
            rates=tuple(rates),
            recommended_lanes=recommend(rates),
        )
    finally:
        await asyncio.gather(*(channel.close(None) for channel in channels))


def recommend(rates: list[LaneRate]) -> int:
    """The fewest lanes beyond which a doubling is not worth its connections."""
    best = rates[0]
    for rate in rates[1:]:
        if rate.bytes_per_s > best.bytes_per_s * GAIN:
            best = rate
    return best.lanes


async def _tcp_connect_s(address: str, settings: TransportSettings, clock: Clock) -> float:
    """Seconds to open a bare TCP connection."""
    began_s = clock.now_s()
    try:
        async with asyncio.timeout(settings.connect_timeout_s):
            _, writer = await asyncio.open_connection(rpc.host_of(address), int(address.rpartition(":")[2]))
    except (OSError, TimeoutError) as error:
        raise WorkerUnreachable(f"{address} cannot be connected to: {error}", address=address) from error
    took_s = clock.now_s() - began_s
    writer.transport.abort()
    return took_s


def _lane_counts(max_lanes: int) -> list[int]:
    counts = [1]
    while counts[-1] * 2 <= max_lanes:
        counts.append(counts[-1] * 2)
    return counts


async def _pull(channel: grpc.aio.Channel, address: str, num_bytes: int, settings: TransportSettings) -> _Pull:
    request = transfer_pb2.ProbeRequest(bytes=num_bytes, message_bytes=settings.chunk_bytes)
    call = channel.unary_stream(f"/{SERVICE}/{PROBE}", None, None)(request.SerializeToString())
    last, moved = b"", 0
    try:
        async with asyncio.timeout(settings.connect_timeout_s):
            await call.initial_metadata()
        async for message in call:
            moved += len(last)
            last = message
    except grpc.aio.AioRpcError as error:
        raise rpc.from_rpc(error, worker_id=address) from error
    except TimeoutError as error:
        call.cancel()
        raise WorkerUnreachable(f"{address} did not answer within {settings.connect_timeout_s} s") from error
    return _Pull(transfer_pb2.ProbeReply.FromString(last), moved)
