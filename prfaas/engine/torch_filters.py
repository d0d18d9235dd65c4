"""Truncation of a distribution: top-k, top-p and min-p as one cutoff per row. Knows nothing of requests or noise."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from prfaas.types import SamplingParams

# Most nuclei that get here are smaller than this; a row whose nucleus is larger is sorted whole.
_NUCLEUS_GUESS = 4096


def truncate_(logits: torch.Tensor, params: Sequence[SamplingParams]) -> torch.Tensor:
    """Set everything outside each row's top-k, top-p and min-p sets to -inf, in place.

    logits: float32 [rows, vocab], already divided by the temperature. Top-p is the smallest set of most likely tokens
    whose probability, renormalised over the top-k set, reaches `top_p`; min-p keeps tokens at least `min_p` times as
    likely as the best. Tokens that tie with the last one kept are kept, so that no order is ever preferred.
    """
    for row, wanted in enumerate(params):
        if wanted.top_k or wanted.top_p < 1.0 or wanted.min_p > 0.0:
            values = logits[row]
            values.masked_fill_(values < _cutoff(values, wanted), -torch.inf)
    return logits


def _cutoff(values: torch.Tensor, wanted: SamplingParams) -> torch.Tensor:
    """The smallest logit that is kept, as a scalar tensor."""
    vocab = values.shape[0]
    cutoff = values.new_tensor(-torch.inf)
    best = values.max()
    if 0 < wanted.top_k < vocab:
        top = torch.topk(values, wanted.top_k).values
        cutoff = top[-1]
        if wanted.top_p < 1.0:
            cutoff = _nucleus_cutoff(top, top, wanted.top_p)
    elif wanted.top_p < 1.0:
        top = torch.topk(values, min(_NUCLEUS_GUESS, vocab)).values
        cutoff = _nucleus_cutoff(top, values, wanted.top_p)
    if wanted.min_p > 0.0:
        cutoff = torch.maximum(cutoff, best + torch.log(torch.tensor(wanted.min_p, device=values.device)))
    return cutoff


def _nucleus_cutoff(top: torch.Tensor, values: torch.Tensor, top_p: float) -> torch.Tensor:
    """Smallest logit of the nucleus of `values`; `top` holds its largest elements, descending.

    Sums are double precision, so that they do not depend on how a device splits the reduction.
    """
    best = top[0]
    target = (values - best).exp_().sum(dtype=torch.float64) * top_p
    reached = (top - best).exp_().cumsum(0, dtype=torch.float64)
    if bool(reached[-1] < target) and top.shape[0] < values.shape[0]:
        return _nucleus_cutoff(torch.sort(values, descending=True).values, values, top_p)
    size = torch.searchsorted(reached, target.reshape(1)).clamp_(max=top.shape[0] - 1)
    return top[size[0]]
