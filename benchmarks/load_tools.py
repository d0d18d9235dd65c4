"""Do independent load tools see what `prfaas bench` sees? aiperf and guidellm, unmodified, on the same workload in one run.

    python -m benchmarks.load_tools --aiperf BIN --guidellm BIN [--server smollm2] [--split-cores] [--json FILE] [--check]

Each tool is installed in an environment of its own (`python -m venv DIR && DIR/bin/pip install aiperf`), and named by its
program. The server is emulated by default: its steps take a fixed time, so that what differs is the tools. With a real engine a
tool that computes takes the server's cores; so beside what each tool saw stands what the server measured of the same requests,
and with `--split-cores` the tools have the last core to themselves.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory
from typing import Any

import httpx

from benchmarks.served import served
from benchmarks.table import Measurement, Report, arguments, finish
from prfaas.artifacts import ResolvedModel, resolve_model
from prfaas.cli.bench.dialect import Endpoint
from prfaas.cli.bench.drive import Arrival
from prfaas.cli.bench.figures import Figures
from prfaas.cli.bench.running import Plan, bench
from prfaas.cli.bench.workload import Lengths, Shape
from prfaas.cli.catalog import catalog
from prfaas.clock import MonotonicClock

MODEL = "smollm2"  # its tokenizer, and in the real run its weights
BAR_PERCENT = 5.0
KV = [{"name": name, "shape": [2, 16], "dtype": "float16"} for name in ("k", "v")]
# A prompt of 512 tokens takes 0.2 s, a token 30 ms, whatever else runs.
PROFILE = {
    "hardware": {
        "name": "fixed steps",
        "prefill_s": [[0, 0.1], [8192, 1.7]],
        "decode_step_s": [[1, 0.03], [64, 0.03]],
        "max_batch": 64,
    },
    "model": {
        "architecture": "emulated",
        "vocab_size": 49152,
        "num_layers": 2,
        "max_context_tokens": 8192,
        "eos_token_ids": [],
        "groups": [{"name": "full", "kind": "full", "layers": [0, 1], "tensors": KV}],
    },
}
OURS = "prfaas bench"
ENGINE = {"cache_bytes": 512 * 1024**2, "prefix_cache": False}


@dataclass(frozen=True, slots=True)
class Workload:
    """The same for every tool: chat requests of `isl` tokens of text, which the chat template makes a few more."""

    isl: int
    osl: int
    concurrency: int
    requests: int
    seed: int


@dataclass(frozen=True, slots=True)
class Seen:
    """Means over a run: the figures that all tools define alike."""

    ttft_ms: float
    itl_ms: float  # after the first token, by token
    latency_ms: float
    output_tokens_per_s: float
    prompt_tokens: float  # as the server counted them
    told_ttft_ms: float = 0.0  # the server's own account of the same requests
    told_latency_ms: float = 0.0

    def named(self) -> dict[str, tuple[float, str]]:
        return {
            "TTFT": (self.ttft_ms, "ms"),
            "ITL": (self.itl_ms, "ms"),
            "request latency": (self.latency_ms, "ms"),
            "output": (self.output_tokens_per_s, "tok/s"),
        }


Tool = Callable[[str, str, Workload, Path, Path], Seen]  # program, URL, workload, tokenizer, folder


def ours(url: str, work: Workload, template_tokens: int) -> Seen:
    length, out = work.isl + template_tokens, Lengths(work.osl, work.osl)
    plan = Plan(
        arrival=Arrival(work.concurrency), shape=Shape(Lengths(length, length), out), requests=work.requests, warmup=0,
        endpoint=Endpoint.CHAT, extra={"ignore_eos": True}, seed=work.seed,
    )  # fmt: skip
    found: Figures = bench(url, plan, MonotonicClock(), say=lambda _: None).figures
    if found.errors:
        raise RuntimeError(f"requests failed: {found.errors}")
    return Seen(
        found.ttft.mean * 1e3, found.tpot.mean * 1e3, found.e2e.mean * 1e3, found.output_tokens_per_s, found.mean_prompt_tokens
    )


def aiperf(program: str, url: str, work: Workload, tokenizer: Path, folder: Path) -> Seen:
    _run(
        program, "profile", "-m", MODEL, "--url", url, "--endpoint-type", "chat", "--streaming", "--tokenizer", str(tokenizer),
        "--isl", str(work.isl), "--osl", str(work.osl), "--concurrency", str(work.concurrency), "--request-count",
        str(work.requests), "--random-seed", str(work.seed), "--artifact-dir", str(folder),
        "--extra-inputs", "ignore_eos:true", "--use-server-token-count", "--ui-type", "None", "--no-gpu-telemetry",
    )  # fmt: skip
    found = json.loads((folder / "profile_export_aiperf.json").read_text())
    if found["request_count"]["avg"] != work.requests:
        raise RuntimeError(f"aiperf finished {found['request_count']['avg']} of {work.requests} requests")
    return Seen(
        found["time_to_first_token"]["avg"], found["inter_token_latency"]["avg"], found["request_latency"]["avg"],
        found["output_token_throughput"]["avg"], found["usage_prompt_tokens"]["avg"],
    )  # fmt: skip


def guidellm(program: str, url: str, work: Workload, tokenizer: Path, folder: Path) -> Seen:
    output = folder / "guidellm.json"
    _run(
        program, "run", "--backend", f"kind=openai_http,target={url},model={MODEL}", "--profile",
        f"kind=concurrent,streams={work.concurrency}", "--constraint", f"kind=max_requests,count={work.requests}",
        "--tokenizer", f"kind=huggingface_auto,model={tokenizer}", "--data",
        f"kind=synthetic_text,prompt_tokens={work.isl},output_tokens={work.osl}", "--seed", f"kind=static,value={work.seed}",
        "--output", f"kind=json,path={output}", "--disable-console",
    )  # fmt: skip
    (run,) = json.loads(output.read_text())["benchmarks"]
    if run["metrics"]["request_totals"]["successful"] != work.requests:
        raise RuntimeError(f"guidellm: {run['metrics']['request_totals']}")

    def found(name: str) -> Mapping[str, Any]:
        distribution: Mapping[str, Any] = run["metrics"][name]["successful"]
        return distribution

    # Its own rate is per moment, not per run: tokens over the span of the requests is what the others report.
    requests = run["requests"]["successful"]
    span_s = max(r["info"]["timings"]["request_end"] for r in requests) - min(
        r["info"]["timings"]["request_start"] for r in requests
    )
    return Seen(
        found("time_to_first_token_ms")["mean"], found("inter_token_latency_ms")["mean"],
        found("request_latency")["mean"] * 1e3, found("output_token_count")["total_sum"] / span_s,
        found("prompt_token_count")["mean"],
    )  # fmt: skip


def _run(*command: str) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=280)
    if done.returncode != 0:
        raise RuntimeError(f"{Path(command[0]).name} exited with {done.returncode}:\n{done.stdout[-2000:]}")


def write_tokenizer(model: ResolvedModel, folder: Path) -> Path:
    """The model's tokenizer as the tools read it."""
    from transformers import AutoTokenizer

    source = Path(model.source)
    AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(folder)
    return folder


def template_tokens(url: str) -> int:
    """What the chat template adds to a text of one word."""

    def count(**fields: Any) -> int:
        answer = httpx.post(f"{url}/tokenize", json={"model": MODEL, **fields}, trust_env=False).raise_for_status()
        return int(answer.json()["count"])

    return count(messages=[{"role": "user", "content": "word"}]) - count(prompt="word", add_special_tokens=False)


def main() -> int:
    parser = arguments(__doc__ or "", seed=1)
    parser.add_argument("--aiperf", metavar="BIN", default=shutil.which("aiperf"), help="(default: the one on the path)")
    parser.add_argument("--guidellm", metavar="BIN", default=shutil.which("guidellm"), help="(default: the one on the path)")
    parser.add_argument("--server", choices=("emulated", MODEL), default="emulated", help="(default: %(default)s)")
    parser.add_argument("--split-cores", action="store_true", help="the server on all cores but the last, the tools on that")
    parser.add_argument("--url", help="a service that runs already, of the same model")
    parser.add_argument("--isl", type=int, default=512)
    parser.add_argument("--osl", type=int, default=32)
    parser.add_argument("--requests", type=int, default=8, help="in each round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 4])
    options = parser.parse_args()
    named: dict[str, tuple[Tool, str | None]] = {"aiperf": (aiperf, options.aiperf), "guidellm": (guidellm, options.guidellm)}
    tools = {name: (run, program) for name, (run, program) in named.items() if program}
    if not tools:
        parser.error("name at least one tool: --aiperf BIN, --guidellm BIN")
    report = Report(f"load tools, {options.isl} in, {options.osl} out, {options.server}", options.seed)
    model = resolve_model(MODEL, catalog(), progress=lambda text: print(text, file=sys.stderr))
    cores = sorted(os.sched_getaffinity(0))
    if options.split_cores:
        os.sched_setaffinity(0, cores[:-1])
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        engine: dict[str, Any] = dict(ENGINE)
        if options.server == "emulated":
            (folder / "profile.json").write_text(json.dumps(PROFILE))
            engine |= {"kind": "emulated", "profile": str(folder / "profile.json")}
        tokenizer = write_tokenizer(model, folder / "tokenizer")
        running = (
            nullcontext(options.url) if options.url else served(model, folder, engine=engine, policy={"force_route": "inline"})
        )
        with running as url:
            extra = template_tokens(url)
            warm = Workload(options.isl, options.osl, max(options.concurrency), 4, options.seed - 1)
            ours(url, warm, extra)
            if options.split_cores:
                os.sched_setaffinity(0, cores[-1:])
            for concurrency in options.concurrency:
                work = Workload(options.isl, options.osl, concurrency, options.requests, options.seed)
                seen = _rounds(url, work, extra, tokenizer, tools, options.rounds, folder)
                for name in seen:
                    _told_rows(report, f"{name}, {concurrency} at once", seen[name])
                    if name != OURS:
                        _rows(report, f"{name}, {concurrency} at once", seen[name], seen[OURS])
    return finish(report, options)


def _rounds(
    url: str, work: Workload, extra: int, tokenizer: Path, tools: Mapping[str, tuple[Tool, str]], rounds: int, folder: Path
) -> dict[str, Seen]:
    """All in turn, several times over, and the median of each figure: the speed of a shared machine drifts."""
    seen: dict[str, list[Seen]] = {OURS: [], **{name: [] for name in tools}}
    for number in range(rounds):
        again = replace(work, seed=work.seed + number)  # prompts that no cache has seen
        print(f"{work.concurrency} at once, round {number + 1} of {rounds}: {', '.join(seen)}", file=sys.stderr)
        seen[OURS].append(told(ours(url, again, extra), url, work))
        for name, (run, program) in tools.items():
            out = folder / f"{name}-{work.concurrency}-{number}"
            out.mkdir()
            seen[name].append(told(run(program, url, again, tokenizer, out), url, work))
    return {
        name: Seen(*(median(values) for values in zip(*(astuple(each) for each in found), strict=True)))
        for name, found in seen.items()
    }


def told(seen: Seen, url: str, work: Workload) -> Seen:
    """With the server's own account of the run's requests. Raises RuntimeError when it does not have all of them."""
    traces = httpx.get(f"{url}/live/state", trust_env=False).raise_for_status().json()["traces"]  # the newest first
    whole = [trace for trace in traces if trace["prompt_tokens"] >= work.isl][: work.requests]  # asking for lengths is shorter
    if len(whole) < work.requests:
        raise RuntimeError(f"the server tells of {len(whole)} of {work.requests} requests; it keeps {len(traces)}")
    ttft_s, latency_s = mean(trace["ttft_s"] for trace in whole), mean(trace["total_s"] for trace in whole)
    return replace(seen, told_ttft_ms=ttft_s * 1e3, told_latency_ms=latency_s * 1e3)


def _rows(report: Report, name: str, seen: Seen, base: Seen) -> None:
    """The bar is on the difference, in either direction."""
    for (what, (value, unit)), (own, _) in zip(seen.named().items(), base.named().values(), strict=True):
        tokens = f"{seen.prompt_tokens:.0f} and {base.prompt_tokens:.0f} prompt tokens"
        note = f"{value:,.1f} {unit}, prfaas bench {own:,.1f} {unit}; {tokens}"
        difference = abs(value / own - 1) * 100
        report.add(Measurement(f"{name}: {what} differs", difference, "%", bar=BAR_PERCENT, lower_is_better=True, note=note))


def _told_rows(report: Report, name: str, seen: Seen) -> None:
    """What the tool saw, and how far it is from what the server says of the same requests."""
    for what, value, own in (
        ("TTFT", seen.ttft_ms, seen.told_ttft_ms),
        ("request latency", seen.latency_ms, seen.told_latency_ms),
    ):
        difference = abs(value / own - 1) * 100
        note = f"{value:,.1f} ms, the server {own:,.1f} ms"
        what = f"{name}: {what} against the server's"
        report.add(Measurement(what, difference, "%", bar=BAR_PERCENT, lower_is_better=True, note=note))


if __name__ == "__main__":
    sys.exit(main())
