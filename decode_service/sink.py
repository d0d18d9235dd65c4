"""Where a transfer's bytes land: a guard between what a peer sends and the blocks reserved for it.

The engine's cache holds other requests' blocks next to this one's, so an offer that is not exactly what is missing,
and a range outside the offer, are refused here whatever the transport let through.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from kv_transport.api import GroupPlan, Offer
from prfaas.engine.api import Landing
from prfaas.errors import ProtocolViolation, TransferGone
from prfaas.modelspec import CacheGroup, CacheSpec, DType, KvRange


class LandingSink:
    """Implements `kv_transport.api.Sink` over a landing. After `close` returns, nothing more is written."""

    def __init__(self, landing: Landing, cache: CacheSpec, *, num_tokens: int) -> None:
        self._landing = landing
        self._cache = cache
        self._num_tokens = num_tokens
        self._plans: dict[str, GroupPlan] = {}
        self._closed = False
        # Held during one copy, so that blocks are never freed under a receiving thread that is still copying.
        self._copying = threading.Lock()

    def begin(self, offer: Offer) -> None:
        """Called again by each attempt of the ladder; the newest offer counts.

        Raises ProtocolViolation when the offer does not complete what is held, or would overwrite it.
        """
        if offer.num_tokens != self._num_tokens:
            raise _violation(f"the offer is for {offer.num_tokens} tokens; the prompt has {self._num_tokens}")
        plans = {plan.group.name: plan for plan in offer.groups}
        if set(plans) != {group.name for group in self._cache.groups} or len(plans) != len(offer.groups):
            raise _violation(f"the offer has the cache groups {sorted(plans)}, which are not this model's")
        for group in self._cache.groups:
            self._check_plan(group, plans[group.name])
        self._plans = plans

    def _check_plan(self, group: CacheGroup, plan: GroupPlan) -> None:
        theirs = (plan.group.kind, plan.group.layers, [(t.name, t.shape) for t in plan.group.tensors])
        if theirs != (group.kind, group.layers, [(t.name, t.shape) for t in group.tensors]):
            raise _violation(f"the offer's layers or tensors of group {group.name} are not this model's")
        if len(plan.wire_dtypes) != len(group.tensors):
            raise _violation(f"the offer has {len(plan.wire_dtypes)} dtypes for the tensors of group {group.name}")
        if group.is_state:
            *early, last = plan.state_positions or (0,)
            if last != self._num_tokens or len(early) > 1 or any(not self._may_precede(each) for each in early):
                raise _violation(f"group {group.name} needs the state at {self._num_tokens}, not {plan.state_positions}")
            return
        start = max(self._landing.held_tokens, group.first_needed_token(self._num_tokens))
        if (plan.token_start, plan.token_stop) != (start, self._num_tokens):
            raise _violation(
                f"group {group.name} needs tokens {start} to {self._num_tokens}; "
                f"the offer is {plan.token_start} to {plan.token_stop}"
            )

    def _may_precede(self, position: int) -> bool:
        return self._landing.held_tokens < position < self._num_tokens

    @property
    def snapshot_tokens(self) -> int:
        """The position before the prompt's end whose states the newest offer has in every STATE group; 0 for none."""
        early = {plan.state_positions[:-1] for plan in self._plans.values() if plan.group.is_state}
        return next(iter(early))[0] if len(early) == 1 and () not in early else 0

    def write(self, landed: KvRange, payload: memoryview, dtypes: Sequence[DType]) -> None:
        """Raises ProtocolViolation for a range that was not offered, TransferGone after `close`."""
        self._check_range(landed)
        with self._copying:
            if self._closed:
                raise TransferGone("the reservation that this chunk belongs to has ended")
            self._landing.write(landed, payload, dtypes)

    def _check_range(self, landed: KvRange) -> None:
        plan = self._plans.get(landed.group)
        if plan is None:
            raise _violation(f"a chunk for group {landed.group!r} came, which was not offered")
        layers_fit = 0 <= landed.layer_start < landed.layer_stop <= len(plan.group.layers)
        if plan.group.is_state:
            tokens_fit = landed.token_start == landed.token_stop and landed.token_stop in plan.state_positions
        else:
            tokens_fit = plan.token_start <= landed.token_start < landed.token_stop <= plan.token_stop
        if not (layers_fit and tokens_fit):
            raise _violation(f"the range {landed} was not offered")

    def close(self) -> None:
        """Refuse further writes; waits for one that is under way. Idempotent."""
        with self._copying:
            self._closed = True


def _violation(message: str) -> ProtocolViolation:
    return ProtocolViolation(message, state="landing")
