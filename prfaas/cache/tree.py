"""The prefix tree: one node for each cached block position, and which of them a request can resume from.

A node stands for a whole prefix (its name is the chained block hash) and says which block of each group holds the
last `block_tokens` of it. The invariants:

* every node has a block in every FULL group, so a path from the root covers a prefix without holes;
* a node is *usable* when a request can continue right after it: every STATE group has a snapshot there and every
  SLIDING group has all blocks that a query at the next position may read;
* `support` counts the usable node itself and its children with support: no request can resume at or after a node
  without support, so its blocks are the first to be evicted.

The tree knows names and block numbers; pools, copies and sequences are the manager's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from prfaas.modelspec import CacheGroup, CacheSpec, GroupKind
from prfaas.types import BlockHash


@dataclass(slots=True, eq=False)
class Node:
    """A prefix of `depth` blocks. `holders` counts the sequences whose prefix it is."""

    name: BlockHash
    parent: Node | None
    depth: int
    blocks: dict[str, int] = field(default_factory=dict)
    children: dict[BlockHash, Node] = field(default_factory=dict)
    usable: bool = False
    support: int = 0
    holders: int = 0


class PrefixTree:
    """Nodes by name. Mutated only by the cache manager."""

    def __init__(self, spec: CacheSpec) -> None:
        self._block_tokens = spec.block_tokens
        self._state = tuple(g.name for g in spec.groups if g.kind is GroupKind.STATE)
        self._sliding = tuple(g for g in spec.groups if g.kind is GroupKind.SLIDING)
        self._reach = max((self._window_blocks(g) for g in self._sliding), default=1)
        self._root = Node(BlockHash(b""), None, 0)
        self._nodes: dict[BlockHash, Node] = {}

    def __len__(self) -> int:
        return len(self._nodes)

    def __iter__(self) -> Iterator[Node]:
        return iter(self._nodes.values())

    def get(self, name: BlockHash) -> Node | None:
        return self._nodes.get(name)

    def alive(self, node: Node) -> bool:
        """Whether the node is still part of the tree."""
        return self._nodes.get(node.name) is node

    def path(self, names: Sequence[BlockHash]) -> list[Node]:
        """The nodes of the longest known prefix of `names`, from the root outwards."""
        found: list[Node] = []
        for name in names:
            node = self._nodes.get(name)
            if node is None:
                break
            found.append(node)
        return found

    def add(self, name: BlockHash, parent: Node | None) -> Node:
        """A new node below `parent` (None: below the root), without blocks yet; `refresh` it once it has them."""
        above = parent or self._root
        node = Node(name, above, above.depth + 1)
        above.children[name] = node
        self._nodes[name] = node
        return node

    def subtree(self, node: Node) -> list[Node]:
        """`node` and everything below it, parents before children."""
        found = [node]
        for each in found:
            found.extend(each.children.values())
        return found

    def remove(self, node: Node) -> list[Node]:
        """Cut off `node` and everything below it; returns the removed nodes, with their blocks still named in them."""
        removed = self.subtree(node)
        for each in removed:
            del self._nodes[each.name]
        above = node.parent
        assert above is not None, "the root cannot be removed"
        del above.children[node.name]
        if node.support:
            self._lose_support(above)
        return removed

    def unsupported(self, node: Node) -> list[Node]:
        """The largest subtree around `node` in which nothing can be resumed from, parents before children."""
        if node.support:
            return []
        top = node
        while top.parent is not None and top.parent is not self._root and top.parent.support == 0:
            top = top.parent
        return self.subtree(top)

    def refresh(self, node: Node) -> list[Node]:
        """Recompute `usable` where a change of the node's blocks can matter; returns the nodes that lost it."""
        lost: list[Node] = []
        nearby = [node]
        for each in nearby:
            usable = self._is_usable(each)
            if each.usable and not usable:
                lost.append(each)
                self._set_unusable(each)
            elif usable and not each.usable:
                self._set_usable(each)
            if each.depth - node.depth + 1 < self._reach:
                nearby.extend(each.children.values())
        return lost

    def covers_window(self, path: Sequence[Node], group: CacheGroup, num_tokens: int) -> bool:
        """Whether every block of a SLIDING group that a query at `num_tokens` may read lies on `path`, as far as it goes."""
        first = group.first_needed_token(num_tokens) // self._block_tokens
        return all(group.name in node.blocks for node in path[first:])

    def _window_blocks(self, group: CacheGroup) -> int:
        return -(-(group.window_tokens or 1) // self._block_tokens) + 1

    def _is_usable(self, node: Node) -> bool:
        if any(name not in node.blocks for name in self._state):
            return False
        return all(self._has_window(node, group) for group in self._sliding)

    def _has_window(self, node: Node, group: CacheGroup) -> bool:
        first = group.first_needed_token(node.depth * self._block_tokens) // self._block_tokens
        each: Node | None = node
        while each is not None and each.depth > first:
            if group.name not in each.blocks:
                return False
            each = each.parent
        return True

    def _set_usable(self, node: Node) -> None:
        node.usable = True
        each: Node | None = node
        while each is not None:
            each.support += 1
            if each.support > 1:
                return
            each = each.parent

    def _set_unusable(self, node: Node) -> None:
        node.usable = False
        self._lose_support(node)

    def _lose_support(self, node: Node) -> None:
        each: Node | None = node
        while each is not None:
            each.support -= 1
            if each.support > 0:
                return
            each = each.parent

    def check_integrity(self) -> None:
        """Names, depths, usability and support agree with a recomputation. Raises AssertionError."""
        reachable = self.subtree(self._root)[1:]
        assert len(reachable) == len(self._nodes), "a node is named but unreachable, or the reverse"
        for node in reachable:
            assert self._nodes[node.name] is node
            assert node.parent is not None
            assert node.depth == node.parent.depth + 1
            assert node.usable == self._is_usable(node), "a promise to resume is wrong"
            assert node.support == node.usable + sum(c.support > 0 for c in node.children.values())
            assert node.holders >= 0
