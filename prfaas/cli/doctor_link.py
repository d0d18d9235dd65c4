"""`prfaas doctor link`: what the path to a prefill worker carries, and how it is best used."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from kv_transport.probe import LinkReport, probe_link
from prfaas.cli.screen import Screen
from prfaas.clock import MonotonicClock
from prfaas.config import DeploymentSettings, TransportSettings, resolve
from prfaas.errors import WorkerUnreachable

MAX_SKEW_S = 1.0  # more than this makes timestamps of two sites' logs hard to compare


@dataclass(frozen=True, slots=True)
class LinkQuestion:
    """Which path to measure. `site_file` None: without TLS. `probe_bytes` is moved once for each number of lanes."""

    address: str
    site_file: Path | None
    allow_plaintext: bool
    probe_bytes: int


def examine_link(question: LinkQuestion, *, as_json: bool, screen: Screen) -> None:
    """Probe and print. Raises WorkerUnreachable or ConfigError when the path cannot be measured."""
    settings = transport_settings(question)
    try:
        report = asyncio.run(
            probe_link(question.address, settings, MonotonicClock(), probe_bytes=question.probe_bytes, progress=screen.step)
        )
    except WorkerUnreachable as error:
        raise WorkerUnreachable(
            f"{error.message}. Is a prefill worker listening at {question.address}? Its log says where it registered"
        ) from error
    if as_json:
        print(json.dumps(asdict(report), indent=2))
        return
    for line in describe(report):
        screen.done(line)


def transport_settings(question: LinkQuestion) -> TransportSettings:
    """The transport settings of the site that will use the path, so that the probe uses its TLS and its lanes."""
    site = resolve(DeploymentSettings, file=question.site_file) if question.site_file is not None else None
    transport = site.transport if site is not None else TransportSettings()
    if not question.allow_plaintext:
        return transport
    return transport.model_copy(update={"tls": transport.tls.model_copy(update={"allow_plaintext": True})})


def describe(report: LinkReport) -> list[str]:
    """The report as lines for a person."""
    best = max(report.rates, key=lambda rate: rate.bytes_per_s)
    one = next(rate for rate in report.rates if rate.lanes == 1)
    trips = f"a round trip {report.rtt_s * 1e3:.2f} ms (median {report.rtt_median_s * 1e3:.2f} ms)"
    rates = f"one lane carries {_gbps(one.bytes_per_s)}, {best.lanes} carry {_gbps(best.bytes_per_s)}"
    lines = [
        f"{report.worker_id} at {report.site} ({report.address}), {'mutual TLS' if report.tls else 'plaintext'}",
        f"connecting takes {report.connect_s * 1e3:.1f} ms, {trips}",
        f"{rates}: {report.recommended_lanes} {'is' if report.recommended_lanes == 1 else 'are'} recommended",
    ]
    if report.tls:
        handshake = f"TLS adds {report.tls_connect_s * 1e3:.1f} ms to a new connection"
        lines.append(f"{handshake} and {report.tls_s_per_gbyte:.2f} s of processor time to a GB, both ends together")
    if report.path_mtu_bytes:
        lines.append(f"path MTU {report.path_mtu_bytes} bytes, {report.loss_ratio:.3%} of the bytes were sent again")
    skew = f"the clock there is {abs(report.clock_skew_s) * 1e3:.1f} ms {'ahead' if report.clock_skew_s > 0 else 'behind'}"
    lines.append(skew + ("; synchronise the clocks (chrony, NTP)" if abs(report.clock_skew_s) > MAX_SKEW_S else ""))
    return lines


def _gbps(bytes_per_s: float) -> str:
    return f"{bytes_per_s * 8 / 1e9:.2f} Gbit/s"
