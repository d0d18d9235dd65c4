"""Generated models for tests: written once per test session into a directory of the caller's choice."""

from __future__ import annotations

from pathlib import Path

from prfaas.model.tiny import write_tiny_model


def tiny_model(name: str, root: Path) -> Path:
    """The directory ROOT/NAME of a generated model, written on first use."""
    directory = root / name
    if not (directory / "tokenizer_config.json").is_file():
        write_tiny_model(name, directory)
    return directory
