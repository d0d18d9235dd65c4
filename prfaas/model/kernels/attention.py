"""Softmax attention for prefill chunks and decode batches, without anything quadratic in the context.

A prefill chunk attends to its past without a mask and to itself causally; the two halves are merged by their
log-sum-exp, so that both run in the flash kernel. Query heads that share a key head are folded into the rows of one
product (past) or broadcast by a zero stride (self), so that keys are never repeated in memory.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F

from prfaas.model.kernels.cuda_attention import attend_causal

_MASKED_QUERY_ROWS = 512  # rows per call where an explicit mask is needed; the mask is rows x (window or context)


def attend_prefill(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    past_key: torch.Tensor,
    past_value: torch.Tensor,
    scale: float,
    window_tokens: int | None = None,
) -> torch.Tensor:
    """Causal attention of one chunk that continues `past`.

    query: [n, Hq, d]; key: [n, Hk, d]; value: [n, Hk, dv]; past_key: [p, Hk, d]; past_value: [p, Hk, dv], the p
    positions right before the chunk. A query sees the last `window_tokens` positions, itself included.
    Returns [n, Hq, dv] in the query's dtype.
    """
    num_rows, num_past = query.shape[0], past_key.shape[0]
    windowed = window_tokens is not None and num_rows + num_past > window_tokens
    if windowed or query.device.type != "cpu":
        keys = torch.cat((past_key, key)) if num_past else key
        values = torch.cat((past_value, value)) if num_past else value
        return _attend_masked(query, keys, values, scale, window_tokens)
    return _attend_halves(query, key, value, past_key, past_value, scale)


def attend_prefill_parts(
    query: torch.Tensor,
    own: tuple[torch.Tensor, torch.Tensor],
    past: Iterable[tuple[torch.Tensor, torch.Tensor]],
    scale: float,
) -> torch.Tensor:
    """Like `attend_prefill` without a window, for a past that is produced piece by piece and never held whole.

    own and each piece: (key [L, H, d], value [L, H, dv]) with as many heads as the query. Returns [n, H, dv].
    """
    width = own[1].shape[-1]
    if query.device.type != "cpu":
        pieces = [*past, own]
        keys, values = (torch.cat([piece[i] for piece in pieces]) for i in (0, 1))
        return _attend_masked(query, keys, values, scale, None)
    heads_first = query.transpose(0, 1)[None]
    out, lse = flash_cpu(heads_first, own[0].transpose(0, 1)[None], own[1].transpose(0, 1)[None], scale, causal=True)
    for key, value in past:
        more, more_lse = flash_cpu(heads_first, key.transpose(0, 1)[None], value.transpose(0, 1)[None], scale, causal=False)
        out, lse = merge(out, lse, more, more_lse), torch.logaddexp(lse, more_lse)
    return out[0, ..., :width].transpose(0, 1)


def attend_decode(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor | None, scale: float
) -> torch.Tensor:
    """One query row per sequence. query: [N, Hq, d]; key: [N, L, Hk, d]; value: [N, L, Hk, dv]; bias: [N, 1, 1, L]
    added to the scores (0 or -inf) in the query's dtype. Returns [N, Hq, dv]."""
    num, heads, dim = query.shape
    folded = query.view(num, key.shape[2], heads // key.shape[2], dim)
    width = value.shape[-1]
    out = F.scaled_dot_product_attention(
        folded, key.transpose(1, 2), _padded(value, dim).transpose(1, 2), attn_mask=bias, scale=scale
    )
    return out[..., :width].reshape(num, heads, width)


def attend_latent(
    query: torch.Tensor, latent: torch.Tensor, bias: torch.Tensor | None, scale: float, value_width: int
) -> torch.Tensor:
    """Absorbed multi-head latent attention: keys are the latents, values their first `value_width` channels.

    query: [N, R, c] (R rows share one sequence's latents); latent: [N, L, c]; bias: broadcastable to [N, R, L].
    Returns [N, R, value_width]. Two plain products: with one key head the flash kernel has nothing to run in parallel.
    """
    scores = torch.bmm(query * scale, latent.transpose(1, 2))
    if bias is not None:
        scores = scores + bias
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(latent.dtype)
    return torch.bmm(weights, latent[..., :value_width])


def merge(out_a: torch.Tensor, lse_a: torch.Tensor, out_b: torch.Tensor, lse_b: torch.Tensor) -> torch.Tensor:
    """Combine attention over two disjoint key sets. out: [..., dv]; lse: [...] float32 log-sum-exp of the scores."""
    share = torch.sigmoid(lse_a - lse_b).unsqueeze(-1)
    return (out_b.float() + share * (out_a.float() - out_b.float())).to(out_a.dtype)


def flash_cpu(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, *, causal: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Flash attention with its log-sum-exp on the CPU. query: [B, H, n, d]; key: [B, H, L, d]; value: [B, H, L, dv]
    with dv <= d. Strides may be zero. Returns out [B, H, n, dv] and lse [B, H, n] float32."""
    width = value.shape[-1]
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, _padded(value, query.shape[-1]), 0.0, causal, attn_mask=None, scale=scale
    )
    return out[..., :width], lse


def _padded(value: torch.Tensor, width: int) -> torch.Tensor:
    """The flash kernel needs values as wide as keys; zero columns cost far less than the unfused path."""
    return value if value.shape[-1] == width else F.pad(value, (0, width - value.shape[-1]))


def _attend_halves(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    past_key: torch.Tensor,
    past_value: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    num_rows, heads, dim = query.shape
    kv_heads = key.shape[1]
    group = heads // kv_heads
    grouped = query.view(num_rows, kv_heads, group, dim).permute(1, 2, 0, 3)  # [Hk, g, n, d]
    own_key = key.transpose(0, 1).unsqueeze(1).expand(-1, group, -1, -1)
    own_value = _padded(value, dim).transpose(0, 1).unsqueeze(1).expand(-1, group, -1, -1)
    out, lse = flash_cpu(grouped, own_key, own_value, scale, causal=True)
    out = out[..., : value.shape[-1]]
    if past_key.shape[0]:
        folded = grouped.reshape(1, kv_heads, group * num_rows, dim)
        past_out, past_lse = flash_cpu(
            folded, past_key.transpose(0, 1)[None], past_value.transpose(0, 1)[None], scale, causal=False
        )
        out = merge(out, lse, past_out.view(kv_heads, group, num_rows, -1), past_lse.view(kv_heads, group, num_rows))
    return out.permute(2, 0, 1, 3).reshape(num_rows, heads, value.shape[-1])


def _attend_masked(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, window_tokens: int | None
) -> torch.Tensor:
    """Blocks of queries against the keys they may see; a window needs an explicit mask. key: [p + n, Hk, d]."""
    num_rows, heads, dim = query.shape
    kv_heads, width = key.shape[1], value.shape[-1]
    num_past = key.shape[0] - num_rows
    value = _padded(value, dim)
    if window_tokens is None:
        return attend_causal(query, key, value, scale)[..., :width]
    parts = []
    for start in range(0, num_rows, _MASKED_QUERY_ROWS):
        stop = min(start + _MASKED_QUERY_ROWS, num_rows)
        low = max(0, num_past + start - window_tokens + 1)
        rows = torch.arange(num_past + start, num_past + stop, device=query.device)[:, None]
        columns = torch.arange(low, num_past + stop, device=query.device)[None, :]
        seen = (columns <= rows) & (columns > rows - window_tokens)
        block = query[start:stop].view(stop - start, kv_heads, heads // kv_heads, dim).permute(1, 2, 0, 3)
        keys = key[low : num_past + stop].transpose(0, 1).unsqueeze(1).expand(-1, heads // kv_heads, -1, -1)
        values = value[low : num_past + stop].transpose(0, 1).unsqueeze(1).expand(-1, heads // kv_heads, -1, -1)
        out = F.scaled_dot_product_attention(block, keys, values, attn_mask=seen, scale=scale)
        parts.append(out[..., :width].permute(2, 0, 1, 3).reshape(stop - start, heads, width))
    return torch.cat(parts) if len(parts) > 1 else parts[0]
