"""What a proxy adds to a request: this router beside other routers and minimal proxies, all in front of a dummy backend.

    python -m benchmarks.http_overhead [--peers PYTHON] [--json FILE] [--check]

The other proxies forward HTTP to an OpenAI-compatible server that answers at once. This router speaks gRPC with its
workers, so behind it is a decode worker that answers at once: the same tokens in as many messages. It does more than they
do: it validates the body, tokenizes the prompt, routes, detokenizes and writes every event anew. `--peers` is the
interpreter of an environment with sglang-router, vllm-router, aiohttp, fastapi, httpx, uvicorn and ray[serve]. Client, proxy
and backend share this machine's cores.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import uvloop

from benchmarks.table import Measurement, Report, arguments, finish
from prfaas.artifacts import resolve_model
from prfaas.cli.bench.connection import Connections, Place
from prfaas.cli.catalog import catalog
from prfaas.cli.ports import free_port
from prfaas.clock import MonotonicClock
from prfaas.errors import WorkerUnreachable

MODEL = "smollm2"  # its tokenizer
PROMPT = "Name three rivers in Europe and say where each of them begins. " * 8
STREAM_TOKENS, AT_ONCE, OPEN_STREAMS = 32, 32, 1000
READY_S = 60.0
HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Target:
    """A server to ask, and its process."""

    name: str
    url: str
    process: subprocess.Popen[bytes]

    @property
    def memory_mib(self) -> float:
        """Resident memory of the process and its children."""
        total, waiting = 0.0, [self.process.pid]
        while waiting:
            pid = waiting.pop()
            status = Path(f"/proc/{pid}/status").read_text()
            total += next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / 1024
            waiting += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        return total


Start = Callable[[ExitStack], Target]


@dataclass(frozen=True, slots=True)
class Times:
    """One answer: seconds to its first bytes and to its end, and its tokens."""

    first_s: float
    total_s: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Figures:
    """One round at one target."""

    p50_ms: float
    p99_ms: float
    first_p50_ms: float
    requests_per_s: float
    tokens_per_s: float


def body(num_tokens: int, *, stream: bool, gap_s: float = 0.0) -> bytes:
    """`user` carries the gap between two tokens to the backends, which know nothing else of a request."""
    asked = {"model": "m", "prompt": PROMPT, "max_tokens": num_tokens, "stream": stream, "user": f"{gap_s:g}"}
    return json.dumps(asked).encode()


async def ask(connections: Connections, content: bytes) -> Times:
    """One request. Raises WorkerUnreachable for anything but a good answer."""
    clock = MonotonicClock()
    began_s = clock.now_s()
    pieces: list[bytes] = []
    first_s = 0.0

    def take(piece: bytes, at_s: float) -> None:
        nonlocal first_s
        first_s = first_s or at_s - began_s
        pieces.append(piece)

    status = await connections.post("/v1/completions", content, take)
    whole = b"".join(pieces)
    if status != 200:
        raise WorkerUnreachable(f"{connections.place.authority} answered {status}: {whole[:300]!r}")
    return Times(first_s, clock.now_s() - began_s, whole.count(b'"text"'))


async def many(connections: Connections, content: bytes, number: int, at_once: int) -> tuple[list[Times], float]:
    """So many requests, `at_once` at a time, and the seconds they took together."""
    clock = MonotonicClock()
    began_s, left, done = clock.now_s(), iter(range(number)), []

    async def client() -> None:
        for _ in left:
            done.append(await ask(connections, content))

    await asyncio.gather(*(client() for _ in range(at_once)))
    return done, clock.now_s() - began_s


async def measure(target: Target, number: int) -> Figures:
    connections = Connections(Place.of(target.url), {}, MonotonicClock())
    whole, stream = body(1, stream=False), body(STREAM_TOKENS, stream=True)
    await many(connections, whole, 20, 4)
    alone, _ = await many(connections, whole, number, 1)
    streamed, _ = await many(connections, stream, number // 4, 1)
    crowd, crowd_s = await many(connections, whole, 2 * number, AT_ONCE)
    streams, streams_s = await many(connections, stream, number // 2, AT_ONCE)
    connections.close()
    return Figures(
        percentile([t.total_s for t in alone], 0.5) * 1e3,
        percentile([t.total_s for t in alone], 0.99) * 1e3,
        percentile([t.first_s for t in streamed], 0.5) * 1e3,
        len(crowd) / crowd_s,
        sum(t.tokens for t in streams) / streams_s,
    )


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


async def hold(target: Target, streams: int) -> tuple[float, float, float]:
    """Resident MiB before, with all streams open for some seconds, and towards their end."""
    connections = Connections(Place.of(target.url), {}, MonotonicClock())
    await ask(connections, body(1, stream=True))
    before = target.memory_mib
    content = body(30, stream=True, gap_s=0.5)
    running = [asyncio.create_task(ask(connections, content)) for _ in range(streams)]
    await asyncio.sleep(6)
    early = target.memory_mib
    await asyncio.sleep(7)
    late = target.memory_mib
    answers = await asyncio.gather(*running)
    connections.close()
    if any(answer.tokens < 30 for answer in answers):
        raise WorkerUnreachable(f"{target.name} lost tokens of {streams} streams")
    return before, early, late


@contextmanager
def program(*command: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def wait_ready(target: Target) -> None:
    """Until it answers a request. Raises WorkerUnreachable when it does not in time."""
    clock = MonotonicClock()
    until_s = clock.now_s() + READY_S
    while True:
        try:
            connections = Connections(Place.of(target.url), {}, clock)
            await ask(connections, body(1, stream=False))
            connections.close()
            return
        except WorkerUnreachable as error:
            if clock.now_s() > until_s or target.process.poll() is not None:
                raise WorkerUnreachable(f"{target.name} does not serve: {error}") from error
            await asyncio.sleep(0.2)


def start_router(stack: ExitStack, directory: Path) -> Target:
    """This router, with a decode worker that answers at once."""
    port, registry = free_port(), free_port()
    model = resolve_model(MODEL, catalog(), progress=lambda _: None)
    settings = {"port": port, "grpc_port": registry, "model": model.source, "served_model_name": "m"}
    file = directory / "router.json"
    file.write_text(json.dumps({**settings, "limits": {"max_in_flight": 4096}}))
    process = stack.enter_context(program(sys.executable, "-m", "router", "--settings", str(file)))
    stack.enter_context(program(sys.executable, "-m", "benchmarks.http_ends", "worker", "--registry", f"127.0.0.1:{registry}"))
    return Target("prfaas", f"http://127.0.0.1:{port}", process)


def peers(python: Path, backend: str) -> Iterator[Start]:
    """How to start the other proxies."""
    folder, proxies = python.parent, str(HERE / "http_proxies.py")
    quiet = ("--disable-retries", "--disable-circuit-breaker", "--policy", "round_robin", "--worker-urls", backend)
    commands: dict[str, Callable[[str], tuple[str, ...]]] = {
        "aiohttp proxy": lambda port: (str(python), proxies, "aiohttp", port, backend),
        "FastAPI/httpx proxy": lambda port: (str(python), proxies, "fastapi", port, backend),
        "Ray Serve proxy": lambda port: (str(python), proxies, "serve", port, backend),
        "sglang-router": lambda port: (
            *(str(folder / "sglang-router"), "launch", "--host", "127.0.0.1", "--port", port),
            *("--prometheus-port", str(free_port()), *quiet),
        ),
        "vllm-router": lambda port: (
            *(str(folder / "vllm-router"), "--host", "127.0.0.1", "--port", port),
            *("--prometheus-port", str(free_port()), *quiet),
        ),
    }
    for name, command in commands.items():
        yield partial(start_peer, name=name, command=command)


def start_peer(stack: ExitStack, *, name: str, command: Callable[[str], tuple[str, ...]]) -> Target:
    port = free_port()
    return Target(name, f"http://127.0.0.1:{port}", stack.enter_context(program(*command(str(port)))))


async def run(options: argparse.Namespace, report: Report, directory: Path) -> None:
    """One proxy after the other, each alone with the backend, which is measured anew beside each."""
    with ExitStack() as stack:
        port = free_port()
        backend = stack.enter_context(program(sys.executable, "-m", "benchmarks.http_ends", "http", "--port", str(port)))
        direct = Target("no proxy", f"http://127.0.0.1:{port}", backend)
        await wait_ready(direct)
        starts: list[Start] = [lambda own: start_router(own, directory)]
        starts += peers(options.peers, direct.url) if options.peers is not None else ()
        for start in starts:
            with ExitStack() as own:
                await compare(start(own), direct, options, report)


async def compare(target: Target, direct: Target, options: argparse.Namespace, report: Report) -> None:
    """All rows of one proxy. One that does not serve is left out, and said so."""
    try:
        await wait_ready(target)
    except WorkerUnreachable as error:
        print(f"left out: {error}", file=sys.stderr)
        return
    bare, found = [], []
    for _ in range(options.rounds):
        bare.append(await measure(direct, options.requests))
        found.append(await measure(target, options.requests))
    add_rows(report, target.name, _median(found), _median(bare))
    await add_memory(report, target)


def _median(found: list[Figures]) -> Figures:
    def middle(values: list[float]) -> float:
        return sorted(values)[len(values) // 2]

    return Figures(
        middle([f.p50_ms for f in found]),
        middle([f.p99_ms for f in found]),
        middle([f.first_p50_ms for f in found]),
        middle([f.requests_per_s for f in found]),
        middle([f.tokens_per_s for f in found]),
    )


def add_rows(report: Report, name: str, found: Figures, bare: Figures) -> None:
    """Latencies as what the proxy adds to the backend's own."""
    report.add(Measurement(f"{name}: added latency P50", found.p50_ms - bare.p50_ms, "ms", lower_is_better=True))
    report.add(Measurement(f"{name}: added latency P99", found.p99_ms - bare.p99_ms, "ms", lower_is_better=True))
    added = found.first_p50_ms - bare.first_p50_ms
    report.add(Measurement(f"{name}: added to the first token P50", added, "ms", lower_is_better=True))
    report.add(Measurement(f"{name}: requests, {AT_ONCE} at once", found.requests_per_s, "1/s"))
    report.add(Measurement(f"{name}: streamed tokens, {AT_ONCE} at once", found.tokens_per_s, "1/s"))


async def add_memory(report: Report, target: Target) -> None:
    try:
        before, early, late = await hold(target, OPEN_STREAMS)
    except WorkerUnreachable as error:
        print(f"{target.name}: {error}", file=sys.stderr)
        return
    per_stream_kib = (early - before) / OPEN_STREAMS * 1024
    note = f"{before:.0f} MiB before, {early:.0f} MiB with {OPEN_STREAMS} streams, {late:.0f} MiB 7 s later"
    report.add(Measurement(f"{target.name}: memory per open stream", per_stream_kib, "KiB", lower_is_better=True, note=note))
    if target.name == "prfaas":
        growth = late / early
        report.add(Measurement("prfaas: growth while streams are held", growth, "x", bar=1.02, lower_is_better=True))


def main() -> int:
    parser = arguments(__doc__ or "", seed=1)
    parser.add_argument("--peers", type=Path, help="interpreter of the environment with the other proxies")
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 8192)), hard))
    report = Report("HTTP overhead: what a proxy adds", options.seed)
    with TemporaryDirectory() as directory, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(options, report, Path(directory)))
    return finish(report, options)


if __name__ == "__main__":
    sys.exit(main())
