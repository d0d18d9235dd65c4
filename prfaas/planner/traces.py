"""Published request traces as plain records: Mooncake's JSONL and BurstGPT's CSV. Knows formats, not files."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from prfaas.errors import ConfigError


class TraceFormat(StrEnum):
    MOONCAKE = "mooncake"  # {"timestamp": ms, "input_length": n, "output_length": n, "hash_ids": [...]} per line
    BURSTGPT = "burstgpt"  # Timestamp[s],[Session ID,][Elapsed time,]Model,Request tokens,Response tokens,...


@dataclass(frozen=True, slots=True)
class TraceRecord:
    """One request. `block_ids` identify shared prefix blocks of `block_tokens` tokens where the trace has them."""

    at_s: float
    input_tokens: int
    output_tokens: int
    block_ids: tuple[int, ...] = ()
    block_tokens: int = 512


def detect(first_line: str) -> TraceFormat:
    """Tell the format from the first line. Raises ConfigError for neither."""
    stripped = first_line.strip()
    if stripped.startswith("{"):
        return TraceFormat.MOONCAKE
    if "request tokens" in stripped.lower():
        return TraceFormat.BURSTGPT
    raise ConfigError(
        "this trace is neither Mooncake JSONL (lines of {timestamp, input_length, output_length}) nor "
        "BurstGPT CSV (a header with 'Request tokens')"
    )


def parse(lines: Iterable[str]) -> Iterator[TraceRecord]:
    """Parse a trace of either format, skipping requests without tokens. Raises ConfigError naming the bad line."""
    iterator = iter(lines)
    first = next(iterator, "")
    if detect(first) is TraceFormat.MOONCAKE:
        yield from _mooncake(_again(first, iterator))
    else:
        yield from _burstgpt(_again(first, iterator))


def _again(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _mooncake(lines: Iterator[str]) -> Iterator[TraceRecord]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            record = TraceRecord(
                at_s=float(row["timestamp"]) / 1000.0,
                input_tokens=int(row["input_length"]),
                output_tokens=int(row["output_length"]),
                block_ids=tuple(int(b) for b in row.get("hash_ids", ())),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"line {number} of the trace is not a Mooncake record: {error}", line=number) from error
        if record.input_tokens > 0:
            yield record


def _burstgpt(lines: Iterator[str]) -> Iterator[TraceRecord]:
    reader = csv.DictReader(lines)
    for number, row in enumerate(reader, start=2):
        lower = {str(k).strip().lower(): v for k, v in row.items()}
        try:
            record = TraceRecord(
                at_s=float(lower["timestamp"]),
                input_tokens=int(float(lower["request tokens"])),
                output_tokens=int(float(lower["response tokens"])),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"line {number} of the trace is not a BurstGPT record: {error}", line=number) from error
        if record.input_tokens > 0 and record.output_tokens > 0:
            yield record
