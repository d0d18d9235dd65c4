"""Rotary position embeddings: frequencies, and rotating the first channels of each head.

Two pairings exist in checkpoints: half-split (channel i with i + r/2) and interleaved (2i with 2i + 1). Both are
returned in half-split order; inner products do not change as long as queries and keys agree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from prfaas.errors import ModelLoadError
from prfaas.model.config_reader import ConfigReader


@dataclass(frozen=True, slots=True)
class Rotation:
    """Angles of one step's rows: cos and sin [T, 1, r/2] in the compute dtype."""

    cos: torch.Tensor
    sin: torch.Tensor
    interleaved: bool

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Rotate the first r channels of x [T, H, d]; the others pass."""
        half = self.cos.shape[-1]
        turned, rest = x[..., : 2 * half], x[..., 2 * half :]
        if self.interleaved:
            first, second = turned[..., 0::2], turned[..., 1::2]
        else:
            first, second = turned[..., :half], turned[..., half:]
        parts = (first * self.cos - second * self.sin, second * self.cos + first * self.sin, rest)
        return torch.cat(parts if rest.shape[-1] else parts[:2], dim=-1)


@dataclass(frozen=True, slots=True)
class Rope:
    """frequencies: float32 [r/2] radians per position; magnitude multiplies cos and sin."""

    frequencies: torch.Tensor
    interleaved: bool = False
    magnitude: float = 1.0

    def rotation(self, positions: torch.Tensor, dtype: torch.dtype) -> Rotation:
        """positions: int64 [T]."""
        angles = (positions.float().unsqueeze(-1) * self.frequencies).unsqueeze(1)
        return Rotation((angles.cos() * self.magnitude).to(dtype), (angles.sin() * self.magnitude).to(dtype), self.interleaved)


@dataclass(frozen=True, slots=True)
class Frequencies:
    """values: float32 [r/2]; magnitude multiplies cos and sin."""

    values: torch.Tensor
    magnitude: float


def read_frequencies(
    config: ConfigReader, rotated_channels: int, device: torch.device, *, scaling: ConfigReader | None = None
) -> Frequencies:
    """Rope frequencies of a configuration, in the old (rope_theta, rope_scaling) or new (rope_parameters) spelling.

    scaling: overrides where the parameters are looked up. Kinds: default, linear, llama3 (Llama 3.1), yarn
    (arXiv:2309.00071). Raises ModelLoadError for another kind.
    """
    found = scaling or config.section("rope_parameters", "rope_scaling", required=False)
    theta = found.number("rope_theta", default=config.number("rope_theta", default=10000.0))
    exponents = torch.arange(0, rotated_channels, 2, dtype=torch.float32) / rotated_channels
    plain = theta**-exponents
    kind = found.text("rope_type", "type", default="default")
    if kind == "default":
        return Frequencies(plain.to(device), 1.0)
    if kind == "linear":
        return Frequencies((plain / found.number("factor")).to(device), 1.0)
    if kind == "llama3":
        return Frequencies(_llama3(plain, found).to(device), 1.0)
    if kind == "yarn":
        return Frequencies(_yarn(plain, found, config, rotated_channels, theta).to(device), yarn_magnitude(found))
    raise ModelLoadError(f"rope type {kind!r} is not supported", key="rope_type")


def _llama3(plain: torch.Tensor, found: ConfigReader) -> torch.Tensor:
    """Slow channels are divided by the factor, fast ones kept, with a linear ramp between."""
    factor, old = found.number("factor"), found.number("original_max_position_embeddings")
    low, high = found.number("low_freq_factor"), found.number("high_freq_factor")
    turns = old * plain / (2 * math.pi)
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return plain * keep + plain / factor * (1 - keep)


def _yarn(plain: torch.Tensor, found: ConfigReader, config: ConfigReader, channels: int, theta: float) -> torch.Tensor:
    """Channels with fewer than beta_slow turns over the old context are divided by the factor, those with more than
    beta_fast are kept, with a ramp over the channel index between (arXiv:2309.00071, section 3.2)."""
    old = found.integer("original_max_position_embeddings", default=config.integer("max_position_embeddings", default=4096))

    def channel(turns: float) -> float:
        return channels * math.log(old / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = channel(found.number("beta_fast", default=32.0)), channel(found.number("beta_slow", default=1.0))
    if found.boolean("truncate", default=True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, channels - 1)
    ramp = ((torch.arange(channels // 2, dtype=torch.float32) - low) / max(high - low, 0.001)).clamp(0, 1)
    return plain * (1 - ramp) + plain / found.number("factor") * ramp


def yarn_mscale(factor: float, mscale: float) -> float:
    """0.1 mscale ln(factor) + 1, DeepSeek's form of yarn's attention temperature."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def yarn_magnitude(found: ConfigReader) -> float:
    """What multiplies cos and sin: an explicit attention_factor, mscale / mscale_all_dim, or the default temperature."""
    factor = found.number("factor")
    if found.has("attention_factor"):
        return found.number("attention_factor")
    if found.has("mscale") and found.has("mscale_all_dim"):
        return yarn_mscale(factor, found.number("mscale")) / yarn_mscale(factor, found.number("mscale_all_dim"))
    return yarn_mscale(factor, 1.0)
