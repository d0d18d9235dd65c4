"""Does the simulator say what the real system does? The same requests at the same times, simulated and served.

    python -m benchmarks.emulated_fleet [--duration 90] [--rate 1.6] [--json FILE] [--check]

Served: router, HTTP, gRPC and KV transport in real processes, one worker of each kind, whose engines take the times of a
profile without computing anything. Simulated: the same policy, scheduler and cache code in virtual time, from the same
profile. What differs is what the simulator leaves out: the software between the steps.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import resource
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import uvloop

from benchmarks.served import served
from benchmarks.table import Measurement, Report, arguments, finish
from prfaas.artifacts import resolve_model
from prfaas.cli.bench.connection import Connections, Place
from prfaas.cli.catalog import catalog
from prfaas.clock import MonotonicClock
from prfaas.errors import WorkerUnreachable
from prfaas.planner.inputs import load_case
from prfaas.planner.traces import TraceRecord
from prfaas.sim.run import simulate
from prfaas.sim.scenario import FleetPlan, SimPolicy, Workload, WorkloadKind, scenario_for

MODEL = "smollm2"  # its tokenizer
BLOCK_TOKENS, STEP_TOKENS, MAX_BATCH, THRESHOLD = 64, 512, 16, 1000
BAR_PERCENT = 15.0
LAST_BYTES = 300  # of an answer that is not whole, to tell why
# The prefill site computes 0.25 ms a token, the PD site twice that; a decode step takes 20 ms.
FAR_S, NEAR_S, STEP_S = 0.00025, 0.0005, 0.02
KV = [{"name": name, "shape": [2, 16], "dtype": "float16"} for name in ("k", "v")]
SHAPE = {
    "architecture": "emulated",
    "vocab_size": 49152,
    "num_layers": 2,
    "max_context_tokens": 16384,
    "eos_token_ids": [],
    "groups": [{"name": "full", "kind": "full", "layers": [0, 1], "tensors": KV}],
}
KV_BYTES_PER_TOKEN = 2 * 2 * 2 * 16 * 2


@dataclass(frozen=True, slots=True)
class Seen:
    """How one request went; `why` says what came instead of an answer."""

    at_s: float
    end_s: float
    ttft_s: float
    ok: bool
    why: str = ""


def hardware(name: str, per_token_s: float) -> dict[str, object]:
    prefill = [[tokens, 0.005 + tokens * per_token_s] for tokens in (0, 16384)]
    return {"name": name, "prefill_s": prefill, "decode_step_s": [[1, STEP_S], [MAX_BATCH, STEP_S]], "max_batch": MAX_BATCH}


def requests_of(rate: float, duration_s: float, seed: int) -> list[TraceRecord]:
    """Poisson arrivals of prompts that share nothing, half of them above the threshold or so."""
    rng = random.Random(seed)
    at_s, made = rng.expovariate(rate), []
    while at_s < duration_s:
        tokens = min(8192, max(64, round(rng.lognormvariate(6.9, 0.8))))
        made.append(TraceRecord(at_s, tokens, rng.randrange(8, 33)))
        at_s += rng.expovariate(rate)
    return made


def simulated(records: Sequence[TraceRecord], rate: float, duration_s: float, directory: Path, seed: int) -> list[Seen]:
    plan = {
        "name": "emulated",
        "hardware": [hardware("far", FAR_S), hardware("near", NEAR_S)],
        "sites": [
            {"name": "prefill-dc", "kind": "prefill", "instances": 1, "hardware": "far", "link_gbps": 10.0, "rtt_s": 0.0005},
            {"name": "pd-dc", "kind": "pd", "instances": 2, "hardware": "near"},
        ],
        "model": {"name": "emulated", "bytes_per_token": KV_BYTES_PER_TOKEN, "state_bytes": 1},
        "workload": "fixed:tokens=1000,output=20",
    }
    file = directory / "plan.json"
    file.write_text(json.dumps(plan))
    case = load_case(file)
    workload = Workload(WorkloadKind.TRACE, records=tuple(records))
    made = scenario_for(case, SimPolicy.THRESHOLD, rate_rps=rate, duration_s=duration_s, workload=workload, seed=seed)
    engine = replace(
        made.engine, block_tokens=BLOCK_TOKENS, max_step_tokens=STEP_TOKENS, prefix_cache=False, cache_bytes=2_000_000_000
    )  # fmt: skip
    fleet = FleetPlan(case.sites, case.pd, 1, 1, THRESHOLD)
    scenario = replace(made, fleet=fleet, engine=engine, adaptive=False, warmup_s=0.0, grain=1)
    return [Seen(r.at_s, r.end_s, r.ttft_s, r.finished) for r in simulate(scenario).journal.requests]


async def replay(url: str, records: Sequence[TraceRecord], seed: int) -> list[Seen]:
    """Send every request at its time, whatever became of those before it."""
    clock, rng = MonotonicClock(), random.Random(seed)
    connections = Connections(Place.of(url), {}, clock)
    began_s = clock.now_s() + 0.5
    prompts = [[rng.randrange(1000, 40_000) for _ in range(record.input_tokens)] for record in records]

    async def one(record: TraceRecord, prompt: list[int]) -> Seen:
        asked = {
            "model": "m", "prompt": prompt, "max_tokens": record.output_tokens, "ignore_eos": True, "stream": True,
        }  # fmt: skip
        content = json.dumps(asked).encode()
        await asyncio.sleep(began_s + record.at_s - clock.now_s())
        sent_s, first_s, pieces = clock.now_s(), 0.0, []

        def take(piece: bytes, at_s: float) -> None:
            nonlocal first_s
            pieces.append(piece)
            if not first_s and b'"text"' in piece:
                first_s = at_s

        try:
            status, why = await connections.post("/v1/completions", content, take), ""
        except WorkerUnreachable as error:
            status, why = 0, str(error)
        answer = b"".join(pieces)
        whole = status == 200 and first_s > 0 and b'"finish_reason":"length"' in answer.replace(b" ", b"")
        why = (
            ""
            if whole
            else f"status {status} after {clock.now_s() - sent_s:.1f} s: {why or answer[-LAST_BYTES:].decode(errors='replace')}"
        )
        return Seen(record.at_s, clock.now_s() - began_s, first_s - sent_s, whole, why)

    seen = await asyncio.gather(*(one(record, prompt) for record, prompt in zip(records, prompts, strict=True)))
    connections.close()
    for each in seen:
        if not each.ok:
            print(f"request at {each.at_s:.1f} s: {each.why}", file=sys.stderr, flush=True)
    return list(seen)


def add_rows(report: Report, real: Sequence[Seen], expected: Sequence[Seen]) -> None:
    """Figures of the served run beside the simulated ones, and how far they lie apart."""

    def ttft(seen: Sequence[Seen], share: float) -> float:
        values = sorted(s.ttft_s for s in seen if s.ok)
        return values[min(len(values) - 1, int(len(values) * share))]

    def rate(seen: Sequence[Seen]) -> float:
        done = [s for s in seen if s.ok]
        return len(done) / (max(s.end_s for s in done) - min(s.at_s for s in done))

    report.add(Measurement("requests that failed", sum(not s.ok for s in real), "", bar=0, lower_is_better=True))
    for name, unit, found, wanted in (
        ("throughput", "1/s", rate(real), rate(expected)),
        ("TTFT P50", "s", ttft(real, 0.5), ttft(expected, 0.5)),
        ("TTFT P90", "s", ttft(real, 0.9), ttft(expected, 0.9)),
    ):
        apart = abs(found / wanted - 1) * 100
        report.add(Measurement(f"{name}, served", found, unit, baseline=wanted, note="the baseline is the simulated figure"))
        report.add(Measurement(f"{name}: served and simulated apart", apart, "%", bar=BAR_PERCENT, lower_is_better=True))


def run(options: argparse.Namespace, report: Report, directory: Path) -> None:
    records = requests_of(options.rate, options.duration, options.seed)
    expected = simulated(records, options.rate, options.duration, directory, options.seed)
    profiles = {}
    for name, speed in (("far", FAR_S), ("near", NEAR_S)):
        profiles[name] = directory / f"{name}.json"
        profiles[name].write_text(json.dumps({"hardware": hardware(name, speed), "model": SHAPE}))
    model = replace(resolve_model(MODEL, catalog(), progress=lambda _: None), served_name="m")
    engine = {
        "kind": "emulated",
        "profile": str(profiles["near"]),
        "block_tokens": BLOCK_TOKENS,
        "max_step_tokens": STEP_TOKENS,
        "max_running": MAX_BATCH,
        "prefix_cache": False,
    }
    policy = {"threshold_tokens": THRESHOLD, "adaptive": False}
    far = {**engine, "profile": str(profiles["far"])}
    with (
        served(model, directory / "cache", engine=engine, policy=policy, far_engine=far) as url,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        runner.run(replay(url, records[:5], options.seed + 1))  # connections, first calls
        real = runner.run(replay(url, records, options.seed))
    add_rows(report, real, expected)


def main() -> int:
    parser = arguments(__doc__ or "", seed=1)
    parser.add_argument("--rate", type=float, default=1.6)
    parser.add_argument("--duration", type=float, default=90.0)
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    report = Report("emulated fleet: served and simulated", options.seed)
    with TemporaryDirectory() as directory:
        run(options, report, Path(directory))
    return finish(report, options)


if __name__ == "__main__":
    sys.exit(main())
