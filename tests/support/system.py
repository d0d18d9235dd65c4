"""A whole system in processes, for tests: a router, and worker pools of any number of sites, joined only by addresses."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any

import grpc
import httpx

from prfaas.cli.ports import free_port
from prfaas.cluster.api import WorkerOrder, WorkerPool
from prfaas.config import RouterSettings, WorkerSettings
from prfaas.pb import decode_pb2, decode_pb2_grpc, registry_pb2, registry_pb2_grpc

READY_TIMEOUT_S = 90.0


def wait_until(what: str, check: Callable[[], bool], *, timeout_s: float = 30.0, every_s: float = 0.05) -> None:
    """Poll until `check` holds; fails naming what was waited for."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if check():
            return
        time.sleep(every_s)
    raise AssertionError(f"waited {timeout_s} s for {what}")


@dataclass(frozen=True)
class Worker:
    """A worker of the system under test, at a port chosen beforehand so that it is the same after a restart."""

    worker_id: str
    site: str
    role: str
    port: int

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


@dataclass(frozen=True)
class Answer:
    """Greedy token ids, and how many tokens of the prompt came from a prefix cache."""

    tokens: list[int]
    cached_tokens: int


@dataclass
class System:
    """Starts on enter, stops everything on exit. `pools` maps a site to the pool that runs its workers."""

    model: str
    log_dir: Path
    pools: dict[str, WorkerPool]
    layout: Sequence[tuple[str, str, int]] = (("prefill-dc", "prefill", 1), ("pd-dc", "pd_prefill", 1), ("pd-dc", "decode", 1))
    served_name: str = "test-model"
    engine: dict[str, Any] = field(default_factory=dict)
    transport: dict[str, Any] = field(default_factory=dict)
    policy: dict[str, Any] = field(default_factory=dict)
    router_extra: dict[str, Any] = field(default_factory=dict)
    workers: list[Worker] = field(default_factory=list)

    def __enter__(self) -> System:
        self.log_dir.mkdir(parents=True, exist_ok=True)
        self.port, self.grpc_port = free_port(), free_port()
        self.start_router()
        for site, role, count in self.layout:
            for number in range(count):
                self.workers.append(Worker(f"{site}-{role}-{number}", site, role, free_port()))
        for site, pool in self.pools.items():
            pool.start([self._order(w) for w in self.workers if w.site == site])
        try:
            self.wait_ready()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def start_router(self) -> None:
        settings = {
            "port": self.port, "grpc_port": self.grpc_port, "model": self.model, "served_model_name": self.served_name,
            "policy": {"threshold_tokens": 1000, "inline_tokens": 64, **self.policy}, **self.router_extra,
        }  # fmt: skip
        RouterSettings.model_validate(settings)
        path = self.log_dir / "router.json"
        path.write_text(json.dumps(settings))
        with (self.log_dir / "router.log").open("ab") as log:
            self.router = subprocess.Popen(
                [sys.executable, "-m", "router", "--settings", str(path)], stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )

    def _order(self, worker: Worker) -> WorkerOrder:
        settings = WorkerSettings.model_validate(
            {
                "worker_id": worker.worker_id, "site": worker.site, "role": worker.role, "model": self.model,
                "served_model_name": self.served_name, "router_address": f"127.0.0.1:{self.grpc_port}", "port": worker.port,
                "heartbeat_s": 0.2, "engine": {"dtype": "float32", "cache_bytes": 256 * 1024**2, **self.engine},
                "transport": self.transport,
            }
        )  # fmt: skip
        return WorkerOrder(settings, resources=((f"site:{worker.site}", 0.01),))

    def wait_ready(self) -> None:
        expected = {w.worker_id for w in self.workers}

        def ready() -> bool:
            assert self.router.poll() is None, f"the router ended: {self.tail('router')}"
            return {w.worker_id for w in self.workers if self.try_status(w) is not None} == expected and self.healthy()

        wait_until(f"{sorted(expected)}; router log: {self.tail('router')}", ready, timeout_s=READY_TIMEOUT_S, every_s=0.2)

    def healthy(self) -> bool:
        try:
            answer = httpx.get(f"{self.url}/health", timeout=2.0)
        except httpx.HTTPError:
            return False
        return answer.status_code == 200 and len(self.members()) == len(self.workers)

    def members(self) -> list[str]:
        """Workers that are registered and healthy, from the router's metrics."""
        text = httpx.get(f"{self.url}/metrics", timeout=5.0).text
        found: list[str] = []
        for line in text.splitlines():
            if line.startswith("prfaas_workers{") and 'state="healthy"' in line:
                found.extend([line] * int(float(line.rsplit(" ", 1)[1])))
        return found

    def tail(self, name: str) -> str:
        path = self.log_dir / f"{name}.log"
        return path.read_text()[-2000:] if path.exists() else "(none)"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def worker(self, role: str) -> Worker:
        return next(w for w in self.workers if w.role == role)

    def pid(self, worker: Worker) -> int | None:
        return next(m.pid for m in self.pools[worker.site].members() if m.worker_id == worker.worker_id)

    def try_status(self, worker: Worker) -> registry_pb2.StatusReply | None:
        with grpc.insecure_channel(worker.address) as channel:
            try:
                return registry_pb2_grpc.WorkerServiceStub(channel).Status(registry_pb2.StatusRequest(), timeout=2.0)
            except grpc.RpcError:
                return None

    def counters(self, worker: Worker) -> dict[str, float]:
        status = self.try_status(worker)
        assert status is not None, f"{worker.worker_id} does not answer"
        return dict(status.counters)

    def metric(self, name: str, **labels: str) -> float:
        """Sum of the router's samples of one metric with these labels."""
        total = 0.0
        for line in httpx.get(f"{self.url}/metrics", timeout=5.0).text.splitlines():
            if line.startswith((name + "{", name + " ")) and all(f'{k}="{v}"' in line for k, v in labels.items()):
                total += float(line.rsplit(" ", 1)[1])
        return total

    def assert_nothing_leaked(self, worker: Worker, *, timeout_s: float = 10.0) -> None:
        """No sequence, landing, export, transfer or used block remains once things have settled."""
        watched = (
            "blocks_used", "slots_used", "sequences_running", "sequences_waiting", "landings", "exports_pinned",
            "active_transfers", "buffered_bytes", "open_lanes", "leases_active",
        )  # fmt: skip

        def clean() -> bool:
            counters = self.counters(worker)
            return all(counters.get(name, 0.0) == 0.0 for name in watched)

        try:
            wait_until("clean counters", clean, timeout_s=timeout_s)
        except AssertionError:
            counters = self.counters(worker)
            left = {k: counters[k] for k in watched if counters.get(k)}
            raise AssertionError(f"{worker.worker_id} still holds {left}") from None

    def generate(self, tokens: Sequence[int], route: str, *, max_tokens: int = 16, request_id: str = "r") -> list[int]:
        """Greedy token ids by this route."""
        return self.ask(tokens, route, max_tokens=max_tokens, request_id=request_id).tokens

    def ask(self, tokens: Sequence[int], route: str, *, max_tokens: int = 16, request_id: str = "r") -> Answer:
        """Call the decode worker directly with a decision of this route; checks the report."""
        decode = self.worker("decode")
        decision = decode_pb2.Decision(
            decode_worker=decode.worker_id, decode_address=decode.address, route=route, reasons=["test"],
            uncached_tokens=len(tokens), threshold_tokens=0,
        )  # fmt: skip
        if route != "inline":
            source = self.worker("prefill" if route == "remote" else "pd_prefill")
            decision.candidates.add(worker_id=source.worker_id, site=source.site, address=source.address, route=route)
        message = decode_pb2.GenerateRequest(decision=decision)
        message.request.request_id = request_id
        message.request.model = self.served_name
        message.request.tokens.extend(tokens)
        sampling = message.request.sampling
        sampling.max_tokens, sampling.n, sampling.ignore_eos = max_tokens, 1, True
        sampling.temperature, sampling.top_p, sampling.repetition_penalty = 0.0, 1.0, 1.0
        found, cached_tokens = list[int](), 0
        for event in _call(decode.address, message):
            assert not event.HasField("failed"), event.failed
            if event.HasField("prefilled"):
                assert event.prefilled.route == route, (event.prefilled.route, list(event.prefilled.attempts))
                assert (event.prefilled.kv_bytes > 0) == (route != "inline")
                cached_tokens = event.prefilled.cached_tokens
            found.extend(output.token_id for output in event.tokens.outputs)
        return Answer(found, cached_tokens)

    def close(self) -> None:
        for pool in self.pools.values():
            pool.close(drain_s=2.0)
        if self.router.poll() is None:
            self.router.terminate()
            try:
                self.router.wait(10)
            except subprocess.TimeoutExpired:
                self.router.kill()
                self.router.wait()


def _call(address: str, message: decode_pb2.GenerateRequest) -> Iterator[decode_pb2.GenerateEvent]:
    """The events of one call, in a stream of its own."""
    requests: SimpleQueue[decode_pb2.GenerateRequests | None] = SimpleQueue()
    requests.put(decode_pb2.GenerateRequests(started=[message]))
    with grpc.insecure_channel(address) as channel:
        stub = decode_pb2_grpc.DecodeServiceStub(channel)
        for events in stub.Generate(iter(requests.get, None), timeout=110.0):
            yield from events.events
            if events.events[-1].WhichOneof("event") in ("finished", "failed"):
                requests.put(None)
