"""Multi-head latent attention ("DeepSeek-V2", arXiv:2405.04434, section 2.1) over a paged cache of latents.

Decodes run absorbed: queries are carried into the latent space, so a step reads the latents once for all heads.
Prefill chunks expand the latents into keys and values, which is cheaper when many queries share the expansion; a long
past is expanded piece by piece.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from prfaas.model.api import LayerCache
from prfaas.model.kernels.attention import attend_prefill_parts
from prfaas.model.layers.linear import Linear
from prfaas.model.layers.norm import RmsNorm
from prfaas.model.step import PagedAccess, PrefillSpan, StepContext

_EXPAND_TOKENS = 2048  # latents expanded at once: bounds memory at 2048 x heads x (nope + rope + value)


@dataclass(frozen=True, slots=True)
class LatentShape:
    """Heads and widths: `rank` of the compressed part, `rope` of the shared key part, `nope` and `value` per head."""

    num_heads: int
    rank: int
    nope: int
    rope: int
    value: int

    @property
    def query(self) -> int:
        return self.nope + self.rope

    @property
    def latent(self) -> int:
        return self.rank + self.rope


@dataclass(frozen=True, slots=True)
class LatentAttention:
    """Cache tensor "latent" [rank + rope]: the normalised compressed part, then the shared key part after rotation.

    rope: name of the step's rotation, None for layers without positions. query_down and query_norm are set when
    queries are compressed too. expand: kv_b_proj, [heads * (nope + value), rank], keys before values in each head.
    """

    group: str
    rope: str | None
    shape: LatentShape
    scale: float
    query_down: Linear | None
    query_norm: RmsNorm | None
    query_up: Linear
    latent_down: Linear
    latent_norm: RmsNorm
    expand: Linear
    out: Linear

    def __call__(self, x: torch.Tensor, step: StepContext, cache: LayerCache) -> torch.Tensor:
        """x: [T, hidden] to [T, hidden]."""
        query = self._query(x, step)
        latent = self._latent(x, step)
        access = step.paged[self.group]
        self.out.kernels.store(latent, cache["latent"], access)
        return self.out(self._attend(query, latent, access, cache["latent"]).flatten(1))

    def _query(self, x: torch.Tensor, step: StepContext) -> torch.Tensor:
        if self.query_down is not None:
            x = self.query_down(x)
        if self.query_norm is not None:
            x = self.query_norm(x)
        query = torch.unflatten(self.query_up(x), 1, (self.shape.num_heads, -1))
        if self.rope is None:
            return query
        nope, rope = query.split_with_sizes((self.shape.nope, self.shape.rope), dim=-1)
        return torch.cat((nope, step.rotations[self.rope](rope)), dim=-1)

    def _latent(self, x: torch.Tensor, step: StepContext) -> torch.Tensor:
        compressed, rope = self.latent_down(x).split_with_sizes((self.shape.rank, self.shape.rope), dim=-1)
        if self.rope is not None:
            rope = step.rotations[self.rope](rope.unsqueeze(1)).squeeze(1)
        return torch.cat((self.latent_norm(compressed), rope), dim=-1)

    def _attend(self, query: torch.Tensor, latent: torch.Tensor, access: PagedAccess, paged: torch.Tensor) -> torch.Tensor:
        if not access.prefills:
            return self._decode(query, access, paged)
        mixed = query.new_empty(query.shape[0], self.shape.num_heads, self.shape.value)
        if access.decode_rows:
            alone = torch.tensor(access.decode_rows, device=query.device)
            mixed[alone] = self._decode(query[alone], access.decoding, paged)
        for span in access.prefills:
            rows = slice(span.start, span.stop)
            mixed[rows] = self._prefill(query[rows], latent[rows], span, paged)
        return mixed

    def _decode(self, query: torch.Tensor, access: PagedAccess, paged: torch.Tensor) -> torch.Tensor:
        """query: [N, H, nope + rope], a row for each segment of `access`, to [N, H, value]."""
        shape = self.shape
        per_head = self.expand.weight.view(shape.num_heads, shape.nope + shape.value, shape.rank)
        nope, rope = query.split_with_sizes((shape.nope, shape.rope), dim=-1)
        absorbed = torch.bmm(nope.transpose(0, 1), per_head[:, : shape.nope]).transpose(0, 1)
        latent_query = torch.cat((absorbed, rope), dim=-1)
        mixed = self.out.kernels.attend_latent(latent_query, paged, access, self.scale, shape.rank)
        # The weights as they lie come first: transposed, few rows take a CPU several times as long.
        return torch.bmm(per_head[:, shape.nope :], mixed.permute(1, 2, 0)).permute(2, 0, 1)

    def _prefill(self, query: torch.Tensor, latent: torch.Tensor, span: PrefillSpan, paged: torch.Tensor) -> torch.Tensor:
        """query: [n, H, nope + rope], latent: [n, rank + rope] of the same rows, to [n, H, value]."""
        past = span.read_past(paged)
        pieces = (self._expand(past[i : i + _EXPAND_TOKENS]) for i in range(0, past.shape[0], _EXPAND_TOKENS))
        return attend_prefill_parts(query, self._expand(latent), pieces, self.scale)

    def _expand(self, latent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents [L, rank + rope] to keys [L, H, nope + rope] and values [L, H, value]."""
        shape = self.shape
        both = torch.unflatten(self.expand(latent[:, : shape.rank]), 1, (shape.num_heads, -1))
        shared = latent[:, None, shape.rank :].expand(-1, shape.num_heads, -1)
        return torch.cat((both[..., : shape.nope], shared), dim=-1), both[..., shape.nope :]
