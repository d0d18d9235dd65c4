"""Files that cannot be written are named before the work, and in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from prfaas.cli.outputs import failed_on, require_places
from prfaas.config import cache_dir
from prfaas.errors import ConfigError


def test_places_that_can_be_written_are_fine(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text("{}")
    require_places(None, "-", tmp_path / "new.json", str(tmp_path / "old.json"))


@pytest.mark.parametrize(("name", "why"), [("absent/x.json", "there is no directory"), (".", "is a directory")])
def test_places_that_cannot_are_named(tmp_path: Path, name: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        require_places(tmp_path / name)


def test_a_failure_in_the_cache_names_the_variable_that_moves_it(tmp_path: Path) -> None:
    inside = failed_on(OSError(30, "Read-only file system", str(cache_dir() / "runs")))
    assert "Read-only file system" in inside.message
    assert "PRFAAS_CACHE_DIR" in inside.message
    assert "PRFAAS_CACHE_DIR" in failed_on(OSError(2, "No such file or directory", str(cache_dir().parent))).message
    assert "PRFAAS_CACHE_DIR" not in failed_on(OSError(30, "Read-only file system", str(tmp_path))).message
