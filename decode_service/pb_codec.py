"""Between the messages of a call and plain values. The only file of this door that reads messages."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from prfaas.convert import (
    from_pb_decision,
    from_pb_generation_request,
    to_pb_prefill_report,
    to_pb_token_output,
    to_pb_usage,
)
from prfaas.errors import PrfaasError
from prfaas.pb import decode_pb2
from prfaas.rpc import encode_error
from prfaas.types import Decision, GenerationRequest, PrefillReport, TokenOutput, Usage


@dataclass(frozen=True, slots=True)
class Call:
    """What a router asks: a request, and where its prompt is to be prefilled."""

    request: GenerationRequest
    decision: Decision


def read_call(message: decode_pb2.GenerateRequest) -> Call:
    """Raises InvalidRequest naming the field that holds an unknown word."""
    return Call(request=from_pb_generation_request(message.request), decision=from_pb_decision(message.decision))


def prefilled_event(report: PrefillReport) -> decode_pb2.GenerateEvent:
    return decode_pb2.GenerateEvent(prefilled=to_pb_prefill_report(report))


def tokens_event(outputs: Iterable[TokenOutput]) -> decode_pb2.GenerateEvent:
    return decode_pb2.GenerateEvent(tokens=decode_pb2.Tokens(outputs=[to_pb_token_output(o) for o in outputs]))


def finished_event(usage: Usage) -> decode_pb2.GenerateEvent:
    return decode_pb2.GenerateEvent(finished=to_pb_usage(usage))


def failed_event(error: PrfaasError) -> decode_pb2.GenerateEvent:
    return decode_pb2.GenerateEvent(failed=encode_error(error))
