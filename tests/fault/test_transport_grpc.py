"""Faults of real connections: cut, stalled, damaged, untrusted, slow, and processes that are killed."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from benchmarks.transport_ends import offer_of
from kv_transport import grpc_client, messages
from kv_transport.api import Offer
from kv_transport.grpc_client import GrpcPrefillTransport
from kv_transport.testing.harness import RECEIVER_SITE, GrpcHarness
from kv_transport.testing.sources import FakeHandler, KeepingSink, Script, hybrid_offer, order_of, source_of
from kv_transport.testing.suite import failure_of, settled
from prfaas.clock import MonotonicClock
from prfaas.config import TlsSettings, TransportSettings
from prfaas.errors import ConfigError, PrfaasError, TransferBroken, TransferStalled, WorkerUnreachable
from prfaas.types import TransferId
from tests.support.certs import Authority
from tests.support.tcp_proxy import Connection, proxy_to

pytestmark = pytest.mark.fault


def fast(**changes: object) -> TransportSettings:
    fields: dict[str, object] = {"chunk_bytes": 64 * 1024, "lanes": 1, "progress_timeout_s": 0.5, "lease_s": 2.0}
    return TransportSettings.model_validate(fields | changes)


def big() -> Offer:
    """About 4 MiB in 8 layers."""
    return hybrid_offer(tokens=1000, layers=8, width=128)


async def through(plan: Callable[[Connection], None], settings: TransportSettings) -> tuple[int, int, float]:
    """Fetch through a proxy. Returns resumes, connections made, and chunks sent again."""
    source = source_of(big())
    async with (
        GrpcHarness().join(FakeHandler(source), settings) as ends,
        proxy_to(int(ends.address.rsplit(":", 1)[1]), plan) as proxy,
    ):
        sink = KeepingSink()
        result = await ends.transport.fetch(order_of(1000), f"127.0.0.1:{proxy.port}", sink)
        sink.require(source.contents)
        resent = ends.sender_counters()["resent_chunks"]
        await settled(ends, source)
        assert source.released == [True]
        return result.resumes, len(proxy.connections), resent


@pytest.mark.parametrize("lanes", [1, 4])
async def test_every_connection_is_cut_once(lanes: int) -> None:
    rng = random.Random(lanes)

    def plan(connection: Connection) -> None:
        if connection.number < lanes:
            connection.cut_after = rng.randrange(70_000, 4_000_000 // lanes // 2)

    resumes, connections, _ = await through(plan, fast(lanes=lanes))
    assert lanes <= resumes < 3 * lanes
    assert connections > lanes


async def test_a_stalled_connection_is_replaced() -> None:
    def plan(connection: Connection) -> None:
        if connection.number == 1:
            connection.stall_after = 200_000

    resumes, _, _ = await through(plan, fast(lanes=3))
    assert resumes >= 1


async def test_a_flipped_bit_on_plaintext_tcp_is_noticed_and_repaired() -> None:
    def plan(connection: Connection) -> None:
        if connection.number == 0:
            connection.flip_after = 1_000_000

    resumes, _, _ = await through(plan, fast())
    assert resumes == 1


async def test_a_path_that_swallows_everything_is_a_stall() -> None:
    def plan(connection: Connection) -> None:
        connection.stall_after = 300_000 if connection.number == 0 else 0

    with pytest.raises((TransferStalled, TransferBroken)):
        await through(plan, fast(max_resumes=1, connect_timeout_s=0.5))


async def test_a_path_that_is_always_cut_is_broken() -> None:
    def plan(connection: Connection) -> None:
        connection.cut_after = 30_000

    # Before the manifest has been read there is nothing to resume: then the worker counts as unreachable.
    with pytest.raises((TransferBroken, WorkerUnreachable)):
        await through(plan, fast(max_resumes=1))


# Trust.


async def fetch_with(
    server: TlsSettings, client: TlsSettings, *, settings: TransportSettings | None = None
) -> PrfaasError | None:
    settings = settings or fast(connect_timeout_s=2.0)
    source = source_of()
    async with GrpcHarness().join(FakeHandler(source), settings.model_copy(update={"tls": server})) as ends:
        transport = GrpcPrefillTransport(settings.model_copy(update={"tls": client}), RECEIVER_SITE, MonotonicClock())
        try:
            await transport.fetch(order_of(), ends.address, KeepingSink())
        except PrfaasError as error:
            assert source.reads == 0
            return error
        finally:
            await transport.close()
        return None


async def test_mutual_tls(tmp_path: Path) -> None:
    authority = Authority.make()
    assert await fetch_with(authority.issue(tmp_path / "a"), authority.issue(tmp_path / "b")) is None


async def test_untrusted_peers_get_nothing(tmp_path: Path) -> None:
    ours, theirs = Authority.make(), Authority.make("somebody else")
    good, foreign = ours.issue(tmp_path / "good"), theirs.issue(tmp_path / "foreign")
    expired = ours.issue(tmp_path / "expired", valid=timedelta(hours=-1))
    for server, client in ((good, foreign), (foreign, good), (expired, good), (good, expired), (good, TlsSettings())):
        error = await fetch_with(server, client)
        assert isinstance(error, WorkerUnreachable | TransferBroken), error


async def test_a_name_that_is_not_in_the_certificate(tmp_path: Path) -> None:
    authority = Authority.make()
    server = authority.issue(tmp_path / "server", name="east.example")
    client = authority.issue(tmp_path / "client")
    right, wrong = (client.model_copy(update={"server_name": name}) for name in ("east.example", "west.example"))
    assert await fetch_with(server, right) is None
    assert isinstance(await fetch_with(server, wrong), WorkerUnreachable | TransferBroken)


async def test_certificates_are_replaced_without_a_restart(tmp_path: Path) -> None:
    """The server's authority changes under a running server: new connections see the new one."""
    old, new = Authority.make("old"), Authority.make("new")
    served = old.issue(tmp_path / "served")
    settings = fast(connect_timeout_s=2.0)
    sources = [source_of(), source_of()]
    async with GrpcHarness().join(FakeHandler(*sources), settings.model_copy(update={"tls": served})) as ends:
        for authority, name in ((old, "first"), (new, "second")):
            authority.issue(tmp_path / "served")
            await asyncio.sleep(0.1)
            tls = authority.issue(tmp_path / name)
            transport = GrpcPrefillTransport(settings.model_copy(update={"tls": tls}), RECEIVER_SITE, MonotonicClock())
            await transport.fetch(order_of(), ends.address, KeepingSink())
            await transport.close()


async def test_a_receiver_follows_its_replaced_certificate(tmp_path: Path) -> None:
    """A transport whose authority was replaced makes new connections with the new one, while the old one drains."""
    old, new = Authority.make("old"), Authority.make("new")
    served, held = old.issue(tmp_path / "served"), old.issue(tmp_path / "held")
    settings = fast(connect_timeout_s=2.0)
    slow, quick = source_of(), source_of()
    slow.script = Script(layer_s=0.1)
    async with GrpcHarness().join(FakeHandler(slow, quick), settings.model_copy(update={"tls": served})) as ends:
        transport = GrpcPrefillTransport(settings.model_copy(update={"tls": held}), RECEIVER_SITE, MonotonicClock())
        running = asyncio.create_task(transport.fetch(order_of(), ends.address, KeepingSink()))
        await slow.was_read.wait()
        new.issue(tmp_path / "served")
        new.issue(tmp_path / "held")
        await asyncio.sleep(0.1)
        await transport.fetch(order_of(), ends.address, KeepingSink())
        assert not running.done()
        assert (await running).resumes == 0
        await transport.close()


async def test_plaintext_does_not_leave_the_machine_unasked() -> None:
    transport = GrpcPrefillTransport(fast(), RECEIVER_SITE, MonotonicClock())
    with pytest.raises(ConfigError, match="allow_plaintext"):
        await transport.fetch(order_of(), "192.0.2.1:5000", KeepingSink())
    await transport.close()


# Slow and dead peers.


async def test_a_slow_reader_slows_only_itself_and_holds_bounded_memory() -> None:
    """A raw stream that nobody reads fills its window; another transfer runs as if it were alone."""
    stuck, quick = source_of(hybrid_offer(tokens=8000, layers=32, width=128)), source_of(big())
    settings = fast(lease_s=1.0)
    async with GrpcHarness().join(FakeHandler(stuck, quick), settings) as ends:
        stream = ends.sender.prefill(messages.to_pb_order(order_of(8000), TransferId("0" * 32)).SerializeToString(), 0)
        assert await stream.read() is not None
        await asyncio.sleep(0.3)
        before = stuck.reads
        async with asyncio.timeout(2):
            await ends.transport.fetch(order_of(1000), ends.address, KeepingSink())
        assert ends.sender_counters()["buffered_bytes"] <= 2 * settings.chunk_bytes
        assert before * settings.chunk_bytes <= 32 * 1024**2  # windows of HTTP/2 and TCP, of 128 MiB offered
        async with asyncio.timeout(5):
            await stuck.was_released.wait()
        stream.cancel()
        await settled(ends, stuck, quick)
        assert stuck.released == [False]


async def _child(role: str, **end: object) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "benchmarks.transport_ends",
        role,
        json.dumps(end),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )


async def test_the_sender_is_killed() -> None:
    child = await _child("sender", size_bytes=8 * 1024**2, compute_s=20.0)
    assert child.stdout is not None
    port = int(await child.stdout.readline())
    transport = GrpcPrefillTransport(fast(max_resumes=1, connect_timeout_s=0.5), RECEIVER_SITE, MonotonicClock())
    tokens = 8 * 1024**2 // (32 * 2048)
    fetch = asyncio.create_task(transport.fetch(order_of(tokens), f"127.0.0.1:{port}", KeepingSink()))
    await asyncio.sleep(1.5)
    assert not fetch.done()
    child.send_signal(signal.SIGKILL)
    async with asyncio.timeout(5):
        assert isinstance(await failure_of(fetch), TransferBroken | WorkerUnreachable)
    assert transport.counters()["active_transfers"] == transport.counters()["open_lanes"] == 0
    await transport.close()
    await child.wait()


async def test_the_receiver_is_killed() -> None:
    size = 4 * 1024**2
    source = source_of(offer_of(size))
    source.script = Script(hang_after=3)
    async with GrpcHarness().join(FakeHandler(source), fast(lease_s=0.5)) as ends:
        port = int(ends.address.rsplit(":", 1)[1])
        child = await _child("receiver", port=port, size_bytes=size, warmup=0)
        async with asyncio.timeout(20):
            await source.was_read.wait()
        child.send_signal(signal.SIGKILL)
        await child.wait()
        async with asyncio.timeout(5):
            await source.was_released.wait()
        await settled(ends, source)
        assert source.released == [False]


async def test_addresses_of_workers_long_gone_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_client, "MAX_PEERS", 3)
    transport = GrpcPrefillTransport(TransportSettings(), RECEIVER_SITE, MonotonicClock())
    for port in range(1, 9):
        transport.sender("127.0.0.1:9").prefill(b"", 0).cancel()
        transport.sender(f"127.0.0.1:{port + 20}").prefill(b"", 0).cancel()
        assert transport.counters()["open_connections"] <= 3 * TransportSettings().max_lanes
    assert len(transport._peers) == 3
    assert "127.0.0.1:9" in transport._peers  # used all the time
    await transport.close()
