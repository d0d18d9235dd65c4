"""Reading GGUF headers, whole and damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from prfaas.errors import ModelLoadError
from prfaas.text.gguf_metadata import read_gguf_metadata
from tests.support.gguf_header import write_gguf_header

PAIRS = {
    "general.name": "größer",
    "a.number": 7,
    "a.float": 0.5,
    "a.flag": True,
    "a.texts": ["x", "", "ü"],
    "a.numbers": [3, -1],
}


def test_reads_what_was_written(tmp_path: Path) -> None:
    assert read_gguf_metadata(write_gguf_header(tmp_path / "m.gguf", PAIRS)) == PAIRS


def test_every_cut_is_an_error_and_not_a_crash(tmp_path: Path) -> None:
    whole = write_gguf_header(tmp_path / "m.gguf", PAIRS).read_bytes()
    for size in range(4, len(whole)):
        (tmp_path / "cut.gguf").write_bytes(whole[:size])
        with pytest.raises(ModelLoadError):
            read_gguf_metadata(tmp_path / "cut.gguf")


@pytest.mark.parametrize(("version", "magic", "says"), [(1, b"GGUF", "version 1"), (3, b"GGML", "not a GGUF file")])
def test_other_formats_are_named(tmp_path: Path, version: int, magic: bytes, says: str) -> None:
    path = write_gguf_header(tmp_path / "m.gguf", PAIRS, version=version, magic=magic)
    with pytest.raises(ModelLoadError, match=says):
        read_gguf_metadata(path)


def test_missing_and_empty_files(tmp_path: Path) -> None:
    (tmp_path / "empty.gguf").touch()
    for name in ("empty.gguf", "absent.gguf"):
        with pytest.raises(ModelLoadError, match="cannot read"):
            read_gguf_metadata(tmp_path / name)


def test_absurd_counts_do_not_allocate(tmp_path: Path) -> None:
    path = write_gguf_header(tmp_path / "m.gguf", {"a": [1]})
    raw = bytearray(path.read_bytes())
    raw[-12:-4] = (2**62).to_bytes(8, "little")
    path.write_bytes(raw)
    with pytest.raises(ModelLoadError, match="damaged"):
        read_gguf_metadata(path)
