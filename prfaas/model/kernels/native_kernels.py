"""The C++ kernels behind the port, for bfloat16 layers and float32 recurrences on a CPU; what they cannot do is torch's."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from prfaas.model.kernels.delta_rule import DeltaRows
from prfaas.model.kernels.experts import run_experts
from prfaas.model.kernels.kernel_set import DeltaRun, PagedAttention, Recorded
from prfaas.model.kernels.native_library import EntryPoint, NativeLibrary
from prfaas.model.kernels.recording import Observer, Tape
from prfaas.model.kernels.torch_kernels import TorchKernels
from prfaas.model.step import PagedAccess


class NativeKernels:
    """Implements `Kernels`. One object serves one engine thread: its thread pool runs one kernel at a time."""

    def __init__(self, library: NativeLibrary, num_threads: int) -> None:
        self._torch = TorchKernels()
        self._library = library
        self._pool = library.pool_create(max(1, num_threads))

    def __del__(self) -> None:
        self._library.pool_destroy(self._pool)

    def record(self, work: Callable[[], torch.Tensor]) -> Recorded:
        observer = Observer()
        self._library.record_begin(self._pool)
        try:
            with observer:
                result = work()
        finally:
            calls = self._library.record_end(self._pool)
            tape = Tape(self._library, self._pool, calls, (self, *observer.kept))
        return Recorded(result, tape if observer.only_kernels else None)

    def settle(self, weight: torch.Tensor) -> None:
        self._library.settle(weight.data_ptr(), weight.nbytes)  # a third more bytes per second than from small pages

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

    def gated_mlp(self, x: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
        rows, hidden = x.shape
        if down.shape[0] != hidden or not (_rows(x) and _packed(gate_up) and _packed(down)):
            return self._torch.gated_mlp(x, gate_up, down)
        out = torch.empty(rows, hidden, dtype=torch.bfloat16)
        weights = gate_up.data_ptr(), down.data_ptr()
        stride, inner = x.stride(0), down.shape[1]
        self._library.gated_mlp(self._pool, x.data_ptr(), stride, *weights, out.data_ptr(), rows, hidden, inner)
        return out

    def experts(
        self, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor
    ) -> torch.Tensor:
        return run_experts(x, ids, weights, lambda expert, mine: self.gated_mlp(mine, gate_up[expert], down[expert]))

    def store(self, fresh: torch.Tensor, paged: torch.Tensor, access: PagedAccess) -> None:
        strides = paged.stride()
        if access.write_rows is not None or fresh.dtype != paged.dtype or fresh.stride()[1:] != strides[2:]:
            self._torch.store(fresh, paged, access)
            return
        size = paged.element_size()
        stride, width = fresh.stride(0) * size, strides[1] * size
        slots, rows = access.write_slots.data_ptr(), fresh.shape[0]
        self._library.store(self._pool, fresh.data_ptr(), stride, slots, paged.data_ptr(), rows, width)

    def attend(self, call: PagedAttention) -> torch.Tensor:
        if not _is_plain(call):
            return self._torch.attend(call)
        query, key, value, rotation, keys, values = call.query, call.key, call.value, call.rotation, call.keys, call.values
        rows, heads, dim = query.shape
        kv_heads, width = values.shape[2:]
        out = torch.empty(rows, heads, width, dtype=torch.bfloat16)
        self._library.attend(
            self._pool,
            query.data_ptr(),
            query.stride(0),
            key.data_ptr(),
            key.stride(0),
            value.data_ptr(),
            value.stride(0),
            rotation.cos.data_ptr(),
            rotation.sin.data_ptr(),
            rotation.cos.shape[-1],
            call.access.write_slots.data_ptr(),
            rows,
            keys.data_ptr(),
            values.data_ptr(),
            *_paged(call.access),
            out.data_ptr(),
            kv_heads,
            heads // kv_heads,
            dim,
            width,
            keys.shape[1],
            call.window_tokens or 0,
            call.scale,
        )
        return out

    def attend_latent(
        self, query: torch.Tensor, latents: torch.Tensor, access: PagedAccess, scale: float, value_width: int
    ) -> torch.Tensor:
        rows, heads, dim = query.shape
        if dim % 2 or not (_packed(query) and _packed(latents)):
            return self._torch.attend_latent(query, latents, access, scale, value_width)
        out = torch.empty(rows, heads, value_width, dtype=torch.bfloat16)
        self._library.attend_latent(
            self._pool,
            query.data_ptr(),
            latents.data_ptr(),
            *_paged(access),
            out.data_ptr(),
            heads,
            dim,
            value_width,
            latents.shape[1],
            scale,
        )
        return out

    def delta(self, rows: DeltaRows, states: torch.Tensor, runs: Sequence[DeltaRun]) -> torch.Tensor:
        if not states.is_contiguous():
            return self._torch.delta(rows, states, runs)
        inputs = [x.contiguous() for x in (rows.query, rows.key, rows.value, rows.decay, rows.beta)]
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

    def delta_each(self, rows: DeltaRows, states: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        return self.delta(rows, states, [DeltaRun(slot, i, i + 1) for i, slot in enumerate(slots.tolist())])


def _rows(x: torch.Tensor) -> bool:
    """bfloat16 whose rows are contiguous, at whatever distance."""
    return x.dtype == torch.bfloat16 and x.stride(-1) == 1


def _packed(x: torch.Tensor) -> bool:
    return x.dtype == torch.bfloat16 and x.is_contiguous()


def _is_plain(call: PagedAttention) -> bool:
    """bfloat16 with contiguous rows of heads, half-split angles, and every row's own entry in the cache."""
    dim, width = call.query.shape[2], call.value.shape[2]
    heads = call.query.stride()[1:] == call.key.stride()[1:] == (dim, 1) and call.value.stride()[1:] == (width, 1)
    cached = call.access.write_rows is None and call.keys.is_contiguous() and call.values.is_contiguous()
    tensors = (call.query, call.key, call.value, call.keys, call.values, call.rotation.cos)
    return heads and cached and not (dim % 2 or call.rotation.interleaved) and all(x.dtype == torch.bfloat16 for x in tensors)


def _paged(access: PagedAccess) -> tuple[int, int, int, int]:
    """Block tables and runs, as addresses and sizes."""
    table, runs = access.table, access.runs
    return table.data_ptr(), table.shape[1], runs.data_ptr(), runs.shape[0]
