"""Measures what copies from host memory to the device take, before an engine has anything in either."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prfaas.engine.backend import PoolSize
from prfaas.engine.torch_device import Staging
from prfaas.engine.torch_store import TorchStore
from prfaas.modelspec import CacheSpec
from prfaas.sched.plan import Copy
from prfaas.sched.restore import FREE, CopyCost

_BLOCKS, _STATES = 16, 2  # of each group in the longer copy; one state is as large as many blocks
_REPEATS = 3


def measure_copy_cost(store: TorchStore, spec: CacheSpec, sizes: Mapping[str, PoolSize], staging: Staging) -> CopyCost:
    """Copies one block of each group, and several, there and back; the slope between the two is the cost of a byte.

    Only for an unused store: its blocks are overwritten with what they hold already, zeros. FREE without host memory.
    """
    most = {group.name: _STATES if group.is_state else _BLOCKS for group in spec.groups}
    counts = {name: min(size.device, size.host, most[name]) for name, size in sizes.items()}
    if not all(counts.values()):
        return FREE
    one, many = _bytes(spec, dict.fromkeys(counts, 1)), _bytes(spec, counts)
    one_s = _best_s(store, staging, dict.fromkeys(counts, 1))
    many_s = _best_s(store, staging, counts)
    slope = (many_s - one_s) / (many - one) if many > one else 0.0
    fixed_s = one_s - slope * one
    if slope <= 0.0 or fixed_s < 0.0:  # noise: the longer copy says more
        return CopyCost(0.0, many_s / many)
    return CopyCost(fixed_s, slope)


def _bytes(spec: CacheSpec, counts: Mapping[str, int]) -> int:
    return sum(counts[g.name] * g.bytes_between(0, spec.block_tokens) for g in spec.groups)


def _best_s(store: TorchStore, staging: Staging, counts: Mapping[str, int]) -> float:
    there, back = _copies(counts, "device", "host"), _copies(counts, "host", "device")
    store.copy(there)  # host memory that was never written would be read from one shared page
    times = []
    for _ in range(_REPEATS):
        watch = staging.stopwatch()
        store.copy(back)
        watch.stop()
        times.append(watch.elapsed_s())
    return min(times)


def _copies(counts: Mapping[str, int], source: str, target: str) -> Sequence[Copy]:
    return [Copy(name, block, block, source, target) for name, count in counts.items() for block in range(count)]
