"""Runs one prompt through the pipeline and yields text: the single implementation beneath every dialect.

Owns the pipeline's stream and closes it as soon as the last sample has ended, also when that was a stop string the
workers do not know of. Measures TTFT, inter-token latency and usage. Knows no JSON.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from prfaas.errors import EngineFailed, RequestCancelled, WorkerError
from prfaas.metrics import (
    CACHED_TOKENS,
    E2E,
    GENERATION_TOKENS,
    ITL,
    PROMPT_TOKENS,
    ROUTER_OVERHEAD,
    TTFT,
    TTFT_STAGE,
)
from prfaas.types import Decision, FinishReason, GenerationRequest, PrefillReport, Route, TokenLogprob, TokenOutput, Usage
from router.api import Decided, Done, NewTokens, Prefilled
from router.gateway.core import GatewayCore
from router.gateway.live.activity import Trace
from router.gateway.sample import Delta, Sample
from router.gateway.timing import Stopwatch


@dataclass(frozen=True, slots=True)
class Routed:
    """A route was decided, or, with a report, taken: not always the decided one."""

    decision: Decision
    report: PrefillReport | None = None


Deltas = tuple[Delta, ...]  # of tokens that came together
GenerationEvent = Routed | Deltas


class Generation:
    """One prompt and its samples. `run` may be called once."""

    def __init__(
        self,
        core: GatewayCore,
        request: GenerationRequest,
        *,
        stops: Sequence[str],
        watch: Stopwatch,
        keep: frozenset[int] = frozenset(),
    ) -> None:
        """`stops`: stop strings; `keep`: special tokens whose text is wanted."""
        self._core = core
        self.request = request
        stop_tokens = core.text.vocabulary.specials
        if request.sampling.stop_token_ids:
            stop_tokens = stop_tokens.union(request.sampling.stop_token_ids)
        self._samples = [
            Sample(index, core.text.detokenizer(keep=keep), stops, stop_tokens) for index in range(request.sampling.n)
        ]
        self.watch = watch
        self.decision: Decision | None = None
        self.report: PrefillReport | None = None
        self.prompt_logprobs: tuple[tuple[TokenLogprob, ...], ...] | None = None

    @property
    def usage(self) -> Usage:
        """Tokens so far. Those that a stop string or a stop token swallowed count: they were generated."""
        cached = self.report.cached_tokens if self.report is not None else 0
        return Usage(len(self.request.tokens), sum(sample.num_tokens for sample in self._samples), cached)

    @property
    def used_tokens(self) -> int:
        """Prompt and generated tokens, for charging; nothing before a route was found."""
        usage = self.usage
        return usage.prompt_tokens + usage.completion_tokens if self.decision is not None else 0

    @property
    def egress_bytes(self) -> int:
        """KV cache bytes that crossed between datacenters for this prompt."""
        return self.report.kv_bytes if self.report is not None and self.report.route is Route.REMOTE else 0

    @property
    def route(self) -> Route | None:
        """Where the prompt was in fact prefilled, or is to be, as far as is known."""
        if self.report is not None:
            return self.report.route
        return self.decision.route if self.decision is not None else None

    async def run(self) -> AsyncGenerator[GenerationEvent, None]:
        """Routed when the route is decided and again when it has been taken, then deltas until every sample has ended.

        Raises:
            PrfaasError: what the pipeline raises; EngineFailed or WorkerError if it ends without finishing.
        """
        async with aclosing(self._core.pipeline.generate(self.request)) as events:
            async for event in events:
                match event:
                    case Decided(decision, decide_s):
                        self.watch.decided(decide_s)
                        self.decision = decision
                        yield Routed(decision)
                    case Prefilled(report):
                        self.report = report
                        if self.decision is not None:
                            yield Routed(self.decision, report)
                    case NewTokens(outputs):
                        self._measure(outputs)
                        deltas = tuple(delta for output in outputs if (delta := self._feed(output)) is not None)
                        if deltas:
                            yield deltas
                        if all(sample.ended for sample in self._samples):
                            break
                    case Done():
                        break
        if not all(sample.ended for sample in self._samples):
            raise WorkerError("the worker ended the stream before every sample was finished")
        self._count()

    def _feed(self, output: TokenOutput) -> Delta | None:
        if output.finish_reason is FinishReason.ERROR:
            raise EngineFailed("the engine failed while generating; send the request again")
        if output.finish_reason is FinishReason.CANCELLED:
            raise RequestCancelled("the request was cancelled by the service")
        if output.prompt_logprobs is not None:
            self.prompt_logprobs = output.prompt_logprobs
        return self._samples[output.index].feed(output)

    def _measure(self, outputs: Sequence[TokenOutput]) -> None:
        """One arrival of tokens: the first gives TTFT and its stages, later ones the inter-token latency."""
        gap_s = self.watch.token()
        metrics = self._core.metrics
        metrics.inc(GENERATION_TOKENS, len(outputs))
        self._core.activity.tokens(len(outputs))
        if gap_s is not None:
            metrics.observe(ITL, gap_s)
            return
        ttft_s, stages = self.watch.ttft_s(), self.watch.stages(self.report)
        if ttft_s is None or stages is None or self.route is None:
            return
        metrics.observe(TTFT, ttft_s, route=self.route)
        metrics.observe(ROUTER_OVERHEAD, stages.tokenize, step="tokenize")
        for stage, seconds in stages.items():
            metrics.observe(TTFT_STAGE, seconds, stage=stage)

    def _count(self) -> None:
        usage, metrics = self.usage, self._core.metrics
        metrics.inc(PROMPT_TOKENS, usage.prompt_tokens)
        metrics.inc(CACHED_TOKENS, usage.cached_tokens)
        if self.route is not None:
            metrics.observe(E2E, self.watch.elapsed_s(), route=self.route)
        trace = self._trace(usage)
        if trace is not None:
            self._core.activity.end(trace)

    def _trace(self, usage: Usage) -> Trace | None:
        """What the live page shows of this request; None if its prefill was never reported."""
        report, ttft_s, stages = self.report, self.watch.ttft_s(), self.watch.stages(self.report)
        if report is None or ttft_s is None or stages is None:
            return None
        return Trace(
            request_id=self.request.request_id,
            route=report.route,
            worker=report.worker_id,
            ended_s=self._core.clock.now_s(),
            ttft_s=ttft_s,
            total_s=self.watch.elapsed_s(),
            stages=stages.items(),
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.cached_tokens,
            completion_tokens=usage.completion_tokens,
            kv_bytes=report.kv_bytes,
            attempts=len(report.attempts),
        )
