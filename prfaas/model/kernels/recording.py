"""Tells whether a piece of work is kernel calls only, and keeps the memory that they use.

Recorded calls know addresses. Repeating them stands for the work if torch did nothing in it but allocate and look at
memory in another shape: then every value comes from a recorded call. Knows nothing of what is computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from prfaas.model.kernels.native_library import NativeLibrary

_aten = torch.ops.aten
_ALLOCATIONS = (_aten.empty, _aten.empty_like, _aten.new_empty)
_SHAPES = (
    *(_aten.view, _aten.reshape, _aten.flatten, _aten.unflatten, _aten.transpose, _aten.unsqueeze, _aten.detach),
    *(_aten.split_with_sizes, _aten.chunk, _aten.unbind, _aten.select, _aten.slice),
)


class Observer(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch does not annotate it
    """While entered, sees every operation of torch on this thread.

    kept: all that was allocated. only_kernels: torch has computed, copied and read nothing.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kept: list[torch.Tensor] = []
        self.only_kernels = True

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Runs the operation as it is."""
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in _ALLOCATIONS:
            self.kept.append(result)
        elif func.overloadpacket not in _SHAPES or not _is_same_memory(args[0], result):
            self.only_kernels = False
        return result


def _is_same_memory(source: torch.Tensor, result: torch.Tensor | Sequence[torch.Tensor]) -> bool:
    """Operations on shapes copy where strides leave no other way."""
    address = source.untyped_storage().data_ptr()
    results = (result,) if isinstance(result, torch.Tensor) else result
    return all(part.untyped_storage().data_ptr() == address for part in results)


class Tape:
    """Recorded calls of a native library. `held`: what lives as long, the memory behind addresses and the pool's owner."""

    def __init__(self, library: NativeLibrary, pool: int, calls: int, held: Sequence[object]) -> None:
        self._library = library
        self._pool = pool
        self._calls = calls
        self._held = held

    def __call__(self) -> None:
        """Make all calls again."""
        self._library.replay(self._pool, self._calls)

    def __del__(self) -> None:
        self._library.forget(self._calls)
