"""A scheduler's steps without an engine."""

from __future__ import annotations

from prfaas.cache.hybrid import HybridCache
from prfaas.sched.scheduler import Round, Scheduler


def step(scheduler: Scheduler, cache: HybridCache) -> Round:
    """Run one step as an engine would, each finished chunk drawing token 7, and finish who is full."""
    done = scheduler.schedule()
    scheduler.complete(done)
    for share in done.shares:
        one = share.sequence
        if one.remaining == 0:
            one.tokens.append(7)
        if len(one.tokens) > one.total_tokens:
            scheduler.leave(one)
            cache.close(one.held)
            one.lease = None
    scheduler.check_integrity()
    cache.check_integrity()
    return done
