"""What a caller may know about how its request was served: the route header and the `prfaas` report object."""

from __future__ import annotations

import re
from typing import Any

from starlette.requests import Request

from router.gateway.generation import Generation, Routed

REPORT_HEADER = "x-prfaas-report"
_UNPRINTABLE = re.compile(r"[^ -~]")


def wants_report(request: Request, field: bool | None) -> bool:
    """Whether the caller asks for the report: the body's field decides, else the header `x-prfaas-report: 1`."""
    return field if field is not None else request.headers.get(REPORT_HEADER, "") in ("1", "true")


def route_header(routed: Routed) -> dict[str, str]:
    """`x-prfaas-route: remote; reason="..."; uncached_tokens=N; threshold_tokens=N`.

    The first word is the route that was taken, as far as that is known; where another had been decided, `decided=` names it.
    """
    decision = routed.decision
    taken = decision.route if routed.report is None else routed.report.route
    other = "" if taken is decision.route else f"; decided={decision.route}"
    reason = "; ".join(decision.reasons).replace("\\", "/").replace('"', "'")
    value = f'{taken}{other}; reason="{_UNPRINTABLE.sub("?", reason)}"; uncached_tokens={decision.uncached_tokens}'
    return {"x-prfaas-route": f"{value}; threshold_tokens={decision.threshold_tokens}"}


def report(generation: Generation) -> dict[str, Any]:
    """The report of one finished or running generation. Seconds, bytes, tokens; the stages sum to `ttft_s`."""
    decision, prefill, watch = generation.decision, generation.report, generation.watch
    stages = watch.stages(prefill)
    return {
        "route": generation.route,
        "worker": prefill.worker_id if prefill is not None else None,
        "decode_worker": decision.decode_worker if decision is not None else None,
        "reasons": list(decision.reasons) if decision is not None else [],
        "uncached_tokens": decision.uncached_tokens if decision is not None else None,
        "threshold_tokens": decision.threshold_tokens if decision is not None else None,
        "predicted_ttft_s": dict(decision.predicted_ttft_s) if decision is not None else {},
        "ttft_s": watch.ttft_s(),
        "stages": dict(stages.items()) if stages is not None else {},
        "kv_bytes": prefill.kv_bytes if prefill is not None else 0,
        "attempts": list(prefill.attempts) if prefill is not None else [],
        "cached_tokens": generation.usage.cached_tokens,
        "total_s": watch.elapsed_s(),
    }
