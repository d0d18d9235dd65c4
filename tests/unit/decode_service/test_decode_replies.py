"""One report, then tokens, then the usage."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decode_service.ladder import Prefilled
from decode_service.replies import Replies
from prfaas.convert import from_pb_prefill_report, from_pb_token_output, from_pb_usage
from prfaas.engine.api import EngineEvent
from prfaas.pb import decode_pb2
from prfaas.types import PrefillReport, Route, Usage, WorkerId
from tests.support.reports import prefill_report
from tests.support.scripted import ScriptedStream, story, token

REPORT = prefill_report(cached_tokens=6)


def replies(report: PrefillReport | None = None, attempts: tuple[str, ...] = ()) -> Replies:
    return Replies(Prefilled(ScriptedStream([]), report, attempts), WorkerId("d1"))


def told(speaker: Replies, events: Sequence[EngineEvent]) -> list[decode_pb2.GenerateEvent]:
    return [message for event in events for message in speaker.messages(event)]


def kinds(messages: Sequence[decode_pb2.GenerateEvent]) -> list[str | None]:
    return [message.WhichOneof("event") for message in messages]


def test_an_inline_prefill_is_reported_from_the_engines_own_events() -> None:
    messages = told(replies(attempts=("far:worker_unreachable",)), story(7, 8, cached_tokens=4))
    assert kinds(messages) == ["prefilled", "tokens", "tokens", "finished"]
    assert from_pb_prefill_report(messages[0].prefilled) == PrefillReport(
        route=Route.INLINE,
        worker_id=WorkerId("d1"),
        cached_tokens=4,
        queue_s=0.25,
        prefill_s=0.5,
        wire_s=0.0,
        commit_s=0.0,
        kv_bytes=0,
        attempts=("far:worker_unreachable",),
    )


def test_a_transfers_report_goes_out_as_it_is() -> None:
    messages = told(replies(REPORT), story(7))
    assert from_pb_prefill_report(messages[0].prefilled) == REPORT


def test_usage_counts_prefix_hits_at_the_other_site() -> None:
    messages = told(replies(REPORT), story(7, cached_tokens=0))
    assert from_pb_usage(messages[-1].finished) == Usage(prompt_tokens=10, completion_tokens=1, cached_tokens=6)


def test_nothing_is_said_before_the_first_token() -> None:
    assert told(replies(REPORT), story(7)[:1]) == []


@given(st.lists(st.integers(0, 99), min_size=1, max_size=8))
def test_one_report_then_every_token_then_the_usage(token_ids: list[int]) -> None:
    speaker = replies()
    messages = told(speaker, story(*token_ids))
    assert speaker.finished
    said = kinds(messages)
    assert (said[0], said[-1]) == ("prefilled", "finished")
    assert set(said[1:-1]) == {"tokens"}
    outputs = [from_pb_token_output(o) for message in messages for o in message.tokens.outputs]
    assert outputs == [token(position, token_id) for position, token_id in enumerate(token_ids)]


@pytest.mark.parametrize("report", [None, REPORT])
def test_an_unfinished_story_is_not_finished(report: PrefillReport | None) -> None:
    speaker = replies(report)
    told(speaker, story(7)[:-1])
    assert not speaker.finished
