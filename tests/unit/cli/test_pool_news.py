"""What a pool's driver tells about its workers."""

from __future__ import annotations

from dataclasses import replace

from prfaas.cli.pool_news import pool_news
from prfaas.cluster.api import PoolMember

WELL = PoolMember("pd-0", pid=7, alive=True, restarts=0)
GONE = replace(WELL, pid=None, alive=False, last_status=1)
BACK = replace(WELL, pid=8, restarts=1, last_status=1)


def test_a_pool_that_stays_as_it_is_has_no_news() -> None:
    assert pool_news((), (WELL,)) == ()
    assert pool_news((WELL,), (WELL,)) == ()
    assert pool_news((GONE,), (GONE,)) == ()


def test_an_end_and_a_return_are_told_once_each() -> None:
    assert pool_news((WELL,), (GONE,)) == ("worker pd-0 ended with status 1",)
    assert pool_news((GONE,), (BACK,)) == ("worker pd-0 was started again (1 restarts so far)",)
    assert pool_news((BACK,), (BACK,)) == ()


def test_what_happened_between_two_looks_is_not_lost() -> None:
    assert pool_news((WELL,), (BACK,)) == (
        "worker pd-0 ended with status 1",
        "worker pd-0 was started again (1 restarts so far)",
    )
    assert pool_news((WELL,), (replace(GONE, last_status=None),)) == ("worker pd-0 ended",)
