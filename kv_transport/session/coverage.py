"""Which part of an offer has been seen: exact, without overlap, in any order. Knows no frames and no lanes."""

from __future__ import annotations

import math
from bisect import bisect_right

from kv_transport.api import GroupPlan, Offer
from prfaas.errors import ProtocolViolation
from prfaas.modelspec import KvRange


def entry_wire_bytes(plan: GroupPlan) -> int:
    """Bytes of one entry (token or state) of one layer as a source reads it: in the plan's wire dtypes."""
    return sum(
        math.prod(tensor.shape) * dtype.num_bytes for tensor, dtype in zip(plan.group.tensors, plan.wire_dtypes, strict=True)
    )


def range_bytes(plan: GroupPlan, part: KvRange) -> int:
    """Payload bytes of a range of this group before any codec."""
    return entry_wire_bytes(plan) * part.num_entries(plan.group) * (part.layer_stop - part.layer_start)


def plan_bytes(plan: GroupPlan) -> int:
    """Payload bytes of everything that is offered of this group."""
    entries = len(plan.state_positions) if plan.group.is_state else max(0, plan.token_stop - plan.token_start)
    return entry_wire_bytes(plan) * entries * len(plan.group.layers)


def offer_bytes(offer: Offer) -> int:
    """Payload bytes of a whole offer before any codec."""
    return sum(plan_bytes(plan) for plan in offer.groups)


class IntervalSet:
    """Disjoint half-open integer intervals; neighbours are joined, so that in-order growth stays one entry."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []

    def add(self, start: int, stop: int) -> bool:
        """Add [start, stop), which must not be empty. False, and no change, when it overlaps what is there."""
        at = bisect_right(self._starts, start)
        if at > 0 and self._stops[at - 1] > start:
            return False
        if at < len(self._starts) and self._starts[at] < stop:
            return False
        joins_left = at > 0 and self._stops[at - 1] == start
        joins_right = at < len(self._starts) and self._starts[at] == stop
        if joins_left and joins_right:
            self._stops[at - 1] = self._stops.pop(at)
            self._starts.pop(at)
        elif joins_left:
            self._stops[at - 1] = stop
        elif joins_right:
            self._starts[at] = start
        else:
            self._starts.insert(at, start)
            self._stops.insert(at, stop)
        return True

    def overlaps(self, start: int, stop: int) -> bool:
        """Whether any of [start, stop) is in the set."""
        at = bisect_right(self._starts, start)
        return (at > 0 and self._stops[at - 1] > start) or (at < len(self._starts) and self._starts[at] < stop)

    def __contains__(self, value: int) -> bool:
        return self.overlaps(value, value + 1)

    def intervals(self) -> tuple[tuple[int, int], ...]:
        return tuple(zip(self._starts, self._stops, strict=True))

    @property
    def total(self) -> int:
        """How many integers are in the set."""
        return sum(self._stops) - sum(self._starts)


class Coverage:
    """The part of an offer that has been added so far. A complete coverage has every byte exactly once."""

    def __init__(self, offer: Offer) -> None:
        self._plans = {plan.group.name: plan for plan in offer.groups}
        self._tokens: dict[tuple[str, int], IntervalSet] = {}
        self._states: set[tuple[str, int, int]] = set()
        self.total_bytes = offer_bytes(offer)
        self.added_bytes = 0

    @property
    def complete(self) -> bool:
        return self.added_bytes == self.total_bytes

    def plan(self, group: str) -> GroupPlan:
        """The plan of an offered group. Raises ProtocolViolation for any other name."""
        plan = self._plans.get(group)
        if plan is None:
            raise ProtocolViolation(f"group {group!r} is not in the offer", frame="chunk", state="streaming")
        return plan

    def check(self, part: KvRange) -> int:
        """Bytes of a range that could be added now. Raises ProtocolViolation when it is outside the offer, empty,
        or overlaps what was added before."""
        plan = self.plan(part.group)
        if not 0 <= part.layer_start < part.layer_stop <= len(plan.group.layers):
            raise self._violation(part, "has layers outside the offer")
        if plan.group.is_state:
            if part.token_start != part.token_stop or part.token_stop not in plan.state_positions:
                raise self._violation(part, "is not an offered state")
            taken = any((part.group, i, part.token_stop) in self._states for i in range(part.layer_start, part.layer_stop))
        else:
            if not plan.token_start <= part.token_start < part.token_stop <= plan.token_stop:
                raise self._violation(part, "has tokens outside the offer")
            taken = any(
                (seen := self._tokens.get((part.group, i))) is not None and seen.overlaps(part.token_start, part.token_stop)
                for i in range(part.layer_start, part.layer_stop)
            )
        if taken:
            raise self._violation(part, "overlaps what came before")
        return range_bytes(plan, part)

    def add(self, part: KvRange) -> int:
        """Add a range and return its bytes. Raises as `check` does."""
        num_bytes = self.check(part)
        for layer in range(part.layer_start, part.layer_stop):
            if self._plans[part.group].group.is_state:
                self._states.add((part.group, layer, part.token_stop))
            else:
                self._tokens.setdefault((part.group, layer), IntervalSet()).add(part.token_start, part.token_stop)
        self.added_bytes += num_bytes
        return num_bytes

    def _violation(self, part: KvRange, why: str) -> ProtocolViolation:
        where = f"{part.group} layers {part.layer_start}:{part.layer_stop} tokens {part.token_start}:{part.token_stop}"
        return ProtocolViolation(f"range {where} {why}", frame="chunk", state="streaming")
