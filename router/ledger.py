"""What the router has sent and not yet seen the end of, per worker.

A heartbeat is always older than the last dispatches; without this, a burst would pile up on one worker between two
heartbeats. Knows nothing of heartbeats: the fleet takes the larger of what a worker reports and what stands here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NewType

from prfaas.clock import Clock
from prfaas.types import WorkerId
from router.policy.view import Link

DispatchId = NewType("DispatchId", int)


@dataclass(frozen=True, slots=True)
class Dispatch:
    """One request on its way: where it decodes, who is meant to prefill it, and what that takes."""

    decode_worker: WorkerId
    prefill_worker: WorkerId
    prefill_tokens: int
    blocks: int
    prefill_ms: int = 0  # whole milliseconds, so that sums return to zero
    held_tokens: int = 0  # of the prompt, on the decode worker
    link: Link | None = None  # that its cache crosses
    link_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Outstanding:
    """Sums over one worker's dispatches: sequences, prompt tokens not yet prefilled and what they take in milliseconds,
    blocks not yet reserved."""

    sequences: int = 0
    prefill_tokens: int = 0
    blocks: int = 0
    prefill_ms: int = 0


NOTHING = Outstanding()


@dataclass(slots=True)
class _Queue:
    """One worker's prompts on their way in order of dispatch, with their milliseconds, and since when the first is the
    first: about how long it has been computed."""

    since_s: float
    waiting_ms: dict[DispatchId, int] = field(default_factory=dict)


class Ledger:
    """Every dispatch is opened once, may be marked prefilled once, and is closed once; the sums then return to zero."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._next = DispatchId(0)
        self._open: dict[DispatchId, tuple[Dispatch, bool]] = {}
        self._sums: dict[WorkerId, Outstanding] = {}
        self._queues: dict[WorkerId, _Queue] = {}
        self._promised: dict[Link, int] = {}

    def open(self, dispatch: Dispatch) -> DispatchId:
        """Count a dispatch; the returned id is not the request's, which clients choose and may repeat."""
        dispatch_id = self._next
        self._next = DispatchId(dispatch_id + 1)
        self._open[dispatch_id] = (dispatch, False)
        self._add(dispatch.decode_worker, Outstanding(1, 0, dispatch.blocks), 1)
        self._add(dispatch.prefill_worker, Outstanding(0, dispatch.prefill_tokens, 0, dispatch.prefill_ms), 1)
        queue = self._queues.setdefault(dispatch.prefill_worker, _Queue(self._clock.now_s()))
        queue.waiting_ms[dispatch_id] = dispatch.prefill_ms
        self._promise(dispatch, 1)
        return dispatch_id

    def prefilled(self, dispatch_id: DispatchId) -> Dispatch:
        """The prompt's cache is in place: its tokens and blocks show in heartbeats from now on."""
        dispatch, done = self._open[dispatch_id]
        if not done:
            self._open[dispatch_id] = (dispatch, True)
            self._settle(dispatch_id, dispatch)
        return dispatch

    def close(self, dispatch_id: DispatchId) -> Dispatch:
        """Raises KeyError when the dispatch is not open."""
        dispatch, done = self._open.pop(dispatch_id)
        if not done:
            self._settle(dispatch_id, dispatch)
        self._add(dispatch.decode_worker, Outstanding(1, 0, 0), -1)
        return dispatch

    def of(self, worker_id: WorkerId) -> Outstanding:
        return self._sums.get(worker_id, NOTHING)

    def queued_s(self, worker_id: WorkerId) -> float:
        """Seconds until what was sent to a worker is computed. Prompts are computed in order, so what the first has had
        counts as done, up to all of it."""
        queue = self._queues.get(worker_id)
        if queue is None:
            return 0.0
        first_s = next(iter(queue.waiting_ms.values())) / 1000
        return self.of(worker_id).prefill_ms / 1000 - min(first_s, self._clock.now_s() - queue.since_s)

    def promised_bytes(self) -> dict[Link, int]:
        """Bytes of caches that were ordered over each link and have not landed whole, computed already or not."""
        return dict(self._promised)

    @property
    def num_open(self) -> int:
        return len(self._open)

    def _promise(self, dispatch: Dispatch, sign: int) -> None:
        if dispatch.link is not None:
            total = self._promised.pop(dispatch.link, 0) + sign * dispatch.link_bytes
            if total:
                self._promised[dispatch.link] = total

    def _settle(self, dispatch_id: DispatchId, dispatch: Dispatch) -> None:
        self._promise(dispatch, -1)
        queue = self._queues[dispatch.prefill_worker]
        if next(iter(queue.waiting_ms)) == dispatch_id:
            queue.since_s = self._clock.now_s()
        del queue.waiting_ms[dispatch_id]
        if not queue.waiting_ms:
            del self._queues[dispatch.prefill_worker]
        self._add(dispatch.decode_worker, Outstanding(0, 0, dispatch.blocks), -1)
        self._add(dispatch.prefill_worker, Outstanding(0, dispatch.prefill_tokens, 0, dispatch.prefill_ms), -1)

    def _add(self, worker_id: WorkerId, part: Outstanding, sign: int) -> None:
        now = self._sums.get(worker_id, NOTHING)
        total = Outstanding(
            now.sequences + sign * part.sequences,
            now.prefill_tokens + sign * part.prefill_tokens,
            now.blocks + sign * part.blocks,
            now.prefill_ms + sign * part.prefill_ms,
        )
        if total == NOTHING:
            self._sums.pop(worker_id, None)
        else:
            self._sums[worker_id] = total
