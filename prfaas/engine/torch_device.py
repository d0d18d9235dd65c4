"""Which device and dtype an engine computes on, and how bytes get on and off that device.

Knows nothing of caches: it moves flat byte buffers. On a CPU staging is the identity; on CUDA it is pinned memory and
a stream of its own, so that an export overlaps the layers that are still computing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal, Protocol

import numpy as np
import torch

from prfaas.clock import Clock, MonotonicClock
from prfaas.errors import ConfigError


def pick_device(wanted: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """The device to compute on; "auto" is CUDA where there is one. Raises ConfigError for a CUDA that is not there."""
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise ConfigError("device = cuda, but this torch build sees no CUDA device; use device = auto or cpu")
    return torch.device("cuda" if available and wanted != "cpu" else "cpu")


def device_name(device: torch.device) -> str:
    """For people: "cpu", or the GPU's own name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def pick_dtype(wanted: Literal["auto", "float32", "bfloat16"], device: torch.device) -> torch.dtype:
    """The compute dtype; "auto" is bfloat16 on CUDA and on processors with AVX512-BF16, else float32."""
    if wanted == "float32":
        return torch.float32
    if wanted == "bfloat16" or device.type == "cuda":
        return torch.bfloat16
    return torch.bfloat16 if torch.cpu.get_capabilities().get("avx512_bf16", False) else torch.float32


class Stopwatch(Protocol):
    """Times a piece of the compute thread's work, on the device where there is one."""

    def stop(self) -> None:
        """The piece ends with what has been enqueued by now."""
        ...

    def elapsed_s(self) -> float:
        """Seconds it took; waits for its end."""
        ...


class Staging(Protocol):
    """Moves flat byte buffers between a device and the host. Every method may be called from any thread."""

    def stream(self) -> AbstractContextManager[object]:
        """Within it, device work of an export or import is enqueued, beside the compute stream but after every step that
        is over. Each call gives a context of its own: many threads may be inside at once."""
        ...

    def step_over(self) -> None:
        """Called on the compute thread when all of a step has been enqueued, the copies after it included. Whoever gets
        the step's blocks or slots next may use them in `stream()`."""
        ...

    def layer_written(self, layer: int) -> None:
        """Called on the compute thread when the work that writes this layer's cache has been enqueued."""
        ...

    def wait_for_layers(self, layers: tuple[int, ...]) -> None:
        """Inside `stream()`: order what follows after the last writes of these layers."""
        ...

    def to_host(self, buffer: torch.Tensor) -> memoryview:
        """Finish the stream's work and hand over the bytes of a uint8 device buffer."""
        ...

    def to_device(self, payload: torch.Tensor) -> torch.Tensor:
        """A uint8 device tensor with the bytes of a uint8 host tensor; may share its memory."""
        ...

    def finish(self) -> None:
        """Return when everything enqueued in `stream()` by this thread is done."""
        ...

    def stopwatch(self) -> Stopwatch:
        """One that starts with what the compute thread enqueues next."""
        ...


class CpuStaging:
    """Device memory is host memory: nothing is copied and nothing is awaited."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or MonotonicClock()

    def stream(self) -> AbstractContextManager[object]:
        return nullcontext()

    def step_over(self) -> None:
        pass

    def layer_written(self, layer: int) -> None:
        pass

    def wait_for_layers(self, layers: tuple[int, ...]) -> None:
        pass

    def to_host(self, buffer: torch.Tensor) -> memoryview:
        return buffer.numpy().data

    def to_device(self, payload: torch.Tensor) -> torch.Tensor:
        return payload

    def finish(self) -> None:
        pass

    def stopwatch(self) -> Stopwatch:
        return _ClockWatch(self._clock)


class _ClockWatch:
    """Nothing is enqueued on a CPU: work is over when its call returns."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._started_s = self._stopped_s = clock.now_s()

    def stop(self) -> None:
        self._stopped_s = self._clock.now_s()

    def elapsed_s(self) -> float:
        return self._stopped_s - self._started_s


class CudaStaging:
    """Pinned host memory and a side stream. An event per layer orders exports after that layer's compute only; one per
    step orders everything on the side stream after the steps before, whose snapshots and saves nobody waits for.

    Buffers that are let go of before their copies have run stay safe: the device's allocator hands memory out again in
    the order of the stream it was made on, which is the one that uses it, and the pinned allocator waits for the copies
    that it has seen.
    """

    def __init__(self, device: torch.device, num_layers: int) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._events = [torch.Event(device) for _ in range(num_layers)]
        self._step_over = torch.Event(device)

    @contextmanager
    def stream(self) -> Iterator[None]:
        with torch.cuda.stream(self._stream):
            self._step_over.wait(self._stream)
            yield

    def step_over(self) -> None:
        self._step_over.record(torch.accelerator.current_stream(self._device))

    def layer_written(self, layer: int) -> None:
        self._events[layer].record(torch.accelerator.current_stream(self._device))

    def wait_for_layers(self, layers: tuple[int, ...]) -> None:
        for layer in layers:
            self._events[layer].wait(self._stream)

    def to_host(self, buffer: torch.Tensor) -> memoryview:
        pinned = torch.empty(buffer.shape, dtype=buffer.dtype, pin_memory=True)
        pinned.copy_(buffer, non_blocking=True)
        self.finish()
        return pinned.numpy().data

    def to_device(self, payload: torch.Tensor) -> torch.Tensor:
        pinned = torch.empty(payload.shape, dtype=payload.dtype, pin_memory=True)
        pinned.copy_(payload)
        return pinned.to(self._device, non_blocking=True)

    def finish(self) -> None:
        done = torch.Event(self._device)
        done.record(self._stream)
        done.synchronize()

    def stopwatch(self) -> Stopwatch:
        return _EventWatch(self._device)


class _EventWatch:
    """Two events on the compute stream."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._events = [torch.Event(device, enable_timing=True) for _ in range(2)]
        self._events[0].record(torch.accelerator.current_stream(device))

    def stop(self) -> None:
        self._events[1].record(torch.accelerator.current_stream(self._device))

    def elapsed_s(self) -> float:
        started, stopped = self._events
        stopped.synchronize()
        return float(started.elapsed_time(stopped)) / 1000.0


def make_staging(device: torch.device, num_layers: int) -> Staging:
    """The staging that fits a device."""
    return CudaStaging(device, num_layers) if device.type == "cuda" else CpuStaging()


class _Borrowed:
    """An array interface over memory that somebody else owns and keeps alive."""

    def __init__(self, address: int, num_bytes: int) -> None:
        self.__array_interface__ = {"data": (address, False), "shape": (num_bytes,), "typestr": "|u1", "version": 3}


def borrow_bytes(payload: memoryview) -> torch.Tensor:
    """A uint8 tensor over `payload` without a copy; valid while `payload` is, and never to be written.

    torch has no read-only tensors and warns about read-only buffers, which is what a received message is.
    """
    flat = np.frombuffer(payload, dtype=np.uint8)
    if flat.size == 0:
        return torch.empty(0, dtype=torch.uint8)
    return torch.from_numpy(np.asarray(_Borrowed(flat.ctypes.data, flat.size)))
