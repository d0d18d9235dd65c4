"""Reading multi-head latent attention, shared by the families that use it."""

from __future__ import annotations

from dataclasses import dataclass

from prfaas.model.config_reader import ConfigReader
from prfaas.model.layers.linear import read_linear
from prfaas.model.layers.mla import LatentAttention, LatentShape
from prfaas.model.layers.norm import read_norm
from prfaas.model.weights import WeightReader
from prfaas.modelspec import CacheGroup, DType, GroupKind, TensorSpec

# The published implementations leave the class default in place for the two inner norms, whatever rms_norm_eps says.
_INNER_NORM_EPS = 1e-6


@dataclass(frozen=True, slots=True)
class LatentConfig:
    """Shapes, the softmax scale, the query rank (None: queries are not compressed) and the rotation's name."""

    hidden: int
    shape: LatentShape
    query_rank: int | None
    scale: float
    rope: str | None


def parse_latent_shape(config: ConfigReader) -> LatentShape:
    """Raises ModelLoadError for a missing key or projections with biases."""
    config.require_equal("attention_bias", [False], False)
    return LatentShape(
        num_heads=config.integer("num_attention_heads"),
        rank=config.integer("kv_lora_rank"),
        nope=config.integer("qk_nope_head_dim"),
        rope=config.integer("qk_rope_head_dim"),
        value=config.integer("v_head_dim"),
    )


def latent_group(name: str, layers: tuple[int, ...], shape: LatentShape, dtype: DType) -> CacheGroup:
    """A FULL group with one tensor "latent" [rank + rope]."""
    return CacheGroup(name, GroupKind.FULL, layers, (TensorSpec("latent", (shape.latent,), dtype),))


def read_latent_attention(weights: WeightReader, prefix: str, group: str, config: LatentConfig) -> LatentAttention:
    """Read PREFIX.{q_proj | q_a_proj, q_a_layernorm, q_b_proj}, kv_a_proj_with_mqa, kv_a_layernorm, kv_b_proj, o_proj."""
    shape, hidden, rank = config.shape, config.hidden, config.query_rank
    query_rows = shape.num_heads * shape.query
    if rank is None:
        query_down, query_norm = None, None
        query_up = read_linear(weights, [f"{prefix}.q_proj"], [query_rows], hidden)
    else:
        query_down = read_linear(weights, [f"{prefix}.q_a_proj"], [rank], hidden)
        query_norm = read_norm(weights, f"{prefix}.q_a_layernorm", rank, _INNER_NORM_EPS)
        query_up = read_linear(weights, [f"{prefix}.q_b_proj"], [query_rows], rank)
    return LatentAttention(
        group=group,
        rope=config.rope,
        shape=shape,
        scale=config.scale,
        query_down=query_down,
        query_norm=query_norm,
        query_up=query_up,
        latent_down=read_linear(weights, [f"{prefix}.kv_a_proj_with_mqa"], [shape.latent], hidden),
        latent_norm=read_norm(weights, f"{prefix}.kv_a_layernorm", shape.rank, _INNER_NORM_EPS),
        expand=read_linear(weights, [f"{prefix}.kv_b_proj"], [shape.num_heads * (shape.nope + shape.value)], shape.rank),
        out=read_linear(weights, [f"{prefix}.o_proj"], [hidden], shape.num_heads * shape.value),
    )
