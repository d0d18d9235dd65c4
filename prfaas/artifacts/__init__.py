"""Model files: the demo model, hub ids, local directories, GGUF files and generated models, resolved to a path.

Knows nothing of networks or tensors: it never opens a checkpoint, it only finds, fetches and verifies files. No torch.
"""

from prfaas.artifacts.resolve import DEMO_MODEL, Catalog, ResolvedModel, resolve_model
from prfaas.artifacts.tiny import TinyModels

__all__ = ["DEMO_MODEL", "Catalog", "ResolvedModel", "TinyModels", "resolve_model"]
