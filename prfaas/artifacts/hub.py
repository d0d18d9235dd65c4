"""Models of a Hugging Face hub: only the files that serving needs, through huggingface_hub and its progress bars."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import huggingface_hub
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from prfaas.errors import FetchError

HUB_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?")
WEIGHTS = "*.safetensors"
WANTED = ("*.json", "*.model", "*.jinja", "tokenizer*", "merges.txt", "vocab.txt", "*.tiktoken")


def is_hub_id(name: str) -> bool:
    """Whether a name has the form `owner/model` or `owner/model@revision`."""
    return HUB_ID.fullmatch(name) is not None


def fetch_hub_model(name: str, *, weights: bool = True, endpoint: str | None = None, cache: Path | None = None) -> Path:
    """Download (or find in the hub cache) a repository's configuration, tokenizer and safetensors; returns its directory.

    Without `weights`, only what a router needs: configuration and tokenizer.

    Files already in the cache are not fetched again, and an interrupted download goes on where it stopped.
    `endpoint` and `cache` default to what huggingface_hub takes from its own environment variables.

    Raises:
        FetchError: no such repository or revision, no access, no network, or no safetensors in it.
    """
    match = HUB_ID.fullmatch(name)
    if match is None:
        raise FetchError(f"{name!r} is not a hub id of the form owner/model or owner/model@revision", source=name)
    try:
        path = Path(
            huggingface_hub.snapshot_download(
                match["repo"],
                revision=match["revision"],
                allow_patterns=[*WANTED, *([WEIGHTS] if weights else [])],
                endpoint=endpoint,
                cache_dir=cache,
            )
        )
    except (HfHubHTTPError, HFValidationError, EntryNotFoundError, httpx.HTTPError, OSError) as error:
        raise FetchError(f"cannot fetch {name} from the hub: {_advice(error)}", source=name) from error
    if weights and not any(path.glob(WEIGHTS)):
        raise FetchError(f"{name} has no safetensors files; other checkpoint formats of a hub are not loaded", source=name)
    return path


def _advice(error: Exception) -> str:
    if isinstance(error, GatedRepoError):
        return "its owner grants access on request. Accept its terms on the hub, then set HF_TOKEN or run 'hf auth login'"
    if isinstance(error, RepositoryNotFoundError):
        return "no such repository, or a private one. Check the spelling; for a private one set HF_TOKEN"
    if isinstance(error, RevisionNotFoundError):
        return "it has no such revision"
    if isinstance(error, HfHubHTTPError):
        return f"the hub answered {error.response.status_code}. Try again later, or set HF_ENDPOINT to a mirror"
    if isinstance(error, HFValidationError):
        return str(error)
    return (
        f"{type(error).__name__}: {error}. Check the network (HTTPS_PROXY, HF_ENDPOINT and HF_HUB_OFFLINE are honoured), "
        "or give the path of a local directory or GGUF file"
    )
