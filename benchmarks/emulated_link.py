"""A link that fails under a running system: full rate, a twentieth of it, nothing, full rate again. Does anybody notice?

    python -m benchmarks.emulated_link [--phase 25] [--rate 1.0] [--json FILE] [--check]

Router, HTTP, gRPC and KV transport are the real ones, in processes; engines take the times of a profile. The link from the
prefill site is a proxy whose speed is changed while caches are on their way. Full rate stands for 100 Gbit/s, scaled to
what two cores carry.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.emulated_fleet import FAR_S, MODEL, NEAR_S, SHAPE, Seen, hardware, replay, requests_of
from benchmarks.http_overhead import program
from benchmarks.slow_path import Path as Wire
from benchmarks.slow_path import detour
from benchmarks.table import Measurement, Report, arguments, finish
from prfaas.artifacts import resolve_model
from prfaas.cli.bench.connection import Connections, Place
from prfaas.cli.catalog import catalog
from prfaas.cli.ports import free_port
from prfaas.clock import MonotonicClock
from prfaas.errors import WorkerUnreachable

FULL_BYTES_PER_S = 20e6
PHASES = (("full", 1.0), ("a twentieth", 0.05), ("nothing", 0.0), ("full again", 1.0))
THRESHOLD, WORKERS = 1000, 3
SETTLED_SHARE = 0.1  # a threshold that moves by less is at rest
SETTLE_BAR_S = 10.0
# 2 KiB of cache a token: a prompt of 2,000 tokens takes 0.2 s on the full link.
KV = [{"name": name, "shape": [8, 32], "dtype": "float16"} for name in ("k", "v")]
MODEL_SHAPE = {**SHAPE, "groups": [{"name": "full", "kind": "full", "layers": [0, 1], "tensors": KV}]}


@dataclass(frozen=True, slots=True)
class Sample:
    """The router's state at a moment of the run."""

    at_s: float
    threshold: float
    link: str


async def watch(url: str, samples: list[Sample], began_s: float) -> None:
    """A sample every half second, until cancelled."""
    clock = MonotonicClock()
    connections = Connections(Place.of(url), {}, clock)
    while True:
        _, text = await connections.get("/metrics")
        threshold = re.search(rb"^prfaas_offload_threshold_tokens (\S+)", text, re.MULTILINE)
        state = re.search(rb'^prfaas_link_state\{[^}]*src="prefill-dc",state="(\w+)"\} 1\.0', text, re.MULTILINE)
        if threshold is not None:
            found = state[1].decode() if state is not None else "open"
            samples.append(Sample(clock.now_s() - began_s, float(threshold[1]), found))
        await asyncio.sleep(0.5)


async def vary(wire: Wire, phase_s: float) -> None:
    for _, share in PHASES:
        wire.set_rate(share * FULL_BYTES_PER_S)
        await asyncio.sleep(phase_s)


async def ready(url: str) -> None:
    """Until every worker is registered. Raises TimeoutError."""
    connections = Connections(Place.of(url), {}, MonotonicClock())
    async with asyncio.timeout(90):
        while True:
            try:
                _, text = await connections.get("/health")
                if sum(n for kind, n in json.loads(text)["workers"].items() if kind.endswith(":healthy")) == WORKERS:
                    return
            except WorkerUnreachable:
                pass
            await asyncio.sleep(0.2)


def settle_s(samples: list[Sample], begin_s: float, end_s: float) -> float:
    """Seconds of a phase after which nothing moved any more."""
    inside = [s for s in samples if begin_s <= s.at_s < end_s]
    last = inside[-1]
    moving = [
        s.at_s for s in inside if s.link != last.link or abs(s.threshold / last.threshold - 1) > SETTLED_SHARE
    ]  # fmt: skip
    return max(moving, default=begin_s) - begin_s


async def run(options: argparse.Namespace, report: Report, directory: Path) -> None:
    port, registry = free_port(), free_port()
    model = resolve_model(MODEL, catalog(), progress=lambda _: None)
    engines = {}
    for name, speed in (("far", FAR_S), ("near", NEAR_S)):
        file = directory / f"{name}.json"
        file.write_text(json.dumps({"hardware": hardware(name, speed), "model": MODEL_SHAPE}))
        engines[name] = {"kind": "emulated", "profile": str(file), "prefix_cache": False, "max_running": 16}
    deployment = {
        "model": model.source,
        "served_model_name": "m",
        "pool": "process",
        "engine": engines["near"],
        "transport": {"link_capacity_bytes_per_s": int(FULL_BYTES_PER_S)},
        "sites": [
            {"name": "prefill-dc", "pools": [{"role": "prefill", "engine": engines["far"]}]},
            {"name": "pd-dc", "pools": [{"role": "pd_prefill"}, {"role": "decode"}]},
        ],
    }
    (directory / "deployment.json").write_text(json.dumps(deployment))
    policy = {"threshold_tokens": THRESHOLD, "convert_nodes": False}
    settings = {"port": port, "grpc_port": registry, "model": model.source, "served_model_name": "m", "policy": policy}
    (directory / "router.json").write_text(json.dumps(settings))
    clock = MonotonicClock()
    wire = Wire(clock, FULL_BYTES_PER_S)
    with ExitStack() as processes:
        async with AsyncExitStack() as stack:
            processes.enter_context(program(sys.executable, "-m", "router", "--settings", str(directory / "router.json")))
            far = await stack.enter_async_context(detour(f"127.0.0.1:{registry}", wire))
            for site, address in (("pd-dc", f"127.0.0.1:{registry}"), ("prefill-dc", far)):
                command = ("-m", "prfaas.cli", "up", "--site", str(directory / "deployment.json"), "--only", site)
                processes.enter_context(program(sys.executable, *command, "--router", address))
            url = f"http://127.0.0.1:{port}"
            await ready(url)
            samples: list[Sample] = []
            total_s = options.phase * len(PHASES)
            watching = asyncio.create_task(watch(url, samples, clock.now_s() + 0.5))
            varying = asyncio.create_task(vary(wire, options.phase))
            seen = await replay(url, requests_of(options.rate, total_s, options.seed), options.seed)
            watching.cancel()
            await varying
            await asyncio.gather(watching, return_exceptions=True)
    add_rows(report, seen, samples, options.phase)


def add_rows(report: Report, seen: list[Seen], samples: list[Sample], phase_s: float) -> None:
    report.add(Measurement("requests that failed", sum(not s.ok for s in seen), "", bar=0, lower_is_better=True))
    for number, (name, _) in enumerate(PHASES):
        begin_s, end_s = number * phase_s, (number + 1) * phase_s
        mine = sorted(s.ttft_s for s in seen if begin_s <= s.at_s < end_s and s.ok)
        states = [s for s in samples if begin_s <= s.at_s < end_s]
        note = f"{len(mine)} requests; at its end the link is {states[-1].link}, the threshold {states[-1].threshold:,.0f}"
        report.add(Measurement(f"{name}: TTFT P50", mine[len(mine) // 2], "s", lower_is_better=True, note=note))
        report.add(Measurement(f"{name}: TTFT P90", mine[int(len(mine) * 0.9)], "s", lower_is_better=True))
        if name in ("a twentieth", "nothing"):
            seen_by_router = float(any(s.link != "open" or s.threshold > THRESHOLD * (1 + SETTLED_SHARE) for s in states))
            report.add(Measurement(f"{name}: the router reacts", seen_by_router, "", bar=1))
        rest_s = settle_s(samples, begin_s, end_s)
        report.add(Measurement(f"{name}: at rest after", rest_s, "s", bar=SETTLE_BAR_S, lower_is_better=True))


def main() -> int:
    parser = arguments(__doc__ or "", seed=1)
    parser.add_argument("--rate", type=float, default=1.0)
    parser.add_argument("--phase", type=float, default=25.0, help="seconds of each speed")
    options = parser.parse_args()
    report = Report("emulated fleet: a link that fails", options.seed)
    with TemporaryDirectory() as directory:
        asyncio.run(run(options, report, Path(directory)))
    return finish(report, options)


if __name__ == "__main__":
    sys.exit(main())
