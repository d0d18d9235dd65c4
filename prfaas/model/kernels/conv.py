"""Short causal depthwise convolution over the token axis, with its history.

Layout is token-major throughout, [tokens, channels], so that the history of K - 1 columns is a plain slice; the
oldest column comes first.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def convolve_chunk(x: torch.Tensor, history: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Convolve a chunk that continues `history`, then SiLU.

    x: [n, C]; history: [K-1, C] inputs before x; weight: [K, C], tap K-1 multiplies the current token.
    Returns output [n, C] and the new history [K-1, C].
    """
    taps = weight.shape[0]
    padded = torch.cat((history.to(x.dtype), x))
    out = padded[taps - 1 :] * weight[taps - 1]
    for tap in range(taps - 1):
        out.addcmul_(padded[tap : tap + x.shape[0]], weight[tap])
    return F.silu(out, inplace=True), padded[x.shape[0] :]


def convolve_step(x: torch.Tensor, history: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One token of N sequences. x: [N, C]; history: [N, K-1, C]; weight: [K, C]. Returns [N, C] and [N, K-1, C]."""
    padded = torch.cat((history.to(x.dtype), x.unsqueeze(1)), dim=1)
    return F.silu((padded * weight).sum(dim=1)), padded[:, 1:]
