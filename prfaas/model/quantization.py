"""Which quantised weight formats a checkpoint uses, and how its tensors are named and counted."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from prfaas.errors import ModelLoadError
from prfaas.model.config_reader import ConfigReader

PACKED, SCALE, SHAPE, SCALE_INV = "_packed", "_scale", "_shape", "_scale_inv"
_VALUES_PER_WORD = 8


@dataclass(frozen=True, slots=True)
class Quantization:
    """fp8_block: rows and columns that share a scale. Weights that are stored plain may stand beside quantised ones."""

    fp8_block: tuple[int, int] = (128, 128)


def parse_quantization(raw: Mapping[str, Any]) -> Quantization:
    """Read quantization_config (of the text part, where there is one). Raises ModelLoadError for an unknown format."""
    outer = ConfigReader(raw)
    inner = outer.section("text_config", required=False)
    config = outer if outer.has("quantization_config") or not inner.has("quantization_config") else inner
    found = config.section("quantization_config", required=False)
    if not found.raw:
        return Quantization()
    method = found.text("quant_method")
    if method == "fp8":
        block = found.integers("weight_block_size", default=(128, 128))
        if len(block) != 2:
            raise ModelLoadError(f"weight_block_size must have two numbers, not {len(block)}", key="weight_block_size")
        return Quantization((block[0], block[1]))
    if method == "compressed-tensors":
        found.require_equal("format", ["pack-quantized"], "pack-quantized")
        for name in found.section("config_groups").raw:
            _require_int4(found.section("config_groups").section(name).section("weights"))
        return Quantization()
    raise ModelLoadError(f"quant_method {method!r} is not supported (only fp8 and compressed-tensors)", key="quant_method")


def _require_int4(weights: ConfigReader) -> None:
    for key, wanted in (("num_bits", 4), ("type", "int"), ("symmetric", True), ("strategy", "group")):
        weights.require_equal(key, [wanted], wanted)
    weights.require_equal("actorder", [None, False], None)


def count_parameters(shapes: Mapping[str, tuple[int, ...]], counted: Callable[[str], bool]) -> int:
    """Parameters that a checkpoint represents: packed words hold several, scales and shapes hold none."""
    total = 0
    for name, shape in shapes.items():
        if not counted(name) or name.endswith((f".weight{SCALE}", f".weight{SHAPE}", f".weight{SCALE_INV}")):
            continue
        total += math.prod(shape) * (_VALUES_PER_WORD if name.endswith(f".weight{PACKED}") else 1)
    return total
