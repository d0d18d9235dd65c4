"""A pipeline that answers from a script, and a fleet that says what it is told: the ports below the gateway, for its tests.

Token ids come from really tokenizing the scripted text, so that detokenizing, stop strings and logprobs are exercised.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

from prfaas.errors import PrfaasError
from prfaas.text import TextModel
from prfaas.types import (
    Decision,
    FinishReason,
    GenerationRequest,
    LinkView,
    PrefillCandidate,
    PrefillReport,
    Role,
    Route,
    SiteId,
    TokenLogprob,
    TokenOutput,
    Usage,
    WorkerId,
    WorkerInfo,
    WorkerLoad,
)
from router.api import Decided, Done, FleetStatus, MemberView, NewTokens, PipelineEvent, Prefilled
from tests.support.reports import prefill_report

DECISION = Decision(
    decode_worker=WorkerId("decode-0"),
    decode_address="127.0.0.1:1",
    route=Route.REMOTE,
    candidates=(PrefillCandidate(WorkerId("prefill-0"), SiteId("far"), "127.0.0.1:2", Route.REMOTE),),
    reasons=('4000 uncached tokens > threshold 2048, "far" is idle',),
    uncached_tokens=4000,
    threshold_tokens=2048,
    predicted_ttft_s=((Route.REMOTE, 0.5),),
)
REPORT = prefill_report()


@dataclass(frozen=True, slots=True)
class Script:
    """What one request is answered with; `replies` are texts by sample, the last one repeated for further samples."""

    replies: tuple[str, ...] = ("Paris is the capital of France.",)
    decision: Decision = DECISION
    report: PrefillReport = REPORT
    decide_delay_s: float = 0.0
    prefill_delay_s: float = 0.0
    token_delay_s: float = 0.0
    fail_at: str = ""  # "", "decide", "prefill", or "token:N"
    error: PrfaasError | None = None
    end_with_eos: bool = True
    together: int = 1  # steps whose tokens come as one event


class FakePipeline:
    """Keeps every request it gets; `ended` lists how each stream ended: done, closed or failed."""

    def __init__(self, text: TextModel, script: Script | None = None, *, eos_token_id: int = 0) -> None:
        self.text = text
        self.script = script or Script()
        self.eos_token_id = eos_token_id
        self.requests: list[GenerationRequest] = []
        self.ended: list[str] = []
        self.started = asyncio.Event()

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[PipelineEvent, None]:
        self.requests.append(request)
        self.started.set()
        script, end = self.script, "closed"
        try:
            await self._reach("decide", script.decide_delay_s)
            yield Decided(script.decision, 0.0001)
            await self._reach("prefill", script.prefill_delay_s)
            yield Prefilled(script.report)
            count, steps = 0, self._steps(request)
            for position in range(0, len(steps), script.together):
                await self._reach(f"token:{position}", script.token_delay_s)
                outputs = tuple(output for step in steps[position : position + script.together] for output in step)
                count += len(outputs)
                yield NewTokens(outputs)
            yield Done(Usage(len(request.tokens), count, script.report.cached_tokens))
            end = "done"
        except PrfaasError:
            end = "failed"
            raise
        finally:
            self.ended.append(end)

    async def _reach(self, stage: str, delay_s: float) -> None:
        if delay_s:
            await asyncio.sleep(delay_s)
        if self.script.fail_at == stage and self.script.error is not None:
            raise self.script.error

    def _steps(self, request: GenerationRequest) -> list[tuple[TokenOutput, ...]]:
        """Outputs step by step, one token per living sample."""
        samples = [self._sample(request, index) for index in range(request.sampling.n)]
        longest = max(len(sample) for sample in samples)
        return [tuple(sample[at] for sample in samples if at < len(sample)) for at in range(longest)]

    def _sample(self, request: GenerationRequest, index: int) -> list[TokenOutput]:
        sampling, replies = request.sampling, self.script.replies
        tokens = list(self.text.encode(replies[min(index, len(replies) - 1)], add_special_tokens=False))
        if self.script.end_with_eos and not sampling.ignore_eos:
            tokens.append(self.eos_token_id)
        outputs: list[TokenOutput] = []
        for position, token_id in enumerate(tokens[: sampling.max_tokens]):
            finish: FinishReason | None = None
            is_end = token_id == self.eos_token_id and self.script.end_with_eos and not sampling.ignore_eos
            if is_end or token_id in sampling.stop_token_ids:
                finish = FinishReason.STOP
            elif position + 1 == min(sampling.max_tokens, len(tokens)):
                finish = FinishReason.LENGTH
            outputs.append(self._output(request, index, position, token_id, finish))
            if finish is not None:
                break
        return outputs

    def _output(
        self, request: GenerationRequest, index: int, position: int, token_id: int, finish: FinishReason | None
    ) -> TokenOutput:
        """Log-probabilities are a function of the token id, so that tests can recompute them."""
        sampling = request.sampling
        wanted = sampling.logprobs is not None
        top = [TokenLogprob(token_id + at, logprob_of(token_id + at)) for at in range(sampling.logprobs or 0)]
        prompt: tuple[tuple[TokenLogprob, ...], ...] | None = None
        if sampling.prompt_logprobs is not None and (index, position) == (0, 0):
            prompt = tuple((TokenLogprob(token, logprob_of(token)),) for token in request.tokens[1:])
        return TokenOutput(
            index, position, token_id, logprob_of(token_id) if wanted else None, tuple(top), finish, prompt_logprobs=prompt
        )


def logprob_of(token_id: int) -> float:
    """The scripted log-probability of a token."""
    return -(token_id % 97) / 16


@dataclass(slots=True)
class FakeFleet:
    """One healthy decode worker and one prefill worker, unless told otherwise."""

    model: str = "test-model"
    context: int | None = 512
    ready: bool = True
    reduced: bool = False
    links: Sequence[LinkView] = field(default_factory=lambda: (LinkView(SiteId("far"), SiteId("near"), 1e9, 4e8, 0, 0.02),))

    def status(self) -> FleetStatus:
        members = tuple(
            MemberView(worker_info(name, site, role, self.model), WorkerLoad(running=1, waiting=2), 0.1, self.ready)
            for name, site, role in (("decode-0", "near", Role.DECODE), ("prefill-0", "far", Role.PREFILL))
        )
        return FleetStatus(members, tuple(self.links), self.ready, self.reduced, 2048)

    def max_context_tokens(self, model: str) -> int | None:
        return self.context if model == self.model else None


def worker_info(name: str, site: str, role: Role, model: str) -> WorkerInfo:
    """A registered worker of 512 tokens of context."""
    return WorkerInfo(
        worker_id=WorkerId(name),
        incarnation="1",
        site=SiteId(site),
        role=role,
        address="127.0.0.1:1",
        model=model,
        fingerprint_digest="f",
        max_context_tokens=512,
        block_tokens=64,
        total_blocks=100,
        max_running=8,
        device="cpu",
    )
