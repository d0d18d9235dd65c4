"""The hash that ends a transfer. Knows bytes only.

SHA-256 over the manifest frame, then the 32-byte header of every chunk in order of seq, then the first-token frame. A
header holds the chunk's place, lengths and CRC32C, and a receiver writes a payload only after its CRC agreed, so equal
hashes mean: the same chunks, all of them, each at its place, each with a payload of the stated CRC, under the same
manifest, followed by the same tokens. What stays is a payload that was damaged and kept its CRC32C: none for up to
three flipped bits or one burst of 32 bits within a chunk, 2**-32 for random damage, on top of TCP's checksum.
Hashing payloads with SHA-256 instead would cost 0.5 s/GB of CPU on each side. Against an adversary on the path CRC32C
proves nothing: that is mutual TLS's work, which authenticates every record.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable


def transfer_digest(manifest_frame: bytes, chunk_headers: Iterable[bytes], first_frame: bytes) -> bytes:
    """The 32-byte digest. `chunk_headers` come in order of seq, from 0, without gaps."""
    digest = hashlib.sha256(manifest_frame)
    for header in chunk_headers:
        digest.update(header)
    digest.update(first_frame)
    return digest.digest()
