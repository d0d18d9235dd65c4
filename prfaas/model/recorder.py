"""Recording a piece of device work once, to replay it from what lies in the same memory by then.

On an accelerator a replay is one launch instead of hundreds; on a CPU, which has nothing to launch, it is the work again.
Knows no network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

_WARM_UPS = 2  # kernels are chosen, compiled and tuned in the first runs, which a recording could not do


@dataclass(frozen=True, slots=True)
class Recording:
    """`replay` does the work again; the result always lies in `result`, until the next replay."""

    result: torch.Tensor
    replay: Callable[[], None]


class Recorder(Protocol):
    """Records work of the current thread. Everything that the work reads stays where it was while the recording lives."""

    def record(self, work: Callable[[], torch.Tensor]) -> Recording:
        """Run `work` a few times and record it. Raises RuntimeError where it does what cannot be recorded, such as asking
        the device for a number."""
        ...


class CallRecorder:
    """Replays by calling."""

    def record(self, work: Callable[[], torch.Tensor]) -> Recording:
        result = work()

        def replay() -> None:
            result.copy_(work())

        return Recording(result, replay)


class CudaRecorder:
    """CUDA graphs in one memory pool: their intermediate results share memory, as only one replays at a time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, work: Callable[[], torch.Tensor]) -> Recording:
        outside = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(outside)
        with torch.cuda.stream(self._stream):
            for _ in range(_WARM_UPS):
                work()
        outside.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads go on copying exports meanwhile; only this thread's calls are recorded, or forbidden.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            result = work()
        return Recording(result, graph.replay)
