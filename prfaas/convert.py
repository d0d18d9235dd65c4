"""Between wire messages and plain values: `to_pb_x` and `from_pb_x` for everything that several services exchange.

Round trips are exact, optional fields and defaults included. Knows nothing of sockets, and judges no value beyond
what the wire needs: a message that cannot be a value (an unknown word where an enumeration is expected) is an
InvalidRequest that names the field; a value that cannot be a message (a negative token id) is protobuf's ValueError.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import TypeVar

from prfaas.errors import InvalidRequest
from prfaas.modelspec import Fingerprint
from prfaas.pb import common_pb2, decode_pb2, registry_pb2
from prfaas.types import (
    BlockHash,
    CacheEvent,
    CacheEventKind,
    CacheGroupInfo,
    CacheTier,
    Decision,
    FinishReason,
    GenerationRequest,
    Grammar,
    GrammarKind,
    GroupKind,
    LinkView,
    PrefillCandidate,
    PrefillReport,
    RequestId,
    Role,
    Route,
    SamplingParams,
    SiteId,
    TokenLogprob,
    TokenOutput,
    Usage,
    WorkerId,
    WorkerInfo,
    WorkerLoad,
)

EnumT = TypeVar("EnumT", bound=StrEnum)


def word(kind: type[EnumT], text: str, param: str) -> EnumT:
    """The member of an enumeration that a message names. Raises InvalidRequest for a word it does not have."""
    try:
        return kind(text)
    except ValueError:
        known = ", ".join(kind)
        raise InvalidRequest(f"{param} is {text!r}; it must be one of: {known}", param=param) from None


def to_pb_fingerprint(value: Fingerprint) -> common_pb2.Fingerprint:
    return common_pb2.Fingerprint(
        model=value.model, tokenizer=value.tokenizer, cache=value.cache, wire_version=value.wire_version
    )


def from_pb_fingerprint(message: common_pb2.Fingerprint) -> Fingerprint:
    return Fingerprint(model=message.model, tokenizer=message.tokenizer, cache=message.cache, wire_version=message.wire_version)


def to_pb_sampling(value: SamplingParams) -> common_pb2.SamplingParams:
    """`seed` must be in [0, 2**64)."""
    grammar = value.grammar
    return common_pb2.SamplingParams(
        max_tokens=value.max_tokens,
        min_tokens=value.min_tokens,
        temperature=value.temperature,
        top_p=value.top_p,
        top_k=value.top_k,
        min_p=value.min_p,
        repetition_penalty=value.repetition_penalty,
        presence_penalty=value.presence_penalty,
        frequency_penalty=value.frequency_penalty,
        logit_bias=[common_pb2.LogitBias(token_id=token, bias=bias) for token, bias in value.logit_bias],
        seed=value.seed,
        n=value.n,
        logprobs=value.logprobs,
        prompt_logprobs=value.prompt_logprobs,
        stop_token_ids=value.stop_token_ids,
        ignore_eos=value.ignore_eos,
        grammar=None if grammar is None else common_pb2.Grammar(kind=grammar.kind.value, source=grammar.source),
    )


def from_pb_sampling(message: common_pb2.SamplingParams) -> SamplingParams:
    grammar = None
    if message.HasField("grammar"):
        kind = word(GrammarKind, message.grammar.kind, "sampling.grammar.kind")
        grammar = Grammar(kind=kind, source=message.grammar.source)
    return SamplingParams(
        max_tokens=message.max_tokens,
        min_tokens=message.min_tokens,
        temperature=message.temperature,
        top_p=message.top_p,
        top_k=message.top_k,
        min_p=message.min_p,
        repetition_penalty=message.repetition_penalty,
        presence_penalty=message.presence_penalty,
        frequency_penalty=message.frequency_penalty,
        logit_bias=tuple((entry.token_id, entry.bias) for entry in message.logit_bias),
        seed=message.seed,
        n=message.n,
        logprobs=message.logprobs if message.HasField("logprobs") else None,
        prompt_logprobs=message.prompt_logprobs if message.HasField("prompt_logprobs") else None,
        stop_token_ids=tuple(message.stop_token_ids),
        ignore_eos=message.ignore_eos,
        grammar=grammar,
    )


def to_pb_generation_request(value: GenerationRequest) -> common_pb2.GenerationRequest:
    return common_pb2.GenerationRequest(
        request_id=value.request_id,
        model=value.model,
        tokens=value.tokens,
        sampling=to_pb_sampling(value.sampling),
        priority=value.priority,
        tenant=value.tenant,
        cache_salt=value.cache_salt,
        deadline_s=value.deadline_s,
        trace_parent=value.trace_parent,
    )


def from_pb_generation_request(message: common_pb2.GenerationRequest) -> GenerationRequest:
    """A request without a `sampling` message gets the defaults of `SamplingParams`."""
    return GenerationRequest(
        request_id=RequestId(message.request_id),
        model=message.model,
        tokens=tuple(message.tokens),
        sampling=from_pb_sampling(message.sampling) if message.HasField("sampling") else SamplingParams(),
        priority=message.priority,
        tenant=message.tenant,
        cache_salt=message.cache_salt,
        deadline_s=message.deadline_s if message.HasField("deadline_s") else None,
        trace_parent=message.trace_parent,
    )


def to_pb_decision(value: Decision) -> decode_pb2.Decision:
    candidates = [
        decode_pb2.PrefillCandidate(worker_id=c.worker_id, site=c.site, address=c.address, route=c.route.value)
        for c in value.candidates
    ]
    forecasts = [decode_pb2.RouteForecast(route=route.value, ttft_s=ttft_s) for route, ttft_s in value.predicted_ttft_s]
    return decode_pb2.Decision(
        decode_worker=value.decode_worker,
        decode_address=value.decode_address,
        route=value.route.value,
        candidates=candidates,
        reasons=value.reasons,
        uncached_tokens=value.uncached_tokens,
        threshold_tokens=value.threshold_tokens,
        predicted_ttft_s=forecasts,
    )


def from_pb_decision(message: decode_pb2.Decision) -> Decision:
    candidates = (
        PrefillCandidate(
            worker_id=WorkerId(c.worker_id),
            site=SiteId(c.site),
            address=c.address,
            route=word(Route, c.route, "decision.candidates.route"),
        )
        for c in message.candidates
    )
    forecasts = ((word(Route, f.route, "decision.predicted_ttft_s.route"), f.ttft_s) for f in message.predicted_ttft_s)
    return Decision(
        decode_worker=WorkerId(message.decode_worker),
        decode_address=message.decode_address,
        route=word(Route, message.route, "decision.route"),
        candidates=tuple(candidates),
        reasons=tuple(message.reasons),
        uncached_tokens=message.uncached_tokens,
        threshold_tokens=message.threshold_tokens,
        predicted_ttft_s=tuple(forecasts),
    )


def _to_pb_logprobs(values: Iterable[TokenLogprob]) -> list[common_pb2.TokenLogprob]:
    return [common_pb2.TokenLogprob(token_id=value.token_id, logprob=value.logprob) for value in values]


def _from_pb_logprobs(messages: Iterable[common_pb2.TokenLogprob]) -> tuple[TokenLogprob, ...]:
    return tuple(TokenLogprob(token_id=message.token_id, logprob=message.logprob) for message in messages)


def to_pb_token_output(value: TokenOutput) -> common_pb2.TokenOutput:
    prompt_logprobs = None
    if value.prompt_logprobs is not None:
        positions = [common_pb2.TokenLogprobs(entries=_to_pb_logprobs(entries)) for entries in value.prompt_logprobs]
        prompt_logprobs = common_pb2.PromptLogprobs(positions=positions)
    return common_pb2.TokenOutput(
        index=value.index,
        position=value.position,
        token_id=value.token_id,
        logprob=value.logprob,
        top_logprobs=_to_pb_logprobs(value.top_logprobs),
        finish_reason=None if value.finish_reason is None else value.finish_reason.value,
        prompt_logprobs=prompt_logprobs,
    )


def from_pb_token_output(message: common_pb2.TokenOutput) -> TokenOutput:
    finish_reason = None
    if message.HasField("finish_reason"):
        finish_reason = word(FinishReason, message.finish_reason, "finish_reason")
    prompt_logprobs = None
    if message.HasField("prompt_logprobs"):
        prompt_logprobs = tuple(_from_pb_logprobs(p.entries) for p in message.prompt_logprobs.positions)
    return TokenOutput(
        index=message.index,
        position=message.position,
        token_id=message.token_id,
        logprob=message.logprob if message.HasField("logprob") else None,
        top_logprobs=_from_pb_logprobs(message.top_logprobs),
        finish_reason=finish_reason,
        prompt_logprobs=prompt_logprobs,
    )


def to_pb_prefill_report(value: PrefillReport) -> decode_pb2.PrefillReport:
    return decode_pb2.PrefillReport(
        route=value.route.value,
        worker_id=value.worker_id,
        cached_tokens=value.cached_tokens,
        queue_s=value.queue_s,
        prefill_s=value.prefill_s,
        wire_s=value.wire_s,
        commit_s=value.commit_s,
        kv_bytes=value.kv_bytes,
        attempts=value.attempts,
    )


def from_pb_prefill_report(message: decode_pb2.PrefillReport) -> PrefillReport:
    return PrefillReport(
        route=word(Route, message.route, "prefilled.route"),
        worker_id=WorkerId(message.worker_id),
        cached_tokens=message.cached_tokens,
        queue_s=message.queue_s,
        prefill_s=message.prefill_s,
        wire_s=message.wire_s,
        commit_s=message.commit_s,
        kv_bytes=message.kv_bytes,
        attempts=tuple(message.attempts),
    )


def to_pb_usage(value: Usage) -> decode_pb2.Usage:
    return decode_pb2.Usage(
        prompt_tokens=value.prompt_tokens, completion_tokens=value.completion_tokens, cached_tokens=value.cached_tokens
    )


def from_pb_usage(message: decode_pb2.Usage) -> Usage:
    return Usage(
        prompt_tokens=message.prompt_tokens,
        completion_tokens=message.completion_tokens,
        cached_tokens=message.cached_tokens,
    )


def _to_pb_cache_group(value: CacheGroupInfo) -> registry_pb2.CacheGroupInfo:
    return registry_pb2.CacheGroupInfo(
        name=value.name, kind=value.kind.value, entry_bytes=value.entry_bytes, window_tokens=value.window_tokens
    )


def _from_pb_cache_group(message: registry_pb2.CacheGroupInfo) -> CacheGroupInfo:
    return CacheGroupInfo(
        name=message.name,
        kind=word(GroupKind, message.kind, "cache_groups.kind"),
        entry_bytes=message.entry_bytes,
        window_tokens=message.window_tokens if message.HasField("window_tokens") else None,
    )


def to_pb_worker_info(value: WorkerInfo) -> registry_pb2.WorkerInfo:
    return registry_pb2.WorkerInfo(
        worker_id=value.worker_id,
        incarnation=value.incarnation,
        site=value.site,
        role=value.role.value,
        address=value.address,
        model=value.model,
        fingerprint_digest=value.fingerprint_digest,
        max_context_tokens=value.max_context_tokens,
        block_tokens=value.block_tokens,
        total_blocks=value.total_blocks,
        max_running=value.max_running,
        device=value.device,
        cache_groups=[_to_pb_cache_group(group) for group in value.cache_groups],
    )


def from_pb_worker_info(message: registry_pb2.WorkerInfo) -> WorkerInfo:
    return WorkerInfo(
        worker_id=WorkerId(message.worker_id),
        incarnation=message.incarnation,
        site=SiteId(message.site),
        role=word(Role, message.role, "role"),
        address=message.address,
        model=message.model,
        fingerprint_digest=message.fingerprint_digest,
        max_context_tokens=message.max_context_tokens,
        block_tokens=message.block_tokens,
        total_blocks=message.total_blocks,
        max_running=message.max_running,
        device=message.device,
        cache_groups=tuple(_from_pb_cache_group(group) for group in message.cache_groups),
    )


def to_pb_worker_load(value: WorkerLoad) -> common_pb2.WorkerLoad:
    return common_pb2.WorkerLoad(
        running=value.running,
        waiting=value.waiting,
        waiting_prefill_tokens=value.waiting_prefill_tokens,
        free_blocks=value.free_blocks,
        cached_blocks=value.cached_blocks,
        active_transfers=value.active_transfers,
        prefill_tokens_per_s=value.prefill_tokens_per_s,
        decode_step_s=value.decode_step_s,
        draining=value.draining,
    )


def from_pb_worker_load(message: common_pb2.WorkerLoad) -> WorkerLoad:
    return WorkerLoad(
        running=message.running,
        waiting=message.waiting,
        waiting_prefill_tokens=message.waiting_prefill_tokens,
        free_blocks=message.free_blocks,
        cached_blocks=message.cached_blocks,
        active_transfers=message.active_transfers,
        prefill_tokens_per_s=message.prefill_tokens_per_s,
        decode_step_s=message.decode_step_s,
        draining=message.draining,
    )


def to_pb_cache_event(value: CacheEvent) -> common_pb2.CacheEvent:
    return common_pb2.CacheEvent(
        seq=value.seq, kind=value.kind.value, group=value.group, tier=value.tier.value, hashes=value.hashes
    )


def from_pb_cache_event(message: common_pb2.CacheEvent) -> CacheEvent:
    return CacheEvent(
        seq=message.seq,
        kind=word(CacheEventKind, message.kind, "cache_events.kind"),
        group=message.group,
        tier=word(CacheTier, message.tier, "cache_events.tier"),
        hashes=tuple(BlockHash(value) for value in message.hashes),
    )


def to_pb_link_view(value: LinkView) -> common_pb2.LinkView:
    return common_pb2.LinkView(
        src=value.src,
        dst=value.dst,
        capacity_bytes_per_s=value.capacity_bytes_per_s,
        goodput_bytes_per_s=value.goodput_bytes_per_s,
        queued_bytes=value.queued_bytes,
        rtt_s=value.rtt_s,
        loss_ratio=value.loss_ratio,
        retransmitted_bytes=value.retransmitted_bytes,
        active_transfers=value.active_transfers,
        age_s=value.age_s,
    )


def from_pb_link_view(message: common_pb2.LinkView) -> LinkView:
    return LinkView(
        src=SiteId(message.src),
        dst=SiteId(message.dst),
        capacity_bytes_per_s=message.capacity_bytes_per_s,
        goodput_bytes_per_s=message.goodput_bytes_per_s,
        queued_bytes=message.queued_bytes,
        rtt_s=message.rtt_s,
        loss_ratio=message.loss_ratio,
        retransmitted_bytes=message.retransmitted_bytes,
        active_transfers=message.active_transfers,
        age_s=message.age_s,
    )
