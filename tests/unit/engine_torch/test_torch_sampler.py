"""The sampler: what each parameter does to the choice, and that a draw depends on its own row and key only."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from prfaas.engine.torch_filters import truncate_  # noqa: E402
from prfaas.engine.torch_noise import DrawNoise, draw_key  # noqa: E402
from prfaas.engine.torch_penalties import Penalties, TokenHistory  # noqa: E402
from prfaas.engine.torch_sampler import SampleJob, TorchSampler, rank_logprobs  # noqa: E402
from prfaas.errors import InvalidRequest  # noqa: E402
from prfaas.sched.plan import Draw, Drawn  # noqa: E402
from prfaas.types import Grammar, GrammarKind, SamplingParams  # noqa: E402

pytestmark = pytest.mark.torch

VOCAB = 40
EOS = 0
PLAIN = SamplingParams(temperature=0.0)


def sampler(vocab: int = VOCAB) -> TorchSampler:
    return TorchSampler(vocab, (EOS,), torch.device("cpu"), None)


def draw(params: SamplingParams, *, output: tuple[int, ...] = (), prompt: tuple[int, ...] = (9,), index: int = 0) -> Draw:
    return Draw(index, len(output), params, prompt, output)


def one(logits: list[float] | torch.Tensor, wanted: Draw) -> Drawn:
    row = torch.as_tensor(logits, dtype=torch.float32)
    return sampler(row.shape[0]).sample(row[None], [SampleJob(0, wanted)])[0]


def falling(vocab: int = VOCAB) -> torch.Tensor:
    """Token i is the i-th most likely."""
    return -0.3 * torch.arange(vocab, dtype=torch.float32)


def test_zero_temperature_takes_the_best_token() -> None:
    assert one(falling().flip(0), draw(PLAIN)) == Drawn(VOCAB - 1)


def test_a_draw_is_the_same_alone_in_a_batch_and_among_greedy_rows() -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(9, VOCAB, generator=generator)
    hot = SamplingParams(temperature=0.8, top_p=0.9, seed=11)
    draws = [draw(replace(hot, seed=s) if s % 3 else PLAIN, output=tuple(range(s)), index=s) for s in range(9)]
    together = sampler().sample(logits, [SampleJob(s, d) for s, d in enumerate(draws)])
    alone = [sampler().sample(logits[s : s + 1], [SampleJob(0, d)])[0] for s, d in enumerate(draws)]
    backwards = sampler().sample(logits.flip(0), [SampleJob(8 - s, d) for s, d in enumerate(draws)])
    assert together == alone == backwards


def test_seed_sample_and_position_each_give_another_draw() -> None:
    hot = SamplingParams(temperature=1.0, seed=1)
    flat = torch.zeros(4096)
    base = one(flat, draw(hot)).token_id
    assert base == one(flat, draw(hot)).token_id
    others = [draw(replace(hot, seed=2)), draw(hot, index=1), draw(hot, output=(5,))]
    assert all(one(flat, other).token_id != base for other in others)
    assert len({draw_key(s, i, p) for s in range(20) for i in range(20) for p in range(20)}) == 8000
    assert draw_key(2**64 - 1, 0, 0) != draw_key(0, 0, 0)


def test_draws_follow_the_distribution() -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    logits = (probabilities.log() * 2.0 + 7.0).expand(4000, 4)
    params = SamplingParams(temperature=2.0, seed=4)
    jobs = [SampleJob(i, Draw(0, i, params, (1,), ())) for i in range(4000)]
    counts = Counter(d.token_id for d in sampler(4).sample(logits, jobs))
    for token, probability in enumerate(probabilities.tolist()):
        # Five standard deviations of a binomial count.
        assert abs(counts[token] - 4000 * probability) < 5 * math.sqrt(4000 * probability * (1 - probability))


def test_noise_is_positive_finite_and_exponential() -> None:
    values = DrawNoise(50_000, torch.device("cpu")).exponentials([draw(SamplingParams(seed=s)) for s in range(4)])
    assert bool((values > 0).all())
    assert bool(values.isfinite().all())
    assert abs(float(values.mean()) - 1.0) < 0.02
    assert abs(float((values > 1.0).float().mean()) - math.exp(-1)) < 0.01


@pytest.mark.parametrize(
    "params", [SamplingParams(), SamplingParams(top_k=300), SamplingParams(top_p=0.999), SamplingParams(min_p=0.02)]
)
def test_the_race_of_the_likeliest_gives_the_distribution_of_a_race_of_all(params: SamplingParams) -> None:
    """A third of the weight lies outside the head: counts of head and rest follow the probabilities."""
    vocab, repeats = 1000, 3000
    logits = torch.where(torch.arange(vocab) < 200, 2.25, 0.0) + 0.001 * torch.arange(vocab).flip(0) / vocab
    logits = logits[torch.randperm(vocab, generator=torch.Generator().manual_seed(2))]
    kept = truncate_(logits.clone()[None], [params])[0]
    probabilities = torch.softmax(kept.double(), 0)
    jobs = [SampleJob(0, Draw(0, i, params, (1,), ())) for i in range(repeats)]
    counts = torch.zeros(vocab)
    for start in range(0, repeats, 500):
        for drawn in sampler(vocab).sample(logits[None], jobs[start : start + 500]):
            counts[drawn.token_id] += 1
    assert not counts[probabilities == 0].any()
    likely = logits > 2.0
    share = float(probabilities[likely].sum())
    assert 0.6 < share < 0.97
    assert abs(float(counts[likely].sum()) - repeats * share) < 5 * math.sqrt(repeats * share * (1 - share))
    alive = probabilities > 0
    expected = repeats * probabilities[alive]
    chi_square = float(((counts[alive] - expected) ** 2 / expected).sum())
    freedom = int(alive.sum()) - 1
    assert chi_square < freedom + 6 * math.sqrt(2 * freedom)


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(top_k=7),
        SamplingParams(top_p=0.7),
        SamplingParams(min_p=0.1),
        SamplingParams(top_k=9, top_p=0.8, min_p=0.01),
    ],
)
def test_both_ways_to_truncate_keep_the_same_tokens(params: SamplingParams) -> None:
    logits = torch.randn(400, generator=torch.Generator().manual_seed(6)) * 3
    kept = set(truncate_(logits.clone()[None], [params])[0].isfinite().nonzero().flatten().tolist())
    jobs = [SampleJob(0, Draw(0, i, params, (1,), ())) for i in range(800)]
    drawn = {d.token_id for d in sampler(400).sample(logits[None], jobs)}
    assert drawn <= kept
    assert len(drawn) >= min(len(kept), 5)


def test_tiny_temperatures_are_finite_and_greedy() -> None:
    logits = falling() + 50.0
    assert all(one(logits, draw(SamplingParams(temperature=1e-6, seed=s))).token_id == 0 for s in range(5))


@pytest.mark.parametrize(
    ("params", "kept"),
    [
        (SamplingParams(top_k=3), 3),
        (SamplingParams(top_k=VOCAB + 5), VOCAB),
        (SamplingParams(top_p=1e-9), 1),
        (SamplingParams(top_p=0.25), 1),  # the best of exp(-0.3 i) holds 0.259
        (SamplingParams(top_p=0.26), 2),
        (SamplingParams(top_k=2, top_p=0.57), 1),  # of two survivors the better holds 0.574
        (SamplingParams(top_k=2, top_p=0.58), 2),
        (SamplingParams(min_p=0.5), 3),  # exp(-0.3 * 2) = 0.549, exp(-0.3 * 3) = 0.407
        (SamplingParams(min_p=0.5, top_k=2), 2),
        (SamplingParams(), VOCAB),
    ],
)
def test_truncation_keeps_the_right_number_of_tokens(params: SamplingParams, kept: int) -> None:
    order = torch.randperm(VOCAB, generator=torch.Generator().manual_seed(0))
    logits = falling()[order]
    result = truncate_(logits.clone()[None], [params])[0]
    assert set(result.isfinite().nonzero().flatten().tolist()) == set(torch.argsort(order)[:kept].tolist())


def test_a_nucleus_wider_than_the_first_guess_is_found_exactly() -> None:
    logits = torch.zeros(1, 20_000)
    logits[0, :10_000] = torch.linspace(0.2, 0.1, 10_000)
    kept = truncate_(logits.clone(), [SamplingParams(top_p=0.5)])[0].isfinite()
    probabilities = torch.softmax(logits[0].double(), 0)
    assert float(probabilities[kept].sum()) >= 0.5
    assert float(probabilities[kept].sum() - probabilities[kept].min()) < 0.5


def test_ties_with_the_last_kept_token_are_kept() -> None:
    logits = torch.tensor([[1.0, 2.0, 1.0, 1.0, 0.0]])
    assert truncate_(logits, [SamplingParams(top_k=2)])[0].isfinite().tolist() == [True, True, True, True, False]


def test_repetition_penalty_looks_at_prompt_and_output_and_at_the_sign() -> None:
    logits = [2.0, 1.9, -1.0, -1.1]
    params = replace(PLAIN, repetition_penalty=1.5)
    assert one(logits, draw(params, prompt=(0, 0))).token_id == 1
    assert one(logits, draw(params, prompt=(3,), output=(0,))).token_id == 1
    assert one([-1.0, -1.2], draw(params, prompt=(0,))).token_id == 1


def test_presence_and_frequency_penalties_count_output_only() -> None:
    logits = [1.0, 0.8, 0.0]
    assert one(logits, draw(replace(PLAIN, presence_penalty=0.3), prompt=(0,))).token_id == 0
    assert one(logits, draw(replace(PLAIN, presence_penalty=0.3), output=(0, 0), prompt=(2,))).token_id == 1
    assert one(logits, draw(replace(PLAIN, frequency_penalty=0.15), output=(0,), prompt=(2,))).token_id == 0
    assert one(logits, draw(replace(PLAIN, frequency_penalty=0.15), output=(0, 0), prompt=(2,))).token_id == 1


@given(
    prompt=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=60),
    output=st.lists(st.integers(0, VOCAB - 1), max_size=40),
    cuts=st.lists(st.integers(0, 40), max_size=6),
    penalties=st.tuples(st.sampled_from([1.0, 0.7, 1.4]), st.floats(-1, 1), st.floats(-1, 1)),
)
@settings(deadline=None, max_examples=60)
def test_penalties_are_those_of_the_whole_history_however_it_grew(
    prompt: list[int], output: list[int], cuts: list[int], penalties: tuple[float, float, float]
) -> None:
    """Also when the sample goes back to an earlier point, as it does after a failed step."""
    repetition, presence, frequency = penalties
    params = replace(PLAIN, repetition_penalty=repetition, presence_penalty=presence, frequency_penalty=frequency)
    logits = torch.randn(VOCAB, generator=torch.Generator().manual_seed(len(prompt)))
    kept = Penalties(torch.device("cpu"))
    for length in (*cuts, len(output)):
        said = tuple(output[:length])
        row = logits.clone()
        kept.apply_(row, Draw(0, len(said), params, tuple(prompt), said, sample_key="k"))
        expected = logits.clone()
        for token in {*prompt, *said}:
            value = float(expected[token])
            value = value / repetition if value > 0 else value * repetition
            expected[token] = value - presence * (token in said) - frequency * said.count(token)
        assert torch.allclose(row, expected, atol=1e-5)
    assert kept.num_samples == 1
    kept.forget(["k", "unheard of"])
    assert kept.num_samples == 0


def test_a_history_longer_than_its_first_room_keeps_every_token() -> None:
    history = TokenHistory([0], torch.device("cpu"))
    history.extend(range(1, 2000))
    row = torch.zeros(2000)
    history.apply_(row, replace(PLAIN, frequency_penalty=0.5))
    assert torch.equal(row, torch.tensor([0.0] + [-0.5] * 1999))


def test_logit_bias_moves_the_choice_and_a_wrong_id_is_the_callers_fault() -> None:
    assert one(falling(), draw(replace(PLAIN, logit_bias=((7, 100.0), (0, -100.0))))).token_id == 7
    with pytest.raises(InvalidRequest, match=f"0 to {VOCAB - 1}") as caught:
        sampler().check(replace(PLAIN, logit_bias=((0, 1.0), (VOCAB, 1.0))))
    sampler().check(replace(PLAIN, logit_bias=((VOCAB - 1, 1.0),)))
    assert caught.value.param == "logit_bias"


def test_ending_tokens_wait_for_min_tokens() -> None:
    params = replace(PLAIN, min_tokens=2, stop_token_ids=(1, 10**6))
    assert one(falling(), draw(params)).token_id == 2
    assert one(falling(), draw(params, output=(5,))).token_id == 2
    assert one(falling(), draw(params, output=(5, 6))).token_id == 0
    assert one(falling(), draw(replace(params, ignore_eos=True))).token_id == 0


def test_logprobs_are_of_the_untouched_distribution() -> None:
    params = SamplingParams(temperature=0.3, top_k=2, logit_bias=((0, -100.0), (1, -100.0)), logprobs=3, seed=8)
    result = one(falling(), draw(params))
    expected = torch.log_softmax(falling(), 0)
    assert result.token_id in (2, 3)
    assert math.isclose(result.logprob or 0.0, float(expected[result.token_id]), abs_tol=1e-5)
    assert [t.token_id for t in result.top_logprobs] == [0, 1, 2]
    assert math.isclose(result.top_logprobs[1].logprob, float(expected[1]), abs_tol=1e-5)
    assert one(falling(), draw(replace(PLAIN, logprobs=0))).top_logprobs == ()


def test_ranked_logprobs_stop_at_the_vocabulary() -> None:
    ranked = rank_logprobs(falling(3)[None], [2], 10)[0]
    assert [t.token_id for t in ranked] == [2, 0, 1, 2]


def test_a_grammar_without_a_way_to_end_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="response_format"):
        sampler().check(replace(PLAIN, grammar=Grammar(GrammarKind.JSON_OBJECT)))


def test_no_draws_need_no_logits() -> None:
    assert sampler().sample(torch.empty(0, VOCAB), []) == []
