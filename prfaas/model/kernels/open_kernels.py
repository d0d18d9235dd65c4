"""Which implementation of the arithmetic a process uses."""

from __future__ import annotations

from pathlib import Path

import torch

from prfaas.model.kernels.cuda_delta import FusedDelta, open_delta_ops
from prfaas.model.kernels.cuda_kernels import CudaKernels
from prfaas.model.kernels.kernel_set import Kernels
from prfaas.model.kernels.native_kernels import NativeKernels
from prfaas.model.kernels.native_library import open_library
from prfaas.model.kernels.torch_kernels import TorchKernels


def open_kernels(cache: Path, num_threads: int) -> Kernels:
    """The native kernels for CPU tensors, compiled into `cache` on first use, or torch's where they cannot be had."""
    library = open_library(cache)
    return TorchKernels() if library is None else NativeKernels(library, num_threads)


def open_cuda_kernels(dtype: torch.dtype) -> Kernels:
    """The kernels for an accelerator and a compute dtype. The delta rule is torch's where its package cannot be imported,
    and in float32, which the package's products would round."""
    ops = open_delta_ops() if dtype == torch.bfloat16 else None
    return CudaKernels(None if ops is None else FusedDelta(ops, dtype))
