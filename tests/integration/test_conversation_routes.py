"""A conversation over the wire: the next turn finds prompt and answer in the decode worker's own prefix cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from prfaas.cluster.process_pool import ProcessPool
from tests.support import reference
from tests.support.models import tiny_model
from tests.support.system import System

pytestmark = [pytest.mark.e2e, pytest.mark.torch, pytest.mark.timeout(300)]

BLOCK = 64


@pytest.mark.parametrize("model", ["tiny-kimi-linear", "tiny-llama"])
def test_each_turn_resumes_where_the_last_one_ended(model: str, tmp_path: Path) -> None:
    """The first answer ends in the block in which its prompt ended, the second crosses into the next one."""
    source = tiny_model(model)
    pools = {"prefill-dc": ProcessPool(log_dir=tmp_path / "a"), "pd-dc": ProcessPool(log_dir=tmp_path / "b")}
    layout = (("prefill-dc", "prefill", 1), ("pd-dc", "decode", 1))
    with System(source, tmp_path, dict(pools), engine={"num_threads": 1}, layout=layout) as system:
        text = list(reference.prompt(1000, 500, seed=21))
        for turn, (answer_tokens, resumes_at) in enumerate([(16, 0), (60, 960), (16, 1088)]):
            route = "inline" if turn else "remote"
            answer = system.ask(text, route, max_tokens=answer_tokens, request_id=f"turn-{turn}")
            assert answer.tokens == reference.greedy(source, tuple(text), answer_tokens)
            assert answer.cached_tokens // BLOCK * BLOCK == answer.cached_tokens
            assert answer.cached_tokens >= resumes_at
            text += [*answer.tokens, *reference.prompt(20, 500, seed=22 + turn)]
        for worker in system.workers:
            system.assert_nothing_leaked(worker)
