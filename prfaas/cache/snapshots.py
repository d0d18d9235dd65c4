"""Copies of recurrent states at block boundaries: set aside before a step, filled by it, and named if it succeeds.

A *kept* snapshot belongs to a sequence until its lease is closed, whatever is evicted meanwhile: an export keeps the one
it sends along, a landing the one it receives. Numbers only; the copying is a backend's.
"""

from __future__ import annotations

from collections.abc import Sequence

from prfaas.cache.lease import Kept, Lease, Move, Snapshot
from prfaas.cache.store import PrefixStore
from prfaas.cache.tree import Node
from prfaas.types import CacheEventKind


class Snapshots:
    """The STATE groups' snapshots of one cache. `names` are these groups; without any, nothing is ever kept."""

    def __init__(self, store: PrefixStore, names: Sequence[str], *, block_tokens: int, reuse: bool) -> None:
        self._store = store
        self._pools = store.pools
        self._names = tuple(names)
        self._block_tokens = block_tokens
        self._active = reuse and bool(names)

    def prepare(self, lease: Lease, num_tokens: int, *, rolling: bool) -> Snapshot | None:
        """Set slots aside for the states after `num_tokens`, a block boundary; None when there is no room or no need.

        A rolling snapshot takes the place of the sequence's previous rolling one.
        """
        if not self._active:
            return None
        if lease.kept is not None and lease.kept.num_tokens == num_tokens:
            slots = lease.kept.slots
            for name, slot in slots.items():
                self._pools[name].use(slot)
        else:
            node = self._node(lease, num_tokens)
            if node is not None and self._has_states(node):
                return None
            if rolling and lease.rolling is not None:
                self._store.drop_snapshot(lease.rolling)
                lease.rolling = None
            if not self._have_room():
                return None
            slots = {name: self._store.take(name) for name in self._names}
        moves = tuple(Move(name, lease.slots[name], slot) for name, slot in slots.items())
        for move in moves:
            self._pools[move.group].use(move.source)
            self._pools[move.group].use(move.target)
        return Snapshot(moves, rolling)

    def commit(self, lease: Lease, snapshot: Snapshot, num_tokens: int) -> None:
        """The states were copied and the blocks up to `num_tokens` are published: the prefix can be resumed from."""
        node = self._name(lease, {move.group: move.target for move in snapshot.moves}, num_tokens)
        if node is not None and snapshot.rolling:
            lease.rolling = node
        self.drop(snapshot)

    def drop(self, snapshot: Snapshot) -> None:
        """Let go of prepared slots; what was not committed becomes free."""
        for move in snapshot.moves:
            self._store.settle(move, ran=True)
            self._pools[move.group].leave(move.target)

    def keep(self, lease: Lease, num_tokens: int, *, computed: int) -> None:
        """Keep the states after `num_tokens` for this sequence, which will compute or receive them, or found them in its
        hit of `computed` tokens. Keeps nothing where there is no room, or the hit ends behind them."""
        node = self._node(lease, num_tokens)
        if not self._active or lease.kept is not None or num_tokens < computed:
            return
        if num_tokens > computed:
            if self._have_room():
                lease.kept = Kept(num_tokens, {name: self._store.take(name) for name in self._names})
        elif node is not None and self._has_states(node):
            lease.kept = Kept(num_tokens, {name: node.blocks[name] for name in self._names})
            for name, slot in lease.kept.slots.items():
                self._pools[name].use(slot)

    def settle_kept(self, lease: Lease, *, landed_tokens: int) -> None:
        """A landing is over: name the states that came with it, if they are those after `landed_tokens`, and keep none."""
        if lease.kept is None:
            return
        if lease.kept.num_tokens == landed_tokens:
            self._name(lease, lease.kept.slots, landed_tokens)
        self.release(lease)

    def release(self, lease: Lease) -> None:
        """The sequence keeps no snapshot any more; a named one stays cached. Idempotent."""
        kept, lease.kept = lease.kept, None
        if kept is not None:
            for name, slot in kept.slots.items():
                self._pools[name].leave(slot)

    def _node(self, lease: Lease, num_tokens: int) -> Node | None:
        depth = num_tokens // self._block_tokens
        return lease.nodes[depth - 1] if 0 < depth <= len(lease.nodes) else None

    def _has_states(self, node: Node) -> bool:
        return all(name in node.blocks for name in self._names)

    def _have_room(self) -> bool:
        return all(self._pools[name].num_available >= 1 for name in self._names)

    def _name(self, lease: Lease, slots: dict[str, int], num_tokens: int) -> Node | None:
        """Let the prefix tree name these slots; None when it has such a snapshot or could not resume from this one."""
        node = self._node(lease, num_tokens)
        if node is None or not self._store.tree.alive(node) or any(name in node.blocks for name in self._names):
            return None
        for name, slot in slots.items():
            self._store.name_block(node, name, slot)
            self._store.tell(CacheEventKind.STORED, name, [node.name])
        self._store.refresh(node)
        if node.usable:
            return node
        self._store.drop_snapshot(node)  # another sequence's copy of its window was evicted meanwhile
        return None
