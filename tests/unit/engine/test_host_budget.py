"""The host tier's size where nobody sets it: bounded by the device's cache, by what is free, and by a container."""

from __future__ import annotations

from pathlib import Path

from prfaas.engine.host_budget import available_bytes, host_budget

GIB = 1024**3


def test_a_device_with_memory_of_its_own_gets_twice_its_cache_while_that_is_a_small_part_of_what_is_free() -> None:
    assert host_budget(GIB, 64 * GIB, own_memory=True) == 2 * GIB
    assert host_budget(GIB, 8 * GIB, own_memory=True) == GIB
    assert host_budget(GIB, 0, own_memory=True) == 0


def test_a_processor_gets_none() -> None:
    assert host_budget(GIB, 64 * GIB, own_memory=False) == 0


def test_what_is_free_is_read_within_the_containers_limit(tmp_path: Path) -> None:
    meminfo, cgroup = tmp_path / "meminfo", tmp_path / "cgroup"
    cgroup.mkdir()
    assert available_bytes(meminfo, cgroup) == 0
    meminfo.write_text("MemTotal: 99999 kB\nMemAvailable:   4096 kB\nCached: 1 kB\n")
    assert available_bytes(meminfo, cgroup) == 4096 * 1024
    (cgroup / "memory.max").write_text("max\n")
    (cgroup / "memory.current").write_text("1000\n")
    assert available_bytes(meminfo, cgroup) == 4096 * 1024
    (cgroup / "memory.max").write_text("3000\n")
    assert available_bytes(meminfo, cgroup) == 2000
    (cgroup / "memory.current").write_text("5000\n")
    assert available_bytes(meminfo, cgroup) == 0
