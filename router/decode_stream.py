"""All calls of this router to one decode worker, over one gRPC stream. Knows calls by number and when they have ended.

A call of gRPC's own for each request would cost each side more than everything else that it does for a short answer.
"""

from __future__ import annotations

import asyncio
from itertools import count
from typing import Any

import grpc.aio

from prfaas import rpc
from prfaas.errors import DeadlineExceeded, PrfaasError, RequestCancelled, WorkerError, WorkerUnreachable, error_from_json
from prfaas.pb import decode_pb2

MAX_BEHIND_BYTES = 4 * 1024**2  # a hundred thousand tokens without log-probabilities
GENERATE = "/prfaas.pb.DecodeService/Generate"


class DecodeCall:
    """One request on its way. Of what has come, MAX_BEHIND_BYTES and an event wait to be taken: whoever reads too slowly for
    that ends with RequestCancelled, for a stream that many share cannot wait for one."""

    def __init__(self, stream: DecodeStream, number: int) -> None:
        self._stream = stream
        self._number = number
        self._events: list[decode_pb2.GenerateEvent] = []
        self._behind_bytes = 0
        self._news = asyncio.Event()
        self._error: PrfaasError | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def take(self) -> list[decode_pb2.GenerateEvent]:
        """All events that came since the last time; at least one, in order. Raises what the call ended with, after the events
        before it. Not to be called after a `finished`."""
        if not self._events and self._error is None:
            self._news.clear()
            await self._news.wait()
        if self._events:
            events, self._events, self._behind_bytes = self._events, [], 0
            return events
        assert self._error is not None
        raise self._error

    def cancel(self) -> None:
        """Have the worker stop and forget it; without effect on a call that has ended. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
        self._stream.forget(self._number)

    def put(self, event: decode_pb2.GenerateEvent) -> None:
        """For the stream: the worker told this."""
        if self._behind_bytes > MAX_BEHIND_BYTES:
            self.cancel()
            self.fail(RequestCancelled(f"{self._behind_bytes} bytes of the answer wait for a client that does not read them"))
            return
        self._events.append(event)
        self._behind_bytes += event.ByteSize()
        self._news.set()

    def fail(self, error: PrfaasError) -> None:
        """For the stream: nothing more will come."""
        self._error = error
        self._news.set()

    def limit(self, timeout_s: float) -> None:
        """Fail unless it is cancelled within this time."""
        late = DeadlineExceeded(f"the decode worker did not answer within {timeout_s:.1f} s", deadline_s=timeout_s)
        self._timer = asyncio.get_running_loop().call_later(timeout_s, self.fail, late)


class DecodeStream:
    """Opens with its first call. Once broken it stays so: its calls have failed, and a new one is needed."""

    def __init__(self, channel: grpc.aio.Channel, worker_id: str) -> None:
        """`worker_id` names the worker in errors."""
        self._worker_id = worker_id
        self._numbers = count()
        self._calls: dict[int, DecodeCall] = {}
        self._requests: rpc.Gathered[decode_pb2.GenerateRequests] = rpc.Gathered()
        start: Any = channel.stream_stream(
            GENERATE,
            request_serializer=decode_pb2.GenerateRequests.SerializeToString,
            response_deserializer=decode_pb2.GenerateEvents.FromString,
        )
        self._rpc: grpc.aio.StreamStreamCall[decode_pb2.GenerateRequests, decode_pb2.GenerateEvents] = start()
        self._tasks = (asyncio.create_task(self._read()), asyncio.create_task(self._write()))
        self.broken = False

    @property
    def num_calls(self) -> int:
        """Calls that have not ended."""
        return len(self._calls)

    def call(self, request: decode_pb2.GenerateRequest, *, timeout_s: float | None = None) -> DecodeCall:
        """Start a call. Raises InvalidRequest for a request that is too large to be sent."""
        number = next(self._numbers)
        request.call = number
        self._requests.put(decode_pb2.GenerateRequests(started=[request]))
        made = self._calls[number] = DecodeCall(self, number)
        if timeout_s is not None:
            made.limit(timeout_s)
        return made

    def forget(self, number: int) -> None:
        """Nobody waits for this call any more."""
        if self._calls.pop(number, None) is not None:
            self._requests.put(decode_pb2.GenerateRequests(cancelled=[number]))

    async def close(self) -> None:
        """Cancel whatever runs."""
        self._break(WorkerUnreachable("the router closed its stream to the worker", worker_id=self._worker_id))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._rpc.cancel()

    async def _read(self) -> None:
        error: PrfaasError = WorkerUnreachable(f"worker {self._worker_id} closed its stream", worker_id=self._worker_id)
        try:
            async for message in self._rpc:
                for event in message.events:
                    self._take(event)
        except grpc.aio.AioRpcError as broken:
            if broken.code() is not grpc.StatusCode.CANCELLED:  # a stream is cancelled by a worker that is going
                error = rpc.from_rpc(broken, worker_id=self._worker_id)
                error.__cause__ = broken
        finally:
            self._break(error)

    def _take(self, event: decode_pb2.GenerateEvent) -> None:
        call = self._calls.get(event.call)
        if call is None:  # cancelled; the worker had not heard of it yet
            return
        if event.HasField("failed"):
            del self._calls[event.call]
            call.fail(self._failure(event.failed))
            return
        if event.HasField("finished"):
            del self._calls[event.call]
        call.put(event)

    def _failure(self, text: str) -> PrfaasError:
        try:
            return error_from_json(text)
        except ValueError:
            return WorkerError(f"worker {self._worker_id} failed and did not say how", worker_id=self._worker_id)

    async def _write(self) -> None:
        try:
            while (message := await self._requests.take()) is not None:
                await self._rpc.write(message)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):  # the reader hears why
            return

    def _break(self, error: PrfaasError) -> None:
        self.broken = True
        self._requests.close()
        calls, self._calls = self._calls, {}
        for call in calls.values():
            call.fail(error)
