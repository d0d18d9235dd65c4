"""Workers that speak mutual TLS on every connection: to the router, to their clients and to each other."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest

from prfaas import rpc
from prfaas.config import TlsSettings
from prfaas.errors import PrfaasError, WorkerUnreachable
from prfaas.types import Role, Route
from tests.support.certs import Authority
from tests.support.emulated_hybrid import CACHE
from tests.support.worker_processes import Client, Worker, fleet, greedy, prompt

pytestmark = [pytest.mark.e2e]

QUICK = {"time_scale": 0.05}
ASKED = greedy(prompt(300, seed=3))
FAR = greedy(ASKED.tokens, cache_salt="far")


async def refused(worker: Worker, tls: TlsSettings) -> PrfaasError:
    """What a client with these certificates ends with."""
    async with rpc.channel(worker.info.address, tls) as channel:
        with pytest.raises(PrfaasError) as caught:
            await Client(worker.info, channel).generate(ASKED)
    return caught.value


async def test_registration_request_and_transfer_under_mutual_tls(tmp_path: Path) -> None:
    authority = Authority.make()
    tls = authority.issue(tmp_path / "ours")
    async with fleet(tmp_path, tls, engine=QUICK) as workers:
        far, decode = await asyncio.gather(
            workers.start("far", Role.PREFILL, "prefill-dc"), workers.start("decode", Role.DECODE, "pd-dc")
        )
        inline = await decode.generate(ASKED)
        remote = await decode.generate(FAR, far.candidate(Route.REMOTE))
        assert remote.tokens == inline.tokens
        assert remote.report.kv_bytes >= CACHE.request_bytes(300)
        for stranger in (
            TlsSettings(),
            Authority.make("another deployment").issue(tmp_path / "theirs"),
            authority.issue(tmp_path / "expired", valid=timedelta(hours=-1)),
        ):
            assert isinstance(await refused(decode, stranger), WorkerUnreachable)
        await far.settled()
        await decode.settled()


async def test_a_sender_of_another_deployment_costs_a_rung(tmp_path: Path) -> None:
    ours = Authority.make().issue(tmp_path / "ours")
    (tmp_path / "b").mkdir()
    theirs = Authority.make("another deployment").issue(tmp_path / "theirs")
    async with fleet(tmp_path, ours, engine=QUICK) as workers, fleet(tmp_path / "b", theirs, engine=QUICK) as others:
        decode, stranger = await asyncio.gather(
            workers.start("decode", Role.DECODE, "pd-dc"), others.start("stranger", Role.PREFILL, "prefill-dc")
        )
        answer = await decode.generate(FAR, stranger.candidate(Route.REMOTE))
        assert answer.report.route is Route.INLINE
        assert answer.report.attempts == ("stranger:worker_unreachable",)
        assert (await stranger.counters())["prefill_inside"] == 0
