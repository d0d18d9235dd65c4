"""A whole run: find the model, gauge its tokens, warm up, send, and add up."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop

from prfaas.cli.bench.connection import Connections, Place
from prfaas.cli.bench.dataset import from_file
from prfaas.cli.bench.dialect import Endpoint
from prfaas.cli.bench.document import Outcome
from prfaas.cli.bench.drive import Arrival, Run, Target, drive
from prfaas.cli.bench.figures import Figures, Objective
from prfaas.cli.bench.record import Record
from prfaas.cli.bench.workload import Gauge, Lengths, Session, Shape, Turn, made_up, text_of
from prfaas.clock import Clock
from prfaas.errors import ConfigError, InvalidRequest, WorkerUnreachable

GAUGE_WORDS = (8, 40)
WARMUP = Shape(Lengths(64, 64), Lengths(16, 16))  # for a file, whose own prompts are not to be known already
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run. `shape` or `file` says what is asked; `requests` counts sessions; None takes a whole file."""

    arrival: Arrival
    shape: Shape | None = None
    file: Path | None = None
    speed: float = 1.0
    requests: int | None = None
    warmup: int = 0
    endpoint: Endpoint = Endpoint.CHAT
    model: str | None = None
    api_key: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    timeout_s: float = 600.0
    seed: int = 0
    objective: Objective = field(default_factory=Objective)

    def describe(self) -> dict[str, Any]:
        """The workload by name, so that two runs can be told to be of the same."""
        shape, arrival = self.shape, self.arrival
        asked: dict[str, Any] = {"file": str(self.file), "speed": self.speed}
        if shape is not None:
            asked = {
                "isl": [shape.isl.low, shape.isl.high], "osl": [shape.osl.low, shape.osl.high], "turns": shape.turns,
                "pause_s": shape.pause_s, "shared_tokens": shape.shared_tokens,
            }  # fmt: skip
        when = {"concurrency": arrival.concurrency, "rate_rps": arrival.rate_rps, "cv": arrival.cv}
        return {**asked, **when, "endpoint": self.endpoint.value, "requests": self.requests, "warmup": self.warmup,
                "extra": dict(self.extra), "seed": self.seed}  # fmt: skip


def bench(url: str, plan: Plan, clock: Clock, *, say: Say, watch: Callable[[Run, int], None] | None = None) -> Outcome:
    """Run a plan against one server. `watch` is called with the measured run and its number of requests before it starts.

    Raises:
        ConfigError: the workload or the URL is wrong.
        WorkerUnreachable, InvalidRequest: the server does not answer the first request.
    """
    outcome: Outcome = uvloop.run(_bench(url, plan, clock, say, watch or (lambda _, __: None)))
    return outcome


async def _bench(url: str, plan: Plan, clock: Clock, say: Say, watch: Callable[[Run, int], None]) -> Outcome:
    with _connected(url, plan, clock) as connections:
        model = plan.model or await _served_model(connections)
        target = Target(connections, plan.endpoint, model, plan.extra, plan.timeout_s)
        gauge = await _gauge(target, clock, plan.seed, say)
        if plan.warmup:
            say(f"warming up with {plan.warmup} requests")
            # Made-up prompts of another seed: the measured ones must not find them in a cache.
            extra = itertools.islice(made_up(plan.shape or WARMUP, gauge, f"{plan.seed} warm-up"), plan.warmup)
            await drive(Run(clock), target, extra, Arrival(plan.arrival.concurrency or plan.warmup), plan.seed)
        sessions = list(itertools.islice(_sessions(plan, gauge), plan.requests))
        _check(sessions, plan.endpoint)
        run = Run(clock)
        watch(run, sum(len(session.turns) for session in sessions))
        await drive(run, target, sessions, plan.arrival, plan.seed)
    records = tuple(sorted(run.records, key=lambda record: record.sent_s))
    return Outcome(url, model, plan.describe(), plan.objective, Figures.of(records, plan.objective), records)


@contextmanager
def _connected(url: str, plan: Plan, clock: Clock) -> Iterator[Connections]:
    headers = {"authorization": f"Bearer {plan.api_key}"} if plan.api_key else {}
    # Only a prfaas router knows this header; it then says which way each request went.
    connections = Connections(Place.of(url), {**headers, "x-prfaas-report": "1"}, clock)
    try:
        yield connections
    finally:
        connections.close()


async def _served_model(connections: Connections) -> str:
    status, body = await connections.get("/v1/models")
    try:
        return str(json.loads(body)["data"][0]["id"])
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise WorkerUnreachable(
            f"{connections.place.authority} answered {status} to a question for its models; name one with --model"
        ) from error


async def _gauge(target: Target, clock: Clock, seed: int, say: Say) -> Gauge:
    """Two short requests tell how many tokens the server makes of words. They also show that it answers at all."""
    counted = []
    for words in GAUGE_WORDS:
        session = Session((Turn(text_of(random.Random(f"{seed} gauge {words}"), words), 1),))
        record = await _once(target, clock, session)
        counted.append(record.prompt_tokens)
    few, many = counted
    if few == 0 or many <= few:
        say("the server counts no prompt tokens: one word is taken for one token")
        return Gauge()
    per_word = (many - few) / (GAUGE_WORDS[1] - GAUGE_WORDS[0])
    return Gauge(few - per_word * GAUGE_WORDS[0], per_word)


async def _once(target: Target, clock: Clock, session: Session) -> Record:
    run = Run(clock)
    await drive(run, target, (session,), Arrival(concurrency=1), 0)
    (record,) = run.records
    if record.error:
        raise InvalidRequest(f"{target.connections.place.authority} does not answer: {record.error}")
    return record


def _sessions(plan: Plan, gauge: Gauge) -> Iterator[Session]:
    if plan.file is not None:
        return from_file(plan.file, gauge, speed=plan.speed, seed=str(plan.seed))
    if plan.shape is None:
        raise ConfigError("there is nothing to ask: give lengths or a file")
    return made_up(plan.shape, gauge, str(plan.seed))


def _check(sessions: Sequence[Session], endpoint: Endpoint) -> None:
    if not sessions:
        raise ConfigError("the workload has no requests")
    if endpoint is Endpoint.CHAT and any(not isinstance(turn.prompt, str) for s in sessions for turn in s.turns):
        raise ConfigError("the file has prompts of token ids, which only --endpoint completions takes")
