"""What restores cost: two measured lengths make a fixed part and a part per byte, noise never makes either negative, and
a step that restored says how long that took."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch

from prfaas.config import EngineSettings
from prfaas.engine.backend import PoolSize
from prfaas.engine.torch_backend import TorchBackend
from prfaas.engine.torch_copies import measure_copy_cost
from prfaas.engine.torch_device import CpuStaging
from prfaas.engine.torch_store import TorchStore
from prfaas.sched.plan import Copy, StepPlan
from prfaas.sched.restore import FREE, CopyCost
from tests.support.fake_causal_lm import FakeCausalLM
from tests.support.tiny_specs import tiny_spec

pytestmark = pytest.mark.torch

SPEC = tiny_spec("kimi", block_tokens=4)
ONE = sum(g.bytes_between(0, 1 if g.is_state else 4) for g in SPEC.cache.groups)
MANY = sum(2 * g.bytes_between(0, 1) if g.is_state else 9 * g.bytes_between(0, 4) for g in SPEC.cache.groups)


class Watches:
    """A clock whose stretches between two looks last what the test says; every stretch is one stopwatch."""

    def __init__(self, seconds: Iterable[float]) -> None:
        self._seconds = iter(seconds)
        self._now_s, self._running = 0.0, False

    def now_s(self) -> float:
        if self._running:
            self._now_s += next(self._seconds)
        self._running = not self._running
        return self._now_s


def cost(seconds: Iterable[float], *, blocks: int = 9, host: int = 9) -> CopyCost:
    sizes = {group.name: PoolSize(blocks, host) for group in SPEC.cache.groups}
    staging = CpuStaging(Watches(seconds))
    return measure_copy_cost(TorchStore(SPEC, sizes, torch.device("cpu"), staging), SPEC.cache, sizes, staging)


def test_the_best_of_each_length_gives_a_fixed_part_and_a_part_per_byte() -> None:
    found = cost([5.0, 2.0, 3.0, 10.0, 12.0, 99.0])
    assert found.s_per_byte == pytest.approx((10.0 - 2.0) / (MANY - ONE))
    assert found.total_s(ONE) == pytest.approx(2.0)
    assert found.total_s(MANY) == pytest.approx(10.0)


@pytest.mark.parametrize("seconds", [[4.0] * 3 + [3.0] * 3, [1.0] * 3 + [90.0] * 3])
def test_noise_makes_neither_part_negative(seconds: list[float]) -> None:
    found = cost(seconds)
    assert found.fixed_s == 0.0
    assert found.s_per_byte == pytest.approx(seconds[-1] / MANY)


def test_a_single_block_and_none_at_all() -> None:
    assert cost([2.0] * 6, host=1) == CopyCost(0.0, 2.0 / ONE)
    assert cost([], host=0) is FREE


def test_a_step_says_how_long_its_restores_took_and_only_then() -> None:
    backend = TorchBackend(FakeCausalLM(SPEC), EngineSettings(cache_bytes=1 << 16, host_cache_bytes=1 << 16), None)
    group = SPEC.cache.groups[0].name
    save, restore = Copy(group, 1, 2, "device", "host"), Copy(group, 2, 3, "host", "device")
    assert backend.execute(StepPlan((), (save,)), None).restore_s is None
    took_s = backend.execute(StepPlan((), (restore, Copy(group, 4, 5))), None).restore_s
    assert took_s is not None
    assert took_s >= 0.0
    assert backend.copy_cost().total_s(ONE) > 0.0
    backend.close()
