"""Named content of all groups: pools and prefix tree in step, eviction, and the log of changes.

The one place where a block gets or loses its name. Sequences, windows and demands are the manager's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prfaas.cache.events import EventLog
from prfaas.cache.host import HostTier
from prfaas.cache.lease import Move
from prfaas.cache.pool import BlockPool
from prfaas.cache.tree import Node, PrefixTree
from prfaas.modelspec import CacheSpec, GroupKind
from prfaas.types import BlockHash, CacheEvent, CacheEventKind, CacheTier

MAX_EVENTS = 4096


class PrefixStore:
    """Which block of which group holds which named prefix, and which goes next when room is needed."""

    def __init__(self, spec: CacheSpec, sizes: Mapping[str, int], host_sizes: Mapping[str, int]) -> None:
        self.pools = {g.name: BlockPool(g.name, sizes[g.name]) for g in spec.groups}
        self.tree = PrefixTree(spec)
        self._full = tuple(g.name for g in spec.groups if g.kind is GroupKind.FULL)
        self._state = tuple(g.name for g in spec.groups if g.kind is GroupKind.STATE)
        self._owners: dict[str, dict[int, Node]] = {g.name: {} for g in spec.groups}
        self._events = EventLog(MAX_EVENTS)
        self.host = HostTier({g.name: host_sizes.get(g.name, 0) for g in spec.groups}, self._events)
        self._saves: list[Move] = []  # copies to the host tier that nobody has asked for yet

    def take(self, name: str) -> int:
        pool = self.pools[name]
        while pool.num_free == 0:
            self._evict(name)
        return pool.take()

    def take_many(self, name: str, count: int) -> list[int]:
        return [self.take(name) for _ in range(count)]

    def _evict(self, name: str) -> None:
        block = self.pools[name].oldest()
        assert block is not None, f"{name}: nothing left to evict"
        node = self._owners[name][block]
        if name in self._full:
            self._cut(node)
        elif name in self._state:
            self.drop_snapshot(node)
        else:
            self._unname(node, name)
            self.refresh(node)
            self.prune(node)

    def drop_snapshot(self, node: Node) -> None:
        """Forget the states at a node, all groups together: one without the others cannot be resumed from."""
        if not self.tree.alive(node):
            return
        for name in self._state:
            if name in node.blocks:
                self._unname(node, name)
        self.refresh(node)
        self.prune(node)

    def refresh(self, node: Node) -> None:
        """Follow up a change of the node's blocks: what nobody can resume after any more is evicted before the rest."""
        for lost in self.tree.refresh(node):
            for name in self._state:
                if name in lost.blocks:  # its window is gone, so its snapshot is of no use
                    self._unname(lost, name)
            for each in self.tree.unsupported(lost):
                self.demote(each)

    def demote(self, node: Node) -> None:
        """Evict this node's blocks first. They can still spare a landing the transfer of their entries."""
        for name, block in node.blocks.items():
            self.pools[name].demote(block)

    def prune(self, node: Node) -> None:
        """Remove a node without any block, and its ancestors likewise, once nothing hangs on them."""
        each: Node | None = node
        while each is not None and self.tree.alive(each) and not (each.blocks or each.holders or each.children):
            above = each.parent
            self.tree.remove(each)
            each = above

    def _cut(self, node: Node, *, tell: bool = True) -> None:
        """Forget a node and all below it. Sequences keep the blocks they use, unnamed."""
        above, gone = node.parent, self.tree.remove(node)
        removed: dict[str, list[BlockHash]] = {}
        for each in gone:
            for name, block in each.blocks.items():
                self.pools[name].forget(block)
                del self._owners[name][block]
                removed.setdefault(name, []).append(each.name)
            each.blocks.clear()
        if tell:
            for name, hashes in removed.items():
                self.tell(CacheEventKind.REMOVED, name, hashes)
        if above is not None:
            self.prune(above)

    def name_block(self, node: Node, name: str, block: int) -> None:
        """`block` of group `name` is the node's from now on; a copy goes to the host tier."""
        self.pools[name].retain(block)
        node.blocks[name] = block
        self._owners[name][block] = node
        slot = self.host.save(name, node.name)
        if slot is not None:
            self.pools[name].use(block)
            self._saves.append(Move(name, block, slot, target_tier=CacheTier.HOST))

    def take_saves(self) -> tuple[Move, ...]:
        """Copies to the host tier since the last call; they must run before the next step, and be settled."""
        saves, self._saves = tuple(self._saves), []
        return saves

    def settle(self, move: Move, *, ran: bool) -> None:
        """A copy is over: unpin both of its ends."""
        for tier, number in ((move.source_tier, move.source), (move.target_tier, move.target)):
            if tier is CacheTier.HOST:
                self.host.settle(move.group, number, arrived=ran)
            else:
                self.pools[move.group].leave(number)

    def _unname(self, node: Node, name: str) -> None:
        block = node.blocks.pop(name)
        self.pools[name].forget(block)
        del self._owners[name][block]
        self.tell(CacheEventKind.REMOVED, name, [node.name])

    def tell(self, kind: CacheEventKind, group: str, hashes: Sequence[BlockHash]) -> None:
        if hashes:
            self._events.add(kind, group, hashes)

    def take_events(self) -> tuple[CacheEvent, ...]:
        """Changes since the last call, oldest first; after an overflow the numbers show a gap."""
        return self._events.take()

    def snapshot_events(self) -> tuple[int, tuple[CacheEvent, ...]]:
        """The next sequence number, and `stored` events (all with the number before it) that rebuild the whole view."""
        next_seq = self._events.next_seq
        held: dict[str, list[BlockHash]] = {}
        for node in self.tree:
            for name in node.blocks:
                held.setdefault(name, []).append(node.name)
        kind, tier = CacheEventKind.STORED, CacheTier.DEVICE
        device = [CacheEvent(max(0, next_seq - 1), kind, n, tier, tuple(h)) for n, h in held.items()]
        return next_seq, (*device, *self.host.contents(max(0, next_seq - 1)))

    def clear(self) -> None:
        """Forget every cached prefix. What sequences hold stays theirs, but nobody finds it any more."""
        for node in [node for node in self.tree if node.depth == 1]:
            self._cut(node, tell=False)
        self.host.clear()
        self._events.add(CacheEventKind.CLEARED, "", ())

    def check_integrity(self) -> None:
        """Pools, tree and owners agree. Raises AssertionError."""
        self.tree.check_integrity()
        self.host.check_integrity()
        for name, pool in self.pools.items():
            pool.check_integrity()
            named = {block: node for node in self.tree for group, block in node.blocks.items() if group == name}
            assert named == self._owners[name], f"{name}: owners and tree disagree"
        for node in self.tree:
            assert all(name in node.blocks for name in self._full), "a cached prefix has a hole"
            assert node.blocks or node.holders or node.children, "an empty node is kept"
