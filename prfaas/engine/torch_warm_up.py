"""Steps that nobody asked for, before the first that somebody does: kernels are compiled and tuned in them, decode steps of
every batch size are recorded, and memory that a full step takes is known to be there.

All of it happens in the spare block and the spare slot of each group, which no sequence owns.
"""

from __future__ import annotations

from prfaas.engine.torch_backend import TorchBackend
from prfaas.sched.plan import Draw, Row, StepPlan
from prfaas.types import SamplingParams

_GREEDY = SamplingParams(temperature=0.0)


def warm_up(backend: TorchBackend, *, max_step_tokens: int, max_running: int) -> None:
    """A full prefill step, and a decode step of each power of two of rows. Raises EngineFailed where the device cannot."""
    num_tokens = min(max_step_tokens, backend.spec.max_context_tokens - 1)
    backend.execute(StepPlan((_row(backend, 0, num_tokens, context_tokens=0),)), None)
    rows = 1
    while True:
        rows = min(rows, max_running)
        backend.execute(StepPlan(tuple(_row(backend, i, 1, context_tokens=1) for i in range(rows))), None)
        if rows == max_running:
            return
        rows *= 2


def _row(backend: TorchBackend, sequence_id: int, num_tokens: int, *, context_tokens: int) -> Row:
    cache, sizes = backend.spec.cache, backend.pool_sizes()
    blocks = -(-(context_tokens + num_tokens) // cache.block_tokens)
    return Row(
        sequence_id=sequence_id,
        tokens=(0,) * num_tokens,
        context_tokens=context_tokens,
        block_tables={g.name: (sizes[g.name].device,) * blocks for g in cache.groups if not g.is_state},
        state_slots={g.name: sizes[g.name].device for g in cache.groups if g.is_state},
        draws=(Draw(0, 0, _GREEDY, (), ()),),
    )
