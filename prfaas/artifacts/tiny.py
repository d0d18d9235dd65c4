"""Small random-weight models that are generated on this machine instead of being fetched.

How to generate one is given from outside, since it needs torch, which this package must not import.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from prfaas.artifacts.files import publish_directory, scratch_directory
from prfaas.artifacts.wheel import Progress
from prfaas.errors import FetchError


@dataclass(frozen=True, slots=True)
class TinyModels:
    """The generator of tiny models. `version` names the generator's code, so that a changed one is not served from cache."""

    names: tuple[str, ...]
    version: str
    write: Callable[[str, Path], None]


def generate_tiny_model(name: str, tiny: TinyModels, cache: Path, progress: Progress) -> Path:
    """Return the directory of a generated model, writing it first if this version of it is not in `cache`.

    Raises:
        FetchError: the generator failed or left no configuration.
    """
    target = cache / "tiny" / tiny.version / name
    if (target / "config.json").is_file():
        return target
    progress(f"generating {name} in {target}")
    with scratch_directory(target) as scratch:
        built = scratch / name
        built.mkdir()
        tiny.write(name, built)
        if not (built / "config.json").is_file():
            raise FetchError(f"the generator of {name} left no config.json", source=name)
        publish_directory(built, target)
    return target
