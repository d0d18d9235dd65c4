"""Cutting ready ranges into chunks at the moment a lane can send one. Knows no lanes, frames or bytes.

Cutting late is what merges: while the link is busy small neighbouring layers pile up and leave as one chunk; while it
is idle a layer leaves the moment it is ready. So there is no timer that trades latency for size.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

from kv_transport.api import GroupPlan, Offer
from kv_transport.session.coverage import entry_wire_bytes, range_bytes
from prfaas.modelspec import KvRange


@dataclass(frozen=True, slots=True)
class Chunk:
    """One unit of sending. `parts` are pieces of ready ranges whose payloads, joined in order, are that of `range`."""

    seq: int
    group_index: int
    range: KvRange
    parts: tuple[KvRange, ...]
    raw_bytes: int


class Cutter:
    """Ready ranges in the order they became ready, and the numbering of the chunks cut from them."""

    def __init__(self, offer: Offer) -> None:
        self._plans: dict[str, tuple[int, GroupPlan]] = {p.group.name: (i, p) for i, p in enumerate(offer.groups)}
        self._ready: deque[KvRange] = deque()
        self.num_cut = 0
        self.ready_bytes = 0  # ready and not yet cut

    def add(self, part: KvRange) -> None:
        """Append a ready range, which must belong to the offer."""
        self._ready.append(part)
        self.ready_bytes += range_bytes(self._plans[part.group][1], part)

    def cut(self, limit_bytes: int) -> Chunk | None:
        """The next chunk of at most `limit_bytes`, or of one entry where a single entry is larger. None: nothing ready."""
        if not self._ready:
            return None
        index, plan = self._plans[self._ready[0].group]
        parts = [self._take(plan, limit_bytes)]
        size = range_bytes(plan, parts[0])
        while self._extends(parts[-1]):
            more = self._ready[0]
            extra = range_bytes(plan, more)
            if size + extra > limit_bytes:
                break
            parts.append(self._ready.popleft())
            size += extra
        merged = replace(parts[0], layer_stop=parts[-1].layer_stop)
        chunk = Chunk(self.num_cut, index, merged, tuple(parts), size)
        self.num_cut += 1
        self.ready_bytes -= size
        return chunk

    def _extends(self, last: KvRange) -> bool:
        if not self._ready:
            return False
        head = self._ready[0]
        same_tokens = (head.token_start, head.token_stop) == (last.token_start, last.token_stop)
        return head.group == last.group and same_tokens and head.layer_start == last.layer_stop

    def _take(self, plan: GroupPlan, limit_bytes: int) -> KvRange:
        head = self._ready.popleft()
        entry = entry_wire_bytes(plan)
        layer_bytes = entry * head.num_entries(plan.group)
        if layer_bytes <= limit_bytes or plan.group.is_state:
            stop = min(head.layer_stop, head.layer_start + max(1, limit_bytes // max(1, layer_bytes)))
            if stop < head.layer_stop:
                self._ready.appendleft(replace(head, layer_start=stop))
            return replace(head, layer_stop=stop)
        token_stop = min(head.token_stop, head.token_start + max(1, limit_bytes // entry))
        if head.layer_stop - head.layer_start > 1:
            self._ready.appendleft(replace(head, layer_start=head.layer_start + 1))
        if token_stop < head.token_stop:
            self._ready.appendleft(replace(head, layer_stop=head.layer_start + 1, token_start=token_stop))
        return replace(head, layer_stop=head.layer_start + 1, token_stop=token_stop)
