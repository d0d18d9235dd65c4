"""The ranking against sorting everything anew."""

from __future__ import annotations

from operator import attrgetter

from hypothesis import given, settings
from hypothesis import strategies as st

from router.policy.view import WorkerView
from router.ranking import Ranking
from tests.support.router_fleet import worker_view

CHANGES = st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(-1, 4)))  # a worker and its queue; -1: it leaves


@settings(max_examples=200, deadline=None)
@given(CHANGES)
def test_views_stand_by_key_and_among_equals_in_the_order_of_arrival(changes: list[tuple[str, int]]) -> None:
    ranking, known = Ranking(attrgetter("queued_s")), dict[str, WorkerView]()
    for name, queue in changes:
        if queue < 0:
            ranking.drop(worker_view(name).worker_id)
            known.pop(name, None)
        else:
            known[name] = worker_view(name, queued_s=float(queue))
            ranking.put(known[name])
        assert ranking.views() == tuple(sorted(known.values(), key=attrgetter("queued_s")))
        assert len(ranking) == len(known)


def test_what_was_handed_out_stays_as_it_was() -> None:
    ranking = Ranking(attrgetter("load"))
    ranking.put(worker_view("a", running=1))
    before = ranking.views()
    ranking.put(worker_view("a", running=2))
    ranking.put(worker_view("b", running=0))
    assert [view.running for view in before] == [1]
    assert [view.worker_id for view in ranking.views()] == ["b", "a"]
