"""Everything that crosses the wire as a value comes back as the same value, through real bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prfaas import convert
from prfaas.errors import InvalidRequest
from prfaas.modelspec import Fingerprint
from prfaas.pb import common_pb2, decode_pb2, registry_pb2
from prfaas.types import (
    CacheEvent,
    CacheGroupInfo,
    Decision,
    FinishReason,
    GenerationRequest,
    Grammar,
    LinkView,
    PrefillCandidate,
    PrefillReport,
    Route,
    SamplingParams,
    TokenLogprob,
    TokenOutput,
    Usage,
    WorkerInfo,
    WorkerLoad,
)

T = TypeVar("T")

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
number = st.floats(allow_nan=False, width=64)


def tuples_of(strategy: st.SearchStrategy[T]) -> st.SearchStrategy[tuple[T, ...]]:
    return st.lists(strategy, max_size=4).map(tuple)


def values(kind: type[T], **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[T]:
    """Values of `kind`: numbers and words by annotation, the given strategies for everything that needs one."""
    return st.builds(kind, **fields)


sampling = values(
    SamplingParams,
    max_tokens=u32,
    min_tokens=u32,
    temperature=number,
    top_p=number,
    top_k=u32,
    min_p=number,
    repetition_penalty=number,
    presence_penalty=number,
    frequency_penalty=number,
    logit_bias=tuples_of(st.tuples(u32, number)),
    seed=u64,
    n=u32,
    logprobs=st.none() | u32,
    prompt_logprobs=st.none() | u32,
    stop_token_ids=tuples_of(u32),
    ignore_eos=st.booleans(),
    grammar=st.none() | values(Grammar, source=text),
)
requests = values(
    GenerationRequest,
    request_id=text,
    model=text,
    tokens=tuples_of(u32),
    sampling=sampling,
    priority=st.integers(-(2**31), 2**31 - 1),
    tenant=text,
    cache_salt=text,
    deadline_s=st.none() | number,
    trace_parent=text,
)
candidates = values(PrefillCandidate, worker_id=text, site=text, address=text)
decisions = values(
    Decision,
    decode_worker=text,
    decode_address=text,
    candidates=tuples_of(candidates),
    reasons=tuples_of(text),
    uncached_tokens=u64,
    threshold_tokens=u64,
    predicted_ttft_s=tuples_of(st.tuples(st.sampled_from(Route), number)),
)
logprob = values(TokenLogprob, token_id=u32, logprob=number)
outputs = values(
    TokenOutput,
    index=u32,
    position=u32,
    token_id=u32,
    logprob=st.none() | number,
    top_logprobs=tuples_of(logprob),
    finish_reason=st.none() | st.sampled_from(FinishReason),
    prompt_logprobs=st.none() | tuples_of(tuples_of(logprob)),
)
reports = values(
    PrefillReport,
    worker_id=text,
    cached_tokens=u64,
    queue_s=number,
    prefill_s=number,
    wire_s=number,
    commit_s=number,
    kv_bytes=u64,
    attempts=tuples_of(text),
)
infos = values(
    WorkerInfo,
    worker_id=text,
    incarnation=text,
    site=text,
    address=text,
    model=text,
    fingerprint_digest=text,
    max_context_tokens=u32,
    block_tokens=u32,
    total_blocks=u64,
    max_running=u32,
    device=text,
    cache_groups=tuples_of(values(CacheGroupInfo, name=text, entry_bytes=u64, window_tokens=st.none() | u64)),
)
loads = values(
    WorkerLoad,
    running=u32,
    waiting=u32,
    waiting_prefill_tokens=u64,
    free_blocks=u64,
    cached_blocks=u64,
    active_transfers=u32,
    prefill_tokens_per_s=number,
    decode_step_s=number,
    draining=st.booleans(),
)
events = values(CacheEvent, seq=u64, group=text, hashes=tuples_of(st.binary(min_size=16, max_size=16)))
links = values(
    LinkView,
    src=text,
    dst=text,
    capacity_bytes_per_s=number,
    goodput_bytes_per_s=number,
    queued_bytes=u64,
    rtt_s=number,
    loss_ratio=number,
    retransmitted_bytes=u64,
    active_transfers=u32,
    age_s=number,
)


class Pair(NamedTuple):
    """A conversion there and back, and values to send through it."""

    strategy: st.SearchStrategy[Any]
    to_pb: Callable[[Any], Any]
    from_pb: Callable[[Any], Any]


PAIRS = {
    "fingerprint": Pair(
        values(Fingerprint, model=text, tokenizer=text, cache=text, wire_version=u32),
        convert.to_pb_fingerprint,
        convert.from_pb_fingerprint,
    ),
    "sampling": Pair(sampling, convert.to_pb_sampling, convert.from_pb_sampling),
    "generation_request": Pair(requests, convert.to_pb_generation_request, convert.from_pb_generation_request),
    "decision": Pair(decisions, convert.to_pb_decision, convert.from_pb_decision),
    "token_output": Pair(outputs, convert.to_pb_token_output, convert.from_pb_token_output),
    "prefill_report": Pair(reports, convert.to_pb_prefill_report, convert.from_pb_prefill_report),
    "usage": Pair(
        values(Usage, prompt_tokens=u64, completion_tokens=u64, cached_tokens=u64),
        convert.to_pb_usage,
        convert.from_pb_usage,
    ),
    "worker_info": Pair(infos, convert.to_pb_worker_info, convert.from_pb_worker_info),
    "worker_load": Pair(loads, convert.to_pb_worker_load, convert.from_pb_worker_load),
    "cache_event": Pair(events, convert.to_pb_cache_event, convert.from_pb_cache_event),
    "link_view": Pair(links, convert.to_pb_link_view, convert.from_pb_link_view),
}


@pytest.mark.parametrize("name", PAIRS)
@given(data=st.data())
def test_a_value_survives_the_wire(name: str, data: st.DataObject) -> None:
    pair = PAIRS[name]
    value = data.draw(pair.strategy)
    message = pair.to_pb(value)
    received = type(message).FromString(message.SerializeToString())
    assert pair.from_pb(received) == value


def test_every_conversion_is_tested() -> None:
    there = {name.removeprefix("to_pb_") for name in vars(convert) if name.startswith("to_pb_")}
    back = {name.removeprefix("from_pb_") for name in vars(convert) if name.startswith("from_pb_")}
    assert there == back == set(PAIRS)


def test_defaults_survive() -> None:
    assert convert.from_pb_sampling(convert.to_pb_sampling(SamplingParams())) == SamplingParams()


def test_a_request_without_sampling_gets_the_defaults() -> None:
    message = common_pb2.GenerationRequest(request_id="r", model="m", tokens=[1])
    assert convert.from_pb_generation_request(message).sampling == SamplingParams()


def test_zero_is_not_none() -> None:
    params = SamplingParams(logprobs=0, prompt_logprobs=0)
    back = convert.from_pb_sampling(convert.to_pb_sampling(params))
    assert (back.logprobs, back.prompt_logprobs) == (0, 0)


@pytest.mark.parametrize(
    ("read", "message", "param"),
    [
        (convert.from_pb_decision, decode_pb2.Decision(route="by-post"), "decision.route"),
        (convert.from_pb_worker_info, registry_pb2.WorkerInfo(role="boss"), "role"),
        (convert.from_pb_token_output, common_pb2.TokenOutput(finish_reason="tired"), "finish_reason"),
        (convert.from_pb_cache_event, common_pb2.CacheEvent(kind="stored", tier="tape"), "cache_events.tier"),
        (
            convert.from_pb_sampling,
            common_pb2.SamplingParams(grammar=common_pb2.Grammar(kind="haiku")),
            "sampling.grammar.kind",
        ),
    ],
)
def test_an_unknown_word_names_its_field(read: Callable[[Any], Any], message: object, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read(message)
    assert caught.value.param == param
