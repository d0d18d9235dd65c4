"""A model without weights that has every kind of cache group, and the profile file that emulated engines read it from.

At `engine.time_scale` 1 a prompt token takes 1 ms to compute and a decode step 4 ms.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prfaas.engine.emulated_profile import ModelShape

BLOCK_TOKENS = 16
KV = [{"name": "k", "shape": [8, 16], "dtype": "float16"}, {"name": "v", "shape": [8, 16], "dtype": "float16"}]
MODEL: dict[str, Any] = {
    "architecture": "hybrid",
    "vocab_size": 256,
    "num_layers": 8,
    "max_context_tokens": 8192,
    "eos_token_ids": [0],
    "groups": [
        {"name": "full", "kind": "full", "layers": [3, 7], "tensors": KV},
        {"name": "window", "kind": "sliding", "layers": [2, 6], "tensors": KV, "window_tokens": 40},
        {
            "name": "state",
            "kind": "state",
            "layers": [0, 1, 4, 5],
            "tensors": [{"name": "s", "shape": [64, 64], "dtype": "float32"}],
        },
    ],
}
HARDWARE: dict[str, Any] = {
    "name": "by the clock",
    "prefill_s": [[0, 0.0], [1000, 1.0]],
    "decode_step_s": [[1, 0.004], [8, 0.004]],
    "max_batch": 8,
}
CACHE = ModelShape.model_validate(MODEL).to_spec("test-model", BLOCK_TOKENS).cache


def write_profile(path: Path, **changes: Any) -> Path:
    """Write the profile to `path`; `changes` override fields of the model, and with them its fingerprint."""
    path.write_text(json.dumps({"hardware": HARDWARE, "model": {**MODEL, **changes}}))
    return path
