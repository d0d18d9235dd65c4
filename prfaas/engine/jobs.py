"""Makes jobs and their sequences from requests. Needs no lock: a job is nobody's until the core takes it in."""

from __future__ import annotations

from itertools import count

from prfaas.cache.hashing import root_hash
from prfaas.engine.job import Job, JobId, JobKind, JobState, Sample, Strand
from prfaas.engine.rules import needs_history, snapshot_position, total_tokens
from prfaas.modelspec import ModelSpec
from prfaas.sched.sequence import Sequence
from prfaas.types import GenerationRequest


class JobMaker:
    """Numbers jobs and sequences of one engine; numbers are never used twice."""

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._ids = count(1)

    def job(self, request: GenerationRequest, kind: JobKind, state: JobState, now_s: float) -> Job:
        """A new job with one strand that will draw all samples. The prompt's blocks are named here, once."""
        job_id = JobId(next(self._ids))
        keyed = needs_history(request.sampling)
        samples = [Sample(i, f"{request.request_id}#{job_id}/{i}" if keyed else "") for i in range(request.sampling.n)]
        sequence = self.sequence(request, now_s, export=kind is JobKind.EXPORT)
        sequence.name_blocks()
        if kind is not JobKind.GENERATE:
            sequence.keep_tokens = snapshot_position(request, self._spec)
        return Job(job_id, request, kind, state, now_s, samples, [Strand(sequence, list(samples))])

    def sequence(self, request: GenerationRequest, now_s: float, *, export: bool) -> Sequence:
        """A sequence of the request's prompt; an export's never grows, and keeps its blocks."""
        block_tokens = self._spec.cache.block_tokens
        return Sequence(
            sequence_id=next(self._ids),
            tokens=list(request.tokens),
            num_prompt=len(request.tokens),
            total_tokens=len(request.tokens) if export else total_tokens(request, self._spec),
            block_tokens=block_tokens,
            root=root_hash(block_tokens, request.cache_salt),
            names=[],
            priority=request.priority,
            arrival_s=now_s,
            reuse_prefix=request.sampling.prompt_logprobs is None,
            preemptible=not export,
        )
