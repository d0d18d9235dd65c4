"""The file behind an emulated engine: how long its hardware takes, and what its model's cache looks like. No torch."""

from __future__ import annotations

import hashlib
from pathlib import Path

from prfaas.config import PositiveInt, Settings, read_yaml, validate
from prfaas.errors import ConfigError
from prfaas.modelspec import CacheGroup, CacheSpec, DType, Fingerprint, GroupKind, ModelSpec, TensorSpec, cache_digest
from prfaas.planner.inputs import HardwareInput, ModelInput


class TensorShape(Settings):
    """One tensor of a cache entry."""

    name: str
    shape: tuple[PositiveInt, ...]
    dtype: DType = DType.BF16


class GroupShape(Settings):
    """One cache group; the fields are those of `prfaas.modelspec.CacheGroup`."""

    name: str
    kind: GroupKind
    layers: tuple[int, ...]
    tensors: tuple[TensorShape, ...]
    window_tokens: PositiveInt | None = None

    def to_group(self) -> CacheGroup:
        tensors = tuple(TensorSpec(t.name, t.shape, t.dtype) for t in self.tensors)
        return CacheGroup(self.name, self.kind, self.layers, tensors, self.window_tokens)


class ModelShape(Settings):
    """All of a model that an engine without weights needs to know."""

    architecture: str
    vocab_size: PositiveInt
    num_layers: PositiveInt
    max_context_tokens: PositiveInt
    eos_token_ids: tuple[int, ...] = ()
    groups: tuple[GroupShape, ...]

    def to_spec(self, served_name: str, block_tokens: int) -> ModelSpec:
        """The spec under a served name. Its fingerprint never equals that of a model with weights.

        Raises ConfigError when a group names a layer that does not exist.
        """
        for group in self.groups:
            if any(not 0 <= layer < self.num_layers for layer in group.layers) or not group.layers:
                raise ConfigError(f"the group {group.name!r} has layers outside 0 to {self.num_layers - 1}", group=group.name)
        cache = CacheSpec(tuple(group.to_group() for group in self.groups), block_tokens)
        digest = hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]
        return ModelSpec(
            name=served_name,
            architecture=self.architecture,
            vocab_size=self.vocab_size,
            num_layers=self.num_layers,
            max_context_tokens=self.max_context_tokens,
            cache=cache,
            eos_token_ids=self.eos_token_ids,
            fingerprint=Fingerprint(f"emulated-{digest}", "emulated", cache_digest(cache)),
        )


class EmulationInput(Settings):
    """A profile file, as `prfaas profile` writes it. Without `model` the cache's shape is read from the served model's
    files, which needs torch. `kv` is for plans: S_kv against length."""

    hardware: HardwareInput
    model: ModelShape | None = None
    kv: ModelInput | None = None


def load_emulation(path: Path) -> EmulationInput:
    """Read a profile file. Raises ConfigError naming what is wrong."""
    return validate(EmulationInput, read_yaml(path))
