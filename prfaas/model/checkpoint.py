"""The port between files on disk and networks: a configuration, named tensors and their identity.

Names and configuration keys are those of the Hugging Face checkpoint, whatever the file format is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch


class Checkpoint(Protocol):
    """Opened model files. Tensors are read one at a time, so that a caller never holds the model twice."""

    @property
    def config(self) -> Mapping[str, Any]: ...

    @property
    def eos_token_ids(self) -> tuple[int, ...]: ...

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every tensor's name and shape."""
        ...

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor on the CPU in its stored dtype, mapped from the file where the format allows it."""
        ...

    def pieces(self, name: str) -> Iterator[torch.Tensor]:
        """The same tensor in consecutive slices along its first axis, so that expanding a large one takes little memory."""
        ...

    def weights_identity(self) -> str:
        """A hex digest that differs when the weights differ: headers, sizes and sampled bytes."""
        ...

    def tokenizer_identity(self) -> str:
        """A hex digest of everything that turns text into ids."""
        ...
