"""The state of every path between sites, put together from what single receivers report.

Each decode worker sees its own transfers only; the path is shared by all of them. What waits for a clogged path its senders
know best. Knows nothing of requests.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from prfaas.types import LinkView, SiteId, WorkerId
from router.policy.view import Link


@dataclass(frozen=True, slots=True)
class _Report:
    view: LinkView
    at_s: float


RENEWED_SHARE = 1 / 8  # of the receivers that must have reported before a picture is put together again
PICTURE_S = 0.5  # and its greatest age


class LinkBoard:
    """The newest report of each (path, receiver); reports older than `expiry_s` no longer count.

    Hundreds of receivers report twice a second each, so what they say together is put together anew only after an eighth
    of them have reported: the work per report does not grow with the fleet, and of up to eight receivers every word counts
    at once.
    """

    def __init__(self, expiry_s: float) -> None:
        self._expiry_s = expiry_s
        self._reports: dict[Link, dict[WorkerId, _Report]] = {}  # of receivers
        self._sent: dict[Link, dict[WorkerId, _Report]] = {}  # of senders
        self._picture: dict[Link, LinkView] = {}
        self._picture_s = -math.inf
        self._news = 0

    def report(self, worker_id: WorkerId, site: SiteId, views: Iterable[LinkView], now_s: float) -> None:
        """What a worker of `site` sees: of paths to its site as a receiver, of paths from it as a sender."""
        for view in views:
            table = self._sent if view.src == site != view.dst else self._reports
            table.setdefault(Link(view.src, view.dst), {})[worker_id] = _Report(view, now_s)
            self._news += 1

    def forget(self, worker_id: WorkerId) -> None:
        for reports in (*self._reports.values(), *self._sent.values()):
            if reports.pop(worker_id, None) is not None:
                self._picture_s = -math.inf

    def views(self, now_s: float) -> dict[Link, LinkView]:
        """One view for each path with a receiver's fresh report: backlog and transfers are sums over the receivers, or over
        the senders where that is more, goodput over those that are receiving or
        over the senders where all have bytes waiting and tell less, capacity the largest claim, round trip the
        smallest, loss the mean weighted by transfers."""
        awaited = max(1.0, RENEWED_SHARE * sum(map(len, (*self._reports.values(), *self._sent.values()))))
        if self._news < awaited and now_s - self._picture_s < PICTURE_S:
            return self._picture
        self._picture = {}
        for link, reports in self._reports.items():
            fresh = self._fresh(reports, now_s)
            if fresh:
                age_s = min(r.view.age_s + now_s - r.at_s for r in fresh)
                senders = [r.view for r in self._fresh(self._sent.get(link, {}), now_s)]
                self._picture[link] = _merge(link, [r.view for r in fresh], senders, age_s)
        self._picture_s, self._news = now_s, 0
        return self._picture

    def _fresh(self, reports: Mapping[WorkerId, _Report], now_s: float) -> list[_Report]:
        return [r for r in reports.values() if now_s - r.at_s <= self._expiry_s]


def _merge(link: Link, views: list[LinkView], senders: list[LinkView], age_s: float) -> LinkView:
    weights = [max(1, v.active_transfers) for v in views]
    receiving = [v for v in views if v.active_transfers > 0] or views  # an idle receiver still tells its last speed
    goodput = sum(v.goodput_bytes_per_s for v in receiving)
    sending = [v for v in senders if v.active_transfers > 0]
    if sending and all(v.queued_bytes > 0 for v in sending):  # then all that moves is theirs, and what they tell is newer
        goodput = min(goodput, sum(v.goodput_bytes_per_s for v in sending) or goodput)
    return LinkView(
        src=link.src,
        dst=link.dst,
        capacity_bytes_per_s=max(v.capacity_bytes_per_s for v in views),
        goodput_bytes_per_s=goodput,
        queued_bytes=max(sum(v.queued_bytes for v in views), sum(v.queued_bytes for v in senders)),
        rtt_s=min((v.rtt_s for v in views if v.rtt_s > 0), default=0.0),
        loss_ratio=sum(v.loss_ratio * w for v, w in zip(views, weights, strict=True)) / sum(weights),
        retransmitted_bytes=sum(v.retransmitted_bytes for v in views),
        active_transfers=max(sum(v.active_transfers for v in views), sum(v.active_transfers for v in senders)),
        age_s=age_s,
    )
