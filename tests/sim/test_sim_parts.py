"""The simulator's parts by themselves: prompts, the model's bytes, fast-forwarded decoding, parsing."""

from __future__ import annotations

import pytest

from prfaas.cache.hashing import hash_blocks
from prfaas.errors import ConfigError, PrfaasError
from prfaas.metrics import Emitter, MetricSet
from prfaas.planner.cases import paper_case
from prfaas.sim.gaps import Histogram
from prfaas.sim.kernel import Kernel
from prfaas.sim.links import SimLink
from prfaas.sim.listener import Answer
from prfaas.sim.model import NUM_LAYERS, sim_model
from prfaas.sim.parsing import parse_link_events, parse_policy, parse_workload
from prfaas.sim.prompts import END, encode
from prfaas.sim.scenario import SimPolicy
from prfaas.sim.worker import SimEngineSettings, SimWorker
from prfaas.sim.workloads import Piece
from prfaas.types import GenerationRequest, RequestId, Role, SamplingParams

MODEL = sim_model(paper_case().model, block_tokens=1024, grain=64)


def test_prompts_share_names_exactly_as_far_as_they_agree() -> None:
    common = (Piece(1, 5000),)
    a, b = encode((*common, Piece(2, 3000)), 64), encode((*common, Piece(3, 3000)), 64)
    assert len(a) == len(b) == 125
    names_a, names_b = hash_blocks(a, 16), hash_blocks(b, 16)
    shared = sum(x == y for x, y in zip(names_a, names_b, strict=True))
    assert shared == 5000 // 1024
    assert encode((Piece(7, 10), Piece(8, 1)), 64) == encode((Piece(8, 11),), 64)


def test_layers_add_up_to_the_cache_of_a_prompt() -> None:
    prompt = 10_000
    grains = MODEL.grains(prompt)
    sent = sum(MODEL.ready_bytes(x, span, prompt, 0) for x in range(NUM_LAYERS) for span in ((0, 100), (100, grains)))
    assert sent == MODEL.spec.cache.request_bytes(prompt)
    assert sent == pytest.approx(paper_case().model.kv_bytes(prompt), rel=0.02)
    held = sum(MODEL.ready_bytes(x, (0, grains), prompt, 4096) for x in range(NUM_LAYERS))
    assert held == MODEL.spec.cache.request_bytes(prompt, 4096)


def test_states_at_a_boundary_go_along_where_they_are_worth_it() -> None:
    cache = MODEL.spec.cache
    for prompt, worth in ((4_000, False), (100_000, True)):
        span = (0, MODEL.grains(prompt))
        sent = sum(MODEL.ready_bytes(x, span, prompt, 0, boundary=True) for x in range(NUM_LAYERS))
        assert sent == cache.request_bytes(prompt) + cache.boundary_bytes(prompt)
        assert (cache.boundary_bytes(prompt) > 0) == worth


def test_a_block_is_a_whole_number_of_grains() -> None:
    with pytest.raises(ConfigError, match="grain"):
        sim_model(paper_case().model, block_tokens=100, grain=64)


class _Ear:
    def __init__(self, kernel: Kernel) -> None:
        self.kernel, self.answer, self.first_s = kernel, None, 0.0

    def admitted(self, cached_tokens: int, queue_s: float) -> None: ...

    def layers(self, num_bytes: int) -> None: ...

    def first_token(self, prefill_s: float) -> None:
        self.first_s = self.kernel.now_s()

    def finished(self, answer: Answer) -> None:
        self.answer = answer

    def failed(self, error: PrfaasError) -> None:
        raise error


def _worker(kernel: Kernel, gaps: Histogram) -> SimWorker:
    hardware = paper_case().pd.hardware
    settings = SimEngineSettings(prefix_cache=False)
    return SimWorker("w", "s", Role.DECODE, MODEL, hardware, settings, kernel, MetricSet(Emitter.WORKER), gaps)


def _request(name: str, answer: int) -> GenerationRequest:
    tokens = encode((Piece(sum(name.encode()), 2048),), 64)
    return GenerationRequest(RequestId(name), "m", tokens, SamplingParams(max_tokens=answer, stop_token_ids=(END,)))


def test_fast_forwarded_decoding_takes_the_time_of_its_steps() -> None:
    kernel, gaps = Kernel(), Histogram()
    worker, ears = _worker(kernel, gaps), []

    def land(name: str, answer: int) -> None:
        ear = _Ear(kernel)
        ears.append(ear)
        worker.reserve(_request(name, answer), 2048, ear, lambda job_id, held: worker.commit(job_id))

    kernel.at(0.0, lambda: land("a", 101))
    kernel.at(1.01, lambda: land("b", 41))  # joins at 1.025, the next step boundary
    kernel.run(10.0)
    a, b = (ear.answer for ear in ears)
    assert (a.num_tokens, a.first_s, a.last_s) == (101, 0.0, pytest.approx(2.5))
    assert b.last_s == pytest.approx(1.025 + 40 * 0.025)
    assert b.wait_s == pytest.approx(0.015)
    assert gaps.total == 100 + 40
    assert gaps.percentile_s(0.999) == pytest.approx(0.04, abs=1e-4)
    assert worker.busy_s() == pytest.approx(2.5)
    assert kernel.num_events < 10
    worker.core.check_integrity()
    assert not worker.core.jobs()


def test_a_prompt_prefilled_beside_a_decode_holds_it_up_by_its_chunks() -> None:
    kernel, gaps = Kernel(), Histogram()
    worker, ears = _worker(kernel, gaps), [_Ear(kernel), _Ear(kernel)]
    worker.reserve(_request("a", 101), 2048, ears[0], lambda job_id, held: worker.commit(job_id))
    kernel.at(1.0, lambda: worker.generate(_request("b", 11), 2048, ears[1]))
    kernel.run(20.0)
    prefill_s = paper_case().pd.hardware.prefill_s(2048)
    assert ears[1].first_s == pytest.approx(1.0 + prefill_s + 0.025)
    assert ears[0].answer is not None
    assert ears[0].answer.last_s == pytest.approx(2.5 + prefill_s)
    assert ears[1].answer is not None
    assert ears[1].answer.last_s == pytest.approx(1.0 + prefill_s + 0.025 + 0.25)


def test_a_link_late_in_a_long_run_still_gets_to_the_last_byte() -> None:
    kernel, done = Kernel(), []
    kernel.run(50_000.0)
    link = SimLink(kernel, 12.5e9, rtt_s=0.02)
    for size in (1e9 / 3, 1e9 / 7, 12345.678):
        link.offer(link.open(lambda: done.append(kernel.now_s())), size, last=True)
    kernel.run(50_010.0)
    assert len(done) == 3
    assert kernel.num_events < 20


def test_what_people_write() -> None:
    assert parse_policy("naive") is SimPolicy.ALL_REMOTE
    assert [(e.at_s, e.gbps) for e in parse_link_events("400=0,300=5")] == [(300.0, 5.0), (400.0, 0.0)]
    assert parse_workload("bursty:cv=2").cv == 2.0
    assert parse_workload("agents:turns=3,think=1").agent.turns == 3
    for parse, bad in (
        (parse_policy, "best"), (parse_link_events, "5"), (parse_link_events, "-1=5"), (parse_workload, "nothing"),
        (parse_workload, "bursty:cv=0"), (parse_workload, "swarm:cv=2"), (parse_workload, "diurnal:swing=x"),
    ):  # fmt: skip
        with pytest.raises(ConfigError):
            parse(bad)
