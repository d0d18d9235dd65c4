"""How much host memory evicted prefixes may take where nobody says. Reads the system's figures; allocates nothing."""

from __future__ import annotations

from pathlib import Path

_OF_DEVICE = 2  # times the device's cache: a prefix that is younger than that much newer content is still there
_OF_AVAILABLE = 8  # at most one part in so many of what is free: eight workers that start at once still fit

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def host_budget(cache_bytes: int, available: int, *, own_memory: bool) -> int:
    """Bytes for the host tier of a device cache of `cache_bytes`, with `available` bytes of host memory free.

    None for a device without memory of its own: a larger `cache_bytes` holds more prefixes there in the same memory, and
    holds them where they are used.
    """
    return min(_OF_DEVICE * cache_bytes, available // _OF_AVAILABLE) if own_memory else 0


def available_bytes(meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP) -> int:
    """Host memory that this process could still take, within its container's limit; 0 where the system does not say."""
    lines = meminfo.read_text().splitlines() if meminfo.exists() else []
    free = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), 0)
    limit, used = cgroup / "memory.max", cgroup / "memory.current"
    if limit.exists() and used.exists() and (text := limit.read_text().strip()) != "max":
        return max(0, min(free, int(text) - int(used.read_text())))
    return free
