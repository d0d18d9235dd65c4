"""Requests to simulate: when they arrive, how long they are, and which prefixes they share. Deterministic per seed.

A prompt is described by its length and by `prefix`: a chain of (stream id, tokens) pieces. Two prompts share a prefix
as far as their chains agree, so that the production prefix cache finds the hits by itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from prfaas.planner.lengths import Lengths
from prfaas.planner.traces import TraceRecord


@dataclass(frozen=True, slots=True)
class Piece:
    """`tokens` tokens of a text named `stream`, from its start."""

    stream: int
    tokens: int


@dataclass(frozen=True, slots=True)
class SimRequest:
    """One request. `session` is the conversation it belongs to; turns of one session are ordered."""

    at_s: float
    prompt: tuple[Piece, ...]
    output_tokens: int
    session: int

    @property
    def prompt_tokens(self) -> int:
        return sum(p.tokens for p in self.prompt)


def arrivals(rate_rps: float, duration_s: float, rng: np.random.Generator, *, cv: float = 1.0) -> Iterator[float]:
    """Arrival times with Gamma gaps of coefficient of variation `cv` (1: Poisson, above: bursts)."""
    shape = 1.0 / (cv * cv)
    scale = 1.0 / (rate_rps * shape)
    now = 0.0
    while True:
        for gap in rng.gamma(shape, scale, size=256):
            now += float(gap)
            if now >= duration_s:
                return
            yield now


def diurnal(rate_rps: float, duration_s: float, rng: np.random.Generator, *, swing: float, period_s: float) -> Iterator[float]:
    """Poisson arrivals at rate * (1 + swing * sin(2 pi t / period)), by thinning; 0 <= swing <= 1."""
    peak = rate_rps * (1 + swing)
    for at in arrivals(peak, duration_s, rng):
        if rng.random() * (1 + swing) <= 1 + swing * math.sin(2 * math.pi * at / period_s):
            yield at


def independent(
    times: Iterable[float],
    lengths: Lengths,
    mean_output_tokens: float,
    rng: np.random.Generator,
    *,
    prefix_share: float = 0.0,
    prefix_pool: int = 64,
) -> Iterator[SimRequest]:
    """Requests without conversations. With `prefix_share` s, a request starts with that share of its length taken from
    one of `prefix_pool` texts, so that about s of the tokens can be found in caches."""
    cumulative = lengths.prefix_weight[1:]
    for number, at in enumerate(times):
        i = min(int(np.searchsorted(cumulative, rng.random(), side="left")), len(lengths.values) - 1)
        total = max(1, round(float(lengths.values[i])))
        shared = int(total * prefix_share)
        own = Piece(prefix_pool + number, total - shared)
        prompt = (Piece(int(rng.integers(prefix_pool)), shared), own) if shared else (own,)
        yield SimRequest(at, prompt, max(1, round(mean_output_tokens)), number)


@dataclass(frozen=True, slots=True)
class AgentShape:
    """Multi-turn agents: a shared system prompt, then turns that append the last answer and new input."""

    system_tokens: int = 4000
    turns: int = 8
    input_tokens: int = 1500
    output_tokens: int = 300
    think_s: float = 5.0


def agents(times: Iterable[float], shape: AgentShape, rng: np.random.Generator, *, systems: int = 4) -> list[SimRequest]:
    """Sessions that start at `times`; a turn follows the last after an exponential pause. Sorted by time."""
    requests = []
    stream = systems
    for session, start in enumerate(times):
        history: tuple[Piece, ...] = (Piece(int(rng.integers(systems)), shape.system_tokens),)
        at = start
        for _ in range(shape.turns):
            fresh = max(1, int(rng.exponential(shape.input_tokens)))
            answer = max(1, int(rng.exponential(shape.output_tokens)))
            history = (*history, Piece(stream, fresh))
            requests.append(SimRequest(at, history, answer, session))
            history = (*history, Piece(stream + 1, answer))
            stream += 2
            at += float(rng.exponential(shape.think_s)) + answer * 0.03
    return sorted(requests, key=lambda r: r.at_s)


def swarm(
    *, start_s: float, sub_agents: int, shared_tokens: int, steps: int, step_tokens: int, gap_s: float, rng: np.random.Generator
) -> list[SimRequest]:
    """One task fanned out: `sub_agents` sessions share a prefix of `shared_tokens` and take `steps` small steps in all."""
    requests = []
    stream = 1
    per_agent = max(1, steps // sub_agents)
    for session in range(sub_agents):
        history: tuple[Piece, ...] = (Piece(0, shared_tokens),)
        at = start_s + float(rng.uniform(0, gap_s))
        for _ in range(per_agent):
            history = (*history, Piece(stream, step_tokens))
            requests.append(SimRequest(at, history, max(1, step_tokens // 2), session))
            stream += 1
            at += float(rng.exponential(gap_s))
    return sorted(requests, key=lambda r: r.at_s)


def replay(records: Iterable[TraceRecord], *, speed: float = 1.0) -> Iterator[SimRequest]:
    """A published trace; `speed` 2 plays it twice as fast. Shared block ids become shared prefixes."""
    first: float | None = None
    for number, record in enumerate(records):
        first = record.at_s if first is None else first
        pieces: tuple[Piece, ...]
        if record.block_ids:
            whole = [Piece(b, record.block_tokens) for b in record.block_ids[:-1]]
            rest = record.input_tokens - record.block_tokens * len(whole)
            pieces = (*whole, Piece(record.block_ids[-1], max(1, rest)))
        else:
            pieces = (Piece(-1 - number, record.input_tokens),)
        yield SimRequest((record.at_s - first) / speed, pieces, max(1, record.output_tokens), number)
