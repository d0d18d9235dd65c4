"""A network whose decode steps are recorded once for each size and replayed from then on.

Everything else (prefills, mixed steps, sequences that begin with one token) goes the network's ordinary way, and so does
every step once a recording has failed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from prfaas.log import logger
from prfaas.model.api import LayerCache, LayerCallback, StepInput
from prfaas.model.network import DecoderNetwork
from prfaas.model.recorder import Recorder, Recording
from prfaas.model.static_step import Bucket, StaticStep
from prfaas.modelspec import ModelSpec

LOG = logger(__name__)

MAX_RECORDINGS = 48  # sizes that are kept; the one not used for longest goes
_MIN_BLOCKS = 8


@dataclass(frozen=True, slots=True)
class _Recorded:
    inputs: StaticStep
    recording: Recording


class GraphedDecoder:
    """Implements `CausalLM` over a network whose kernels read steps as `PagedAccess.decodes` has them (torch's and the
    accelerator's). The cache's last block and last slot of each tensor must belong to no sequence."""

    def __init__(
        self, network: DecoderNetwork, recorder: Recorder, *, max_rows: int, max_recordings: int = MAX_RECORDINGS
    ) -> None:
        self._network = network
        self._recorder = recorder
        self._max_rows = max_rows
        self._max_recordings = max_recordings
        self._recorded: OrderedDict[Bucket, _Recorded] = OrderedDict()
        self._cache: Sequence[LayerCache] = ()
        self._possible = True

    @property
    def spec(self) -> ModelSpec:
        return self._network.spec

    @property
    def device(self) -> torch.device:
        return self._network.device

    @property
    def dtype(self) -> torch.dtype:
        return self._network.dtype

    @property
    def num_recordings(self) -> int:
        """Sizes that are recorded now."""
        return len(self._recorded)

    def forward(self, step: StepInput, cache: Sequence[LayerCache], on_layer: LayerCallback) -> torch.Tensor:
        """See `prfaas.model.api.CausalLM.forward`. A replayed step's logits are valid until the next step, and its layers
        are told together when all of it is enqueued."""
        recorded = self._find(step, cache)
        if recorded is None:
            return self._network.forward(step, cache, on_layer)
        with torch.inference_mode():
            recorded.inputs.load(step)
            recorded.recording.replay()
        for layer in range(self.spec.num_layers):
            on_layer(layer)
        return recorded.recording.result[: len(step.segments)]

    def _find(self, step: StepInput, cache: Sequence[LayerCache]) -> _Recorded | None:
        bucket = self._bucket(step)
        if bucket is None or not self._possible:
            return None
        if cache is not self._cache:  # recordings know addresses
            self._recorded.clear()
            self._cache = cache
        if bucket not in self._recorded:
            try:
                self._recorded[bucket] = self._record(bucket)
            except RuntimeError as error:
                LOG.warning("a decode step of %d rows cannot be recorded, so none will be: %s", bucket.rows, error)
                self._possible = False
                self._recorded.clear()
                return None
            if len(self._recorded) > self._max_recordings:
                self._recorded.popitem(last=False)
        self._recorded.move_to_end(bucket)
        return self._recorded[bucket]

    def _bucket(self, step: StepInput) -> Bucket | None:
        rows = len(step.segments)
        decodes = all(s.num_rows == 1 and s.context_tokens > 0 for s in step.segments)
        if rows > self._max_rows or not decodes or step.logits_rows.shape[0] != rows:
            return None
        blocks = max(s.context_tokens for s in step.segments) // step.block_tokens + 1
        return Bucket(min(_power(rows), self._max_rows), _power(max(_MIN_BLOCKS, blocks)))

    def _record(self, bucket: Bucket) -> _Recorded:
        """Recorded on rows that belong to nobody, so that running it changes no sequence."""
        network = self._network

        def work() -> torch.Tensor:
            context = inputs.context(network.ropes, network.dtype)
            return network.head.logits(network.compute(inputs.tokens, context, self._cache, lambda _layer: None))

        with torch.inference_mode():
            inputs = StaticStep(bucket, network.spec.cache, self._cache, network.device)
            return _Recorded(inputs, self._recorder.record(work))


def _power(number: int) -> int:
    """The power of two that is at least `number`."""
    return 1 << (number - 1).bit_length()
