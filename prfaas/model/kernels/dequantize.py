"""Expanding quantised weights to a float dtype."""

from __future__ import annotations

import torch

_NIBBLES = 8  # 4-bit values in one int32, least significant first


def unpack_int4(packed: torch.Tensor) -> torch.Tensor:
    """int32 [..., n] to int8 [..., 8n] in [-8, 7]: nibble j of word w holds value 8w + j, offset by 8."""
    shifts = torch.arange(0, 4 * _NIBBLES, 4, dtype=torch.int32, device=packed.device)
    nibbles = (packed.unsqueeze(-1) >> shifts) & 0xF
    return (nibbles - 8).to(torch.int8).flatten(-2)


def expand_int4(packed: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Symmetric 4-bit groups along the input axis. packed: int32 [out, in / 8]; scale: [out, in / group]. Returns
    [out, in], multiplied in float32."""
    values = torch.unflatten(unpack_int4(packed).float(), -1, (scale.shape[-1], -1))
    return (values * scale.float().unsqueeze(-1)).flatten(-2).to(dtype)


def expand_fp8_blocks(weight: torch.Tensor, scale: torch.Tensor, block: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    """weight: float8 [out, in]; scale: float32 [ceil(out / block[0]), ceil(in / block[1])] that multiplies each block."""
    rows, columns = weight.shape
    wide = scale.float().repeat_interleave(block[0], 0)[:rows].repeat_interleave(block[1], 1)[:, :columns]
    return (weight.float() * wide).to(dtype)
