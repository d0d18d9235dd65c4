"""Faults between the two ends of a transfer in memory, and one transfer that is held against them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from kv_transport.frames import Kind
from kv_transport.memory import Faults, Trouble
from kv_transport.testing.harness import MemoryHarness
from kv_transport.testing.sources import FakeHandler, KeepingSink, Script, hybrid_offer, order_of, source_of
from kv_transport.testing.suite import settled
from prfaas import metrics
from prfaas.config import TransportSettings
from prfaas.errors import PrfaasError
from prfaas.metrics import Emitter, MetricSet

Action = Callable[[bytes], Sequence[bytes | Trouble]]

FRAMES = 13  # of the transfer below on one lane: manifest, 10 chunks, first tokens, digest


def fast(**changes: object) -> TransportSettings:
    fields: dict[str, object] = {"chunk_bytes": 4096, "lanes": 1, "progress_timeout_s": 0.15, "lease_s": 1.0}
    return TransportSettings.model_validate(fields | changes)


@dataclass
class At:
    """Does `action` to the frame number `number` (counted over all lanes), `times` times in a row."""

    number: int
    action: Action
    times: int = 1
    seen: int = 0
    struck: int = 0

    def deliver(self, lane: int, frame: bytes) -> Sequence[bytes | Trouble]:
        at, self.seen = self.seen, self.seen + 1
        if at >= self.number and self.struck < self.times:
            self.struck += 1
            return self.action(frame)
        return (frame,)


def cut(frame: bytes) -> Sequence[bytes | Trouble]:
    return (Trouble.CUT,)


def cut_after(frame: bytes) -> Sequence[bytes | Trouble]:
    return (frame, Trouble.CUT)


def stall(frame: bytes) -> Sequence[bytes | Trouble]:
    return (Trouble.STALL,)


def drop(frame: bytes) -> Sequence[bytes | Trouble]:
    return ()


def duplicate(frame: bytes) -> Sequence[bytes | Trouble]:
    return (frame, frame)


def flip(frame: bytes) -> Sequence[bytes | Trouble]:
    middle = len(frame) // 2
    return (frame[:middle] + bytes((frame[middle] ^ 4,)) + frame[middle + 1 :],)


def end(frame: bytes) -> Sequence[bytes | Trouble]:
    return (Trouble.END,)


def truncate(frame: bytes) -> Sequence[bytes | Trouble]:
    return (frame[: len(frame) // 2],)


@dataclass
class Reorder:
    """Keeps back every chunk until the next chunk has passed."""

    kept: dict[int, bytes] = field(default_factory=dict)

    def deliver(self, lane: int, frame: bytes) -> Sequence[bytes | Trouble]:
        kept = self.kept.pop(lane, None)
        if frame[0] != Kind.CHUNK:
            return (kept, frame) if kept else (frame,)
        if kept is None:
            self.kept[lane] = frame
            return ()
        return (frame, kept)


@dataclass
class SwapAt:
    """Lets frame number `number` pass after the one that follows it."""

    number: int
    seen: int = 0
    kept: bytes | None = None

    def deliver(self, lane: int, frame: bytes) -> Sequence[bytes | Trouble]:
        at, self.seen = self.seen, self.seen + 1
        if at == self.number:
            self.kept = frame
            return ()
        kept, self.kept = self.kept, None
        return (frame,) if kept is None else (frame, kept)


async def outcome(faults: Faults, settings: TransportSettings, *, queue_events: int = 0) -> PrfaasError | None:
    """Run a transfer through the faults. Its error, or None when every byte arrived. Checks leaks and counters."""
    source = source_of(hybrid_offer(tokens=300), step_tokens=128)
    source.script = Script(layer_s=0.0005, queue_events=queue_events)
    sent, got = MetricSet(Emitter.WORKER), MetricSet(Emitter.WORKER)
    harness = MemoryHarness(faults, send_metrics=sent, receive_metrics=got)
    async with harness.join(FakeHandler(source), settings) as ends:
        sink = KeepingSink()
        error: PrfaasError | None = None
        try:
            result = await ends.transport.fetch(order_of(300), ends.address, sink)
            sink.require(source.contents)
            assert result.resumes == got.registry.get_sample_value("prfaas_kv_transfer_resumes_total")
        except PrfaasError as failure:
            error = failure
            labels = {"direction": "receive", "reason": error.code}
            assert got.registry.get_sample_value("prfaas_kv_transfer_failures_total", labels) == 1
        await settled(ends, source)
        assert source.released == [error is None]
        for direction, metric_set in (("send", sent), ("receive", got)):
            active = metric_set.registry.get_sample_value(metrics.TRANSFERS_ACTIVE.name, {"direction": direction})
            assert active == 0
        assert sent.registry.get_sample_value(metrics.LEASES_ACTIVE.name) == 0
        return error
