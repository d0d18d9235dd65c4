"""Which implementation of the arithmetic a process uses."""

from __future__ import annotations

from pathlib import Path

from prfaas.model.kernels.kernel_set import Kernels
from prfaas.model.kernels.native_kernels import NativeKernels
from prfaas.model.kernels.native_library import open_library
from prfaas.model.kernels.torch_kernels import TorchKernels


def open_kernels(cache: Path, num_threads: int) -> Kernels:
    """The native kernels for CPU tensors, compiled into `cache` on first use, or torch's where they cannot be had."""
    library = open_library(cache)
    return TorchKernels() if library is None else NativeKernels(library, num_threads)
