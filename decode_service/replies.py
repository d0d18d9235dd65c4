"""Tells one request's story to the router: one report of the prefill, then tokens, then the usage.

Pure: engine events in, messages out.
"""

from __future__ import annotations

from decode_service.ladder import Prefilled
from decode_service.pb_codec import finished_event, prefilled_event, tokens_event
from prfaas.engine.api import Admitted, EngineEvent, Finished, TokensOut
from prfaas.pb import decode_pb2
from prfaas.types import PrefillReport, Route, Usage, WorkerId


class Replies:
    """The messages of one call."""

    def __init__(self, prefilled: Prefilled, worker_id: WorkerId) -> None:
        self._prefilled = prefilled
        self._worker_id = worker_id
        self._admitted = Admitted(cached_tokens=0, queue_s=0.0)
        self._report: PrefillReport | None = None
        self.finished = False

    def messages(self, event: EngineEvent) -> list[decode_pb2.GenerateEvent]:
        """What to send for the next event of the engine's stream, in order."""
        if isinstance(event, TokensOut):
            tokens = tokens_event(event.outputs)
            if self._report is not None:
                return [tokens]
            self._report = self._make_report(event)
            return [prefilled_event(self._report), tokens]
        if isinstance(event, Finished):
            self.finished = True
            return [finished_event(self._true_usage(event.usage))]
        if isinstance(event, Admitted):
            self._admitted = event
        return []

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
