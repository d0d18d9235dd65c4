"""A model's identity: what two workers compare before one uses the other's cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from prfaas.model.checkpoint import Checkpoint
from prfaas.modelspec import CacheSpec, Fingerprint, cache_digest

# Keys that say how or by what a configuration was written, not what the network computes.
_INCIDENTAL_KEYS = frozenset(
    {"_name_or_path", "transformers_version", "torch_dtype", "dtype", "auto_map", "use_cache", "_attn_implementation"}
)
_DIGEST_CHARACTERS = 16


def fingerprint(checkpoint: Checkpoint, cache: CacheSpec) -> Fingerprint:
    """Identity of a checkpoint: configuration and weights, tokenizer, and cache layout."""
    config = json.dumps(_normalised(checkpoint.config), sort_keys=True, default=str)
    model = hashlib.sha256(f"{config}|{checkpoint.weights_identity()}".encode()).hexdigest()
    return Fingerprint(
        model=model[:_DIGEST_CHARACTERS],
        tokenizer=checkpoint.tokenizer_identity()[:_DIGEST_CHARACTERS],
        cache=cache_digest(cache),
    )


def _normalised(value: Any) -> Any:
    """Drop incidental keys and nulls, at every depth."""
    if isinstance(value, Mapping):
        return {k: _normalised(v) for k, v in value.items() if k not in _INCIDENTAL_KEYS and v is not None}
    if isinstance(value, list | tuple):
        return [_normalised(item) for item in value]
    return value
