"""The cache of a hybrid model: what is held, what can be reused, what is evicted. Numbers only; tensors are a backend's.

Follows "Prefill-as-a-Service" (arXiv:2604.15039), section 5. Full, block-aligned blocks of a sequence are *published*
as prefix-cache blocks; a partial tail and a working state are transfer-cache: they vanish with the sequence. A hit is
the largest l' below the prompt's length such that FULL blocks cover [0, l'), SLIDING blocks cover the window at l' and
every STATE group has a snapshot at exactly l'. Blocks after which nobody can resume are evicted first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from prfaas.cache.lease import ABSENT, Lease, Move
from prfaas.cache.pool import PoolCounts
from prfaas.cache.snapshots import Snapshots
from prfaas.cache.store import PrefixStore
from prfaas.cache.tree import Node
from prfaas.modelspec import CacheGroup, CacheSpec, GroupKind
from prfaas.types import BlockHash, CacheEvent, CacheEventKind, CacheTier


@dataclass(frozen=True, slots=True)
class Demand:
    """What a sequence asks for when it is admitted.

    `full_tokens` are covered at once in FULL groups. `window_from` is the position whose window its SLIDING table
    starts with. `resume` asks for the state snapshots at the hit, to compute on from there. `spare_blocks` must stay
    available in every FULL group afterwards, for the sequences that already run.
    """

    full_tokens: int
    total_tokens: int
    window_from: int
    resume: bool
    spare_blocks: int = 0


@dataclass(frozen=True, slots=True)
class HostHit:
    """A prefix of `blocks` that host memory completes, and the bytes it would have to copy for that."""

    blocks: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Opened:
    """A granted demand; `moves` restore the states and must run before the sequence's first step."""

    lease: Lease
    moves: tuple[Move, ...]


class HybridCache:
    """All groups of one engine. Every method either does the whole thing or nothing."""

    def __init__(
        self,
        spec: CacheSpec,
        sizes: Mapping[str, int],
        *,
        max_chunk_tokens: int,
        reuse: bool = True,
        host_sizes: Mapping[str, int] | None = None,
    ) -> None:
        """`sizes`: blocks or slots of each group. `reuse` False publishes and matches nothing."""
        self.spec = spec
        self.reuse = reuse
        self._block_tokens = spec.block_tokens
        self._full = tuple(g.name for g in spec.groups if g.kind is GroupKind.FULL)
        self._sliding = tuple(g for g in spec.groups if g.kind is GroupKind.SLIDING)
        self._state = tuple(g.name for g in spec.groups if g.kind is GroupKind.STATE)
        self._max_chunk_tokens = max_chunk_tokens
        self._move_bytes = {g.name: g.bytes_between(0, self._block_tokens) for g in spec.groups}
        self._quota_left = {g.name: sizes[g.name] for g in self._sliding}
        self._store = PrefixStore(spec, sizes, host_sizes or {})
        self._pools = self._store.pools
        self.snapshots = Snapshots(self._store, self._state, block_tokens=self._block_tokens, reuse=reuse)

    # Looking

    def match(self, names: Sequence[BlockHash], num_tokens: int) -> int:
        """Blocks of the longest prefix after which a prompt of `num_tokens` can be computed on (at least one token is)."""
        path = self._path(names, num_tokens)
        return next((node.depth for node in reversed(path) if node.usable), 0)

    def match_entries(self, names: Sequence[BlockHash], num_tokens: int) -> int:
        """Blocks of the longest prefix whose entries need not be sent to a sequence that goes on at `num_tokens`.

        No snapshot is needed, because the state at `num_tokens` itself will come; and of a SLIDING group only what
        the window there can still see.
        """
        path = self._path(names, num_tokens)
        while path and not all(self._store.tree.covers_window(path, group, num_tokens) for group in self._sliding):
            path.pop()
        return len(path)

    def fits_alone(self, total_tokens: int) -> tuple[str, int, int] | None:
        """None, or (group, needed, existing) of a group too small for such a sequence even when it is alone."""
        needs = {name: self._num_blocks(total_tokens) for name in self._full}
        needs |= {group.name: self._quota(group, total_tokens) for group in self._sliding}
        needs |= dict.fromkeys(self._state, 1)
        for name, needed in needs.items():
            if needed > self._pools[name].num_blocks:
                return name, needed, self._pools[name].num_blocks
        return None

    def counts(self) -> dict[str, PoolCounts]:
        """Group -> its blocks by state."""
        return {name: pool.counts for name, pool in self._pools.items()}

    # Holding

    def open(self, names: Sequence[BlockHash], held_blocks: int, demand: Demand) -> Opened | None:
        """Take the first `held_blocks` of a known prefix and room for the rest; None when there is no room now."""
        path = self._store.tree.path(names[:held_blocks])
        assert len(path) == held_blocks, "the prefix was evicted between match and open"
        starts = {g.name: g.first_needed_token(demand.window_from) // self._block_tokens for g in self._sliding}
        quotas = {g.name: self._quota(g, demand.total_tokens) for g in self._sliding}
        if any(quotas[name] > self._quota_left[name] for name in quotas):
            return None
        shared = self._shared_blocks(path, starts)
        snapshots = {name: path[-1].blocks[name] for name in self._state} if demand.resume and path else {}
        wanted = {name: self._num_blocks(demand.full_tokens) - len(path) for name in self._full}
        wanted |= dict.fromkeys(self._state, 1)
        if not self._have_room(wanted, shared, snapshots, demand.spare_blocks):
            return None
        for node in path:  # held before anything is evicted for the rest
            node.holders += 1
        for name, blocks in shared.items():
            for block in blocks:
                self._pools[name].use(block)
        for name, slot in snapshots.items():
            self._pools[name].use(slot)
        tables = {name: [*shared[name], *self._store.take_many(name, wanted[name])] for name in self._full}
        for name, start in starts.items():
            tables[name] = [ABSENT] * start + shared[name]
            self._quota_left[name] -= quotas[name]
        slots = {name: self._store.take(name) for name in self._state}
        moves = tuple(Move(name, source, slots[name]) for name, source in snapshots.items())
        for name in snapshots:
            self._pools[name].use(slots[name])
        torn = {
            group.name: starts[group.name]
            for group in self._sliding
            if starts[group.name] >= len(path) and group.first_needed_token(demand.window_from) % self._block_tokens
        }
        return Opened(Lease(tables, slots, quotas, starts, torn, list(path)), moves)

    def match_host(self, names: Sequence[BlockHash], num_tokens: int) -> HostHit | None:
        """As `match`, with host memory filling in from where the device's part of the prefix ends, and for the states."""
        host = self._store.host
        if not self.reuse or host.empty:
            return None
        path, limit = self._path(names, num_tokens), max(0, num_tokens - 1) // self._block_tokens
        known = len(path)
        while known < min(limit, len(names)) and all(host.has(name, names[known]) for name in self._full):
            known += 1
        hits = (self._host_hit(path, names, depth) for depth in range(known, 0, -1))
        return next((hit for hit in hits if hit is not None), None)

    def bytes_from_host(self, moves: Iterable[Move]) -> int:
        """What these moves copy from host memory, in bytes."""
        return sum(self._move_bytes[move.group] for move in moves if move.source_tier is CacheTier.HOST)

    def restore(self, names: Sequence[BlockHash], depth: int, demand: Demand) -> Opened | None:
        """As `open` with a hit of `match_host`: what the device lacks of the first `depth` blocks comes from the host."""
        num_tokens, host = depth * self._block_tokens, self._store.host
        held = self._device_part(self._store.tree.path(names[:depth]), num_tokens)
        opened = self.open(names, len(held), replace(demand, window_from=num_tokens, resume=False))
        if opened is None:
            return None
        lease = opened.lease
        if not self.grow(lease, max(demand.full_tokens, num_tokens)):
            self.close(lease)
            return None
        moves: list[Move] = []
        for name, table in lease.tables.items():
            for index in range(max(len(held), lease.window_starts.get(name, 0)), depth):
                moves.append(Move(name, host.load(name, names[index]), table[index], source_tier=CacheTier.HOST))
        for name, slot in lease.slots.items():
            moves.append(Move(name, host.load(name, names[depth - 1]), slot, source_tier=CacheTier.HOST))
        for move in moves:
            self._pools[move.group].use(move.target)
        return Opened(lease, tuple(moves))

    def grow(self, lease: Lease, num_tokens: int) -> bool:
        """Cover [.., num_tokens) in every table. False, and nothing changed, when blocks are lacking."""
        upto = self._num_blocks(num_tokens)
        for table in lease.tables.values():
            if len(table) < upto:
                break
        else:
            return True  # as most steps of a decode find it
        wanted = {name: max(0, upto - len(table)) for name, table in lease.tables.items()}
        if any(count > self._pools[name].num_available for name, count in wanted.items()):
            return False
        for name, count in wanted.items():
            lease.tables[name].extend(self._store.take_many(name, count))
        return True

    def slide(self, lease: Lease, num_tokens: int) -> None:
        """Leave the SLIDING blocks that no query at `num_tokens` or later can read."""
        for group in self._sliding:
            table = lease.tables[group.name]
            start = lease.window_starts[group.name]
            stop = min(len(table), group.first_needed_token(num_tokens) // self._block_tokens)
            for index in range(start, stop):
                self._pools[group.name].leave(table[index])
                table[index] = ABSENT
            lease.window_starts[group.name] = max(start, stop)

    def fork(self, lease: Lease, num_tokens: int, total_tokens: int) -> Opened | None:
        """A second sequence that continues after the same `num_tokens`: full blocks are shared, the rest is copied."""
        if any(self._quota(g, total_tokens) > self._quota_left[g.name] for g in self._sliding):
            return None
        whole, upto = num_tokens // self._block_tokens, self._num_blocks(num_tokens)
        copied = [name for name, table in lease.tables.items() if upto > whole and table[whole] != ABSENT]
        if any(self._pools[name].num_available < 1 for name in (*copied, *self._state)):
            return None
        moves: list[Move] = []
        tables: dict[str, list[int]] = {}
        for name, table in lease.tables.items():
            tables[name] = table[:whole]
            for block in tables[name]:
                if block != ABSENT:
                    self._pools[name].use(block)
            if name in copied:
                tables[name].append(self._store.take(name))
                moves.append(Move(name, table[whole], tables[name][-1]))
            elif upto > whole:
                tables[name].append(ABSENT)
        slots = {name: self._store.take(name) for name in self._state}
        moves.extend(Move(name, lease.slots[name], slot) for name, slot in slots.items())
        for move in moves:
            self._pools[move.group].use(move.source)
            self._pools[move.group].use(move.target)
        quotas = {g.name: self._quota(g, total_tokens) for g in self._sliding}
        for name, quota in quotas.items():
            self._quota_left[name] -= quota
        for node in lease.nodes:
            node.holders += 1
        return Opened(Lease(tables, slots, quotas, dict(lease.window_starts), lease.torn, list(lease.nodes)), tuple(moves))

    def take_saves(self) -> tuple[Move, ...]:
        """Copies to host memory that must run before the next step."""
        return self._store.take_saves()

    def settle(self, moves: Iterable[Move], *, ran: bool) -> None:
        """These copies have run, or never will: unpin both ends."""
        for move in moves:
            self._store.settle(move, ran=ran)

    def close(self, lease: Lease) -> None:
        """Give everything back. Published blocks stay cached, the end of the prefix to be evicted first."""
        assert not lease.closed, "a lease is closed once"
        lease.closed = True
        for name, table in lease.tables.items():
            pool = self._pools[name]
            for block in reversed(table):
                if block != ABSENT:
                    pool.leave(block)
        for name, slot in lease.slots.items():
            self._pools[name].leave(slot)
        self.snapshots.release(lease)
        for name, quota in lease.quotas.items():
            self._quota_left[name] += quota
        for node in lease.nodes:
            node.holders -= 1
            if node.support == 0 and self._store.tree.alive(node):
                self._store.demote(node)
        if lease.nodes:
            self._store.prune(lease.nodes[-1])
        lease.nodes.clear()

    # Publishing

    def publish(self, lease: Lease, names: Sequence[BlockHash], num_tokens: int) -> None:
        """Name the full blocks of the first `num_tokens`, whose entries are all computed or landed."""
        whole = num_tokens // self._block_tokens
        if not self.reuse or len(lease.nodes) >= whole:
            return
        stored: dict[str, list[BlockHash]] = {name: [] for name in lease.tables}
        for index in range(len(lease.nodes), whole):
            parent = lease.nodes[-1] if lease.nodes else None
            if parent is not None and not self._store.tree.alive(parent):
                break  # another sequence's copy of an earlier block was evicted: this prefix has a hole
            node = self._store.tree.get(names[index]) or self._store.tree.add(names[index], parent)
            node.holders += 1
            lease.nodes.append(node)
            for name, table in lease.tables.items():
                if name not in node.blocks and table[index] != ABSENT and lease.torn.get(name) != index:
                    self._store.name_block(node, name, table[index])
                    stored[name].append(node.name)
            self._store.refresh(node)
        for name, hashes in stored.items():
            self._store.tell(CacheEventKind.STORED, name, hashes)

    # Telling

    def take_events(self) -> tuple[CacheEvent, ...]:
        """Changes since the last call, oldest first; after an overflow the numbers show a gap."""
        return self._store.take_events()

    def snapshot_events(self) -> tuple[int, tuple[CacheEvent, ...]]:
        """The next sequence number, and `stored` events (all with the number before it) that rebuild the whole view."""
        return self._store.snapshot_events()

    def clear(self) -> None:
        """Forget every cached prefix. What sequences hold stays theirs, but nobody finds it any more."""
        self._store.clear()

    # Inside

    def _path(self, names: Sequence[BlockHash], num_tokens: int) -> list[Node]:
        if not self.reuse:
            return []
        return self._store.tree.path(names[: max(0, num_tokens - 1) // self._block_tokens])

    def _device_part(self, path: Sequence[Node], num_tokens: int) -> list[Node]:
        """The part of a path after which everything up to `num_tokens` can come from the host."""
        part = list(path)
        while part and not all(self._store.tree.covers_window(part, group, num_tokens) for group in self._sliding):
            part.pop()
        return part

    def _host_hit(self, path: Sequence[Node], names: Sequence[BlockHash], depth: int) -> HostHit | None:
        """What host memory has to give for the first `depth` blocks; None when it lacks some of it."""
        num_tokens, host = depth * self._block_tokens, self._store.host
        if not all(host.has(name, names[depth - 1]) for name in self._state):  # most depths have no snapshot
            return None
        held = len(self._device_part(path[:depth], num_tokens))
        needed = {name: range(held, depth) for name in self._full}
        for group in self._sliding:
            needed[group.name] = range(max(held, group.first_needed_token(num_tokens) // self._block_tokens), depth)
        if not all(host.has(name, names[index]) for name, lacking in needed.items() for index in lacking):
            return None
        needed |= dict.fromkeys(self._state, range(depth - 1, depth))
        return HostHit(depth, sum(len(lacking) * self._move_bytes[name] for name, lacking in needed.items()))

    def _num_blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self._block_tokens)

    def _quota(self, group: CacheGroup, total_tokens: int) -> int:
        """Blocks that cover a window and a whole step after it, however they are aligned."""
        window = (group.window_tokens or 1) - 1
        return min(self._num_blocks(window + self._max_chunk_tokens) + 1, self._num_blocks(total_tokens))

    def _shared_blocks(self, path: Sequence[Node], starts: Mapping[str, int]) -> dict[str, list[int]]:
        shared = {name: [node.blocks[name] for node in path] for name in self._full}
        return shared | {name: [node.blocks[name] for node in path[start:]] for name, start in starts.items()}

    def _have_room(
        self, wanted: Mapping[str, int], shared: Mapping[str, Sequence[int]], snapshots: Mapping[str, int], spare: int
    ) -> bool:
        for name, count in wanted.items():
            pool = self._pools[name]
            kept = [*shared.get(name, ()), *([snapshots[name]] if name in snapshots else ())]
            needed = count + (spare if name in self._full else 0)
            if needed > pool.num_available - sum(not pool.is_used(block) for block in kept):
                return False
        return True

    def check_integrity(self) -> None:
        """Everything below agrees, and quotas are never overdrawn. Raises AssertionError."""
        self._store.check_integrity()
        assert all(left >= 0 for left in self._quota_left.values())
