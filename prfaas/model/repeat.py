"""Decode steps of few rows, recorded once for each number of rows and repeated from then on.

A step of one row reads every weight once, so what it costs beside that is mostly the calls. Recorded calls know
addresses: a frame holds the memory in which each such step finds its inputs. Knows no layer and no kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from prfaas.model.api import LayerCache
from prfaas.model.kernels.kernel_set import Kernels
from prfaas.model.layers.rope import Rotation
from prfaas.model.step import PagedAccess, StepContext

_MAX_ROWS = 8  # with more rows, products take so long that calls do not count
_MIN_BLOCKS = 64  # of a frame's block tables; a longer sequence gets a new frame of twice its length

Work = Callable[[torch.Tensor, StepContext], torch.Tensor]  # [T, hidden] through all layers


@dataclass(frozen=True, slots=True)
class _Frame:
    """The inputs' memory, where the cache lay, the result and what computes it."""

    x: torch.Tensor
    context: StepContext
    addresses: tuple[int, ...]
    result: torch.Tensor
    repeat: Callable[[], None]

    def fits(self, context: StepContext, addresses: tuple[int, ...]) -> bool:
        """Whether a step finds room here, and the same cache."""
        room = self.context.paged
        return addresses == self.addresses and all(
            access.table.shape[1] <= room[name].table.shape[1] for name, access in context.paged.items()
        )

    def step(self, x: torch.Tensor, context: StepContext) -> torch.Tensor:
        """A step of other rows at other positions."""
        self.x.copy_(x)
        for name, rotation in context.rotations.items():
            self.context.rotations[name].cos.copy_(rotation.cos)
            self.context.rotations[name].sin.copy_(rotation.sin)
        for name, access in context.paged.items():
            mine = self.context.paged[name]
            mine.write_slots.copy_(access.write_slots)
            mine.table[:, : access.table.shape[1]].copy_(access.table)
            mine.runs.copy_(access.runs)
        self.repeat()
        return self.result


class RepeatedSteps:
    """The frames of one network, by number of rows. Serves one thread, as kernels do."""

    def __init__(self) -> None:
        self._frames: dict[int, _Frame] = {}
        self._possible = True

    def run(
        self, kernels: Kernels, x: torch.Tensor, context: StepContext, cache: Sequence[LayerCache], work: Work
    ) -> torch.Tensor | None:
        """The result of `work`, valid until the next step; None, and nothing done, for a step that is not repeated.

        x: [T, hidden]. `work` must depend on nothing but its arguments, the weights and the cache.
        """
        if not (self._possible and _is_repeatable(context)):
            return None
        addresses = tuple(tensor.data_ptr() for layer in cache for tensor in layer.values())
        frame = self._frames.get(context.num_rows)
        if frame is not None and frame.fits(context, addresses):
            return frame.step(x, context)
        mine, held = x.clone(), _held(context)
        recorded = kernels.record(lambda: work(mine, held))
        if recorded.repeat is None:
            self._possible = False
        else:
            self._frames[context.num_rows] = _Frame(mine, held, addresses, recorded.result, recorded.repeat)
        return recorded.result


def _is_repeatable(context: StepContext) -> bool:
    """States are found by numbers that change from step to step, which recorded calls cannot follow."""
    written = all(access.write_rows is None for access in context.paged.values())
    return context.all_decode and context.num_rows <= _MAX_ROWS and not context.states and written


def _held(context: StepContext) -> StepContext:
    """A copy in memory of its own, with room for sequences to grow."""
    rotations = {name: Rotation(r.cos.clone(), r.sin.clone(), r.interleaved) for name, r in context.rotations.items()}
    return replace(context, rotations=rotations, paged={name: _held_access(a) for name, a in context.paged.items()})


def _held_access(access: PagedAccess) -> PagedAccess:
    rows, width = access.table.shape
    table = access.table.new_full((rows, max(_MIN_BLOCKS, 2 * width)), -1)
    table[:, :width] = access.table
    return replace(access, write_slots=access.write_slots.clone(), table=table, runs=access.runs.clone())
