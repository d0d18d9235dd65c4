"""Calls to decode workers: one channel for each address, one streaming call for each request.

Turns wire messages into pipeline events and foreign failures into typed errors. Knows no policy and no fleet.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator
from typing import Any

import grpc.aio

from prfaas import rpc
from prfaas.config import TlsSettings
from prfaas.convert import (
    from_pb_prefill_report,
    from_pb_token_output,
    from_pb_usage,
    to_pb_decision,
    to_pb_generation_request,
)
from prfaas.errors import ProtocolViolation, WorkerError
from prfaas.pb import decode_pb2
from prfaas.types import Decision, GenerationRequest
from router.api import Done, NewTokens, PipelineEvent, Prefilled

GENERATE = "/prfaas.pb.DecodeService/Generate"
# The worker ends a request at its deadline and says so; gRPC's own deadline only catches a worker that does not.
DEADLINE_GRACE_S = 2.0


class DecodeClients:
    """Owns the channels. Keep one for the life of the router and close it at the end."""

    def __init__(self, tls: TlsSettings) -> None:
        self._tls = tls
        self._files = rpc.TlsFiles(tls) if tls.enabled else None
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._calls: Counter[str] = Counter()

    async def generate(self, request: GenerationRequest, decision: Decision) -> AsyncGenerator[PipelineEvent, None]:
        """One Prefilled, NewTokens..., one Done from the decision's decode worker. Closing the generator cancels the
        call, and with it everything the worker does for the request.

        Raises:
            PrfaasError: what the worker raised, or WorkerUnreachable, DeadlineExceeded, WorkerError for a call that
                broke; ProtocolViolation for events out of order.
        """
        message = decode_pb2.GenerateRequest(request=to_pb_generation_request(request), decision=to_pb_decision(decision))
        start = self._channel(decision.decode_address).unary_stream(
            GENERATE,
            request_serializer=decode_pb2.GenerateRequest.SerializeToString,
            response_deserializer=decode_pb2.GenerateEvent.FromString,
        )
        timeout_s = None if request.deadline_s is None else request.deadline_s + DEADLINE_GRACE_S
        call = start(message, timeout=timeout_s)
        order = _Order(decision.decode_worker)
        self._calls[decision.decode_address] += 1
        try:
            async for event in call:
                yield order.check(_event(event))
        except grpc.aio.AioRpcError as error:
            raise rpc.from_rpc(error, worker_id=decision.decode_worker) from error
        finally:
            call.cancel()
            self._calls[decision.decode_address] -= 1
        order.require_done()

    async def retain(self, addresses: frozenset[str]) -> None:
        """Close channels to other addresses, those with running calls excepted: a worker that has said goodbye may
        still be finishing what it has."""
        for address in [a for a in self._channels if a not in addresses and not self._calls[a]]:
            del self._calls[address]
            await self._channels.pop(address).close(grace=None)

    async def close(self) -> None:
        """Close every channel; running calls are cancelled."""
        self._calls.clear()
        await self.retain(frozenset())

    def _channel(self, address: str) -> grpc.aio.Channel:
        if address not in self._channels:
            self._channels[address] = rpc.channel(address, self._tls, files=self._files)
        return self._channels[address]


class _Order:
    """Checks that a worker's events come as the protocol says: one report, tokens, one end."""

    def __init__(self, worker_id: str) -> None:
        self._worker_id = worker_id
        self._prefilled = False
        self._done = False

    def check(self, event: PipelineEvent) -> PipelineEvent:
        early = not self._prefilled and not isinstance(event, Prefilled)
        again = self._prefilled and isinstance(event, Prefilled)
        if early or again or self._done:
            kind = type(event).__name__
            raise ProtocolViolation(f"decode worker {self._worker_id} sent {kind} out of order", frame=kind)
        self._prefilled = True
        self._done = isinstance(event, Done)
        return event

    def require_done(self) -> None:
        if not self._done:
            raise WorkerError(f"decode worker {self._worker_id} ended the stream before the request was finished")


def _event(message: decode_pb2.GenerateEvent) -> PipelineEvent:
    kind: Any = message.WhichOneof("event")
    if kind == "prefilled":
        return Prefilled(from_pb_prefill_report(message.prefilled))
    if kind == "tokens":
        return NewTokens(tuple(from_pb_token_output(output) for output in message.tokens.outputs))
    if kind == "finished":
        return Done(from_pb_usage(message.finished))
    raise ProtocolViolation("a decode worker sent an empty event", frame="event")
