"""When a sample is over, and which requests are refused."""

from __future__ import annotations

import pytest

from prfaas.engine.rules import check_request, finish_reason, snapshot_position, total_tokens
from prfaas.errors import InvalidRequest
from prfaas.types import FinishReason, GenerationRequest, RequestId, SamplingParams
from tests.support.tiny_specs import tiny_spec

SPEC = tiny_spec(context=20)
STOP, LENGTH = FinishReason.STOP, FinishReason.LENGTH


def request(length: int = 10, **sampling: object) -> GenerationRequest:
    params = SamplingParams(**{"max_tokens": 5, **sampling})  # type: ignore[arg-type]
    return GenerationRequest(RequestId("r"), "tiny", tuple(range(1, length + 1)), params)


@pytest.mark.parametrize(
    ("answer", "sampling", "expected"),
    [
        ([7], {}, None),
        ([7, 0], {}, STOP),
        ([7, 0], {"ignore_eos": True}, None),
        ([7, 9], {"stop_token_ids": (9,)}, STOP),
        ([7, 9], {"stop_token_ids": (9,), "ignore_eos": True}, STOP),
        ([0], {"min_tokens": 1}, None),
        ([7, 0], {"min_tokens": 1}, STOP),
        ([1, 2, 3, 4, 5], {}, LENGTH),
        ([1, 2, 3, 4, 0], {}, STOP),
        (list(range(1, 11)), {"max_tokens": 100}, LENGTH),  # the context is used up
    ],
)
def test_an_answer_ends_for_one_reason(answer: list[int], sampling: dict[str, object], expected: FinishReason | None) -> None:
    assert finish_reason(request(**sampling), SPEC, answer, grammar_done=False) is expected


def test_a_finished_grammar_ends_the_answer() -> None:
    assert finish_reason(request(), SPEC, [7], grammar_done=True) is STOP


@pytest.mark.parametrize(
    ("sampling", "param"),
    [({"n": 0}, "n"), ({"n": 10**9}, "n"), ({"max_tokens": 0}, "max_tokens"), ({"min_tokens": 6}, "min_tokens")],
)
def test_counts_out_of_range_are_named(sampling: dict[str, object], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        check_request(request(**sampling), SPEC)
    assert refused.value.param == param


@pytest.mark.parametrize("name", ["temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_shapes_no_distribution(name: str, value: float) -> None:
    with pytest.raises(InvalidRequest) as refused:
        check_request(request(**{name: value}), SPEC)
    assert refused.value.param == name


@pytest.mark.parametrize(
    "sampling",
    [{"temperature": -1.0}, {"top_p": 0.0}, {"min_p": 1.5}, {"repetition_penalty": 0.0}, {"logit_bias": ((3, float("nan")),)}],
)
def test_numbers_out_of_range_are_refused(sampling: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest):
        check_request(request(**sampling), SPEC)


def test_the_ends_of_the_ranges_are_fine() -> None:
    check_request(request(temperature=0.0, top_p=1.0, min_p=1.0, logit_bias=((3, float("-inf")),)), SPEC)


def test_a_prompt_may_fill_the_context_but_for_one_token() -> None:
    check_request(request(19), SPEC)
    assert total_tokens(request(19), SPEC) == 20


@pytest.mark.parametrize(
    ("shape", "length", "sampling", "expected"),
    [
        ("kimi", 14, {}, 12),
        ("kimi", 12, {}, 8),  # at least one token has to be computed after a hit
        ("kimi", 4, {}, None),  # no boundary before the end
        ("kimi", 14, {"max_tokens": 3, "ignore_eos": True}, None),  # the answer itself reaches the next boundary
        ("kimi", 14, {"max_tokens": 2, "ignore_eos": True}, 12),
        ("kimi", 14, {"min_tokens": 3}, None),
        ("kimi", 14, {"ignore_eos": True, "stop_token_ids": (3,)}, 12),
        ("recurrent", 14, {}, None),  # the states are all there is to send: twice as much
        ("dense", 14, {}, None),
        ("everything", 14, {}, None),
    ],
)
def test_states_travel_with_a_prompt_where_the_next_turn_may_need_them(
    shape: str, length: int, sampling: dict[str, object], expected: int | None
) -> None:
    assert snapshot_position(request(length, **sampling), tiny_spec(shape)) == expected
