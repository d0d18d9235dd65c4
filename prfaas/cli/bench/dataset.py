"""Workloads from files: prompts and conversations as JSON lines, and published traces. Formats are told by their first line.

{"prompt": "...", "max_tokens": 64}                          a prompt; max_tokens may be missing
{"messages": [{"role": "user", "content": "..."}], ...}      a conversation up to a user's turn
{"conversations": [{"from": "human", "value": "..."}, ...]}  ShareGPT: every human turn is asked in its turn
{"timestamp": 0, "input_length": 512, "output_length": 64}   a Mooncake trace; BurstGPT's CSV is the other kind
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from prfaas.cli.bench.workload import Gauge, Session, Turn, text_of
from prfaas.errors import ConfigError
from prfaas.planner.traces import TraceRecord, parse


def is_trace(path: Path) -> bool:
    """Whether a file has arrival times. Raises ConfigError when it cannot be read."""
    first = next(iter(_lines(path)), "")
    return "input_length" in first or "request tokens" in first.lower()


def from_file(path: Path, gauge: Gauge, *, speed: float, seed: str) -> Iterator[Session]:
    """The file's sessions, once. A trace is played `speed` times as fast. Raises ConfigError naming the bad line."""
    if is_trace(path):
        yield from _replayed(parse(_lines(path)), gauge, speed=speed, seed=seed)
        return
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            yield _session(line, f"line {number} of {path}")


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8") as file:
            yield from file
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error


def _session(line: str, where: str) -> Session:
    try:
        row = json.loads(line)
        limit = row.get("max_tokens")
        if limit is not None and (not isinstance(limit, int) or limit < 1):
            raise ValueError("max_tokens is a positive number")
        if "prompt" in row:
            prompt = row["prompt"]
            return Session((Turn(prompt if isinstance(prompt, str) else tuple(int(t) for t in prompt), limit),))
        if "messages" in row:
            return _conversation(row["messages"], limit)
        said = [str(each["value"]) for each in row["conversations"] if each["from"] in ("human", "user")]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{where} is none of the forms that 'prfaas bench --help' names: {error!r}") from error
    if not said:
        raise ConfigError(f"{where} has no human turn")
    return Session(tuple(Turn(text, limit) for text in said))


def _conversation(messages: list[Mapping[str, Any]], limit: int | None) -> Session:
    *opening, last = [{"role": str(each["role"]), "content": str(each["content"])} for each in messages]
    if last["role"] != "user":
        raise ValueError("the last message is not the user's")
    return Session((Turn(last["content"], limit),), opening=tuple(opening))


def _replayed(records: Iterator[TraceRecord], gauge: Gauge, *, speed: float, seed: str) -> Iterator[Session]:
    """A block id of the trace always becomes the same words, so that shared prefixes are shared here too."""
    first_s: float | None = None
    for number, record in enumerate(records):
        first_s = record.at_s if first_s is None else first_s
        words = gauge.words(record.input_tokens)
        each = gauge.words(record.block_tokens, overhead=False)
        blocks = [text_of(random.Random(f"{seed} block {block}"), each) for block in record.block_ids[:-1]]
        rest = max(1, words - each * len(blocks))
        own = record.block_ids[-1] if record.block_ids else f"request {number}"
        text = " ".join([*blocks, text_of(random.Random(f"{seed} block {own}"), rest)])
        yield Session((Turn(text, max(1, record.output_tokens)),), at_s=(record.at_s - first_s) / speed)
