"""A run as Chrome trace events (the JSON array format of trace viewers): each request's stages, and counters. Times in
microseconds of simulated time."""

from __future__ import annotations

from prfaas.sim.records import RequestRecord
from prfaas.sim.result import JsonValue, Result

STAGES = ("door", "room", "queue", "prefill", "wire")


def trace_events(result: Result) -> list[JsonValue]:
    """Finished requests as nested asynchronous spans in a process per decode worker, and the samples as counters."""
    workers = sorted({r.decode_worker for r in result.journal.requests if r.finished})
    pids = {name: pid for pid, name in enumerate(workers, start=1)}
    events: list[JsonValue] = [
        {"ph": "M", "name": "process_name", "pid": pid, "args": {"name": name}} for name, pid in pids.items()
    ]
    for record in result.journal.requests:
        if record.finished:
            events += _spans(record, pids[record.decode_worker])
    for sample in result.journal.samples:
        at = sample.at_s * 1e6
        events.append({"ph": "C", "name": "threshold", "pid": 0, "ts": at, "args": {"tokens": sample.threshold_tokens}})
        events.append({"ph": "C", "name": "link", "pid": 0, "ts": at, "args": {"Gbit/s": sample.link_gbps}})
        events.append({"ph": "C", "name": "waiting", "pid": 0, "ts": at, "args": {"requests": sample.waiting}})
    return events


def _spans(record: RequestRecord, pid: int) -> list[JsonValue]:
    durations = (record.door_s, record.room_s, record.queue_s, record.prefill_s, record.wire_s)
    args: dict[str, JsonValue] = {
        "prompt_tokens": record.prompt_tokens,
        "cached_tokens": record.cached_tokens,
        "prefill_worker": record.prefill_worker,
        "kv_bytes": record.kv_bytes,
    }
    route = record.route.value if record.route is not None else "none"
    events = _span(f"request {route}", record, pid, record.at_s, record.end_s, args)
    begin_s = record.at_s
    for name, duration_s in zip(STAGES, durations, strict=True):
        if duration_s > 0:
            events += _span(name, record, pid, begin_s, begin_s + duration_s, {})
        begin_s += duration_s
    return events + _span("decode", record, pid, begin_s, record.end_s, {})


def _span(
    name: str, record: RequestRecord, pid: int, begin_s: float, end_s: float, args: dict[str, JsonValue]
) -> list[JsonValue]:
    common: dict[str, JsonValue] = {"cat": "request", "name": name, "id": record.number, "pid": pid, "tid": 0}
    return [{**common, "ph": "b", "ts": begin_s * 1e6, "args": args}, {**common, "ph": "e", "ts": end_s * 1e6}]
