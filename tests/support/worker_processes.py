"""Real worker processes on loopback, known to a registry inside the test, and a client of their doors.

For tests of the services themselves: no router and no pool stands between the test and the worker.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
import httpx
from prometheus_client.parser import text_string_to_metric_families

from prfaas import rpc
from prfaas.cli.ports import free_port
from prfaas.config import TlsSettings, WorkerSettings, deep_merge
from prfaas.convert import from_pb_prefill_report, from_pb_token_output, from_pb_usage, to_pb_decision, to_pb_generation_request
from prfaas.pb import decode_pb2, registry_pb2, registry_pb2_grpc
from prfaas.types import (
    Decision,
    GenerationRequest,
    PrefillCandidate,
    PrefillReport,
    RequestId,
    Role,
    Route,
    SamplingParams,
    TokenOutput,
    Usage,
    WorkerInfo,
)
from router.decode_stream import DecodeCall, DecodeStream
from tests.support.emulated_hybrid import BLOCK_TOKENS, write_profile
from tests.support.registry import Router, serving
from tests.support.waiting import until

PLAIN = TlsSettings()
READY_TIMEOUT_S = 60.0
SETTLE_TIMEOUT_S = 10.0
# What an idle worker has none of. Cached blocks may stay, used ones may not.
NOTHING_LEFT = (
    "blocks_used", "slots_used", "sequences_running", "sequences_waiting", "landings", "exports_pinned",
    "active_transfers", "buffered_bytes", "open_lanes", "prefill_inside", "decode_inside",
)  # fmt: skip


@dataclass
class Answer:
    """What a client of the decode door has heard so far."""

    reports: list[PrefillReport] = field(default_factory=list)
    outputs: list[TokenOutput] = field(default_factory=list)
    usages: list[Usage] = field(default_factory=list)

    @property
    def tokens(self) -> list[int]:
        """Token ids of sample 0."""
        return [output.token_id for output in self.outputs if output.index == 0]

    def by_sample(self) -> dict[int, list[TokenOutput]]:
        """Each sample's outputs in the order they came."""
        return {index: [o for o in self.outputs if o.index == index] for index in sorted({o.index for o in self.outputs})}

    @property
    def report(self) -> PrefillReport:
        (report,) = self.reports
        return report

    async def hear_all(self, call: DecodeCall, then: Callable[[], None] = lambda: None) -> None:
        """To the end of the call; `then` is called after each hearing. Raises the typed error that the call ends with."""
        while not self.usages:
            for event in await call.take():
                self.hear(event)
            then()

    def hear(self, event: decode_pb2.GenerateEvent) -> None:
        kind = event.WhichOneof("event")
        if kind == "prefilled":
            self.reports.append(from_pb_prefill_report(event.prefilled))
        elif kind == "tokens":
            self.outputs += [from_pb_token_output(output) for output in event.tokens.outputs]
        elif kind == "finished":
            self.usages.append(from_pb_usage(event.finished))


class Client:
    """Channels to the doors of one worker."""

    def __init__(self, info: WorkerInfo, channel: grpc.aio.Channel) -> None:
        self.info = info
        self._channel = channel
        self._stream: DecodeStream | None = None
        self.control = registry_pb2_grpc.WorkerServiceStub(channel)  # type: ignore[no-untyped-call]

    def candidate(self, route: Route) -> PrefillCandidate:
        return PrefillCandidate(self.info.worker_id, self.info.site, self.info.address, route)

    def call(self, request: GenerationRequest, *candidates: PrefillCandidate) -> DecodeCall:
        """One request, to be read or cancelled."""
        decision = Decision(
            decode_worker=self.info.worker_id,
            decode_address=self.info.address,
            route=candidates[0].route if candidates else Route.INLINE,
            candidates=candidates,
            reasons=("a test",),
            uncached_tokens=len(request.tokens),
            threshold_tokens=0,
        )
        message = decode_pb2.GenerateRequest(request=to_pb_generation_request(request), decision=to_pb_decision(decision))
        if self._stream is None or self._stream.broken:
            self._stream = DecodeStream(self._channel, self.info.worker_id)
        return self._stream.call(message)

    async def generate(self, request: GenerationRequest, *candidates: PrefillCandidate) -> Answer:
        """A whole request. Raises the typed error it ends with."""
        answer = Answer()
        call = self.call(request, *candidates)
        try:
            await answer.hear_all(call)
        finally:
            call.cancel()
        return answer

    async def status(self) -> registry_pb2.StatusReply:
        reply: registry_pb2.StatusReply = await self.control.Status(registry_pb2.StatusRequest(), timeout=5.0)
        return reply

    async def counters(self) -> Mapping[str, float]:
        return dict((await self.status()).counters)

    async def reached(self, phase: str, **least: float) -> Mapping[str, float]:
        """Wait until each named counter is at least the given number: the phase has begun."""
        return await self.comes_to(phase, lambda now: all(now[name] >= number for name, number in least.items()))

    async def comes_to(
        self, phase: str, holds: Callable[[Mapping[str, float]], bool], timeout_s: float = SETTLE_TIMEOUT_S
    ) -> Mapping[str, float]:
        """Wait until the counters have what `holds` asks for; returns them."""
        counters = await self.counters()
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + timeout_s
        while not holds(counters):
            busy = {name: value for name, value in counters.items() if value and name in NOTHING_LEFT}
            assert loop.time() < deadline_s, f"{self.info.worker_id} never came to: {phase}; it holds {busy}"
            await asyncio.sleep(0.01)
            counters = await self.counters()
        return counters

    async def computed(self) -> None:
        """Wait until an export is computed to its end and still held for its receiver."""
        await self.comes_to("a whole export", lambda now: now["exports_pinned"] > 0 and not now["sequences_running"])

    async def settled(self, timeout_s: float = SETTLE_TIMEOUT_S) -> Mapping[str, float]:
        """Wait until nothing is held for anybody; returns the counters then. The error names what is left."""
        counters = await self.comes_to("nothing left", lambda now: not any(now.get(name) for name in NOTHING_LEFT), timeout_s)
        missing = {"blocks_used", "landings", "exports_pinned", "active_transfers"} - set(counters)
        assert not missing, f"the worker does not report {missing}"
        pools = counters["blocks_free"] + counters["blocks_cached"] + counters["blocks_used"]
        assert pools == counters["blocks_total"]
        return counters


class Worker(Client):
    """A worker process of a test's own."""

    def __init__(
        self, process: subprocess.Popen[bytes], info: WorkerInfo, channel: grpc.aio.Channel, metrics_port: int
    ) -> None:
        super().__init__(info, channel)
        self.process = process
        self._metrics_port = metrics_port

    async def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples with these labels. The worker must have been started with a metrics port."""
        text = (await asyncio.to_thread(httpx.get, f"http://127.0.0.1:{self._metrics_port}/metrics")).text
        samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
        return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())

    async def received_bytes(self) -> None:
        """Wait until some chunk has landed here."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + SETTLE_TIMEOUT_S
        while not await self.metric("prfaas_kv_wire_bytes_total", direction="receive"):
            assert loop.time() < deadline_s, f"nothing has landed at {self.info.worker_id}"
            await asyncio.sleep(0.01)

    def kill(self) -> None:
        """As a crash does: no goodbye."""
        self.process.kill()
        self.process.wait()

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    async def ended(self, timeout_s: float = 20.0) -> int:
        """Wait for the process to end by itself; returns its exit status."""
        await until(lambda: self.process.poll() is not None, timeout_s)
        return int(self.process.wait())


class Fleet:
    """Workers that know one registry. Every process is gone when the fleet's context ends."""

    def __init__(
        self, router: Router, directory: Path, base: Mapping[str, Any], tls: TlsSettings, stack: AsyncExitStack
    ) -> None:
        self.router = router
        self.directory = directory
        self._base = base
        self._tls = tls
        self._stack = stack

    async def start(self, worker_id: str, role: Role, site: str = "pd", **changes: Any) -> Worker:
        """Start a worker process and wait for its registration. `changes` override settings of the fleet."""
        metrics_port = free_port()
        process = self.spawn(worker_id, role, site, metrics_port=metrics_port, **changes)
        seen = len(self.router.registered)

        def registered() -> bool:
            assert process.poll() is None, f"{worker_id} ended: {self.log(worker_id)}"
            return any(info.worker_id == worker_id for info in self.router.registered[seen:])

        await until(registered, READY_TIMEOUT_S)
        info = next(info for info in reversed(self.router.registered) if info.worker_id == worker_id)
        return await self.connect(process, info, metrics_port)

    async def connect(self, process: subprocess.Popen[bytes], info: WorkerInfo, metrics_port: int = 0) -> Worker:
        """Channels to a running worker; 0: it exports no metrics."""
        channel = await self._stack.enter_async_context(rpc.channel(info.address, self._tls))
        return Worker(process, info, channel, metrics_port)

    def spawn(
        self, worker_id: str, role: Role, site: str = "pd", *, arguments: Sequence[str] = (), **changes: Any
    ) -> subprocess.Popen[bytes]:
        """Start a worker process, without waiting. Its standard input is a pipe that nobody writes to."""
        settings = self.settings(worker_id, role, site, **changes)
        path = self.directory / f"{worker_id}.json"
        path.write_text(settings.model_dump_json())
        command = [sys.executable, "-m", "prfaas.worker", "--settings", str(path), *arguments]
        with (self.directory / f"{worker_id}.log").open("ab") as log:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log)
        self._stack.callback(_end, process)
        return process

    def settings(self, worker_id: str, role: Role, site: str = "pd", **changes: Any) -> WorkerSettings:
        """What a worker of this fleet is started with."""
        own = {"worker_id": worker_id, "site": site, "role": role.value}
        return WorkerSettings.model_validate(deep_merge(deep_merge(self._base, own), changes))

    def log(self, worker_id: str) -> str:
        return (self.directory / f"{worker_id}.log").read_text()[-4000:]


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()
    if process.stdin is not None:
        process.stdin.close()


@asynccontextmanager
async def fleet(directory: Path, tls: TlsSettings = PLAIN, **settings: Any) -> AsyncIterator[Fleet]:
    """A registry and the workers started with it, on emulated engines of the hybrid model. `settings` hold for all
    workers and are merged, key by key, into what makes a test quick. `tls` is spoken on every connection."""
    router = Router()
    profile = write_profile(directory / "profile.json")
    async with serving(router, tls=tls) as port, AsyncExitStack() as stack:
        base = {
            "model": "no files",
            "served_model_name": "test-model",
            "router_address": f"127.0.0.1:{port}",
            "heartbeat_s": 0.05,
            "drain_timeout_s": 10.0,
            "engine": {
                "kind": "emulated",
                "profile": str(profile),
                "block_tokens": BLOCK_TOKENS,
                "max_step_tokens": 128,
                "cache_bytes": 64 * 1024**2,
            },
            "transport": {"chunk_bytes": 16 * 1024, "tls": tls.model_dump(mode="json")},
        }
        yield Fleet(router, directory, deep_merge(base, settings), tls, stack)


def prompt(num_tokens: int, seed: int = 1) -> tuple[int, ...]:
    """Token ids that differ with the seed from the first on."""
    return tuple(3 + (seed * 7919 + position * (seed + 13)) % 200 for position in range(num_tokens))


def greedy(tokens: tuple[int, ...], max_tokens: int = 8, request_id: str = "r1", **changes: Any) -> GenerationRequest:
    """A greedy request that runs to max_tokens."""
    sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
    fields: dict[str, Any] = {
        "request_id": RequestId(request_id),
        "model": "test-model",
        "tokens": tokens,
        "sampling": sampling,
    }
    return GenerationRequest(**{**fields, **changes})
