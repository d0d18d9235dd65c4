"""Files that appear whole or not at all, and their SHA-256. Knows nothing of models."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

COPY_BYTES = 1024**2


def sha256_of(path: Path) -> str:
    """The hex SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextlib.contextmanager
def scratch_directory(beside: Path) -> Iterator[Path]:
    """A private directory on the same file system as `beside`, so that its contents can be renamed into place.

    It and whatever is left in it are removed at the end, whether or not the body raised.
    """
    beside.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{beside.name}-", dir=beside.parent))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_whole(source: IO[bytes], target: Path) -> str:
    """Copy a stream to `target` so that no reader ever sees half of it; returns the hex SHA-256 of what was written."""
    digest = hashlib.sha256()
    with scratch_directory(target) as scratch:
        part = scratch / target.name
        with part.open("wb") as out:
            while block := source.read(COPY_BYTES):
                digest.update(block)
                out.write(block)
            out.flush()
            os.fsync(out.fileno())
        part.replace(target)
    return digest.hexdigest()


def publish_directory(built: Path, target: Path) -> None:
    """Rename a finished directory to `target`. If another process published it first, theirs is kept: both are equal."""
    try:
        built.rename(target)
    except OSError:
        if not target.is_dir():
            raise
