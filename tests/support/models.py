"""Models for tests, made or fetched once and kept in the cache directory."""

from __future__ import annotations

import pytest

from prfaas.artifacts import resolve_model
from prfaas.cli.catalog import catalog
from prfaas.errors import FetchError


def tiny_model(name: str) -> str:
    """A generated model's directory."""
    return resolve_model(name, catalog(), progress=lambda _: None).source


def demo_model() -> str:
    """The demo model's GGUF file; skips where it is neither cached nor to be fetched."""
    try:
        return resolve_model("smollm2", catalog(), progress=lambda _: None).source
    except FetchError as error:
        pytest.skip(f"the demo model cannot be had here: {error.message}")
