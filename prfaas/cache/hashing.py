"""Names of cache blocks: a hash chained over the prefix, so that equal names mean equal tokens from position 0.

Router and workers compute the same names from the same tokens, block size and salt, on any machine. This module knows
nothing of which blocks exist.
"""

from __future__ import annotations

import hashlib
import sys
from array import array
from collections.abc import Sequence

from prfaas.types import BlockHash

HASH_BYTES = 16


def root_hash(block_tokens: int, salt: str = "") -> BlockHash:
    """The name of the empty prefix. `salt` separates prefix caches that must not be shared."""
    text = f"prfaas-block|{block_tokens}|{salt}".encode()
    return BlockHash(hashlib.blake2b(text, digest_size=HASH_BYTES).digest())


def extend_hashes(parent: BlockHash, tokens: Sequence[int], block_tokens: int) -> list[BlockHash]:
    """Names of the full blocks of `tokens`, which follow the block named `parent`. A partial last block has no name.

    Raises:
        OverflowError: a token id is negative or does not fit 32 bits.
    """
    words = array("I", tokens)
    if sys.byteorder == "big":  # names are little-endian everywhere
        words.byteswap()
    view = memoryview(words.tobytes())
    block_bytes = block_tokens * words.itemsize
    names: list[BlockHash] = []
    blake2b, previous = hashlib.blake2b, bytes(parent)
    for start in range(0, len(view) - block_bytes + 1, block_bytes):
        digest = blake2b(previous, digest_size=HASH_BYTES)
        digest.update(view[start : start + block_bytes])
        previous = digest.digest()
        names.append(BlockHash(previous))
    return names


def hash_blocks(tokens: Sequence[int], block_tokens: int, salt: str = "") -> list[BlockHash]:
    """Names of all full blocks of a prompt: entry i covers tokens [0, (i + 1) * block_tokens)."""
    return extend_hashes(root_hash(block_tokens, salt), tokens, block_tokens)
