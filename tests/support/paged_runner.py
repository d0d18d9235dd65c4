"""The smallest honest user of `CausalLM`: allocates a paged cache, scatters blocks, and runs segments of sequences."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from prfaas.model.api import CausalLM, LayerCache, Segment, StepInput
from prfaas.modelspec import DType

TORCH_DTYPES = {DType.F32: torch.float32, DType.BF16: torch.bfloat16, DType.F16: torch.float16}


@dataclass
class Sequence:
    """Blocks and state slots of one sequence, and how much of it is cached."""

    blocks: dict[str, list[int]]
    slots: dict[str, int]
    length: int = 0


@dataclass
class PagedRunner:
    """Runs `model` with `num_blocks` blocks per paged group, handed out in a scrambled order, and garbage in the cache."""

    model: CausalLM
    num_blocks: int = 64
    num_slots: int = 8
    scramble: bool = True
    cache: list[LayerCache] = field(init=False)
    layers_seen: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        spec = self.model.spec.cache
        generator = torch.Generator().manual_seed(5)
        layers: list[dict[str, torch.Tensor]] = [{} for _ in range(self.model.spec.num_layers)]
        self.free: dict[str, list[int]] = {}
        for group in spec.groups:
            lead = (self.num_slots,) if group.is_state else (self.num_blocks, spec.block_tokens)
            count = lead[0]
            order = torch.randperm(count, generator=generator).tolist() if self.scramble else list(range(count))[::-1]
            self.free[group.name] = order
            for layer in group.layers:
                for tensor in group.tensors:
                    layers[layer][tensor.name] = torch.full(
                        (*lead, *tensor.shape), 7.0, dtype=TORCH_DTYPES[tensor.dtype], device=self.model.device
                    )
        self.cache = list(layers)

    def start(self) -> Sequence:
        spec = self.model.spec.cache
        return Sequence(
            {g.name: [] for g in spec.groups if not g.is_state},
            {g.name: self.free[g.name].pop() for g in spec.groups if g.is_state},
        )

    def run(self, *parts: tuple[Sequence, list[int]], every_row: bool = True) -> torch.Tensor:
        """One step. Returns logits of every row (or of each part's last row)."""
        spec = self.model.spec.cache
        size = spec.block_tokens
        segments, row = [], 0
        for sequence, tokens in parts:
            segments.append(Segment(row, len(tokens), sequence.length))
            row += len(tokens)
            for name, blocks in sequence.blocks.items():
                while len(blocks) * size < sequence.length + len(tokens):
                    blocks.append(self.free[name].pop())
                group = spec.group(name)
                outside = group.first_needed_token(sequence.length) // size
                for index in range(outside):
                    if blocks[index] >= 0:
                        self.free[name].insert(0, blocks[index])
                        blocks[index] = -1
        width = max([1, *(len(b) for s, _ in parts for b in s.blocks.values())])
        device = self.model.device
        tables = {
            g.name: torch.tensor([s.blocks[g.name] + [-1] * (width - len(s.blocks[g.name])) for s, _ in parts]).int().to(device)
            for g in spec.groups
            if not g.is_state
        }
        slots = {g.name: torch.tensor([s.slots[g.name] for s, _ in parts], device=device) for g in spec.groups if g.is_state}
        ends = torch.tensor([s.row_start + s.num_rows - 1 for s in segments], device=device)
        step = StepInput(
            tokens=torch.tensor([t for _, tokens in parts for t in tokens], device=device),
            positions=torch.cat([torch.arange(s.context_tokens, s.end_tokens) for s in segments]).to(device),
            segments=segments,
            block_tables=tables,
            state_slots=slots,
            logits_rows=torch.arange(row, device=device) if every_row else ends,
            block_tokens=size,
        )
        logits = self.model.forward(step, self.cache, self.layers_seen.append)
        for sequence, tokens in parts:
            sequence.length += len(tokens)
        return logits

    def entries(self, sequence: Sequence, group: str, layer: int, tensor: str) -> torch.Tensor:
        """Cache content of one sequence: [length, *shape] of a paged group, or the state."""
        paged = self.cache[layer][tensor]
        if group in sequence.slots:
            return paged[sequence.slots[group]]
        return paged[torch.tensor(sequence.blocks[group])].flatten(0, 1)[: sequence.length]
