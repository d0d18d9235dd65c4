"""The C++ kernels behind the port, for bfloat16 layers and float32 recurrences on a CPU; what they cannot do is torch's."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from prfaas.model.kernels.delta_rule import DeltaRows
from prfaas.model.kernels.kernel_set import DeltaRun, PagedAttention
from prfaas.model.kernels.native_library import EntryPoint, NativeLibrary
from prfaas.model.kernels.torch_kernels import TorchKernels
from prfaas.model.layers.rope import Rotation
from prfaas.model.step import PagedAccess


class NativeKernels:
    """Implements `Kernels`. One object serves one engine thread: its thread pool runs one kernel at a time."""

    def __init__(self, library: NativeLibrary, num_threads: int) -> None:
        self._torch = TorchKernels()
        self._library = library
        self._pool = library.pool_create(max(1, num_threads))

    def __del__(self) -> None:
        self._library.pool_destroy(self._pool)

    def linear(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if x.dim() != 2 or not (_rows(x) and _packed(weight)):
            return self._torch.linear(x, weight, bias)
        out = torch.empty(x.shape[0], weight.shape[0], dtype=torch.bfloat16)
        self._product(self._library.linear, x, weight, bias, out)
        return out

    def logits(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if not (_rows(x) and _packed(weight)):
            return self._torch.logits(x, weight, bias)
        out = torch.empty(x.shape[0], weight.shape[0], dtype=torch.float32)
        self._product(self._library.linear_float, x, weight, bias, out)
        return out

    def _product(
        self, entry: EntryPoint, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor
    ) -> None:
        added = None if bias is None else bias.data_ptr()
        stride = x.stride(0)
        entry(self._pool, x.data_ptr(), stride, weight.data_ptr(), added, out.data_ptr(), *out.shape, x.shape[1])

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        if not _packed(x):
            return self._torch.rms_norm(x, weight, eps)
        out = torch.empty_like(x)
        width = weight.shape[0]
        rows = x.numel() // width
        self._library.norm(self._pool, x.data_ptr(), None, None, weight.data_ptr(), out.data_ptr(), rows, width, eps)
        return out

    def add_norm(
        self, x: torch.Tensor, more: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not (_packed(x) and _packed(more)):
            return self._torch.add_norm(x, more, weight, eps)
        total, normed = torch.empty_like(x), torch.empty_like(x)
        self._library.norm(
            self._pool,
            x.data_ptr(),
            more.data_ptr(),
            total.data_ptr(),
            weight.data_ptr(),
            normed.data_ptr(),
            *x.shape,
            eps,
        )
        return total, normed

    def silu_gate(self, gate_up: torch.Tensor) -> torch.Tensor:
        if not _packed(gate_up):
            return self._torch.silu_gate(gate_up)
        rows, width = gate_up.shape[0], gate_up.shape[1] // 2
        out = torch.empty(rows, width, dtype=torch.bfloat16)
        self._library.silu_gate(self._pool, gate_up.data_ptr(), out.data_ptr(), rows, width)
        return out

    def rotate(self, x: torch.Tensor, rotation: Rotation) -> torch.Tensor:
        rows, heads, dim = x.shape
        if rotation.interleaved or x.dtype != torch.bfloat16 or x.stride()[1:] != (dim, 1):
            return self._torch.rotate(x, rotation)
        out = torch.empty(rows, heads, dim, dtype=torch.bfloat16)
        cos, sin = rotation.cos, rotation.sin
        self._library.rotate(
            self._pool,
            x.data_ptr(),
            x.stride(0),
            cos.data_ptr(),
            sin.data_ptr(),
            out.data_ptr(),
            rows,
            heads,
            cos.shape[-1],
            dim,
        )
        return out

    def store(self, fresh: torch.Tensor, paged: torch.Tensor, access: PagedAccess) -> None:
        strides = paged.stride()
        if access.write_rows is not None or fresh.dtype != paged.dtype or fresh.stride()[1:] != strides[2:]:
            self._torch.store(fresh, paged, access)
            return
        size = paged.element_size()
        stride, width = fresh.stride(0) * size, strides[1] * size
        self._library.store(fresh.data_ptr(), stride, access.write_slots.data_ptr(), paged.data_ptr(), fresh.shape[0], width)

    def attend(self, call: PagedAttention) -> torch.Tensor:
        query, keys, values = call.query, call.keys, call.values
        rows, heads, dim = query.shape
        kv_heads, width = values.shape[2:]
        seen = call.access.write_rows is None  # every row's own entry is in the cache
        if not seen or dim % 2 or query.stride()[1:] != (dim, 1) or not (_packed(keys) and _packed(values) and _rows(query)):
            return self._torch.attend(call)
        out = torch.empty(rows, heads, width, dtype=torch.bfloat16)
        self._attend(query, keys, values, call.access, out, kv_heads, call.window_tokens or 0, call.scale)
        return out

    def attend_latent(
        self, query: torch.Tensor, latents: torch.Tensor, access: PagedAccess, scale: float, value_width: int
    ) -> torch.Tensor:
        rows, heads, dim = query.shape
        if dim % 2 or not (_packed(query) and _packed(latents)):
            return self._torch.attend_latent(query, latents, access, scale, value_width)
        out = torch.empty(rows, heads, value_width, dtype=torch.bfloat16)
        self._attend(query, latents, latents, access, out, 1, 0, scale)
        return out

    def _attend(
        self,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        access: PagedAccess,
        out: torch.Tensor,
        kv_heads: int,
        window: int,
        scale: float,
    ) -> None:
        table, runs = access.table, access.runs
        self._library.attend(
            self._pool,
            query.data_ptr(),
            query.stride(0),
            keys.data_ptr(),
            keys.stride(1),
            values.data_ptr(),
            values.stride(1),
            table.data_ptr(),
            table.shape[1],
            runs.data_ptr(),
            runs.shape[0],
            out.data_ptr(),
            kv_heads,
            query.shape[1] // kv_heads,
            query.shape[2],
            out.shape[2],
            keys.shape[1],
            window,
            scale,
        )

    def delta(self, rows: DeltaRows, states: torch.Tensor, runs: Sequence[DeltaRun]) -> torch.Tensor:
        if not states.is_contiguous():
            return self._torch.delta(rows, states, runs)
        inputs = [x.contiguous() for x in (rows.query, rows.key, rows.value, rows.decay.exp(), rows.beta)]
        plan = torch.tensor([(run.slot, run.start, run.stop) for run in runs], dtype=torch.int64)
        out = torch.empty_like(inputs[2])
        self._library.delta(
            self._pool,
            *(x.data_ptr() for x in inputs),
            states.data_ptr(),
            out.data_ptr(),
            plan.data_ptr(),
            len(runs),
            *states.shape[1:],
            rows.decay.shape[-1],
        )
        return out


def _rows(x: torch.Tensor) -> bool:
    """bfloat16 whose rows are contiguous, at whatever distance."""
    return x.dtype == torch.bfloat16 and x.stride(-1) == 1


def _packed(x: torch.Tensor) -> bool:
    return x.dtype == torch.bfloat16 and x.is_contiguous()
