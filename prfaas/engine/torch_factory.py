"""Loads a model and puts a torch backend around it. Importing this module imports torch."""

from __future__ import annotations

import torch

from prfaas.config import EngineSettings, cache_dir
from prfaas.engine.grammar import GrammarBook
from prfaas.engine.host_budget import available_bytes, host_budget
from prfaas.engine.torch_backend import TorchBackend
from prfaas.engine.torch_device import pick_device, pick_dtype
from prfaas.engine.torch_warm_up import warm_up
from prfaas.model.api import CausalLM
from prfaas.model.graphed import GraphedDecoder
from prfaas.model.kernels.kernel_set import Kernels
from prfaas.model.kernels.open_kernels import open_cuda_kernels, open_kernels
from prfaas.model.kernels.torch_kernels import TorchKernels
from prfaas.model.load import load_model
from prfaas.model.network import DecoderNetwork
from prfaas.model.recorder import CudaRecorder
from prfaas.modelspec import ModelSpec
from prfaas.text.load import load_text_model
from prfaas.text.model import TextModel


def build_torch_backend(settings: EngineSettings, *, source: str, served_name: str) -> TorchBackend:
    """Load `source` on the device and in the dtype that `settings` asks for, and allocate its cache.

    `num_threads` is a setting of the process: torch has one pool of threads. Raises ModelLoadError, ConfigError.
    """
    if settings.num_threads:
        torch.set_num_threads(settings.num_threads)
    device = pick_device(settings.device)
    if settings.host_cache_bytes is None:
        budget = host_budget(settings.cache_bytes, available_bytes(), own_memory=device.type != "cpu")
        settings = settings.model_copy(update={"host_cache_bytes": budget})
    dtype = pick_dtype(settings.dtype, device)
    text = load_text_model(source)  # before the weights: reading a vocabulary takes memory for a moment
    model = load_model(
        source,
        served_name=served_name,
        block_tokens=settings.block_tokens,
        dtype=dtype,
        device=device,
        kernels=_kernels(settings, device, dtype),
    )
    backend = TorchBackend(with_graphs(model, settings), settings, _grammars(text, model.spec))
    if device.type != "cpu":  # whose kernels are compiled already
        warm_up(backend, max_step_tokens=settings.max_step_tokens, max_running=settings.max_running)
    return backend


def with_graphs(model: DecoderNetwork, settings: EngineSettings) -> CausalLM:
    """The model, on an accelerator with its decode steps recorded; on a CPU a step has no launches to save."""
    if model.device.type == "cpu" or not settings.decode_graphs:
        return model
    return GraphedDecoder(model, CudaRecorder(model.device), max_rows=settings.max_running)


def _kernels(settings: EngineSettings, device: torch.device, dtype: torch.dtype) -> Kernels:
    if device.type != "cpu":
        return open_cuda_kernels(dtype)
    if not settings.native_kernels:
        return TorchKernels()
    return open_kernels(cache_dir() / "native", settings.num_threads or torch.get_num_threads())


def _grammars(text: TextModel, spec: ModelSpec) -> GrammarBook | None:
    """None for a model without an end-of-sequence token: a constrained answer of it could never end."""
    if not spec.eos_token_ids:
        return None
    return GrammarBook(text, spec.vocab_size, spec.eos_token_ids)
