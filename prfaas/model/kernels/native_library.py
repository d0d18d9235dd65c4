"""Builds and opens the C++ kernels: compiled once by the system's compiler, kept in a cache directory, called by ctypes.

Without a compiler, or on a processor without AVX512-BF16, there is no native library. Knows addresses, not tensors.
"""

from __future__ import annotations

import ctypes
import hashlib
import platform
import subprocess
import tempfile
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from prfaas.log import logger

_FLAGS = ("-std=c++20", "-O3", "-march=native", "-fPIC", "-shared", "-pthread", "-w")
_COMPILE_TIMEOUT_S = 180
_SOURCES = ("kernels.cpp", "attention.h", "delta.h", "gemm.h", "pool.h", "rows.h", "simd.h")

_P, _I, _F = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float

CType = type[ctypes.c_void_p] | type[ctypes.c_int64] | type[ctypes.c_float]
EntryPoint = Any  # a ctypes function pointer: no public type says what it takes


class NativeLibrary:
    """The entry points of kernels.cpp, which documents their arguments; addresses are ints, or None for null."""

    def __init__(self, library: ctypes.CDLL) -> None:
        def bind(name: str, *arguments: CType, result: CType | None = None) -> EntryPoint:
            function: EntryPoint = library[f"prfaas_{name}"]
            function.restype, function.argtypes = result, arguments
            return function

        self.pool_create = bind("pool_create", _I, result=_P)
        self.pool_destroy = bind("pool_destroy", _P)
        self.record_begin = bind("record_begin", _P)
        self.record_end = bind("record_end", _P, result=_P)
        self.replay = bind("replay", _P, _P)
        self.forget = bind("forget", _P)
        self.settle = bind("settle", _P, _I)
        self.linear = bind("linear", _P, _P, _I, _P, _P, _P, _I, _I, _I)
        self.linear_float = bind("linear_float", _P, _P, _I, _P, _P, _P, _I, _I, _I)
        self.norm = bind("norm", _P, _P, _P, _P, _P, _P, _I, _I, _F)
        self.gated_mlp = bind("gated_mlp", _P, _P, _I, _P, _P, _P, _I, _I, _I)
        self.store = bind("store", _P, _P, _I, _P, _P, _I, _I)
        rotated = (_P, _I, _P, _I, _P, _I, _P, _P, _I, _P, _I)  # queries, keys, values, angles and slots of the rows
        paged = (_P, _I, _P, _I, _P)  # tables, runs and results
        self.attend = bind("attend", _P, *rotated, _P, _P, *paged, *(_I,) * 6, _F)
        self.attend_latent = bind("attend_latent", _P, _P, _P, *paged, *(_I,) * 4, _F)
        self.delta = bind("delta", *(_P,) * 9, *(_I,) * 5)


def open_library(cache: Path) -> NativeLibrary | None:
    """The library, compiled into `cache` on first use; None where it cannot be had, which is logged."""
    log = logger("prfaas.model.kernels")
    sources = _sources()
    text = b"".join(sources.values()) + " ".join(_FLAGS).encode() + _processor().encode()
    target = cache / f"kernels-{hashlib.sha256(text).hexdigest()[:16]}.so"
    try:
        if not target.is_file():
            _compile(sources, target)
        library = ctypes.CDLL(str(target))
        if not library.prfaas_supported():
            log.info("native kernels are off: this processor has no AVX512-BF16")
            return None
    except (OSError, subprocess.SubprocessError) as error:
        log.info("native kernels are off: %s", _reason(error))
        return None
    return NativeLibrary(library)


def _sources() -> dict[str, bytes]:
    """File name to content of the C++ files beside this module."""
    folder = resources.files("prfaas.model.kernels.native")
    return {name: folder.joinpath(name).read_bytes() for name in _SOURCES}


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
