"""Typed access to a model's raw configuration, with errors that name the key. Knows no architecture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prfaas.errors import ModelLoadError

_REQUIRED = object()


@dataclass(frozen=True, slots=True)
class ConfigReader:
    """Wraps a configuration in Hugging Face terms. Every getter takes alternative spellings, the first present wins.

    A value that is null counts as absent. Getters raise ModelLoadError when a key without default is absent or when
    its value has the wrong type.
    """

    raw: Mapping[str, Any]
    path: str = "config"

    def _find(self, keys: Sequence[str], default: object) -> Any:
        for key in keys:
            if self.raw.get(key) is not None:
                return self.raw[key]
        if default is _REQUIRED:
            raise ModelLoadError(f"{self.path} has no {' or '.join(keys)}", key=keys[0])
        return default

    def _wrong(self, keys: Sequence[str], value: object, wanted: str) -> ModelLoadError:
        return ModelLoadError(f"{self.path}.{keys[0]} must be {wanted}, not {type(value).__name__}", key=keys[0])

    def has(self, key: str) -> bool:
        return self.raw.get(key) is not None

    def integer(self, *keys: str, default: object = _REQUIRED) -> int:
        value = self._find(keys, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._wrong(keys, value, "a whole number")
        return value

    def number(self, *keys: str, default: object = _REQUIRED) -> float:
        value = self._find(keys, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(keys, value, "a number")
        return float(value)

    def boolean(self, *keys: str, default: object = _REQUIRED) -> bool:
        value = self._find(keys, default)
        if not isinstance(value, bool):
            raise self._wrong(keys, value, "true or false")
        return value

    def text(self, *keys: str, default: object = _REQUIRED) -> str:
        value = self._find(keys, default)
        if not isinstance(value, str):
            raise self._wrong(keys, value, "a string")
        return value

    def integers(self, *keys: str, default: object = _REQUIRED) -> tuple[int, ...]:
        """A list of whole numbers; a single number counts as a list of one."""
        value = self._find(keys, default)
        items = [value] if isinstance(value, int) else value
        if not isinstance(items, list | tuple) or not all(isinstance(i, int) for i in items):
            raise self._wrong(keys, value, "a list of whole numbers")
        return tuple(items)

    def texts(self, *keys: str, default: object = _REQUIRED) -> tuple[str, ...]:
        value = self._find(keys, default)
        if not isinstance(value, list | tuple) or not all(isinstance(i, str) for i in value):
            raise self._wrong(keys, value, "a list of strings")
        return tuple(value)

    def section(self, *keys: str, required: bool = True) -> ConfigReader:
        """A nested mapping; empty when absent and not required."""
        value = self._find(keys, _REQUIRED if required else {})
        if not isinstance(value, Mapping):
            raise self._wrong(keys, value, "a mapping")
        return ConfigReader(value, f"{self.path}.{keys[0]}")

    def require_equal(self, key: str, allowed: Sequence[object], default: object) -> None:
        """Refuse a variant that the implementation does not compute. Raises ModelLoadError naming the value."""
        value = self._find([key], default)
        if value not in allowed:
            raise ModelLoadError(f"{self.path}.{key} = {value!r} is not supported (only {list(allowed)})", key=key)


def text_config(raw: Mapping[str, Any]) -> ConfigReader:
    """The language model's part of a configuration that may describe other parts as well."""
    config = ConfigReader(raw)
    return config.section("text_config") if config.has("text_config") else config
