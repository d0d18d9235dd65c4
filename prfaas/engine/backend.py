"""The port of a backend: the thing under an engine that holds cache memory and executes step plans.

`TorchBackend` computes; `EmulatedBackend` sleeps by a profile and makes tokens and KV bytes a function of the prefix;
the simulator's backend only prices. All scheduling and block accounting is above this port, in `core`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from prfaas.modelspec import DType, KvRange, ModelSpec
from prfaas.sched.plan import StepPlan, StepResult
from prfaas.sched.restore import CopyCost
from prfaas.types import SamplingParams


@dataclass(frozen=True, slots=True)
class PoolSize:
    """How many blocks and state slots a backend allocated for one group, per tier."""

    device: int
    host: int = 0


LayerHook = Callable[[int], None]  # model layer index, called when the layer's cache entries of this step are readable


class Backend(Protocol):
    """Executes plans. `execute` runs on the engine's thread, one call at a time; `read` and `write` may run beside it
    on other threads, for blocks that no running plan touches."""

    @property
    def spec(self) -> ModelSpec: ...

    def pool_sizes(self) -> Mapping[str, PoolSize]:
        """Group name -> blocks (FULL, SLIDING) or slots (STATE) that exist. Fixed for the backend's life."""
        ...

    def copy_cost(self) -> CopyCost:
        """What copies from host memory take, measured now. Asked once, before the first step."""
        ...

    def execute(self, plan: StepPlan, on_layer: LayerHook | None) -> StepResult:
        """Run one step. `on_layer` is given when some row wants it. Raises EngineFailed."""
        ...

    def read(self, wanted: KvRange, blocks: Sequence[int]) -> memoryview:
        """Canonical payload. `blocks`: for FULL and SLIDING groups the sequence's block table from its start (-1 where
        absent); for a STATE group a single slot. The memory belongs to the caller."""
        ...

    def write(self, landed: KvRange, blocks: Sequence[int], payload: memoryview, dtypes: Sequence[DType]) -> None:
        """Inverse of `read`; converts from `dtypes` to the resident ones. Raises ValueError on a wrong length."""
        ...

    def check(self, params: SamplingParams) -> None:
        """Raise InvalidRequest when this backend could not honour `params` (a grammar that does not compile, a biased
        token outside the vocabulary). Engines ask before they queue a request, from any thread."""
        ...

    def accept(self, sample_key: str, tokens: Sequence[int]) -> None:
        """Advance a sample's grammar by tokens that were drawn elsewhere (a landing's first token)."""
        ...

    def close(self) -> None:
        """Free device memory."""
        ...
