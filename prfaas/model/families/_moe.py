"""Reading a DeepSeek-style mixture of experts, shared by the families that use it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from prfaas.errors import ModelLoadError
from prfaas.model.config_reader import ConfigReader
from prfaas.model.layers.mlp import read_mlp
from prfaas.model.layers.moe import (
    DenseExperts,
    Experts,
    MixtureOfExperts,
    PackedExpert,
    PackedExperts,
    SigmoidRouter,
)
from prfaas.model.weights import WeightReader


@dataclass(frozen=True, slots=True)
class MoeConfig:
    """Experts of one layer, in either of the two spellings (Kimi's first, DeepSeek's second)."""

    num_experts: int
    top_k: int
    inner: int
    num_shared: int
    num_groups: int
    top_groups: int
    normalise: bool
    scaling: float


@dataclass(frozen=True, slots=True)
class ExpertNames:
    """Last parts of the weight names of one expert's gate, up and down products."""

    gate: str
    up: str
    down: str


@dataclass(frozen=True, slots=True)
class ExpertShape:
    """Routed experts of one layer: how many, and their widths."""

    num_experts: int
    hidden: int
    inner: int


def parse_moe(config: ConfigReader) -> MoeConfig:
    """Raises ModelLoadError for a missing key, a router that is not a sigmoid one, or groups that do not fit."""
    config.require_equal("moe_router_activation_func", ["sigmoid"], "sigmoid")
    config.require_equal("scoring_func", ["sigmoid"], "sigmoid")
    config.require_equal("topk_method", ["noaux_tc"], "noaux_tc")
    moe = MoeConfig(
        num_experts=config.integer("num_experts", "n_routed_experts"),
        top_k=config.integer("num_experts_per_token", "num_experts_per_tok"),
        inner=config.integer("moe_intermediate_size"),
        num_shared=config.integer("num_shared_experts", "n_shared_experts", default=0),
        num_groups=config.integer("num_expert_group", "n_group", default=1),
        top_groups=config.integer("topk_group", default=1),
        normalise=config.boolean("moe_renormalize", "norm_topk_prob", default=True),
        scaling=config.number("routed_scaling_factor", default=1.0),
    )
    if moe.num_experts % moe.num_groups or moe.top_groups > moe.num_groups:
        raise ModelLoadError(f"{moe.num_experts} experts in {moe.num_groups} groups, {moe.top_groups} chosen: does not fit")
    return moe


def read_router(weights: WeightReader, prefix: str, moe: MoeConfig, hidden: int) -> SigmoidRouter:
    """Read PREFIX.gate.{weight,e_score_correction_bias} in float32."""
    return SigmoidRouter(
        weight=weights.take(f"{prefix}.gate.weight", (moe.num_experts, hidden), torch.float32),
        bias=weights.take(f"{prefix}.gate.e_score_correction_bias", (moe.num_experts,), torch.float32),
        top_k=moe.top_k,
        num_groups=moe.num_groups,
        top_groups=moe.top_groups,
        normalise=moe.normalise,
        scaling=moe.scaling,
    )


def read_experts(weights: WeightReader, prefix: str, shape: ExpertShape, names: ExpertNames) -> Experts:
    """Read PREFIX.experts.E.NAME.weight into stacked tensors, one expert at a time; 4-bit experts stay packed."""
    hidden, inner = shape.hidden, shape.inner
    if weights.has(f"{prefix}.experts.gate_up_proj"):  # stored stacked, gate rows first
        return DenseExperts(
            weights.take(f"{prefix}.experts.gate_up_proj", (shape.num_experts, 2 * inner, hidden)),
            weights.take(f"{prefix}.experts.down_proj", (shape.num_experts, hidden, inner)),
            weights.kernels,
        )
    if weights.is_packed(f"{prefix}.experts.0.{names.gate}.weight"):
        return _read_packed_experts(weights, prefix, shape, names)
    gate_up = torch.empty(shape.num_experts, 2 * inner, hidden, dtype=weights.dtype, device=weights.device)
    down = torch.empty(shape.num_experts, hidden, inner, dtype=weights.dtype, device=weights.device)
    for expert in range(shape.num_experts):
        base = f"{prefix}.experts.{expert}"
        weights.fill(f"{base}.{names.gate}.weight", gate_up[expert, :inner])
        weights.fill(f"{base}.{names.up}.weight", gate_up[expert, inner:])
        weights.fill(f"{base}.{names.down}.weight", down[expert])
    weights.kernels.settle(gate_up)
    weights.kernels.settle(down)
    return DenseExperts(gate_up, down, weights.kernels)


def _read_packed_experts(weights: WeightReader, prefix: str, shape: ExpertShape, names: ExpertNames) -> PackedExperts:
    parts: list[PackedExpert] = []
    for expert in range(shape.num_experts):
        base = f"{prefix}.experts.{expert}"
        gate = weights.take_packed(f"{base}.{names.gate}.weight", (shape.inner, shape.hidden))
        up = weights.take_packed(f"{base}.{names.up}.weight", (shape.inner, shape.hidden))
        down = weights.take_packed(f"{base}.{names.down}.weight", (shape.hidden, shape.inner))
        parts.append(
            PackedExpert(torch.cat((gate.packed, up.packed)), torch.cat((gate.scale, up.scale)), down.packed, down.scale)
        )
    return PackedExperts(tuple(parts), weights.kernels)


def read_moe(weights: WeightReader, prefix: str, moe: MoeConfig, hidden: int, names: ExpertNames) -> MixtureOfExperts:
    """Router, routed experts, and the shared expert as one block as wide as all shared experts together."""
    shared = read_mlp(weights, f"{prefix}.shared_experts", hidden, moe.inner * moe.num_shared) if moe.num_shared else None
    return MixtureOfExperts(
        read_router(weights, prefix, moe, hidden),
        read_experts(weights, prefix, ExpertShape(moe.num_experts, hidden, moe.inner), names),
        shared,
    )
