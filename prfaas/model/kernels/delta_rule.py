"""The gated delta rule, one token at a time and in chunks. State S: [H, dk, dv] float32.

Per token: S <- e^g S; u = beta (v - S^T k); S <- S + k u^T; o = S^T q. With g per channel this is Kimi Delta Attention
("Kimi Linear", arXiv:2510.26692, section 3), with g per head the gated DeltaNet ("Gated Delta Networks",
arXiv:2412.06464). The chunked form solves the triangular system of section 3.2 for 64 tokens at once.

Decay ratios e^(G_i - G_j) are never split into e^(G_i) e^(-G_j) over a whole chunk, which overflows: rows of a
sub-block are measured from the decay just before it, where both exponents are at most zero, and inside a sub-block
the ratios are formed element by element.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

CHUNK_TOKENS = 64
_SUB_TOKENS = 16
_HEADS_AT_ONCE = 8  # more would push the intermediates of a long chunk out of the cache
_TOKENS_AT_ONCE = 1024


@dataclass(frozen=True, slots=True)
class DeltaRows:
    """What the rule consumes, all float32. query, key: [T, H, dk]; value: [T, H, dv]; decay: log decay [T, H, dk] or
    [T, H, 1]; beta: [T, H]."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    decay: torch.Tensor
    beta: torch.Tensor

    def part(self, tokens: slice, heads: slice = slice(None)) -> DeltaRows:
        """Some rows of some heads, as views."""
        at = tokens, heads
        return DeltaRows(self.query[at], self.key[at], self.value[at], self.decay[at], self.beta[at])


def delta_step(rows: DeltaRows, state: torch.Tensor) -> torch.Tensor:
    """One token of N sequences, a row for each; `state` [N, H, dk, dv] is updated in place. Returns [N, H, dv]."""
    state.mul_(rows.decay.exp().unsqueeze(-1))
    recalled = torch.matmul(rows.key.unsqueeze(-2), state).squeeze(-2)
    update = (rows.value - recalled) * rows.beta.unsqueeze(-1)
    state.addcmul_(rows.key.unsqueeze(-1), update.unsqueeze(-2))
    return torch.matmul(rows.query.unsqueeze(-2), state).squeeze(-2)


def delta_chunks(rows: DeltaRows, state: torch.Tensor) -> torch.Tensor:
    """A run of tokens of one sequence; `state` [H, dk, dv] is updated in place.

    Returns [T, H, dv]. Memory is bounded: heads and tokens are processed in groups.
    """
    tokens, heads = rows.key.shape[:2]
    out = torch.empty_like(rows.value)
    for low in range(0, heads, _HEADS_AT_ONCE):
        h = slice(low, min(low + _HEADS_AT_ONCE, heads))
        for start in range(0, tokens, _TOKENS_AT_ONCE):
            t = slice(start, min(start + _TOKENS_AT_ONCE, tokens))
            out[t, h] = _run(rows.part(t, h), state[h])
    return out


def _run(rows: DeltaRows, state: torch.Tensor) -> torch.Tensor:
    """`delta_chunks` for one group of heads and tokens."""
    tokens = rows.key.shape[0]
    q, k, v = _chunked(rows.query), _chunked(rows.key), _chunked(rows.value)
    total = _chunked(rows.decay).cumsum(dim=2)  # G, inclusive: [H, N, C, dk or 1]
    b = _chunked(rows.beta.unsqueeze(-1))
    pairs = _head_pairs(q, k, total) if total.shape[-1] == 1 else _channel_pairs(q, k, total)
    key_key, query_key = pairs
    grown = total.exp()
    system = torch.eye(CHUNK_TOKENS, dtype=k.dtype, device=k.device) + b * key_key
    right = torch.cat((v, k * grown), dim=-1) * b
    solved = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
    from_value, from_state = solved.split_with_sizes((v.shape[-1], k.shape[-1]), dim=-1)
    query_grown = q * grown
    last = total[:, :, -1:]
    key_left = (k * (last - total).exp()).transpose(-1, -2)
    shrink = last.exp().transpose(-1, -2)  # [H, N, dk or 1, 1]
    outs = []
    for n in range(k.shape[1]):
        update = torch.baddbmm(from_value[:, n], from_state[:, n], state, alpha=-1)
        outs.append(torch.baddbmm(torch.bmm(query_grown[:, n], state), query_key[:, n], update))
        state.mul_(shrink[:, n]).baddbmm_(key_left[:, n], update)
    return torch.stack(outs, dim=1).flatten(1, 2)[:, :tokens].transpose(0, 1)


def _chunked(x: torch.Tensor) -> torch.Tensor:
    """[T, H, d] to contiguous [H, N, C, d], padded with zeros (a zero key with zero decay leaves the state alone)."""
    tokens, heads, width = x.shape
    chunks = -(-tokens // CHUNK_TOKENS)
    padded = x.new_zeros(heads, chunks * CHUNK_TOKENS, width)
    padded[:, :tokens] = x.transpose(0, 1)
    return padded.view(heads, chunks, CHUNK_TOKENS, width)


def _head_pairs(q: torch.Tensor, k: torch.Tensor, total: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Decayed key-key (strictly lower) and query-key (lower) products with one decay per head. [H, N, C, C] each."""
    ratio = (total - total.transpose(-1, -2)).tril().exp()
    transposed = k.transpose(-1, -2)
    return (k @ transposed * ratio).tril(-1), (q @ transposed * ratio).tril()


def _channel_pairs(q: torch.Tensor, k: torch.Tensor, total: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same with one decay per channel, sub-block by sub-block."""
    heads, chunks, size, _ = k.shape
    both = torch.stack((k, q), dim=2)  # [H, N, 2, C, dk]
    pairs = k.new_zeros(heads, chunks, 2, size, size)
    for low in range(0, size, _SUB_TOKENS):
        rows = slice(low, low + _SUB_TOKENS)
        own = both[..., rows, :]
        if low:
            before = total[:, :, low - 1 : low]
            left = (own * (total[:, :, rows] - before).exp().unsqueeze(2)).flatten(2, 3)
            right = k[:, :, :low] * (before - total[:, :, :low]).exp()
            pairs[..., rows, :low] = torch.unflatten(left @ right.transpose(-1, -2), 2, (2, _SUB_TOKENS))
        for j in range(low, low + _SUB_TOKENS):
            ratio = (total[:, :, j : low + _SUB_TOKENS] - total[:, :, j : j + 1]).exp() * k[:, :, j : j + 1]
            pairs[..., j : low + _SUB_TOKENS, j] = (both[..., j : low + _SUB_TOKENS, :] * ratio.unsqueeze(2)).sum(-1)
    return pairs[:, :, 0].tril(-1), pairs[:, :, 1]
