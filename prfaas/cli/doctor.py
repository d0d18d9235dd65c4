"""`prfaas doctor`: what this machine has, what is missing, and what to do about it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from prfaas.cli.ports import require_free
from prfaas.cli.screen import Screen
from prfaas.cli.serve import num_cores
from prfaas.config import cache_dir
from prfaas.errors import StartupError

MIN_PYTHON = (3, 11)
MIN_MEMORY_BYTES = 4 * 1000**3
MIN_DISK_BYTES = 1 * 1000**3
MIN_OPEN_FILES = 4096
DEFAULT_PORT = 8000
TORCH_PROBE = "import torch; n = torch.cuda.device_count(); print(', '.join(torch.cuda.get_device_name(i) for i in range(n)))"
CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")


class Verdict(StrEnum):
    """OK: nothing to do. LIMITED: it runs, but less well or without some command. MISSING: it does not run."""

    OK = "ok"
    LIMITED = "limited"
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class Finding:
    """One fact about the machine, and what to do if it is not as it should be."""

    what: str
    verdict: Verdict
    found: str
    advice: str = ""


def examine(*, as_json: bool, screen: Screen) -> int:
    """Print all findings; returns the exit status: 1 if something that prfaas cannot run without is missing."""
    findings = [check() for check in CHECKS]
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            say = screen.done if finding.verdict is Verdict.OK else screen.warn
            say(f"{finding.what}: {finding.found}" + (f". {finding.advice}" if finding.advice else ""))
    return int(any(finding.verdict is Verdict.MISSING for finding in findings))


def check_python() -> Finding:
    """The interpreter's version."""
    found = platform.python_version()
    if sys.version_info[:2] >= MIN_PYTHON:
        return Finding("Python", Verdict.OK, found)
    return Finding("Python", Verdict.MISSING, found, "prfaas needs 3.11 or newer: make setup PYTHON=python3.11")


def check_torch() -> Finding:
    """The torch build, and the accelerators it sees (asked in a process of its own, so that this one stays small)."""
    version = _version("torch")
    if version is None:
        return Finding("torch", Verdict.LIMITED, "not installed", "Workers need it: pip install 'prfaas[engine]'")
    probe = subprocess.run([sys.executable, "-c", TORCH_PROBE], capture_output=True, text=True, check=False)
    if probe.returncode != 0:
        reason = (probe.stderr.strip().splitlines() or ["no message"])[-1]
        return Finding("torch", Verdict.MISSING, f"{version}, broken: {reason}", "Install it again")
    return Finding("torch", Verdict.OK, f"{version}, accelerators: {probe.stdout.strip() or 'none'}")


def check_ray() -> Finding:
    """Ray, for pools that span machines."""
    version = _version("ray")
    if version is None:
        return Finding("Ray", Verdict.LIMITED, "not installed", "Use --pool process, or pip install 'prfaas[ray]'")
    return Finding("Ray", Verdict.OK, version)


def check_processor() -> Finding:
    """Cores, and the instructions that bfloat16 needs to be fast."""
    flags = _cpu_flags()
    has = [feature for feature in CPU_FEATURES if feature in flags]
    found = f"{num_cores()} cores ({platform.machine()}), {' '.join(has) or 'features unknown'}"
    if flags and not {"avx512_bf16", "amx_bf16", "bf16"} & flags:
        return Finding("processor", Verdict.OK, found, "No bfloat16 instructions: float32 is used on the CPU")
    return Finding("processor", Verdict.OK, found)


def check_memory() -> Finding:
    """Memory that is free now."""
    available = _meminfo_bytes("MemAvailable")
    if available is None:
        return Finding("memory", Verdict.LIMITED, "unknown", "This system has no /proc/meminfo")
    found = f"{available / 1e9:.1f} GB available"
    if available >= MIN_MEMORY_BYTES:
        return Finding("memory", Verdict.OK, found)
    return Finding("memory", Verdict.LIMITED, found, "Three workers want 4 GB: fewer workers, or a smaller --cache-mb")


def check_disk() -> Finding:
    """Room for models."""
    place = cache_dir()
    existing = next(path for path in (place, *place.parents) if path.exists())
    if not os.access(existing, os.W_OK):
        return Finding("model cache", Verdict.MISSING, f"{place} cannot be written", "Set PRFAAS_CACHE_DIR")
    free = shutil.disk_usage(existing).free
    found = f"{place}, {free / 1e9:.1f} GB free"
    if free >= MIN_DISK_BYTES:
        return Finding("model cache", Verdict.OK, found)
    return Finding("model cache", Verdict.LIMITED, found, "Set PRFAAS_CACHE_DIR to a place with more room")


def check_pip() -> Finding:
    """pip, which fetches the demo model."""
    version = _version("pip")
    if version is None:
        return Finding("pip", Verdict.LIMITED, "not installed", "The demo model needs it: python -m ensurepip")
    return Finding("pip", Verdict.OK, version)


def check_port() -> Finding:
    """The default HTTP port."""
    try:
        require_free("127.0.0.1", DEFAULT_PORT, "--port")
    except StartupError as error:
        return Finding("HTTP port", Verdict.LIMITED, f"{DEFAULT_PORT} is taken", error.message)
    return Finding("HTTP port", Verdict.OK, f"{DEFAULT_PORT} is free")


def check_open_files() -> Finding:
    """Open files: every client stream and every lane is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = f"{soft} (at most {hard})"
    if soft == resource.RLIM_INFINITY or soft >= MIN_OPEN_FILES:
        return Finding("open files", Verdict.OK, found)
    return Finding("open files", Verdict.LIMITED, found, f"For many clients: ulimit -n {MIN_OPEN_FILES}")


def check_network() -> Finding:
    """The TCP settings that long fat pipes depend on."""
    if platform.system() != "Linux":
        return Finding("TCP", Verdict.LIMITED, platform.system(), "Wide-area tuning is described for Linux only")
    control = _proc("/proc/sys/net/ipv4/tcp_congestion_control") or "unknown"
    window = (_proc("/proc/sys/net/ipv4/tcp_rmem") or "0 0 0").split()[-1]
    found = f"{control}, receive window up to {int(window) / 1e6:.1f} MB"
    if control == "bbr":
        return Finding("TCP", Verdict.OK, found)
    return Finding("TCP", Verdict.OK, found, "Across a lossy wide-area link, bbr loses less throughput")


CHECKS: tuple[Callable[[], Finding], ...] = (
    check_python,
    check_torch,
    check_ray,
    check_processor,
    check_memory,
    check_disk,
    check_pip,
    check_port,
    check_open_files,
    check_network,
)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _proc(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def _cpu_flags() -> frozenset[str]:
    for line in (_proc("/proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def _meminfo_bytes(key: str) -> int | None:
    for line in (_proc("/proc/meminfo") or "").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return None
