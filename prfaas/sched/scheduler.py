"""Continuous batching: who computes how many tokens in the next step. Pure; time enters only through arrival ranks.

A step has a token budget. Decodes come first, then prefills that have begun, then new admissions, each in rank order;
a long prompt is cut into chunks, and where a recurrent state must be snapshotted the chunk ends exactly there. When
blocks run out, the last in rank is preempted and comes back later, from host memory or by computing again, whichever is
faster; the first in rank never is, so work always goes on. Blocks are handed out strictly in rank order: nobody overtakes
a big prompt for ever.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

from prfaas.cache.hybrid import Demand, HostHit, HybridCache, Opened
from prfaas.cache.lease import Move, Snapshot
from prfaas.errors import QueueFull
from prfaas.sched.queue import WaitingQueue
from prfaas.sched.restore import HostChoice, Origin, Outcome, Reason, RestoreModel
from prfaas.sched.sequence import Sequence

MIN_RETRY_S, MAX_RETRY_S = 0.25, 60.0
SNAPSHOT_SHARE = 4  # one prompt may fill at most this fraction (a quarter) of the snapshot slots


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one scheduler, see EngineSettings."""

    max_running: int
    max_waiting: int
    max_step_tokens: int
    snapshot_blocks: int


class Share(NamedTuple):
    """A sequence computes its next `num_tokens` in this step; afterwards its states are copied to `snapshot`."""

    sequence: Sequence
    num_tokens: int
    snapshot: Snapshot | None = None


@dataclass(frozen=True, slots=True)
class Round:
    """One step's decision. `moves` run before it; exactly one of Scheduler.complete and Scheduler.fail ends it."""

    shares: tuple[Share, ...]
    admitted: tuple[Sequence, ...]
    preempted: tuple[Sequence, ...]
    moves: tuple[Move, ...]


class Scheduler:
    """Waiting and running sequences of one engine, over one cache."""

    def __init__(self, cache: HybridCache, limits: Limits, restores: RestoreModel) -> None:
        self.restores = restores
        self.host_choices: Counter[HostChoice] = Counter()  # since the start
        self._cache = cache
        self._limits = limits
        self._waiting = WaitingQueue()
        self._running: list[Sequence] = []  # in rank order
        self._moves: list[Move] = []  # to run before the next step
        self._block_tokens = cache.spec.block_tokens
        self.starved = False  # somebody had a seat but no blocks: landings must not take them first

    @property
    def running(self) -> tuple[Sequence, ...]:
        return tuple(self._running)

    @property
    def waiting(self) -> tuple[Sequence, ...]:
        return tuple(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def waiting_tokens(self) -> int:
        """Prompt tokens still to be computed, by those who wait and those who have begun."""
        return sum(s.remaining for s in self._waiting) + sum(s.remaining for s in self._running if not s.decoding)

    def enqueue(self, sequence: Sequence, tokens_per_s: float) -> None:
        """Let a new sequence wait. `tokens_per_s` (0: unknown) is the recent prefill speed, for the retry hint.

        Raises:
            QueueFull: with depth, limit and retry_after_s.
        """
        if len(self._waiting) >= self._limits.max_waiting:
            backlog_s = self.waiting_tokens / tokens_per_s if tokens_per_s > 0 else 1.0
            raise QueueFull(
                f"{len(self._waiting)} sequences are waiting already",
                depth=len(self._waiting),
                limit=self._limits.max_waiting,
                retry_after_s=min(MAX_RETRY_S, max(MIN_RETRY_S, backlog_s / len(self._waiting))),
            )
        self._waiting.push(sequence)

    def requeue(self, sequence: Sequence) -> None:
        """Let a sequence wait that was admitted before (landed, forked or preempted); there is always room for it."""
        self._waiting.push(sequence)

    def add_moves(self, moves: Iterable[Move]) -> None:
        """Copies that must run before the next step."""
        self._moves.extend(moves)

    def leave(self, sequence: Sequence) -> None:
        """A sequence stops computing (finished, cancelled, failed); what it holds is the caller's to close."""
        if not self._waiting.discard(sequence) and sequence in self._running:
            self._running.remove(sequence)

    def schedule(self) -> Round:
        """Decide the next step. Its blocks are taken, nothing is computed yet."""
        preempted: list[Sequence] = []
        decodes: list[Sequence] = []
        prefills: list[Sequence] = []
        for sequence in self._running:
            (decodes if sequence.decoding else prefills).append(sequence)
        budget = self._limits.max_step_tokens
        for_decodes = max(1, budget - 1) if prefills or len(self._waiting) else budget  # decodes never stop prefills
        shares: list[Share] = []
        for sequence in decodes[:for_decodes]:
            if sequence.lease is not None and self._make_room(sequence, preempted):
                shares.append(self._share(sequence, 1))
        budget -= len(shares)
        for sequence in prefills:
            count = self._chunk(sequence, budget)
            if sequence.lease is not None and count and self._cache.grow(sequence.lease, sequence.computed + count):
                shares.append(self._share(sequence, count))
                budget -= count
        admitted: list[Sequence] = []
        while not preempted and budget > 0 and (admission := self._admit()) is not None:
            admitted.append(admission)
            count = self._chunk(admission, budget)
            if self._cache.grow(admission.held, admission.computed + count):
                shares.append(self._share(admission, count))
                budget -= count
        moves, self._moves = (*self._moves, *self._cache.take_saves()), []
        return Round(tuple(shares), tuple(admitted), tuple(preempted), moves)

    def complete(self, step: Round, *, restore_s: float | None = None) -> None:
        """The step ran: its tokens are computed, their full blocks can be found, their snapshots resumed from.

        `restore_s`: what its copies from host memory took, where that was measured.
        """
        self._cache.settle(step.moves, ran=True)
        if restore_s is not None and (num_bytes := self._cache.bytes_from_host(step.moves)):
            self.restores.restored(num_bytes, restore_s)
        for share in step.shares:
            sequence = share.sequence
            sequence.computed += share.num_tokens
            self._cache.publish(sequence.held, sequence.name_blocks(), sequence.computed)
            if share.snapshot is not None:
                self._cache.snapshots.commit(sequence.held, share.snapshot, sequence.computed)
            self._cache.slide(sequence.held, sequence.computed)

    def fail(self, step: Round) -> None:
        """The step did not run to its end: nothing of it is kept. Its sequences must leave."""
        self._cache.settle(step.moves, ran=False)
        for share in step.shares:
            if share.snapshot is not None:
                self._cache.snapshots.drop(share.snapshot)

    def _admit(self) -> Sequence | None:
        """Seat the next sequence. Without room for the head, one that holds its blocks already may go before it: to
        wait for each other would be for ever."""
        self.starved = False
        head = self._waiting.head
        if head is None or len(self._running) >= self._limits.max_running:
            return None
        if head.lease is None and not self._open(head):
            self.starved = True
            head = next((sequence for sequence in self._waiting if sequence.lease is not None), None)
            if head is None:
                return None
        self._waiting.discard(head)
        insort(self._running, head, key=lambda each: each.rank)
        return head

    def _open(self, sequence: Sequence) -> bool:
        hit, host, choice = self._hits(sequence)
        ways = [(hit, False)] if host is None else [(host.blocks, True)]
        if not self._running:  # alone, a sequence must always get in, even if its hit does not fit beside it
            ways += [(blocks, False) for blocks in sorted({hit, 0}, reverse=True) if blocks < ways[0][0]]
        for held, from_host in ways:
            opened = self._take(sequence, held, from_host=from_host)
            if opened is None:
                continue
            sequence.lease, sequence.restoring = opened.lease, from_host
            sequence.computed = sequence.cached = held * self._block_tokens
            self._moves.extend(opened.moves)
            if sequence.keep_tokens is not None and not from_host:
                self._cache.snapshots.keep(opened.lease, sequence.keep_tokens, computed=sequence.computed)
            if choice is not None:
                self._count(choice, from_host=from_host)
            return True
        return False

    def _hits(self, sequence: Sequence) -> tuple[int, HostHit | None, HostChoice | None]:
        """Blocks that the device holds of a sequence, what host memory adds if that is to be used, and why (not)."""
        if not sequence.reuse_prefix:
            return 0, None, None
        names, num_tokens = sequence.name_blocks(), len(sequence.tokens)
        hit, host = self._cache.match(names, num_tokens), self._cache.match_host(names, num_tokens)
        if host is None or host.blocks <= hit:
            return hit, None, None
        origin = Origin.PREEMPTION if sequence.preempted else Origin.PROMPT
        choice = self.restores.decide(origin, (host.blocks - hit) * self._block_tokens, host.num_bytes)
        return hit, (host if choice.outcome is Outcome.RESTORED else None), choice

    def _take(self, sequence: Sequence, held: int, *, from_host: bool) -> Opened | None:
        num_tokens = len(sequence.tokens)
        demand = Demand(
            full_tokens=min(sequence.total_tokens, num_tokens + 1),
            total_tokens=sequence.total_tokens,
            window_from=held * self._block_tokens,
            resume=True,
            spare_blocks=len(self._running),
        )
        return (self._cache.restore if from_host else self._cache.open)(sequence.name_blocks(), held, demand)

    def _count(self, choice: HostChoice, *, from_host: bool) -> None:
        if choice.outcome is Outcome.RESTORED and not from_host:
            choice = replace(choice, outcome=Outcome.COMPUTED, reason=Reason.NO_ROOM)
        elif choice.outcome is Outcome.COMPUTED:
            self.restores.fade()
        self.host_choices[choice] += 1

    def _make_room(self, sequence: Sequence, preempted: list[Sequence]) -> bool:
        """Cover the sequence's next token, preempting from the end of the rank order. False: it was preempted itself."""
        while not self._cache.grow(sequence.held, sequence.computed + 1):
            victim = next((s for s in reversed(self._running) if s.preemptible and s.lease is not None), None)
            if victim is None:
                return False
            self._preempt(victim)
            preempted.append(victim)
            if victim is sequence:
                return False
        return True

    def _preempt(self, victim: Sequence) -> None:
        self._cache.close(victim.held)
        victim.lease = None
        victim.computed = 0
        victim.preempted = True
        self._running.remove(victim)
        self._waiting.push(victim)

    def _chunk(self, sequence: Sequence, budget: int) -> int:
        """Tokens of the next chunk: within the budget, and not beyond the next point to snapshot."""
        count = min(sequence.remaining, budget)
        if self._snapshots(sequence):
            upto = self._next_snapshot(sequence)
            if upto is not None:
                count = min(count, upto - sequence.computed)
        return count

    def _share(self, sequence: Sequence, count: int) -> Share:
        end = sequence.computed + count
        snapshot: Snapshot | None = None
        if self._snapshots(sequence) and end % self._block_tokens == 0:
            planned = end == self._next_snapshot(sequence)
            if planned or end >= sequence.num_prompt:
                snapshot = self._cache.snapshots.prepare(sequence.held, end, rolling=not planned)
        return Share(sequence, count, snapshot)

    def _snapshots(self, sequence: Sequence) -> bool:
        return self._cache.reuse and self._cache.spec.has_state and sequence.computed < len(sequence.tokens)

    def _next_snapshot(self, sequence: Sequence) -> int | None:
        """The next position where a prefill leaves a snapshot: every so many blocks, and the prompt's end rounded down."""
        if sequence.decoding:
            return None
        last = (len(sequence.tokens) - 1) // self._block_tokens * self._block_tokens
        if last <= sequence.computed:
            return None
        interval = self._interval_tokens(len(sequence.tokens))
        return min(last, (sequence.computed // interval + 1) * interval)

    def _interval_tokens(self, num_tokens: int) -> int:
        """Distance of a prefill's snapshots, stretched so that one prompt cannot push out everybody else's."""
        slots = min(c.total for name, c in self._cache.counts().items() if self._cache.spec.group(name).is_state)
        base = self._limits.snapshot_blocks * self._block_tokens
        allowed = max(1, slots // SNAPSHOT_SHARE)
        return base * max(1, -(-num_tokens // (base * allowed)))

    def check_integrity(self) -> None:
        """Nobody waits and runs at once; who runs holds a lease. Raises AssertionError."""
        waiting, running = list(self._waiting), self._running
        assert not {id(s) for s in waiting} & {id(s) for s in running}
        assert len(running) <= self._limits.max_running
        assert all(s.lease is not None for s in running)
        assert [s.rank for s in running] == sorted(s.rank for s in running)
        assert [s.rank for s in waiting] == sorted(s.rank for s in waiting)
