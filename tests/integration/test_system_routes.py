"""Every route gives the same tokens, through real processes, gRPC and KV transfers: inline, local, remote, transformers."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from prfaas.cluster.process_pool import ProcessPool
from tests.support import reference
from tests.support.models import demo_model, tiny_model
from tests.support.system import System

pytestmark = [pytest.mark.e2e, pytest.mark.torch, pytest.mark.timeout(300)]

LENGTHS = (1, 63, 64, 65, 500, 1300, 129, 7)  # eight requests at once
MAX_TOKENS = 16


def _prompts(vocab: int) -> list[tuple[int, ...]]:
    return [reference.prompt(n, vocab) for n in LENGTHS]


def _two_sites(source: str, log_dir: Path) -> System:
    """Two process groups that share nothing but TCP: each site has a pool of its own."""
    pools = {"prefill-dc": ProcessPool(log_dir=log_dir / "a"), "pd-dc": ProcessPool(log_dir=log_dir / "b")}
    engine = {"num_threads": 2, "prefix_cache": False}
    return System(source, log_dir, dict(pools), engine=engine)


@pytest.fixture(scope="module", params=["tiny-kimi-linear", pytest.param("smollm2", marks=pytest.mark.demo_model)])
def model(request: pytest.FixtureRequest) -> tuple[str, int]:
    if request.param == "smollm2":
        return demo_model(), 49_000
    return tiny_model(request.param), 500


@pytest.fixture(scope="module")
def system(model: tuple[str, int], tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with _two_sites(model[0], tmp_path_factory.mktemp("system")) as running:
        yield running


@pytest.fixture(scope="module")
def expected(model: tuple[str, int]) -> list[list[int]]:
    return [reference.greedy(model[0], prompt, MAX_TOKENS) for prompt in _prompts(model[1])]


@pytest.mark.parametrize("route", ["inline", "local", "remote"])
def test_eight_at_once_equal_the_reference(
    system: System, model: tuple[str, int], expected: list[list[int]], route: str
) -> None:
    with ThreadPoolExecutor(8) as threads:
        calls = [
            threads.submit(system.generate, prompt, route, max_tokens=MAX_TOKENS, request_id=f"{route}-{i}")
            for i, prompt in enumerate(_prompts(model[1]))
        ]
        found = [call.result() for call in calls]
    assert found == expected
    for worker in system.workers:
        system.assert_nothing_leaked(worker)
