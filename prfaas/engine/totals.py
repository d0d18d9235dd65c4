"""What an engine has done since it started, in tokens. Counters only ever rise."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class CoreTotals:
    """What the core has done since it was made, in tokens."""

    prompt_computed: int = 0
    sampled: int = 0
    prefix_queried: int = 0
    prefix_hit: int = 0
    wasted: int = 0  # prompt tokens computed for requests that ended without an answer
    preemptions: int = 0
