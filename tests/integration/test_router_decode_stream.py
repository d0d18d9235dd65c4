"""The stream that many calls share: one that is not read costs a bounded amount, and the others nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc.aio
import pytest

from prfaas.convert import to_pb_decision, to_pb_generation_request
from prfaas.errors import RequestCancelled
from prfaas.pb import decode_pb2
from prfaas.types import Decision, Route, WorkerId
from router.decode_stream import MAX_BEHIND_BYTES, DecodeCall, DecodeStream
from tests.support.router_fleet import Call, ScriptedDecode, answer_well, eventually, generation_request, serving, token

PIECE_TOKENS = 4096
Events = AsyncIterator[decode_pb2.GenerateEvent]


@pytest.fixture
def piece() -> bytes:
    """Many tokens in one event."""
    outputs = [token(position).tokens.outputs[0] for position in range(PIECE_TOKENS)]
    return decode_pb2.GenerateEvent(tokens=decode_pb2.Tokens(outputs=outputs)).SerializeToString()


def ask(stream: DecodeStream, worker: ScriptedDecode, request_id: str) -> DecodeCall:
    decision = Decision(WorkerId("d"), worker.address, Route.INLINE, (), ("a test",), 100, 0)
    request = to_pb_generation_request(generation_request(request_id=request_id))
    return stream.call(decode_pb2.GenerateRequest(request=request, decision=to_pb_decision(decision)))


async def test_who_does_not_read_is_cut_off_and_nobody_else_is(piece: bytes) -> None:
    told = 0

    async def endless(worker: ScriptedDecode, call: Call) -> Events:
        nonlocal told
        if call.request.request_id != "slow":
            async for event in answer_well(worker, call):
                yield event
            return
        while True:
            yield decode_pb2.GenerateEvent.FromString(piece)
            told += 1
            await asyncio.sleep(0.001)

    async with serving(endless) as worker, grpc.aio.insecure_channel(worker.address) as channel:
        stream = DecodeStream(channel, "d")
        slow = ask(stream, worker, "slow")
        await eventually(worker.cancelled.is_set)
        kept = await slow.take()
        assert MAX_BEHIND_BYTES < sum(event.ByteSize() for event in kept) < MAX_BEHIND_BYTES + 2 * len(piece)
        assert len(kept) <= told
        with pytest.raises(RequestCancelled, match="does not read"):
            await slow.take()
        quick = ask(stream, worker, "quick")
        events: list[decode_pb2.GenerateEvent] = []
        while not events or not events[-1].HasField("finished"):
            events += await quick.take()
        assert len(events) == 4
        assert stream.num_calls == 0
        await stream.close()


async def test_who_reads_may_be_told_any_amount(piece: bytes) -> None:
    pieces = 2 * MAX_BEHIND_BYTES // len(piece)

    async def much(worker: ScriptedDecode, call: Call) -> Events:
        for _ in range(pieces):
            yield decode_pb2.GenerateEvent.FromString(piece)
            await asyncio.sleep(0.001)
        async for event in answer_well(worker, call):
            yield event

    async with serving(much) as worker, grpc.aio.insecure_channel(worker.address) as channel:
        stream = DecodeStream(channel, "d")
        call = ask(stream, worker, "r")
        events: list[decode_pb2.GenerateEvent] = []
        while not events or not events[-1].HasField("finished"):
            events += await call.take()
        assert len(events) == pieces + 4
        await stream.close()
