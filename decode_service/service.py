"""The decode door's gRPC service: requests from their prompt's cache to their last token.

Every call ends once: with the usage, or with a typed error. A call that is cancelled, or whose router goes away, cancels the
prefill, wherever it runs, and the decode. Knows no wire of the transport and no policy.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from decode_service.deadline import Deadline
from decode_service.ladder import PrefillLadder
from decode_service.pb_codec import Call, failed_event, read_call
from decode_service.replies import Replies
from decode_service.session import Context, Requests, Session, Tell
from prfaas.clock import Clock
from prfaas.errors import DeadlineExceeded, EngineFailed, PrfaasError, UnknownModel
from prfaas.log import logger
from prfaas.pb import decode_pb2, decode_pb2_grpc
from prfaas.types import WorkerId

log = logger(__name__)

Admit = Callable[[], Callable[[], None]]  # enters the door and returns how to leave it; raises Draining when closed


class DecodeService(decode_pb2_grpc.DecodeServiceServicer):
    """Serves Generate for one model. `admit` is the door: entered by each call, left when the call ends."""

    def __init__(self, ladder: PrefillLadder, *, model: str, worker_id: WorkerId, clock: Clock, admit: Admit) -> None:
        self._ladder = ladder
        self._model = model
        self._worker_id = worker_id
        self._clock = clock
        self._admit = admit
        self._sessions: set[Session] = set()
        self._closed = False

    def close(self) -> None:
        """End every router's stream once nothing runs in it; new streams end at once."""
        self._closed = True
        for session in self._sessions:
            session.close()

    async def Generate(self, requests: Requests, context: Context) -> None:
        """Writes to `context` rather than yielding: a cancelled stream then unwinds through the code that frees."""
        if self._closed:
            return
        session = Session(self._serve)
        self._sessions.add(session)
        try:
            await session.run(requests, context)
        finally:
            self._sessions.remove(session)

    async def _serve(self, request: decode_pb2.GenerateRequest, tell: Tell) -> None:
        try:
            leave = self._admit()
            try:
                await self._answer(read_call(request), tell)
            finally:
                leave()
        except PrfaasError as error:
            tell(failed_event(error))
        except Exception as error:
            log.exception("request %s failed", request.request.request_id)
            tell(failed_event(EngineFailed(f"the decode worker failed: {type(error).__name__}")))

    async def _answer(self, call: Call, tell: Tell) -> None:
        if call.request.model != self._model:  # a router that remembers who had this address before
            raise UnknownModel(f"this worker serves {self._model!r}, not {call.request.model!r}", param="model")
        deadline = Deadline(self._clock, call.request.deadline_s)
        try:
            async with asyncio.timeout(call.request.deadline_s) as timeout:
                await self._generate(call, deadline, tell)
        except TimeoutError as error:
            if not timeout.expired():
                raise
            raise DeadlineExceeded(
                f"the request did not finish within {call.request.deadline_s:.1f} s", deadline_s=call.request.deadline_s
            ) from error

    async def _generate(self, call: Call, deadline: Deadline, tell: Tell) -> None:
        prefilled = await self._ladder.prefill(call.request, call.decision, deadline)
        try:
            replies = Replies(prefilled, self._worker_id)
            async for event in prefilled.stream.events():
                for message in replies.messages(event):
                    tell(message)
            if not replies.finished:
                raise EngineFailed("the engine's stream ended before its request")
        finally:
            prefilled.stream.cancel()
