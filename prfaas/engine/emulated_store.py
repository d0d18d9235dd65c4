"""Cache memory of the emulated engine: one 64-bit word instead of each entry, and the bytes that a word stands for.

The word at a position is a running sum of hashes of (token, position) over the whole prefix, so it is a function of the
prefix and of nothing else. The canonical bytes of an entry are a reversible function of (group, layer, tensor, word):
`read` makes them, `write` turns them back, and an entry whose bytes do not belong together becomes a word that no
prefix has. Whoever decodes on it draws other tokens. This module knows neither steps nor tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from prfaas.engine.backend import PoolSize
from prfaas.modelspec import CacheGroup, CacheSpec, DType, KvRange
from prfaas.sched.plan import Copy

Words = npt.NDArray[np.uint64]
Bytes = npt.NDArray[np.uint8]

WORD_BYTES = 8
MIX_A, MIX_B = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)  # splitmix64's finalizer
UNMIX_A, UNMIX_B = np.uint64(0x96DE1B173F119089), np.uint64(0x319642B2D24D8EC3)  # their inverses modulo 2**64
STRIDE = np.uint64(0x9E3779B97F4A7C15)
BAD = np.uint64(0xBAD)


def mix(words: Words) -> Words:
    """splitmix64's finalizer, element by element: a bijection on 64-bit words."""
    words = (words ^ (words >> np.uint64(30))) * MIX_A
    words = (words ^ (words >> np.uint64(27))) * MIX_B
    mixed: Words = words ^ (words >> np.uint64(31))
    return mixed


def unmix(words: Words) -> Words:
    """Inverse of `mix`."""
    words = (words ^ (words >> np.uint64(31)) ^ (words >> np.uint64(62))) * UNMIX_B
    words = (words ^ (words >> np.uint64(27)) ^ (words >> np.uint64(54))) * UNMIX_A
    plain: Words = words ^ (words >> np.uint64(30)) ^ (words >> np.uint64(60))
    return plain


class EmulatedStore:
    """Words of every group: [blocks, layers, block_tokens] for FULL and SLIDING, [slots, layers, 1] for STATE."""

    def __init__(self, spec: CacheSpec, sizes: Mapping[str, PoolSize]) -> None:
        """Raises ValueError when a group's first tensor is smaller than a word, so that its bytes could not be undone."""
        self._spec = spec
        self._block_tokens = spec.block_tokens
        self._words: dict[tuple[str, str], Words] = {}
        self._salts: dict[str, Words] = {}
        for group in spec.groups:
            if group.tensors[0].num_bytes < WORD_BYTES:
                raise ValueError(f"the first tensor of {group.name} needs at least {WORD_BYTES} bytes per entry")
            entries = 1 if group.is_state else spec.block_tokens
            for tier, count in (("device", sizes[group.name].device), ("host", sizes[group.name].host)):
                self._words[group.name, tier] = np.zeros((count, len(group.layers), entries), np.uint64)
            self._salts[group.name] = _salts(group)

    def copy(self, copies: Sequence[Copy]) -> None:
        """Run copies in order."""
        for each in copies:
            source = self._words[each.group, each.source_tier][each.source]
            self._words[each.group, each.target_tier][each.target] = source

    def entries(self, group: CacheGroup, blocks: Sequence[int], start: int, stop: int) -> Words:
        """Words [stop - start, layers] of positions [start, stop); an absent block's are BAD."""
        positions = np.arange(start, stop)
        table = np.asarray(blocks, np.int64)
        where = positions // self._block_tokens
        chosen = np.where(where < len(table), table[np.minimum(where, len(table) - 1)], -1) if len(table) else where * 0 - 1
        words: Words = self._words[group.name, "device"][chosen, :, positions % self._block_tokens]
        words[chosen < 0] = BAD
        return words

    def put(self, group: CacheGroup, blocks: Sequence[int], start: int, words: Words) -> None:
        """Set words [n, layers] at positions [start, start + n). Raises ValueError for an absent block."""
        positions = np.arange(start, start + len(words))
        chosen = np.asarray(blocks, np.int64)[positions // self._block_tokens]
        if (chosen < 0).any():
            raise ValueError(f"{group.name}: entries from {start} have no block to go to")
        self._words[group.name, "device"][chosen, :, positions % self._block_tokens] = words

    def state(self, group: CacheGroup, slot: int) -> Words:
        """Words [1, layers] of a state."""
        words: Words = self._words[group.name, "device"][slot, :, 0][None, :]
        return words.copy()

    def put_state(self, group: CacheGroup, slot: int, words: Words) -> None:
        """Set the words [1, layers] of a state."""
        self._words[group.name, "device"][slot, :, 0] = words[0]

    def read(self, wanted: KvRange, blocks: Sequence[int]) -> memoryview:
        """Canonical bytes of a range."""
        group = self._spec.group(wanted.group)
        words = self.state(group, blocks[0]) if group.is_state else None
        if words is None:
            words = self.entries(group, blocks, wanted.token_start, wanted.token_stop)
        parts = [
            _encode(words[:, layer], self._salts[group.name][layer, index], tensor.num_bytes)
            for layer in range(wanted.layer_start, wanted.layer_stop)
            for index, tensor in enumerate(group.tensors)
        ]
        payload: Bytes = np.concatenate([part.reshape(-1) for part in parts])
        return payload.data

    def write(self, landed: KvRange, blocks: Sequence[int], payload: memoryview, dtypes: Sequence[DType]) -> int:
        """Take canonical bytes in; returns how many entries were corrupt. Raises ValueError on a wrong length or dtype."""
        group = self._spec.group(landed.group)
        if tuple(dtypes) != tuple(tensor.dtype for tensor in group.tensors):
            raise ValueError("emulated entries are words, not numbers: they land only in their resident dtypes")
        if len(payload) != landed.num_bytes(group):
            raise ValueError(f"{landed.group}: a payload of {len(payload)} bytes for a range of {landed.num_bytes(group)}")
        data, count, offset, corrupt = np.frombuffer(payload, np.uint8), landed.num_entries(group), 0, 0
        columns: list[Words] = []
        for layer in range(landed.layer_start, landed.layer_stop):
            size = count * group.entry_bytes
            words, bad = self._decode(group, layer, data[offset : offset + size], count)
            columns.append(words)
            corrupt += bad
            offset += size
        self._land(group, landed, blocks, np.stack(columns, axis=1))
        return corrupt

    def _decode(self, group: CacheGroup, layer: int, data: Bytes, count: int) -> tuple[Words, int]:
        salts, offset = self._salts[group.name][layer], 0
        words = np.zeros(count, np.uint64)
        wrong = np.zeros(count, bool)
        for index, tensor in enumerate(group.tensors):
            part = data[offset : offset + count * tensor.num_bytes].reshape(count, tensor.num_bytes)
            offset += count * tensor.num_bytes
            if index == 0:
                first = np.ascontiguousarray(part[:, :WORD_BYTES]).view(np.uint64)[:, 0]
                words = unmix(first) ^ salts[0]
            wrong |= (_encode(words, salts[index], tensor.num_bytes) != part).any(axis=1)
        words[wrong] = mix(words[wrong] ^ BAD)
        return words, int(wrong.sum())

    def _land(self, group: CacheGroup, landed: KvRange, blocks: Sequence[int], columns: Words) -> None:
        layers = slice(landed.layer_start, landed.layer_stop)
        target = self._words[group.name, "device"]
        if group.is_state:
            target[blocks[0], layers, 0] = columns[0]
            return
        positions = np.arange(landed.token_start, landed.token_stop)
        chosen = np.asarray(blocks, np.int64)[positions // self._block_tokens]
        if (chosen < 0).any():
            raise ValueError(f"{group.name}: landed entries have no block to go to")
        for column, layer in enumerate(range(landed.layer_start, landed.layer_stop)):
            target[chosen, layer, positions % self._block_tokens] = columns[:, column]

    def free(self) -> None:
        """Drop the memory."""
        self._words.clear()


def _salts(group: CacheGroup) -> Words:
    """[layers, tensors]: what tells the bytes of one layer's tensor from another's."""
    rows = [
        [hashlib.blake2b(f"{group.name}|{layer}|{t.name}".encode(), digest_size=WORD_BYTES).digest() for t in group.tensors]
        for layer in group.layers
    ]
    return np.array([[int.from_bytes(cell, "little") for cell in row] for row in rows], np.uint64)


def _encode(words: Words, salt: np.uint64, num_bytes: int) -> Bytes:
    """[n, num_bytes]: the entry bytes of words [n]; every eight bytes differ from the next."""
    per_entry = -(-num_bytes // WORD_BYTES)
    steps = np.arange(per_entry, dtype=np.uint64) * STRIDE
    filled = mix(words ^ salt)[:, None] + steps[None, :]
    data: Bytes = filled.astype("<u8", copy=False).view(np.uint8)
    return data[:, :num_bytes]
