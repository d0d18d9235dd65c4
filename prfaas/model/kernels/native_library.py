"""Builds and opens the C++ kernels: compiled once by the system's compiler, kept in a cache directory, called by ctypes.

Without a compiler, or on a processor without AVX512-BF16, there are no native kernels and plain torch is used.
"""

from __future__ import annotations

import ctypes
import hashlib
import platform
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

import torch

from prfaas.log import logger
from prfaas.model.kernels.kernel_set import DeltaRun, Kernels, TorchKernels
from prfaas.model.step import DecodeBatch

_FLAGS = ("-std=c++20", "-O3", "-march=native", "-fPIC", "-shared", "-pthread", "-w")
_COMPILE_TIMEOUT_S = 180
_MAX_ROWS = 16  # above this, torch's blocked matrix product wins

_P, _I, _F = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
_SIGNATURES: dict[str, tuple[type[ctypes.c_void_p] | type[ctypes.c_int64] | type[ctypes.c_float], ...]] = {
    "prfaas_pool_create": (_I,),
    "prfaas_pool_destroy": (_P,),
    "prfaas_linear": (_P, _P, _I, _P, _P, _P, _I, _I, _I),
    "prfaas_rms_norm": (_P, _P, _P, _I, _I, _F),
    "prfaas_silu_gate": (_P, _P, _I, _I),
    "prfaas_attend": (_P, _P, _P, _P, _P, _I, _P, _P, _I, _I, _I, _I, _I, _F),
    "prfaas_delta": (_P, _P, _P, _P, _P, _P, _P, _P, _P, _I, _I, _I, _I, _I),
}


class NativeKernels:
    """Implements `Kernels` for bfloat16 steps of few rows and for float32 recurrences on the CPU; the rest is torch's.

    One object serves one engine thread: its thread pool runs one kernel at a time.
    """

    def __init__(self, library: ctypes.CDLL, num_threads: int) -> None:
        self._torch = TorchKernels()
        bound = {name: library[name] for name in _SIGNATURES}
        for name, arguments in _SIGNATURES.items():
            bound[name].restype = _P if name == "prfaas_pool_create" else None
            bound[name].argtypes = arguments
        self._linear, self._rms_norm = bound["prfaas_linear"], bound["prfaas_rms_norm"]
        self._silu_gate, self._attend, self._delta = bound["prfaas_silu_gate"], bound["prfaas_attend"], bound["prfaas_delta"]
        self._destroy = bound["prfaas_pool_destroy"]
        self._pool = bound["prfaas_pool_create"](max(1, num_threads))

    def __del__(self) -> None:
        self._destroy(self._pool)

    def linear(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if x.dim() != 2 or x.shape[0] > _MAX_ROWS or not (_fits(x) and _fits(weight) and weight.is_contiguous()):
            return self._torch.linear(x, weight, bias)
        rows, depth = x.shape
        width = weight.shape[0]
        out = torch.empty(rows, width, dtype=torch.bfloat16)
        added = None if bias is None else bias.data_ptr()
        self._linear(self._pool, x.data_ptr(), x.stride(0), weight.data_ptr(), added, out.data_ptr(), rows, width, depth)
        return out

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        if x.shape[0] > _MAX_ROWS or not (_fits(x) and x.is_contiguous()):
            return self._torch.rms_norm(x, weight, eps)
        out = torch.empty_like(x)
        width = weight.shape[0]
        self._rms_norm(x.data_ptr(), weight.data_ptr(), out.data_ptr(), x.numel() // width, width, eps)
        return out

    def silu_gate(self, gate_up: torch.Tensor) -> torch.Tensor:
        if gate_up.shape[0] > _MAX_ROWS or not (_fits(gate_up) and gate_up.is_contiguous()):
            return self._torch.silu_gate(gate_up)
        rows, width = gate_up.shape[0], gate_up.shape[1] // 2
        out = torch.empty(rows, width, dtype=torch.bfloat16)
        self._silu_gate(gate_up.data_ptr(), out.data_ptr(), rows, width)
        return out

    def attend(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, batch: DecodeBatch, scale: float
    ) -> torch.Tensor:
        plain = _fits(query) and _fits(keys) and _fits(values) and keys.is_contiguous() and values.is_contiguous()
        if not plain or keys.shape != values.shape:
            return self._torch.attend(query, keys, values, batch, scale)
        packed = query.contiguous()
        num, heads, dim = packed.shape
        block_tokens, kv_heads = keys.shape[1:3]
        out = torch.empty_like(packed)
        self._attend(
            self._pool,
            packed.data_ptr(),
            keys.data_ptr(),
            values.data_ptr(),
            batch.blocks.data_ptr(),
            batch.blocks.shape[1],
            batch.edges.data_ptr(),
            out.data_ptr(),
            num,
            kv_heads,
            heads // kv_heads,
            dim,
            block_tokens,
            scale,
        )
        return out

    def delta(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        decay: torch.Tensor,
        beta: torch.Tensor,
        states: torch.Tensor,
        runs: Sequence[DeltaRun],
    ) -> torch.Tensor:
        if states.device.type != "cpu" or not states.is_contiguous():
            return self._torch.delta(query, key, value, decay, beta, states, runs)
        inputs = [x.contiguous() for x in (query, key, value, decay.exp(), beta)]
        plan = torch.tensor([(run.slot, run.start, run.stop) for run in runs], dtype=torch.int64)
        out = torch.empty_like(inputs[2])
        heads, key_dim, value_dim = states.shape[1:]
        self._delta(
            self._pool,
            *(x.data_ptr() for x in inputs),
            states.data_ptr(),
            out.data_ptr(),
            plan.data_ptr(),
            len(runs),
            heads,
            key_dim,
            value_dim,
            decay.shape[-1],
        )
        return out


def open_kernels(cache: Path, num_threads: int) -> Kernels:
    """The native kernels, compiled into `cache` on first use, or torch's where they cannot be had (which is logged)."""
    log = logger("prfaas.model.kernels")
    sources = _sources()
    text = b"".join(sources.values()) + " ".join(_FLAGS).encode() + _processor().encode()
    key = hashlib.sha256(text).hexdigest()[:16]
    target = cache / f"kernels-{key}.so"
    try:
        if not target.is_file():
            _compile(sources, target)
        library = ctypes.CDLL(str(target))
        if not library.prfaas_supported():
            log.info("native kernels are off: this processor has no AVX512-BF16")
            return TorchKernels()
    except (OSError, subprocess.SubprocessError) as error:
        log.info("native kernels are off: %s", _reason(error))
        return TorchKernels()
    return NativeKernels(library, num_threads)


def _sources() -> dict[str, bytes]:
    """File name to content of the C++ files beside this module."""
    folder = resources.files("prfaas.model.kernels.native")
    return {name: folder.joinpath(name).read_bytes() for name in ("kernels.cpp", "pool.h")}


def _compile(sources: Mapping[str, bytes], target: Path) -> None:
    """Into a temporary directory first: several workers may start at once."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        for name, content in sources.items():
            (Path(scratch) / name).write_bytes(content)
        built = Path(scratch) / "kernels.so"
        command = ["c++", *_FLAGS, "-o", str(built), str(Path(scratch) / "kernels.cpp")]
        subprocess.run(command, check=True, capture_output=True, timeout=_COMPILE_TIMEOUT_S)
        built.replace(target)


def _processor() -> str:
    """What -march=native depends on; a cache directory may be shared between machines."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    return next((line for line in text.splitlines() if line.startswith("flags")), platform.processor())


def _reason(error: OSError | subprocess.SubprocessError) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        return f"the compiler said {error.stderr.decode(errors='replace')[:500]}"
    return str(error)


def _fits(x: torch.Tensor) -> bool:
    return x.dtype == torch.bfloat16 and x.device.type == "cpu" and x.stride(-1) == 1
