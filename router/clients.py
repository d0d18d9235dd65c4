"""Calls to decode workers: one channel and one stream for each address, all requests in it.

Turns wire messages into pipeline events and checks their order. Knows no policy and no fleet.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Iterator

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
from prfaas.errors import ProtocolViolation
from prfaas.pb import decode_pb2
from prfaas.types import Decision, GenerationRequest, TokenOutput
from router.api import Done, NewTokens, PipelineEvent, Prefilled
from router.decode_stream import DecodeStream

# The worker ends a request at its deadline and says so; ours only catches a worker that does not.
DEADLINE_GRACE_S = 2.0


class DecodeClients:
    """Owns channels and streams. Keep one for the life of the router and close it at the end."""

    def __init__(self, tls: TlsSettings) -> None:
        self._tls = tls
        self._files = rpc.TlsFiles(tls) if tls.enabled else None
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._streams: dict[str, DecodeStream] = {}

    async def generate(self, request: GenerationRequest, decision: Decision) -> AsyncGenerator[PipelineEvent, None]:
        """One Prefilled, NewTokens..., one Done from the decision's decode worker. Tokens that came together are one event.
        Closing the generator cancels the call, and with it everything the worker does for the request.

        Raises:
            PrfaasError: what the worker raised, or WorkerUnreachable, DeadlineExceeded, WorkerError for a call that
                broke; ProtocolViolation for events out of order.
        """
        message = decode_pb2.GenerateRequest(request=to_pb_generation_request(request), decision=to_pb_decision(decision))
        timeout_s = None if request.deadline_s is None else request.deadline_s + DEADLINE_GRACE_S
        call = self._stream(decision).call(message, timeout_s=timeout_s)
        order = _Order(decision.decode_worker)
        try:
            while not order.done:
                for event in _events(await call.take()):
                    yield order.check(event)
        finally:
            call.cancel()

    async def retain(self, addresses: frozenset[str]) -> None:
        """Close channels to other addresses, those with running calls excepted: a worker that has said goodbye may
        still be finishing what it has."""
        for address in [a for a in self._channels if a not in addresses]:
            stream = self._streams.get(address)
            if stream is None or not stream.num_calls:
                await self._drop(address)

    async def close(self) -> None:
        """Close every channel; running calls are cancelled."""
        for address in list(self._channels):
            await self._drop(address)

    async def _drop(self, address: str) -> None:
        channel, stream = self._channels.pop(address), self._streams.pop(address, None)
        if stream is not None:
            await stream.close()
        await channel.close(grace=None)

    def _stream(self, decision: Decision) -> DecodeStream:
        address = decision.decode_address
        if address not in self._channels:
            self._channels[address] = rpc.channel(address, self._tls, files=self._files)
        stream = self._streams.get(address)
        if stream is None or stream.broken:
            stream = self._streams[address] = DecodeStream(self._channels[address], decision.decode_worker)
        return stream


class _Order:
    """Checks that a worker's events come as the protocol says: one report, tokens, one end."""

    def __init__(self, worker_id: str) -> None:
        self._worker_id = worker_id
        self._prefilled = False
        self.done = False

    def check(self, event: PipelineEvent) -> PipelineEvent:
        early = not self._prefilled and not isinstance(event, Prefilled)
        again = self._prefilled and isinstance(event, Prefilled)
        if early or again or self.done:
            kind = type(event).__name__
            raise ProtocolViolation(f"decode worker {self._worker_id} sent {kind} out of order", frame=kind)
        self._prefilled = True
        self.done = isinstance(event, Done)
        return event


def _events(messages: Iterable[decode_pb2.GenerateEvent]) -> Iterator[PipelineEvent]:
    """Neighbouring tokens as one event."""
    tokens: list[TokenOutput] = []
    for message in messages:
        if message.HasField("tokens"):
            tokens += map(from_pb_token_output, message.tokens.outputs)
            continue
        if tokens:
            yield NewTokens(tuple(tokens))
            tokens = []
        yield _event(message)
    if tokens:
        yield NewTokens(tuple(tokens))


def _event(message: decode_pb2.GenerateEvent) -> PipelineEvent:
    if message.HasField("prefilled"):
        return Prefilled(from_pb_prefill_report(message.prefilled))
    if message.HasField("finished"):
        return Done(from_pb_usage(message.finished))
    raise ProtocolViolation("a decode worker sent an empty event", frame="event")
