"""Tells one request's story to the router: one report of the prefill, then tokens, then the usage.

Pure: engine events in, messages out. Events that piled up while the router was reading leave as one message.
"""

from __future__ import annotations

from collections.abc import Iterable

from decode_service.ladder import Prefilled
from decode_service.pb_codec import finished_event, prefilled_event, tokens_event
from prfaas.engine.api import Admitted, EngineEvent, Finished, TokensOut
from prfaas.pb import decode_pb2
from prfaas.types import PrefillReport, Route, TokenOutput, Usage, WorkerId


class Replies:
    """The messages of one Generate call."""

    def __init__(self, prefilled: Prefilled, worker_id: WorkerId) -> None:
        self._prefilled = prefilled
        self._worker_id = worker_id
        self._admitted = Admitted(cached_tokens=0, queue_s=0.0)
        self._report: PrefillReport | None = None
        self.finished = False

    def messages(self, events: Iterable[EngineEvent]) -> list[decode_pb2.GenerateEvent]:
        """What to send for the next events of the engine's stream, in order."""
        messages: list[decode_pb2.GenerateEvent] = []
        outputs: list[TokenOutput] = []
        usage: Usage | None = None
        for event in events:
            if isinstance(event, Admitted):
                self._admitted = event
            elif isinstance(event, TokensOut):
                if self._report is None:
                    self._report = self._make_report(event)
                    messages.append(prefilled_event(self._report))
                outputs += event.outputs
            elif isinstance(event, Finished):
                usage = event.usage
        if outputs:
            messages.append(tokens_event(outputs))
        if usage is not None:
            self.finished = True
            messages.append(finished_event(self._true_usage(usage)))
        return messages

    def _make_report(self, first: TokensOut) -> PrefillReport:
        if self._prefilled.report is not None:
            return self._prefilled.report
        return PrefillReport(
            route=Route.INLINE,
            worker_id=self._worker_id,
            cached_tokens=self._admitted.cached_tokens,
            queue_s=self._admitted.queue_s,
            prefill_s=first.prefill_s or 0.0,
            wire_s=0.0,
            commit_s=0.0,
            kv_bytes=0,
            attempts=self._prefilled.attempts,
        )

    def _true_usage(self, usage: Usage) -> Usage:
        """The engine here does not know of prefix hits at the prefilling worker; the report does."""
        cached_tokens = usage.cached_tokens if self._report is None else self._report.cached_tokens
        return Usage(usage.prompt_tokens, usage.completion_tokens, cached_tokens)
