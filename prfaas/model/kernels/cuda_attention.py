"""Causal attention of a prefill chunk on an accelerator, in the flash kernel."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.nn.attention.bias import causal_lower_right


def attend_causal(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    """The last n of L positions against all before them and themselves.

    query: [n, Hq, d]; key, value: [L, Hk, d], values as wide as keys, Hq a multiple of Hk. Returns [n, Hq, d]. The mask is
    a property of the kernel and never lies in memory; heads that share a key read it through a zero stride.
    """
    num_rows, heads, dim = query.shape
    kv_heads = key.shape[1]
    group = heads // kv_heads
    grouped = query.view(num_rows, kv_heads, group, dim).permute(1, 2, 0, 3)
    keys, values = (x.transpose(0, 1).unsqueeze(1).expand(-1, group, -1, -1) for x in (key, value))
    bias = causal_lower_right(num_rows, key.shape[0])
    out = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=bias, scale=scale)
    return out.permute(2, 0, 1, 3).reshape(num_rows, heads, dim)
