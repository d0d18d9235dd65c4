"""Files that a command was told to write, looked at before the work whose result they are to hold."""

from __future__ import annotations

import os
from pathlib import Path

from prfaas.config import cache_dir
from prfaas.errors import ConfigError


def require_places(*outputs: Path | str | None) -> None:
    """Raises ConfigError for a file that cannot be written where it was asked for. None and "-" are always fine."""
    for output in outputs:
        if output is None or str(output) == "-":
            continue
        path = Path(output)
        if path.is_dir():
            raise ConfigError(f"{path} is a directory; name a file in it")
        if not path.parent.is_dir():
            raise ConfigError(f"cannot write {path}: there is no directory {path.parent}")
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise ConfigError(f"cannot write {path}: permission denied")


def failed_on(error: OSError) -> ConfigError:
    """What the system said of a file, for the one who can change it."""
    said = f"{error.filename}: {error.strerror}"
    place, cache = Path(str(error.filename)), cache_dir()
    if place.is_relative_to(cache) or cache.is_relative_to(place):
        said += ". Models, kernels and logs are kept there; PRFAAS_CACHE_DIR names another place"
    return ConfigError(said)
