"""Numbers written as name=number, as workloads are on a command line."""

from __future__ import annotations

from prfaas.errors import ConfigError


def read_numbers(text: str, whole: str) -> dict[str, float]:
    """`rate=2,cv=3` as numbers by name. Raises ConfigError, quoting the workload it is part of."""
    found: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        key, _, value = part.partition("=")
        try:
            found[key.strip()] = float(value)
        except ValueError as error:
            raise ConfigError(f"in workload {whole!r}, {part!r} is not name=number") from error
    return found
