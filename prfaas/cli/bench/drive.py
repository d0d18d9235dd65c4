"""Sends sessions and records what comes back: a fixed number at once, or at given times whatever the server does."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from prfaas.cli.bench.connection import Connections
from prfaas.cli.bench.dialect import Endpoint, EventReader, refusal, request_body
from prfaas.cli.bench.record import Record
from prfaas.cli.bench.workload import Session, Turn
from prfaas.clock import Clock
from prfaas.errors import WorkerUnreachable


@dataclass(frozen=True, slots=True)
class Target:
    """Whom to ask, and what every request says besides its prompt and length."""

    connections: Connections
    endpoint: Endpoint
    model: str
    extra: Mapping[str, Any]
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Arrival:
    """When sessions begin: `concurrency` of them at once, or, at a rate, without waiting for answers.

    Gaps of a rate are Gamma distributed with the coefficient of variation `cv` (1: Poisson, 0: even, above 1: bursts).
    Sessions that bring times of their own begin at those, unless a concurrency says otherwise.
    """

    concurrency: int | None = None
    rate_rps: float | None = None
    cv: float = 1.0

    def times(self, seed: int) -> Iterator[float]:
        """Seconds from the start of the run at which sessions begin; all at once without a rate."""
        rng, now_s = random.Random(f"{seed} arrivals"), 0.0
        while True:
            yield now_s
            if self.rate_rps is not None:
                mean_s = 1.0 / self.rate_rps
                now_s += rng.gammavariate(1.0 / self.cv**2, mean_s * self.cv**2) if self.cv > 0 else mean_s


@dataclass(slots=True)
class Run:
    """The records of a run as they come in. `progress` is called after each; `tokens` counts pieces on the way."""

    clock: Clock
    progress: Callable[[Record], None] = lambda _: None
    records: list[Record] = field(default_factory=list)
    pieces: int = 0
    began_s: float = 0.0

    def now_s(self) -> float:
        return self.clock.now_s() - self.began_s

    def add(self, record: Record) -> None:
        self.records.append(record)
        self.progress(record)


async def drive(run: Run, target: Target, sessions: Iterable[Session], arrival: Arrival, seed: int) -> None:
    """Send all sessions and wait for their ends. Failures are records, not exceptions."""
    run.began_s = run.clock.now_s()
    todo = iter(sessions)
    async with asyncio.TaskGroup() as tasks:
        if arrival.concurrency is not None:
            for _ in range(arrival.concurrency):
                tasks.create_task(_one_after_another(run, target, todo))
            return
        for session, drawn_s in zip(todo, arrival.times(seed), strict=False):
            due_s = drawn_s if session.at_s is None or arrival.rate_rps is not None else session.at_s
            await asyncio.sleep(due_s - run.now_s())
            tasks.create_task(_session(run, target, session, due_s))


async def _one_after_another(run: Run, target: Target, todo: Iterator[Session]) -> None:
    for session in todo:
        await _session(run, target, session, run.now_s())


async def _session(run: Run, target: Target, session: Session, due_s: float) -> None:
    """The turns of one session, each with what was said before it. Ends at the first turn that fails."""
    talk = _Talk(session, target.endpoint)
    for turn in session.turns:
        if turn.pause_s:
            due_s = run.now_s() + turn.pause_s
            await asyncio.sleep(turn.pause_s)
        record, answer = await _ask(run, target, talk.prompt(turn), turn.output_tokens, due_s)
        run.add(record)
        if not record.good:
            return
        talk.add(turn, answer)
        due_s = run.now_s()


class _Talk:
    """What a session has said so far, in the form its endpoint takes."""

    def __init__(self, session: Session, endpoint: Endpoint) -> None:
        self._is_chat = endpoint is Endpoint.CHAT
        self._messages = [dict(message) for message in session.opening]
        self._text = "\n".join(message["content"] for message in session.opening)

    def prompt(self, turn: Turn) -> list[dict[str, Any]] | str | list[int]:
        if not self._is_chat:
            if not isinstance(turn.prompt, str):
                return list(turn.prompt)
            return f"{self._text}\n{turn.prompt}" if self._text else turn.prompt
        asked: list[dict[str, Any]] = [*self._messages, {"role": "user", "content": turn.prompt}]
        return asked

    def add(self, turn: Turn, answer: str) -> None:
        text = str(turn.prompt)
        self._messages += [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
        self._text = f"{self._text}\n{text}{answer}" if self._text else f"{text}{answer}"


async def _ask(
    run: Run, target: Target, prompt: list[dict[str, Any]] | str | list[int], max_tokens: int | None, due_s: float
) -> tuple[Record, str]:
    """One request from its first byte to its last; its answer's text for the next turn."""
    body = request_body(target.model, prompt, max_tokens, target.extra)
    at: list[float] = []
    raw = bytearray()

    def piece(now_s: float) -> None:
        at.append(now_s - run.began_s)
        run.pieces += 1

    reader = EventReader(piece)

    def take(data: bytes, now_s: float) -> None:
        if not at:
            raw.extend(data)  # an error's body is not known as one before its status is
        reader.take(data, now_s)

    sent_s, error = run.now_s(), ""
    try:
        async with asyncio.timeout(target.timeout_s):
            status = await target.connections.post(target.endpoint.path, body, take)
        error = reader.error if status == 200 else refusal(status, bytes(raw))
        if not error and not reader.ended:
            error = "the stream ended without [DONE]"
    except TimeoutError:
        error = f"no end after {target.timeout_s:g} s"
    except WorkerUnreachable as broken:
        error = broken.message
    return _record(reader, at, due_s, sent_s, run.now_s(), error), reader.text


def _record(reader: EventReader, at: list[float], due_s: float, sent_s: float, end_s: float, error: str) -> Record:
    usage = reader.usage
    details = usage.get("prompt_tokens_details") or {}
    return Record(
        due_s=due_s,
        sent_s=sent_s,
        first_s=at[0] if at else None,
        end_s=end_s,
        gaps_s=tuple(after - before for before, after in itertools.pairwise(at)),
        prompt_tokens=int(usage.get("prompt_tokens") or 0),
        cached_tokens=int(details.get("cached_tokens") or 0),
        output_tokens=int(usage["completion_tokens"]) if "completion_tokens" in usage else len(at),
        error=error,
        route=str(reader.report.get("route") or ""),
        kv_bytes=int(reader.report.get("kv_bytes") or 0),
    )
