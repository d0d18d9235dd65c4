"""The sender's table of transfers: one id, one transfer."""

from __future__ import annotations

import asyncio

import pytest

from kv_transport.messages import Finish, to_pb_order
from kv_transport.send_service import SendService
from kv_transport.testing.harness import SENDER, SENDER_SITE
from kv_transport.testing.sources import FakeHandler, FakeSource, order_of, source_of
from prfaas.clock import MonotonicClock
from prfaas.config import TransportSettings
from prfaas.errors import InvalidRequest
from prfaas.types import SiteId, TransferId


class SlowHandler(FakeHandler):
    """Opens an order when told to."""

    def __init__(self, *sources: FakeSource) -> None:
        super().__init__(*sources)
        self.go = asyncio.Event()

    async def open(self, order: object) -> FakeSource:
        await self.go.wait()
        return await super().open(order)  # type: ignore[arg-type]


async def test_two_orders_of_one_id_are_told_apart_while_the_first_is_being_opened() -> None:
    handler = SlowHandler(source_of(), source_of())
    service = SendService(handler, TransportSettings(), worker_id=SENDER, site=SENDER_SITE, clock=MonotonicClock())
    try:
        order = to_pb_order(order_of(), TransferId("t" * 32)).SerializeToString()
        first = service.prefill(order)
        opening = asyncio.ensure_future(anext(first))
        await asyncio.sleep(0)
        with pytest.raises(InvalidRequest, match="in use"):
            await anext(service.prefill(order))
        handler.go.set()
        assert await opening
        with pytest.raises(InvalidRequest, match="in use"):
            await anext(service.prefill(order))
        await first.aclose()
        assert len(handler.orders) == 1
    finally:
        await service.close()


async def test_an_id_whose_opening_failed_is_free_again() -> None:
    handler = FakeHandler(error=InvalidRequest("no"))
    service = SendService(handler, TransportSettings(), worker_id=SENDER, site=SENDER_SITE, clock=MonotonicClock())
    try:
        order = to_pb_order(order_of(), TransferId("t" * 32)).SerializeToString()
        for _ in range(2):
            with pytest.raises(InvalidRequest, match="no"):
                await anext(service.prefill(order))
        assert len(handler.orders) == 2
    finally:
        await service.close()


async def test_a_sender_tells_what_waits_for_each_site_and_that_nothing_does_any_more() -> None:
    service = SendService(
        FakeHandler(source_of()), TransportSettings(), worker_id=SENDER, site=SENDER_SITE, clock=MonotonicClock()
    )
    try:
        assert service.links() == ()
        lane = service.prefill(to_pb_order(order_of(), TransferId("t" * 32)).SerializeToString())
        await anext(lane)
        await asyncio.sleep(0.05)  # the source has computed everything, and nobody reads
        (clogged,) = service.links()
        assert (clogged.src, clogged.dst, clogged.active_transfers) == (SENDER_SITE, SiteId("west"), 1)
        assert clogged.queued_bytes > 0
        await lane.aclose()
        service.finish(Finish(TransferId("t" * 32), committed=False))
        (idle,) = service.links()
        assert (idle.active_transfers, idle.queued_bytes) == (0, 0)
    finally:
        await service.close()
