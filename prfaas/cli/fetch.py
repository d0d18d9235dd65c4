"""`prfaas fetch`: bring a model to this machine without serving it, for images and init containers."""

from __future__ import annotations

from pathlib import Path

from prfaas.artifacts import resolve_model
from prfaas.cli.catalog import catalog
from prfaas.cli.screen import Screen
from prfaas.errors import ConfigError


def fetch_model(name: str, *, weights: bool, link: Path | None, screen: Screen) -> str:
    """Return the path of a model, fetched first if need be. `link` becomes a symbolic link to it.

    Raises FetchError, or ConfigError when something that is not a link stands where the link should be.
    """
    source = resolve_model(name, catalog(weights=weights), progress=screen.step).source
    if link is not None:
        if link.exists() and not link.is_symlink():
            raise ConfigError(f"{link} exists and is not a symbolic link; not replacing it")
        link.parent.mkdir(parents=True, exist_ok=True)
        part = link.with_name(f".{link.name}.part")
        part.unlink(missing_ok=True)
        part.symlink_to(source)
        part.replace(link)
    return source
