"""Opens model files: `describe_model` reads headers only, `load_model` builds the network."""

from __future__ import annotations

from pathlib import Path

import torch

from prfaas.errors import ModelLoadError
from prfaas.model.checkpoint import Checkpoint
from prfaas.model.fingerprint import fingerprint
from prfaas.model.gguf_file import GgufFile
from prfaas.model.hf_directory import HfDirectory
from prfaas.model.kernels.kernel_set import Kernels
from prfaas.model.kernels.torch_kernels import TorchKernels
from prfaas.model.network import DecoderNetwork
from prfaas.model.quantization import count_parameters, parse_quantization
from prfaas.model.registry import family_for, gguf_dialect
from prfaas.model.weights import WeightReader
from prfaas.modelspec import CacheSpec, DType, ModelSpec

_DTYPES = {torch.float32: DType.F32, torch.bfloat16: DType.BF16, torch.float16: DType.F16}


def load_model(
    source: str,
    *,
    served_name: str,
    block_tokens: int,
    dtype: torch.dtype | None,
    device: torch.device,
    kernels: Kernels | None = None,
) -> DecoderNetwork:
    """Load a Hugging Face directory or a GGUF file.

    kernels: who does the arithmetic, None for plain torch; see `prfaas.model.kernels.open_kernels.open_kernels`.

    dtype: compute and cache dtype; None takes the checkpoint's own (float32 where it is quantised or silent).
    Raises ModelLoadError saying what is missing, malformed or unsupported.
    """
    checkpoint = open_checkpoint(source)
    chosen = stored_dtype(checkpoint) if dtype is None else dtype
    spec = describe_checkpoint(checkpoint, served_name, block_tokens, chosen)
    return build_network(checkpoint, spec, dtype=chosen, device=device, kernels=kernels or TorchKernels())


def build_network(
    checkpoint: Checkpoint, spec: ModelSpec, *, dtype: torch.dtype, device: torch.device, kernels: Kernels
) -> DecoderNetwork:
    """The network of an opened checkpoint that `spec` describes. Raises ModelLoadError as `load_model`."""
    family, _ = family_for(checkpoint.config)
    weights = WeightReader(checkpoint, parse_quantization(checkpoint.config), kernels, dtype=dtype, device=device)
    network = family.build(checkpoint.config, spec, weights)
    weights.require_all_taken(lambda name: family.ignorable(checkpoint.config, name))
    return network


def describe_model(source: str, *, served_name: str, block_tokens: int, dtype: torch.dtype | None) -> ModelSpec:
    """The ModelSpec that `load_model` would give, from configuration and headers. Raises ModelLoadError."""
    checkpoint = open_checkpoint(source)
    return describe_checkpoint(checkpoint, served_name, block_tokens, stored_dtype(checkpoint) if dtype is None else dtype)


def open_checkpoint(source: str) -> Checkpoint:
    """Open a directory or a GGUF file. Raises ModelLoadError when it is neither."""
    path = Path(source)
    if path.is_dir():
        return HfDirectory(path)
    if path.is_file():
        return GgufFile(path, gguf_dialect)
    raise ModelLoadError(f"{source} is neither a model directory nor a GGUF file")


def stored_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """The dtype that the configuration names, float32 when it names none that can be computed in."""
    config = checkpoint.config
    nested = config.get("text_config")
    sections = [config, nested] if isinstance(nested, dict) else [config]
    names = {str(section[key]) for section in sections for key in ("dtype", "torch_dtype") if section.get(key)}
    return next((dtype for dtype in _DTYPES if str(dtype).removeprefix("torch.") in names), torch.float32)


def describe_checkpoint(checkpoint: Checkpoint, served_name: str, block_tokens: int, dtype: torch.dtype) -> ModelSpec:
    """As `describe_model`, for a checkpoint that is open and a compute dtype. Raises ModelLoadError."""
    if dtype not in _DTYPES:
        raise ModelLoadError(f"cannot compute in {dtype}; choose one of {', '.join(map(str, _DTYPES))}")
    family, architecture = family_for(checkpoint.config)
    outline = family.outline(checkpoint.config, _DTYPES[dtype])
    cache = CacheSpec(outline.groups, block_tokens)
    return ModelSpec(
        name=served_name,
        architecture=architecture,
        vocab_size=outline.vocab_size,
        num_layers=outline.num_layers,
        max_context_tokens=outline.max_context_tokens,
        cache=cache,
        eos_token_ids=checkpoint.eos_token_ids,
        fingerprint=fingerprint(checkpoint, cache),
        num_parameters=count_parameters(checkpoint.shapes(), lambda name: not family.ignorable(checkpoint.config, name)),
    )
