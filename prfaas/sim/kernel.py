"""Virtual time: an ordered queue of future calls. Events at the same instant run in the order they were scheduled."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass

Action = Callable[[], None]


@dataclass(slots=True)
class Timer:
    """A scheduled call; `cancel` makes it do nothing."""

    at_s: float
    action: Action | None

    def cancel(self) -> None:
        self.action = None


class Kernel:
    """A discrete-event kernel; it is also the `Clock` of everything that runs under it."""

    def __init__(self) -> None:
        self._now_s = 0.0
        self._order = 0
        self._heap: list[tuple[float, int, Timer]] = []  # the order number is unique, so timers are never compared
        self.num_events = 0

    def now_s(self) -> float:
        return self._now_s

    def at(self, at_s: float, action: Action) -> Timer:
        """Schedule a call. Raises ValueError for a time that has passed."""
        if at_s < self._now_s:
            raise ValueError(f"cannot schedule at {at_s} s, it is {self._now_s} s")
        timer = Timer(at_s, action)
        self._order += 1
        heapq.heappush(self._heap, (at_s, self._order, timer))
        return timer

    def after(self, delay_s: float, action: Action) -> Timer:
        """Schedule a call `delay_s` from now."""
        return self.at(self._now_s + delay_s, action)

    def run(self, until_s: float) -> None:
        """Run every event up to and including `until_s`, then stand at `until_s`."""
        while self._heap and self._heap[0][0] <= until_s:
            self._now_s, _, timer = heapq.heappop(self._heap)
            action = timer.action
            if action is not None:
                timer.action = None
                self.num_events += 1
                action()
        self._now_s = max(self._now_s, until_s)

    @property
    def idle(self) -> bool:
        """True when nothing is scheduled."""
        return not self._heap
