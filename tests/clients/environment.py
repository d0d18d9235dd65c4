"""Environments for third-party programs: one each, so that none constrains the versions of another or of this project."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

from prfaas.config import cache_dir

INSTALL_TIMEOUT_S = 900


class NotInstalled(Exception):
    """A client could not be installed; the installer has said why."""


def environment(name: str, packages: Sequence[str]) -> Path:
    """A virtual environment with these packages and no others; made once for each set of packages. Raises NotInstalled."""
    digest = hashlib.sha256(" ".join([sys.version, *packages]).encode()).hexdigest()[:12]
    folder = cache_dir() / "clients" / f"{name}-{digest}"
    done = folder / "done"
    if not done.exists():
        venv.create(folder, with_pip=True, clear=True)
        _install([str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages])
        done.touch()
    return folder


def node_modules(name: str, packages: Sequence[str]) -> Path:
    """A folder with these npm packages; made once for each set. Raises NotInstalled."""
    folder = cache_dir() / "clients" / f"{name}-{hashlib.sha256(' '.join(packages).encode()).hexdigest()[:12]}"
    if not (folder / "done").exists():
        folder.mkdir(parents=True, exist_ok=True)
        _install(["npm", "install", "--silent", "--prefix", str(folder), *packages])
        (folder / "done").touch()
    return folder


def _install(command: Sequence[str]) -> None:
    if subprocess.run(command, timeout=INSTALL_TIMEOUT_S, check=False).returncode != 0:
        raise NotInstalled(f"installation failed: {' '.join(command)}")
