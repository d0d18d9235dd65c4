"""Counter-based random draws: noise that is a pure function of (seed, sample, position, token), on any device.

A token is drawn by an exponential race: token t with probability p_t wins with the largest p_t / e_t, where e_t is a
unit exponential. This is the Gumbel-max trick without its second logarithm. As each token has noise of its own, a
change of the logits by a rounding error changes the outcome only in a near tie, whatever the vocabulary order.
The bits are SplitMix64's output function (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from prfaas.sched.plan import Draw

_WORD = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_BELOW_ONE = 1.0 - 2.0**-24  # the largest float32 below 1


def _mix_word(word: int) -> int:
    word = ((word ^ (word >> 30)) * _MIX_1) & _WORD
    word = ((word ^ (word >> 27)) * _MIX_2) & _WORD
    return word ^ (word >> 31)


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word


def draw_key(seed: int, index: int, position: int) -> int:
    """64 bits that stand for one draw of one sample of one request."""
    key = _mix_word((seed + _GOLDEN) & _WORD)
    key = _mix_word((key ^ index) + _GOLDEN & _WORD)
    return _mix_word((key ^ position) + _GOLDEN & _WORD)


def _mix_(words: torch.Tensor) -> torch.Tensor:
    """SplitMix64's finaliser in place, elementwise on int64; the masks make torch's shifts logical."""
    for shift, factor in ((30, _MIX_1), (27, _MIX_2)):
        words ^= (words >> shift).bitwise_and_((1 << (64 - shift)) - 1)
        words *= _signed(factor)
    words ^= (words >> 31).bitwise_and_((1 << 33) - 1)
    return words


class DrawNoise:
    """Unit exponentials for a vocabulary. Holds one table of mixed token ids; otherwise stateless."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        # One more than the vocabulary: the last is the noise of "any token that is not named".
        ids = torch.arange(1, vocab_size + 2, dtype=torch.int64, device=device)
        self._tokens = _mix_(ids * _signed(_GOLDEN))

    def exponentials(self, draws: Sequence[Draw], ids: torch.Tensor | None = None) -> torch.Tensor:
        """float32, each element a unit exponential, positive and finite.

        [len(draws), vocab], or for token ids [len(draws), n] the same numbers at these ids only.
        """
        tokens = self._tokens[:-1] if ids is None else self._tokens[ids]
        return self._exponentials(tokens, draws)

    def of_the_rest(self, draws: Sequence[Draw]) -> torch.Tensor:
        """float32 [len(draws)]: for each draw one more exponential, of no token."""
        return self._exponentials(self._tokens[-1:], draws)[:, 0]

    def _exponentials(self, tokens: torch.Tensor, draws: Sequence[Draw]) -> torch.Tensor:
        keys = [_signed(draw_key(d.params.seed, d.index, d.position)) for d in draws]
        words = tokens ^ torch.tensor(keys, dtype=torch.int64, device=tokens.device)[:, None]
        uniform = _mix_(words).bitwise_and_((1 << 63) - 1).to(torch.float32)
        # Converting to float keeps full relative precision near zero, where the race is decided.
        uniform.add_(0.5).mul_(2.0**-63).clamp_(max=_BELOW_ONE)
        return uniform.neg_().log1p_().neg_()
