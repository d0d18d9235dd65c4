"""Workers in the order in which a policy asks for them, kept while single workers change. No clock, no policy."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

from prfaas.types import WorkerId
from router.policy.view import WorkerView

_Place = tuple[float, int]


class Ranking:
    """Views by a key, least first; among equals, those that came first. A change costs two searches, not a sort."""

    def __init__(self, key: Callable[[WorkerView], float]) -> None:
        self._key = key
        self._places: list[_Place] = []  # ascending
        self._views: list[WorkerView] = []  # beside `_places`
        self._place_of: dict[WorkerId, _Place] = {}
        self._newest = 0
        self._all: tuple[WorkerView, ...] | None = None

    def __len__(self) -> int:
        return len(self._views)

    def put(self, view: WorkerView) -> None:
        """Add a worker, or replace what was known of it."""
        worker_id, old = view.worker_id, self._place_of.get(view.worker_id)
        number = old[1] if old is not None else self._newest
        place = (self._key(view), number)
        if place == old:
            self._views[bisect_left(self._places, place)] = view
        else:
            if old is None:
                self._newest += 1
            else:
                self._take_out(old)
            at = bisect_left(self._places, place)
            self._places.insert(at, place)
            self._views.insert(at, view)
            self._place_of[worker_id] = place
        self._all = None

    def drop(self, worker_id: WorkerId) -> None:
        """Forget a worker. Idempotent."""
        place = self._place_of.pop(worker_id, None)
        if place is not None:
            self._take_out(place)
            self._all = None

    def views(self) -> tuple[WorkerView, ...]:
        """All of them, least first."""
        if self._all is None:
            self._all = tuple(self._views)
        return self._all

    def _take_out(self, place: _Place) -> None:
        at = bisect_left(self._places, place)
        del self._places[at], self._views[at]
