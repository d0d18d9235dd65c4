"""What a name after `prfaas serve` means, and what is said when it means nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from prfaas.artifacts import Catalog, TinyModels, resolve_model
from prfaas.errors import FetchError


def write_tiny(name: str, directory: Path) -> None:
    (directory / "config.json").write_text(name)


def no_download(requirement: str, into: Path) -> None:
    raise AssertionError(f"nothing may be downloaded, least of all {requirement} into {into}")


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    tiny = TinyModels(("tiny-kimi-linear", "tiny-llama"), "v1", write_tiny)
    return Catalog(cache=tmp_path / "cache", tiny=tiny, download=no_download)


def test_a_model_directory_is_served_under_its_own_name(catalog: Catalog, tmp_path: Path) -> None:
    model = tmp_path / "my-model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"")
    found = resolve_model(str(model), catalog, progress=print)
    assert (found.source, found.served_name) == (str(model), "my-model")


def test_a_gguf_file_is_served_under_its_stem(catalog: Catalog, tmp_path: Path) -> None:
    (tmp_path / "Some.Model-Q4.gguf").write_bytes(b"GGUF")
    found = resolve_model(str(tmp_path / "Some.Model-Q4.gguf"), catalog, progress=print)
    assert (found.source, found.served_name) == (str(tmp_path / "Some.Model-Q4.gguf"), "Some.Model-Q4")


def test_a_local_directory_wins_over_a_hub_id(catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.makedirs("owner/model")
    Path("owner/model/config.json").write_text("{}")
    Path("owner/model/model.safetensors").write_bytes(b"")
    assert resolve_model("owner/model", catalog, progress=print).source == str(tmp_path / "owner" / "model")


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({}, "no config.json and no *.safetensors"),
        ({"config.json": "{}"}, "no *.safetensors"),
        ({"model.gguf": ""}, "it holds model.gguf: give that file's own path"),
    ],
)
def test_an_incomplete_directory_is_refused_with_what_it_lacks(
    catalog: Catalog, tmp_path: Path, files: dict[str, str], complaint: str
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for name, text in files.items():
        (model / name).write_text(text)
    with pytest.raises(FetchError) as raised:
        resolve_model(str(model), catalog, progress=print)
    assert complaint in str(raised.value)


def test_a_file_of_another_kind_is_refused(catalog: Catalog, tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(FetchError, match=r"not a \.gguf file"):
        resolve_model(str(tmp_path / "model.bin"), catalog, progress=print)


def test_a_typo_is_answered_with_the_nearest_name_and_all_that_is_accepted(catalog: Catalog) -> None:
    with pytest.raises(FetchError) as raised:
        resolve_model("tiny-kimi-liner", catalog, progress=print)
    assert "Did you mean 'tiny-kimi-linear'?" in str(raised.value)
    for accepted in ("smollm2", "tiny-llama", "safetensors", ".gguf", "owner/model"):
        assert accepted in str(raised.value)


def test_a_gguf_path_that_does_not_exist_is_not_looked_up_on_the_hub(catalog: Catalog) -> None:
    with pytest.raises(FetchError, match=r"there is no model 'models/absent\.gguf'"):
        resolve_model("models/absent.gguf", catalog, progress=print)


def test_a_tiny_model_is_generated_once_per_version_of_its_generator(tmp_path: Path) -> None:
    written: list[str] = []

    def write(name: str, directory: Path) -> None:
        written.append(name)
        write_tiny(name, directory)

    def resolve(version: str) -> str:
        catalog = Catalog(cache=tmp_path, tiny=TinyModels(("tiny-llama",), version, write), download=no_download)
        return resolve_model("tiny-llama", catalog, progress=print).source

    first, again, newer = resolve("v1"), resolve("v1"), resolve("v2")
    assert first == again != newer
    assert len(written) == 2
    assert Path(newer, "config.json").read_text() == "tiny-llama"


def test_a_generator_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    def write(name: str, directory: Path) -> None:
        (directory / "half").write_text(name)

    catalog = Catalog(cache=tmp_path, tiny=TinyModels(("tiny-llama",), "v1", write), download=no_download)
    with pytest.raises(FetchError, match=r"no config\.json"):
        resolve_model("tiny-llama", catalog, progress=print)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
