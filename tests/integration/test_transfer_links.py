"""What the transport says of its links: TCP_INFO, the probe, and link views, over real connections on loopback."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from kv_transport import tcp_info
from kv_transport.probe import LaneRate, probe_link, recommend
from kv_transport.testing.harness import NOWHERE, GrpcHarness
from kv_transport.testing.sources import FakeHandler, KeepingSink, hybrid_offer, order_of, source_of
from kv_transport.testing.suite import settled
from kv_transport.tls_cost import tls_s_per_gbyte
from prfaas.clock import MonotonicClock
from prfaas.config import TransportSettings
from prfaas.errors import ConfigError, WorkerUnreachable
from tests.support.certs import Authority

linux = pytest.mark.skipif(sys.platform != "linux", reason="TCP_INFO is read on Linux only")


@linux
async def test_bytes_and_round_trip_of_a_transfer_come_from_tcp() -> None:
    source = source_of(hybrid_offer(tokens=2000, width=256))
    async with GrpcHarness().join(FakeHandler(source), TransportSettings(chunk_bytes=65536, lanes=3)) as ends:
        result = await ends.transport.fetch(order_of(2000), ends.address, KeepingSink())
        found = tcp_info.connections([ends.address])
        assert len(found) == 3
        assert all(connection.path_mtu_bytes > 1000 and connection.rtt_s > 0 for connection in found)
        await settled(ends, source)
        (view,) = ends.transport.links()
        assert 0 < view.rtt_s < 0.5
        assert 0 <= view.loss_ratio < 0.5  # a loaded loopback retransmits too
        assert view.goodput_bytes_per_s >= 0
        assert result.raw_bytes > 1_000_000


@linux
def test_every_byte_is_reported_once() -> None:
    ledger = tcp_info.PathLedger()
    assert ledger.take([]) == ledger.take(["192.0.2.1:9"])
    assert ledger.take(["192.0.2.1:9"]).sent_bytes == 0


def test_peers_as_grpc_writes_them() -> None:
    assert tcp_info.plain_peer("ipv4:10.0.0.1:80") == "10.0.0.1:80"
    assert tcp_info.plain_peer("ipv6:%5B::1%5D:80") == "::1:80"


@pytest.mark.parametrize("tls", [False, True])
async def test_probing_a_path(tls: bool, tmp_path: Path) -> None:
    settings = TransportSettings(max_lanes=4)
    if tls:
        settings = settings.model_copy(update={"tls": Authority.make().issue(tmp_path)})
    lines: list[str] = []
    async with GrpcHarness().join(FakeHandler(), settings) as ends:
        report = await probe_link(ends.address, settings, MonotonicClock(), probe_bytes=2**21, progress=lines.append)
    assert (report.worker_id, report.site, report.tls) == ("p0", "east", tls)
    assert [rate.lanes for rate in report.rates] == [1, 2, 4]
    assert all(rate.bytes_per_s > 1e6 for rate in report.rates)
    assert 0 < report.rtt_s <= report.rtt_median_s
    assert abs(report.clock_skew_s) < 0.5
    assert len(lines) == 4
    assert report.connect_s > 0
    assert (report.tls_s_per_gbyte > 0) == tls
    assert 0 <= report.tls_connect_s < report.connect_s
    assert tls or report.tls_connect_s == 0
    if sys.platform == "linux":
        assert report.path_mtu_bytes > 1000


async def test_probing_nobody() -> None:
    with pytest.raises(WorkerUnreachable):
        await probe_link(NOWHERE, TransportSettings(), MonotonicClock())


def test_a_certificate_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    tls = Authority.make().issue(tmp_path)
    assert tls.key_file is not None
    tls.key_file.write_text("not a key")
    with pytest.raises(ConfigError, match="certificate"):
        tls_s_per_gbyte(tls, MonotonicClock(), sample_bytes=2**16)


def test_recommended_lanes() -> None:
    def rates(*values: float) -> list[LaneRate]:
        return [LaneRate(2**i, value) for i, value in enumerate(values)]

    assert recommend(rates(100, 101, 102, 103)) == 1
    assert recommend(rates(10, 20, 40, 80)) == 8
    assert recommend(rates(50, 95, 98, 99)) == 2
