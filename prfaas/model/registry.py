"""Finds families: every module in `prfaas.model.families` declares one as `FAMILY`. Adding a file adds a family."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

from prfaas.errors import ModelLoadError
from prfaas.model import families
from prfaas.model.family import Family, GgufDialect


def all_families() -> tuple[Family, ...]:
    """Every declared family, by module name. Raises TypeError for a module that declares none."""
    found = []
    for module in sorted(pkgutil.iter_modules(families.__path__), key=lambda m: m.name):
        if module.name.startswith("_"):
            continue
        family = vars(importlib.import_module(f"{families.__name__}.{module.name}")).get("FAMILY")
        if not isinstance(family, Family):
            raise TypeError(f"{families.__name__}.{module.name} must declare FAMILY")
        found.append(family)
    return tuple(found)


def family_for(config: Mapping[str, Any]) -> tuple[Family, str]:
    """The family of a configuration and the architecture that named it.

    Raises ModelLoadError listing what is supported when none fits.
    """
    named = config.get("architectures")
    wanted = [str(name) for name in named] if isinstance(named, list | tuple) else []
    known = {architecture: family for family in all_families() for architecture in family.architectures}
    for name in wanted:
        if name in known:
            return known[name], name
    raise ModelLoadError(
        f"architecture {', '.join(wanted) or '(none named in config.json)'} is not supported; "
        f"supported are {', '.join(sorted(known))}"
    )


def gguf_dialect(architecture: str) -> GgufDialect:
    """The dialect for GGUF's `general.architecture`. Raises ModelLoadError when no family reads it."""
    known = {dialect.architecture: dialect for family in all_families() for dialect in family.gguf}
    if architecture not in known:
        raise ModelLoadError(f"GGUF architecture {architecture!r} is not supported; supported are {', '.join(sorted(known))}")
    return known[architecture]
