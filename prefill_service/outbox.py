"""What of one prompt's cache a receiver still needs, and which part of it just became readable.

Translates between two views of the same cache: an engine reports model layers over token ranges, a transfer sends
rectangles of cache groups. Pure bookkeeping; knows neither engine nor transport beyond their values.
"""

from __future__ import annotations

from bisect import bisect_left
from itertools import groupby

from kv_transport.api import GroupPlan, Offer
from prfaas.engine.api import LayersReady
from prfaas.errors import EngineFailed
from prfaas.modelspec import CacheGroup, CacheSpec, KvRange


class Outbox:
    """The ranges of one export: each one that was offered comes out exactly once, as soon as it is computed.

    Of FULL groups the entries [held_tokens, num_tokens) are offered, of SLIDING groups those a later query can still
    see, of STATE groups the one state after the whole prompt, and the one at the block boundary before it where the engine
    keeps that.
    """

    def __init__(self, cache: CacheSpec, *, num_tokens: int, held_tokens: int) -> None:
        self._cache = cache
        self._num_tokens = num_tokens
        self._held_tokens = held_tokens
        # For each group and layer, up to which position ranges were given out. A state is one step short until it is
        # final, so that "every mark is at num_tokens" means complete for every kind of group.
        self._marks = {g.name: [self._first(g)] * len(g.layers) for g in cache.groups}
        self._snapshot_tokens = 0  # a boundary whose states are still to be given out

    def _first(self, group: CacheGroup) -> int:
        if group.is_state:
            return self._num_tokens - 1
        return max(self._held_tokens, group.first_needed_token(self._num_tokens))

    def offer(self, cached_tokens: int, snapshot_tokens: int = 0) -> Offer:
        """What will be sent, in the resident dtypes; `cached_tokens` is what the sender need not compute, and
        `snapshot_tokens` the boundary at which it keeps states (0: none)."""
        positions: tuple[int, ...] = (self._num_tokens,)
        if snapshot_tokens > self._held_tokens:
            self._snapshot_tokens = snapshot_tokens
            positions = (snapshot_tokens, self._num_tokens)
        plans = []
        for group in self._cache.groups:
            plan = GroupPlan(
                group=group,
                token_start=self._num_tokens if group.is_state else self._first(group),
                token_stop=self._num_tokens,
                state_positions=positions if group.is_state else (),
                wire_dtypes=tuple(tensor.dtype for tensor in group.tensors),
            )
            plans.append(plan)
        return Offer(num_tokens=self._num_tokens, cached_tokens=cached_tokens, groups=tuple(plans))

    def cached(self, cached_tokens: int) -> tuple[KvRange, ...]:
        """Ranges readable before anything is computed: the sender's prefix hit, as far as it is offered."""
        num_layers = 1 + max(layer for group in self._cache.groups for layer in group.layers)
        return self.ready(LayersReady(layer_start=0, layer_stop=num_layers, token_start=0, token_stop=cached_tokens))

    def snapshot(self, num_tokens: int) -> tuple[KvRange, ...]:
        """The states at a boundary, which have just become readable, if they were offered."""
        if num_tokens != self._snapshot_tokens:
            return ()
        self._snapshot_tokens = 0
        states = [group for group in self._cache.groups if group.is_state]
        return tuple(KvRange(g.name, 0, len(g.layers), num_tokens, num_tokens) for g in states)

    def ready(self, report: LayersReady) -> tuple[KvRange, ...]:
        """Ranges that `report` makes readable and that were not given out before, first layer first.

        Raises EngineFailed when the report leaves a hole behind it: a range would then never be sent.
        """
        ranges: list[KvRange] = []
        for group in self._cache.groups:
            first = bisect_left(group.layers, report.layer_start)
            last = bisect_left(group.layers, report.layer_stop)
            ranges += self._advance(group, first, last, report)
        ranges.sort(key=lambda r: self._cache.group(r.group).layers[r.layer_start])
        return tuple(ranges)

    def _advance(self, group: CacheGroup, first: int, last: int, report: LayersReady) -> list[KvRange]:
        marks = self._marks[group.name]
        ranges = []
        for mark, run in groupby(range(first, last), key=marks.__getitem__):
            layers = list(run)
            if report.token_stop <= mark:
                continue
            if report.token_start > mark and not group.is_state:
                raise EngineFailed(f"tokens {mark} to {report.token_start} of group {group.name} were never reported ready")
            start = report.token_stop if group.is_state else mark
            ranges.append(KvRange(group.name, layers[0], layers[-1] + 1, start, report.token_stop))
            for layer in layers:
                marks[layer] = report.token_stop
        return ranges

    @property
    def complete(self) -> bool:
        """True when everything that was offered has been given out."""
        return not self._snapshot_tokens and all(mark == self._num_tokens for marks in self._marks.values() for mark in marks)
