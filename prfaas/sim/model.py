"""The simulated model: a cache spec with the bytes of a planner's model profile, and no weights.

Engines count in grains: one simulated token stands for `grain` tokens of the model, so that hashing and carrying
prompts costs little. Everything outside an engine (router, links, prices, reports) counts in the model's tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from prfaas.errors import ConfigError
from prfaas.modelspec import CacheGroup, CacheSpec, DType, Fingerprint, GroupKind, ModelSpec, TensorSpec, cache_digest
from prfaas.planner.profile import ModelProfile

SHORT_TOKENS, LONG_TOKENS = 1024, 131_072
CONTEXT_TOKENS = 1_048_576
NUM_LAYERS = 4  # steps in which a chunk's cache becomes ready to send
FULL_LAYERS = (3,)  # one in four, as in the 3:1 hybrids


@dataclass(frozen=True, slots=True)
class SimModel:
    """`spec` counts in the model's tokens, `engine_spec` in grains."""

    spec: ModelSpec
    engine_spec: ModelSpec
    grain: int

    @property
    def block_tokens(self) -> int:
        return self.spec.cache.block_tokens

    def grains(self, num_tokens: int) -> int:
        """Grains that hold `num_tokens`; the last may be partly filled."""
        return -(-num_tokens // self.grain)

    def ready_bytes(
        self, layer: int, span: tuple[int, int], prompt_tokens: int, held_tokens: int, *, boundary: bool = False
    ) -> int:
        """Bytes to ship of one layer when its grains [span) are computed and the receiver holds a prefix.

        States are shipped once, when the prompt's last grain is in; with `boundary`, those that the next turn resumes from
        go with them.
        """
        states = 2 if boundary and self.spec.cache.boundary_bytes(prompt_tokens) else 1
        start, stop = max(span[0] * self.grain, held_tokens), min(span[1] * self.grain, prompt_tokens)
        whole = span[1] * self.grain >= prompt_tokens
        total = 0
        for group in self.spec.cache.groups:
            if layer in group.layers and (whole or not group.is_state):
                total += group.entry_bytes * (states if group.is_state else max(0, stop - start))
        return total


def sim_model(model: ModelProfile, *, block_tokens: int, grain: int) -> SimModel:
    """A hybrid of one full-attention and one state group with the profile's slope and intercept.

    S_kv is a constant plus a rate per token for every model of the family, so two points give both. Raises ConfigError
    when a block is not a whole number of grains.
    """
    if block_tokens % grain or block_tokens < grain:
        raise ConfigError(f"a block of {block_tokens} tokens is not a whole number of grains of {grain} tokens")
    cache = CacheSpec(_groups(model), block_tokens)
    spec = ModelSpec(
        name=model.name,
        architecture="simulated",
        vocab_size=2**31,
        num_layers=NUM_LAYERS,
        max_context_tokens=CONTEXT_TOKENS,
        cache=cache,
        eos_token_ids=(),
        fingerprint=Fingerprint("simulated", "simulated", cache_digest(cache)),
    )
    return SimModel(spec, replace(spec, cache=replace(cache, block_tokens=block_tokens // grain)), grain)


def _groups(model: ModelProfile) -> tuple[CacheGroup, ...]:
    per_token = (model.kv_bytes(LONG_TOKENS) - model.kv_bytes(SHORT_TOKENS)) / (LONG_TOKENS - SHORT_TOKENS)
    constant = max(0.0, model.kv_bytes(SHORT_TOKENS) - per_token * SHORT_TOKENS)
    others = tuple(layer for layer in range(NUM_LAYERS) if layer not in FULL_LAYERS)
    state_values = round(constant / len(others) / DType.F32.num_bytes)
    full_layers = FULL_LAYERS if state_values else tuple(range(NUM_LAYERS))
    values = max(1, round(per_token / len(full_layers) / DType.BF16.num_bytes))
    full = CacheGroup("full", GroupKind.FULL, full_layers, (TensorSpec("kv", (values,), DType.BF16),))
    if not state_values:
        return (full,)
    return (full, CacheGroup("state", GroupKind.STATE, others, (TensorSpec("state", (state_values,), DType.F32),)))
