"""The models this command line can name. Generating a tiny model needs torch, so that happens in a process of its own."""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
from pathlib import Path

from prfaas.artifacts import Catalog, TinyModels
from prfaas.config import cache_dir
from prfaas.errors import FetchError
from prfaas.modelspec import WIRE_VERSION

TINY_MODELS = ("tiny-kimi-linear", "tiny-llama", "tiny-deepseek-v3", "tiny-qwen3-next", "tiny-gemma3")
GENERATOR = "prfaas.model.tiny"
PROGRAM = f"import pathlib, sys, {GENERATOR} as tiny; tiny.write_tiny_model(sys.argv[1], pathlib.Path(sys.argv[2]))"


def catalog(*, weights: bool = True) -> Catalog:
    """The catalog of this machine, with its cache directory. `weights`: see Catalog."""
    return Catalog(cache=cache_dir(), tiny=TinyModels(TINY_MODELS, _generator_version(), _write_tiny), weights=weights)


def _write_tiny(name: str, directory: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, name, str(directory)]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        if "No module named 'torch'" in reason:
            reason = "it needs torch: pip install 'prfaas[engine]'"
        raise FetchError(f"generating {name} failed: {reason}", source=name)


def _generator_version() -> str:
    """A digest of the generator's sources: another generator writes other weights."""
    package = importlib.util.find_spec("prfaas.model")
    digest = hashlib.sha256(str(WIRE_VERSION).encode())
    for root in (package.submodule_search_locations if package is not None else None) or ():
        for source in sorted(Path(root).glob("tiny*/**/*.py")) + sorted(Path(root).glob("tiny*.py")):
            digest.update(source.read_bytes())
    return digest.hexdigest()[:12]
