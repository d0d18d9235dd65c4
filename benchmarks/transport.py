"""The transport against its bars: loopback, TLS, emulated WAN, overlap, fairness, resume. Every row beside a baseline
that was measured in the same run, turn by turn, because both ends share the machine's cores.

    python -m benchmarks.transport [CASE ...] [--mooncake PYTHON] [--json FILE] [--check]

The WAN cases need root, network namespaces, and an emulator script named by PRFAAS_WAN_EMULATOR that answers
`up RATE_MBIT RTT_MS LOSS_PCT QUEUE_BYTES CONGESTION_CONTROL MTU` and `down`, making namespaces wa (10.9.0.1) and
wb (10.9.0.2). Their baseline is iperf3 with eight streams, or eight raw sockets where iperf3 is not installed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.table import Measurement, Report, arguments, finish
from benchmarks.transport_ends import NUM_LAYERS, offer_of
from kv_transport.api import Offer
from kv_transport.grpc_client import GrpcPrefillTransport
from kv_transport.testing.fuzz import feed_decoder
from kv_transport.testing.harness import RECEIVER_SITE, GrpcHarness
from kv_transport.testing.sources import FakeHandler, FakeSource, KeepingSink, source_of
from kv_transport.testing.sources import order_of as small_order
from prfaas.clock import MonotonicClock
from prfaas.config import TransportSettings, wan_emulator
from prfaas.modelspec import KvRange
from tests.support.certs import Authority
from tests.support.tcp_proxy import Connection, proxy_to

MIB = 1024**2
SEED = 20261122


@dataclass(frozen=True, slots=True)
class Run:
    """One receiver's report with the sender's processor time. Seconds and bytes."""

    report: dict[str, Any]
    sender_cpu_s: float
    sender_peak_bytes: int

    @property
    def rate(self) -> float:
        """Median bytes/s of the repetitions."""
        return float(self.report["bytes"] / statistics.median(self.report["times"]))

    def cpu(self) -> str:
        """Processor seconds per GB on each side."""
        moved = self.report["bytes"] * len(self.report["times"]) / 1e9
        warm = self.report["bytes"] * (len(self.report["times"]) + self.report.get("warmup", 1)) / 1e9
        return f"CPU s/GB {self.sender_cpu_s / warm:.2f} sent, {self.report['cpu_s'] / moved:.2f} received"


@contextmanager
def sender_process(kind: str, prefix: Sequence[str], **end: object) -> Iterator[tuple[int, int]]:
    """A sender, as (port, process id), until the block ends."""
    command = [*prefix, sys.executable, "-m", "benchmarks.transport_ends", kind, json.dumps(end)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdin is not None
    try:
        yield int(child.stdout.readline()), child.pid
    finally:
        child.stdin.close()
        child.wait(timeout=20)


def cpu_of(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_of(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def pair(receiver: str = "receiver", *, raw: bool = False, wan: bool = False, **end: object) -> Run:
    """Run one sender and one receiver and return what the receiver reports."""
    role = "raw-" if raw else ""
    far = {"bind": "10.9.0.2", "host": "10.9.0.2"} if wan else {}
    settings = {**end, **far}
    with sender_process(f"{role}sender", ("ip", "netns", "exec", "wb") if wan else (), **settings) as (port, pid):
        before = cpu_of(pid)
        prefix = ("ip", "netns", "exec", "wa") if wan else ()
        command = [*prefix, sys.executable, "-m", "benchmarks.transport_ends", role + receiver]
        done = subprocess.run([*command, json.dumps({**settings, "port": port})], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(done.stderr)
        return Run(json.loads(done.stdout), cpu_of(pid) - before, peak_of(pid))


def median_rate(runs: Sequence[Run]) -> float:
    return statistics.median(run.rate for run in runs)


def certificates(directory: Path) -> str:
    Authority.make().issue(directory, name="bench")
    return str(directory)


def loopback(report: Report, options: argparse.Namespace) -> None:
    size, turns = 1024 * MIB, 3
    ours, raw, tls, mooncake = [], [], [], []
    with tempfile.TemporaryDirectory() as directory:
        certs = certificates(Path(directory))
        for _ in range(turns):
            raw.append(pair(raw=True, size_bytes=size, repeat=2))
            ours.append(pair(size_bytes=size, repeat=2))
            tls.append(pair(size_bytes=size, repeat=2, certs=certs))
            if options.mooncake:
                command = [options.mooncake, "benchmarks/mooncake_ends.py", str(size), "2"]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                mooncake.append(Run({**json.loads(done.stdout.splitlines()[-1]), "cpu_s": 0.0}, 0.0, 0))
    name = "loopback 1 GiB, digest on"
    rate = median_rate(ours)
    report.add(
        Measurement(name, rate / 1e9, "GB/s", median_rate(raw) / 1e9, 0.8, note=f"{ours[-1].cpu()}; raw {raw[-1].cpu()}")
    )
    if mooncake:
        report.add(Measurement(f"{name}, against Mooncake TCP", rate / 1e9, "GB/s", median_rate(mooncake) / 1e9, 1.0))
    report.add(
        Measurement(f"{name}, mTLS against plaintext", median_rate(tls) / 1e9, "GB/s", rate / 1e9, 0.6, note=tls[-1].cpu())
    )


def iperf(seconds: int) -> float:
    """Bytes/s of eight streams from wb to wa, once their first seconds are over: the lanes beside them are warm too."""
    if shutil.which("iperf3") is None:
        return pair(raw=True, wan=True, streams=8, size_bytes=16 * MIB, repeat=1, warmup=0, seconds=seconds, crc=False).rate
    server = subprocess.Popen(["ip", "netns", "exec", "wa", "iperf3", "-s", "-1"], stdout=subprocess.DEVNULL)
    time.sleep(0.5)
    command = ["ip", "netns", "exec", "wb", "iperf3", "-c", "10.9.0.1", "-P", "8", "-O", str(seconds), "-t", str(seconds), "-J"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    server.wait(timeout=10)
    return float(json.loads(done.stdout)["end"]["sum_received"]["bits_per_second"]) / 8


@contextmanager
def emulated(script: Path, rate_mbit: int, rtt_ms: int, loss_pct: float) -> Iterator[None]:
    queue = max(1_000_000, rate_mbit * 125 * rtt_ms)
    mtu = "1500" if rate_mbit <= 1000 else "9000"
    subprocess.run([script, "up", *map(str, (rate_mbit, rtt_ms, loss_pct, queue)), "cubic", mtu], check=True)
    try:
        yield
    finally:
        subprocess.run([script, "down"], check=True)


def wan(report: Report, options: argparse.Namespace) -> None:
    script = wan_emulator()
    if script is None or os.geteuid() != 0:
        print("wan: skipped: it needs root and PRFAAS_WAN_EMULATOR", file=sys.stderr)
        return
    paths = [(1000, rtt, loss, bar) for rtt in (30, 80) for loss, bar in ((0.0, 0.9), (0.01, 0.85), (0.1, 0.7))]
    paths.append((5000, 40, 0.01, 0.8))
    with tempfile.TemporaryDirectory() as directory:
        certs = certificates(Path(directory))
        for rate_mbit, rtt_ms, loss, bar in paths:
            with emulated(script, rate_mbit, rtt_ms, loss):
                baseline = iperf(options.seconds)
                size = max(16 * MIB, int(baseline * options.seconds) // MIB * MIB)
                run = pair(wan=True, certs=certs, size_bytes=size, warmup=2, repeat=1, lanes=options.lanes)
            name = f"WAN {rate_mbit} Mbps, {rtt_ms} ms, {loss} % loss, mTLS"
            note = f"{max(run.report['lanes'])} lanes; {run.cpu()}"
            report.add(Measurement(name, run.rate * 8e-6, "Mbps", baseline * 8e-6, bar, note=note))


def overlap(report: Report, options: argparse.Namespace) -> None:
    """A prefill of 1 s for 200 MiB; the link carries 400 MiB/s, by pacing and, where there is one, by the emulator."""
    size = 200 * MIB
    run = pair(size_bytes=size, compute_s=1.0, repeat=5, egress_bytes_per_s=2 * size)
    worst = max(run.report["wire_s"]) * 1e3
    report.add(Measurement("overlap, paced loopback: last byte after the last layer", worst, "ms", None, 50.0, True))
    script = wan_emulator()
    if script is None or os.geteuid() != 0:
        return
    rtt_ms = 20
    with emulated(script, 3355, rtt_ms, 0.0):
        run = pair(wan=True, size_bytes=size, compute_s=1.0, repeat=4, warmup=2, lanes=options.lanes)
    worst = max(run.report["wire_s"]) * 1e3
    report.add(
        Measurement(f"overlap, emulated {rtt_ms} ms: last byte after the last layer", worst, "ms", None, rtt_ms + 50.0, True)
    )


def mixed(report: Report, options: argparse.Namespace) -> None:
    """Eight small transfers at any time among 56 large ones."""
    del options
    run = pair("mixed", size_bytes=32 * MIB, small_bytes=4 * MIB, large=56, small=8, repeat=40)
    times = {kind: sorted(run.report[kind]) for kind in ("alone", "together", "among")}
    lone, eight, p99 = (values[int(len(values) * 0.99) - 1] for values in times.values())
    note = ", ".join(f"P50 {statistics.median(values) * 1e3:.1f} ms {kind}" for kind, values in times.items())
    note += f"; P99 of the eight together without large ones {eight * 1e3:.1f} ms"
    report.add(Measurement("64 transfers: P99 of 4 MiB, against its P99 alone", p99 * 1e3, "ms", lone * 1e3, 1 / 3, True, note))
    peak = max(run.report["peak_bytes"], run.sender_peak_bytes) / MIB
    report.add(Measurement("64 transfers: peak memory of either side", peak, "MiB", None, 512.0, True))


def resume(report: Report, options: argparse.Namespace) -> None:
    asyncio.run(_resume(report, random.Random(options.seed)))


async def _resume(report: Report, rng: random.Random, transfers: int = 200, lanes: int = 2) -> None:
    settings = TransportSettings(chunk_bytes=MIB, lanes=lanes)
    complete, cuts, worst, total, left = 0, 0, 0.0, 0.0, 0.0
    for number in range(transfers):
        source = source_of(offer=_offer(), seed=number % 4)
        # Everything is computed already, as after a prefix hit: chunks are as large as they get.
        source.ranges = [KvRange("full", 0, NUM_LAYERS, 0, source.contents.offer.num_tokens)]

        def plan(connection: Connection) -> None:
            if connection.number < lanes:
                connection.cut_after = rng.randrange(1, 3 * MIB)

        async with GrpcHarness().join(FakeHandler(source), settings) as ends:
            async with proxy_to(int(ends.address.rpartition(":")[2]), plan) as proxy:
                transport = GrpcPrefillTransport(settings, RECEIVER_SITE, MonotonicClock())
                try:
                    complete += await _survives(transport, proxy.port, source)
                finally:
                    await transport.close()
                struck = sum(c.cut_after is not None and c.passed_bytes > c.cut_after for c in proxy.connections)
            resent = ends.sender_counters()["resent_chunks"]
            await source.was_released.wait()
            left += ends.sender_counters()["active_transfers"] + transport.counters()["active_transfers"]
        cuts += struck
        total += resent
        worst = max(worst, resent / max(1, struck))
    note = f"{cuts} cuts; {total / max(1, cuts):.2f} chunks resent per cut, at worst {worst:.1f}; left behind: {left:.0f}"
    report.add(Measurement("resume: transfers that completed", complete, "of 200", float(transfers), 1.0, note=note))
    report.add(Measurement("resume: chunks resent per cut lane, worst transfer", worst, "chunks", None, 2.0, True))


def _offer() -> Offer:
    return offer_of(8 * MIB)


async def _survives(transport: GrpcPrefillTransport, port: int, source: FakeSource) -> bool:
    tokens = source.contents.offer.num_tokens
    for _ in range(2):  # a cut before the manifest is the caller's to retry
        sink = KeepingSink()
        try:
            await transport.fetch(small_order(tokens), f"127.0.0.1:{port}", sink)
        except Exception as error:  # noqa: BLE001 - counted as a failure of the transfer
            print(f"resume: {type(error).__name__}: {error}", file=sys.stderr)
            continue
        sink.require(source.contents)
        return True
    return False


def fuzz(report: Report, options: argparse.Namespace, inputs: int = 1_000_000) -> None:
    """Random and mutated frames into the decoder."""
    before = peak_of(os.getpid())
    refused = feed_decoder(inputs, random.Random(options.seed))
    grown = (peak_of(os.getpid()) - before) / MIB
    note = f"{refused} of {inputs} refused, none crashed"
    report.add(Measurement("fuzz: memory grown over a million frames", grown, "MiB", None, 16.0, True, note))


CASES: dict[str, Callable[[Report, argparse.Namespace], None]] = {
    "loopback": loopback,
    "wan": wan,
    "overlap": overlap,
    "mixed": mixed,
    "resume": resume,
    "fuzz": fuzz,
}


def main() -> int:
    parser = arguments("The KV transport against its bars", seed=SEED)
    parser.add_argument("cases", nargs="*", choices=[*CASES, []], help="which cases (default: all)")
    parser.add_argument("--mooncake", metavar="PYTHON", help="interpreter that has mooncake-transfer-engine")
    parser.add_argument("--lanes", type=int, default=0, help="fixed lanes on the WAN (default: adapt)")
    parser.add_argument("--seconds", type=int, default=5, help="length of a WAN measurement")
    options = parser.parse_args()
    report = Report("KV transport", options.seed)
    for name in options.cases or CASES:
        CASES[name](report, options)
        print(f"{name}: done", file=sys.stderr)
    return finish(report, options)


if __name__ == "__main__":
    sys.exit(main())
