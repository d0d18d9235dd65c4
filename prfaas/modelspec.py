"""What a model's cache is: groups, tensor shapes, bytes per token and bytes per state, and the model's identity.

Sizes follow "Prefill-as-a-Service" (arXiv:2604.15039), section 2: S_kv(l) is all that must be shipped for a prompt
of l tokens, constant-size recurrent states included. Nothing here knows how a device lays the cache out.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from enum import StrEnum

from prfaas.errors import FingerprintMismatch
from prfaas.types import CacheGroupInfo
from prfaas.types import GroupKind as GroupKind

WIRE_VERSION = 1


class DType(StrEnum):
    """Element types of cache tensors and of the wire. `F8` is e4m3 with scales."""

    F32 = "float32"
    BF16 = "bfloat16"
    F16 = "float16"
    F8 = "float8_e4m3fn"

    @property
    def num_bytes(self) -> int:
        return {DType.F32: 4, DType.BF16: 2, DType.F16: 2, DType.F8: 1}[self]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor of a cache entry: shape and dtype for one token (FULL, SLIDING) or one sequence (STATE)."""

    name: str
    shape: tuple[int, ...]
    dtype: DType

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.num_bytes


@dataclass(frozen=True, slots=True)
class CacheGroup:
    """Layers whose caches are allocated, matched and evicted together. `layers` are model layer indices, ascending."""

    name: str
    kind: GroupKind
    layers: tuple[int, ...]
    tensors: tuple[TensorSpec, ...]
    window_tokens: int | None = None  # SLIDING only: positions a query may see, itself included
    entry_bytes: int = field(init=False, repr=False, compare=False)  # of one entry (token or state) of one layer

    def __post_init__(self) -> None:
        object.__setattr__(self, "entry_bytes", sum(t.num_bytes for t in self.tensors))  # asked for at every turn

    @property
    def is_state(self) -> bool:
        return self.kind is GroupKind.STATE

    def first_needed_token(self, num_tokens: int) -> int:
        """First position whose entry a query at position `num_tokens` may still read (0 for FULL)."""
        if self.kind is GroupKind.SLIDING and self.window_tokens is not None:
            return max(0, num_tokens - (self.window_tokens - 1))
        return 0

    def bytes_between(self, start: int, stop: int) -> int:
        """Bytes over all layers of the entries for positions [start, stop); for a STATE group, of one state."""
        if self.is_state:
            return self.entry_bytes * len(self.layers)
        return self.entry_bytes * len(self.layers) * max(0, stop - start)


BOUNDARY_SHARE = 4  # states at a boundary may add at most this fraction (a quarter) to a transfer


@dataclass(frozen=True, slots=True)
class CacheSpec:
    """All groups of one model. `block_tokens` is the alignment of prefix reuse, shared by all groups."""

    groups: tuple[CacheGroup, ...]
    block_tokens: int

    def group(self, name: str) -> CacheGroup:
        for group in self.groups:
            if group.name == name:
                return group
        raise KeyError(name)

    @property
    def has_state(self) -> bool:
        return any(g.is_state for g in self.groups)

    def request_bytes(self, num_tokens: int, held_tokens: int = 0) -> int:
        """S_kv: bytes to ship for a prompt of `num_tokens` to a receiver that already holds `held_tokens` of it."""
        total = 0
        for group in self.groups:
            start = max(held_tokens, group.first_needed_token(num_tokens))
            total += group.bytes_between(start, num_tokens)
        return total

    def boundary_bytes(self, num_tokens: int) -> int:
        """Bytes of the recurrent states at the last block boundary before a prompt's end, where they are worth sending along:
        with them the next turn of a conversation resumes at the receiver. They may add at most a share of S_kv, as short
        prompts are cheap to compute again; where sliding windows would have to travel too, none are sent."""
        sliding = any(group.kind is GroupKind.SLIDING for group in self.groups)
        if num_tokens <= self.block_tokens or sliding:
            return 0
        states = sum(group.bytes_between(0, 0) for group in self.groups if group.is_state)
        return states if states * BOUNDARY_SHARE <= self.request_bytes(num_tokens) else 0

    def describe(self) -> tuple[CacheGroupInfo, ...]:
        """The groups as a worker announces them to the router (`WorkerInfo.cache_groups`)."""
        return tuple(
            CacheGroupInfo(g.name, g.kind, entry_bytes=g.entry_bytes * len(g.layers), window_tokens=g.window_tokens)
            for g in self.groups
        )

    def canonical(self) -> str:
        """A stable text of everything that must agree between two ends, for the fingerprint."""
        lines = []
        for g in self.groups:
            tensors = ",".join(f"{t.name}:{'x'.join(map(str, t.shape))}" for t in g.tensors)
            lines.append(f"{g.name}|{g.kind}|{','.join(map(str, g.layers))}|{tensors}|{g.window_tokens}")
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Identity that two workers compare before any byte moves. All fields are short hex digests or plain words.

    The wire dtype, page size and device are not part of it: they are declared per transfer and may differ.
    """

    model: str  # architecture, configuration and weights
    tokenizer: str
    cache: str  # CacheSpec.canonical(), dtypes and block size left out
    wire_version: int = WIRE_VERSION

    @property
    def digest(self) -> str:
        text = f"{self.model}|{self.tokenizer}|{self.cache}|{self.wire_version}"
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def require_equal(self, theirs: Fingerprint) -> None:
        """Raise FingerprintMismatch naming the first field that differs and both values."""
        for name, mine, other in (
            ("wire_version", self.wire_version, theirs.wire_version),
            ("model", self.model, theirs.model),
            ("tokenizer", self.tokenizer, theirs.tokenizer),
            ("cache", self.cache, theirs.cache),
        ):
            if mine != other:
                raise FingerprintMismatch(
                    f"the two workers differ in {name}: ours is {mine}, theirs is {other}; "
                    "start both with the same model files and prfaas version",
                    field=name,
                    ours=str(mine),
                    theirs=str(other),
                )


def cache_digest(spec: CacheSpec) -> str:
    """The `cache` field of a fingerprint."""
    return hashlib.sha256(spec.canonical().encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A served model: limits, cache and identity."""

    name: str
    architecture: str
    vocab_size: int
    num_layers: int
    max_context_tokens: int
    cache: CacheSpec
    eos_token_ids: tuple[int, ...]
    fingerprint: Fingerprint
    num_parameters: int = 0


@dataclass(frozen=True, slots=True)
class KvRange:
    """A rectangle of cache: layers [layer_start, layer_stop) of a group (indices into `group.layers`) and positions.

    For FULL and SLIDING groups the entries of tokens [token_start, token_stop); for a STATE group the one state after
    `token_stop` tokens, with token_start == token_stop.

    Canonical payload, nobody's memory layout: for each layer ascending, for each tensor of the group in order, a
    contiguous little-endian array [token_stop - token_start, *shape] (just [*shape] for a state), full heads.
    """

    group: str
    layer_start: int
    layer_stop: int
    token_start: int
    token_stop: int

    def num_entries(self, group: CacheGroup) -> int:
        """Entries per layer: tokens, or 1 for a state."""
        return 1 if group.is_state else self.token_stop - self.token_start

    def num_bytes(self, group: CacheGroup) -> int:
        """Payload size in the group's resident dtypes."""
        return self.num_entries(group) * group.entry_bytes * (self.layer_stop - self.layer_start)
