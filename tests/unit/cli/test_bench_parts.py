"""The load generator's pure parts: lengths, arrivals, events, figures, files."""

from __future__ import annotations

import itertools
import json
import statistics
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prfaas.cli.bench.connection import Place
from prfaas.cli.bench.dataset import from_file, is_trace
from prfaas.cli.bench.dialect import EventReader, refusal, request_body
from prfaas.cli.bench.document import Outcome, read_outcome, to_json
from prfaas.cli.bench.drive import Arrival
from prfaas.cli.bench.figures import Figures, Objective
from prfaas.cli.bench.record import Record
from prfaas.cli.bench.show import compare
from prfaas.cli.bench.workload import Gauge, Lengths, Shape, made_up
from prfaas.errors import ConfigError

SHAPE = Shape(Lengths(30, 30), Lengths(8, 8))


def record(sent_s: float, first_s: float, gaps_s: tuple[float, ...], **fields: object) -> Record:
    values: dict[str, object] = {"output_tokens": len(gaps_s) + 1, "prompt_tokens": 100, **fields}
    return Record(sent_s, sent_s, first_s, first_s + sum(gaps_s), gaps_s, **values)  # type: ignore[arg-type]


@pytest.mark.parametrize(("text", "bounds"), [("512", (512, 512)), ("256:1024", (256, 1024))])
def test_lengths(text: str, bounds: tuple[int, int]) -> None:
    assert (Lengths.of(text).low, Lengths.of(text).high) == bounds


@pytest.mark.parametrize("text", ["", "x", "0", "9:3", "-1"])
def test_lengths_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError):
        Lengths.of(text)


@given(tokens=st.integers(1, 10_000), overhead=st.integers(0, 50), per_word=st.sampled_from([1.0, 1.25, 5.0]))
def test_a_gauged_prompt_has_the_tokens_asked_for(tokens: int, overhead: int, per_word: float) -> None:
    words = Gauge(overhead, per_word).words(tokens)
    assert words == 1 or abs(overhead + words * per_word - tokens) <= per_word / 2


def test_workloads_repeat_by_seed_and_share_only_what_is_shared() -> None:
    def prompts(seed: str, **changes: int) -> list[str]:
        shape = Shape(SHAPE.isl, SHAPE.osl, **changes)
        return [str(session.turns[0].prompt) for session in itertools.islice(made_up(shape, Gauge(), seed), 20)]

    assert prompts("1") == prompts("1")
    assert set(prompts("1")).isdisjoint(prompts("2"))
    assert len(set(prompts("1"))) == 20
    shared = [prompt.split() for prompt in prompts("1", shared_tokens=20)]
    assert len({tuple(words[:20]) for words in shared}) == 1
    assert len({tuple(words[20:]) for words in shared}) == 20
    assert {len(words) for words in shared} == {30}
    with pytest.raises(ConfigError, match="leaves nothing"):
        prompts("1", shared_tokens=30)


def test_later_turns_add_what_is_asked_without_the_templates_overhead() -> None:
    shape = Shape(SHAPE.isl, SHAPE.osl, turns=3, pause_s=0.5)
    session = next(made_up(shape, Gauge(overhead_tokens=10), "1"))
    assert [len(str(turn.prompt).split()) for turn in session.turns] == [20, 30, 30]
    assert [turn.pause_s for turn in session.turns] == [0.0, 0.5, 0.5]


@pytest.mark.parametrize(("cv", "low", "high"), [(0.0, 0.0, 0.001), (1.0, 0.9, 1.1), (3.0, 2.5, 3.5)])
def test_arrivals_have_their_rate_and_variation(cv: float, low: float, high: float) -> None:
    times = list(itertools.islice(Arrival(rate_rps=4.0, cv=cv).times(3), 20_000))
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert statistics.mean(gaps) == pytest.approx(0.25, rel=0.1)
    assert low <= statistics.pstdev(gaps) / statistics.mean(gaps) <= high


def test_without_a_rate_all_come_at_once() -> None:
    assert list(itertools.islice(Arrival().times(0), 3)) == [0.0, 0.0, 0.0]


EVENTS = [
    b'data: {"choices": [{"delta": {"role": "assistant", "content": ""}}]}',
    b": keep-alive",
    b'data: {"choices": [{"delta": {"reasoning_content": "hm"}}]}',
    b'data: {"choices": [{"delta": {"content": "caf\xc3\xa9"}}]}',
    b'data: {"choices": [{"delta": {"content": " au"}, "finish_reason": "stop"}]}',
    b'data: {"choices": [], "usage": {"completion_tokens": 3}, "prfaas": {"route": "remote"}}',
    b"data: [DONE]",
]


@given(cuts=st.lists(st.integers(0, 400), max_size=12), newline=st.sampled_from([b"\n", b"\r\n"]))
def test_events_are_the_same_however_they_are_cut(cuts: list[int], newline: bytes) -> None:
    stream = b"".join(event + newline * 2 for event in EVENTS)
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    at: list[float] = []
    reader = EventReader(at.append)
    for number, (begin, end) in enumerate(itertools.pairwise(edges)):
        reader.take(stream[begin:end], float(number))
    assert reader.text == "café au"
    assert reader.usage == {"completion_tokens": 3}
    assert reader.report == {"route": "remote"}
    assert reader.ended
    assert not reader.error
    assert 1 <= len(at) <= 3
    assert at == sorted(set(at))


def test_what_a_server_says_when_it_fails() -> None:
    reader = EventReader(lambda _: None)
    reader.take(b'data: {"error": {"message": "died"}}\n\n', 0.0)
    assert reader.error == "died"
    reader = EventReader(lambda _: None)
    reader.take(b"data: nonsense\n\n", 0.0)
    assert "no JSON" in reader.error
    assert refusal(400, b'{"error": {"message": "too\\nlong"}}') == "HTTP 400: too long"
    assert refusal(502, b"<html>") == "HTTP 502: <html>"


def test_bodies() -> None:
    chat = json.loads(request_body("m", [{"role": "user", "content": "x"}], 5, {"temperature": 0}))
    assert chat["messages"] == [{"role": "user", "content": "x"}]
    assert (chat["max_tokens"], chat["temperature"], chat["stream"]) == (5, 0, True)
    tokens = json.loads(request_body("m", [1, 2], None, {}))
    assert tokens["prompt"] == [1, 2]
    assert "max_tokens" not in tokens


def test_places() -> None:
    assert Place.of("http://a:1/v1") == Place("a", 1, False, "")
    assert Place.of("https://a/x/") == Place("a", 443, True, "/x")
    assert Place.of("localhost:8000").port == 8000
    assert Place.of("http://[::1]:2").authority == "[::1]:2"
    for url in ("ftp://a", "http://", "http://a:x"):
        with pytest.raises(ConfigError):
            Place.of(url)


def test_figures_are_what_the_records_say() -> None:
    records = [
        record(1.0, 1.1, (0.02, 0.04), cached_tokens=50, route="remote"),
        record(1.5, 1.8, (0.01, 0.01), route="inline"),
        record(2.0, 2.1, (), error="HTTP 500: x"),
        record(2.5, 2.6, (), output_tokens=0),
    ]
    found = Figures.of(records, Objective(ttft_s=0.2, itl_s=0.05))
    assert (found.num_requests, found.num_good) == (4, 2)
    assert found.errors == {"HTTP 500: x": 1, "no tokens": 1}
    assert found.duration_s == pytest.approx(1.6)
    assert found.ttft.mean == pytest.approx(0.2)
    assert found.itl.mean == pytest.approx(0.02)
    assert found.tpot.mean == pytest.approx(0.02)
    assert found.tpot.p99 == pytest.approx(0.03, rel=0.01)
    assert found.e2e.mean == pytest.approx((0.16 + 0.32) / 2)
    assert found.output_tokens_per_s == pytest.approx(6 / 1.6)
    assert found.requests_per_s == pytest.approx(2 / 1.6)
    assert found.cached_share == 0.25
    assert found.goodput_rps == pytest.approx(1 / 1.6)
    assert found.routes == {"remote": 1, "inline": 1}
    assert Figures.of(records, Objective()).goodput_rps is None
    assert Figures.of(records, Objective(itl_s=0.005)).goodput_rps == 0.0
    assert Figures.of([], Objective()).num_good == 0


def test_several_tokens_in_a_piece_count_for_the_time_per_token() -> None:
    assert record(0.0, 0.1, (0.3,), output_tokens=4).tpot_s == pytest.approx(0.1)
    assert record(0.0, 0.1, ()).tpot_s is None


def test_a_ratio_above_one_is_better() -> None:
    slow = Figures.of([record(0.0, 0.2, (0.1,))], Objective())
    fast = Figures.of([record(0.0, 0.1, (0.05,))], Objective())
    rows = {row.name: row.ratio for row in compare(slow, fast)}
    assert rows["TTFT P50, ms"] == pytest.approx(2.0)
    assert rows["output, tokens/s"] == pytest.approx(2.0)


def test_a_run_survives_its_file(tmp_path: Path) -> None:
    records = (record(1.0, 1.1, (0.02,), route="remote"),)
    objective = Objective(ttft_s=1.0)
    outcome = Outcome("http://a", "m", {"seed": 1}, objective, Figures.of(records, objective), records)
    path = tmp_path / "run.json"
    path.write_text(json.dumps(to_json(outcome)))
    assert read_outcome(path) == outcome
    path.write_text("[]")
    with pytest.raises(ConfigError, match="does not hold a run"):
        read_outcome(path)


def sessions(tmp_path: Path, text: str, gauge: Gauge | None = None, speed: float = 1.0) -> list[object]:
    path = tmp_path / "file"
    path.write_text(text)
    found = list(from_file(path, gauge or Gauge(), speed=speed, seed="0"))
    return [(s.at_s, [m["content"] for m in s.opening], [(t.prompt, t.output_tokens) for t in s.turns]) for s in found]


def test_data_sets(tmp_path: Path) -> None:
    lines = [
        {"prompt": "hello", "max_tokens": 3},
        {"prompt": [1, 2]},
        {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]},
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}, {"from": "human", "value": "c"}]},
    ]
    assert sessions(tmp_path, "\n".join(map(json.dumps, lines))) == [
        (None, [], [("hello", 3)]),
        (None, [], [((1, 2), None)]),
        (None, ["s"], [("u", None)]),
        (None, [], [("a", None), ("c", None)]),
    ]


@pytest.mark.parametrize(
    "line",
    ["{", "[1]", '{"a": 1}', '{"prompt": "x", "max_tokens": 0}', '{"messages": [{"role": "assistant", "content": "x"}]}'],
)
def test_bad_lines_are_named(tmp_path: Path, line: str) -> None:
    with pytest.raises(ConfigError, match="line 2"):
        sessions(tmp_path, f'{{"prompt": "x"}}\n{line}\n')


def test_a_trace_keeps_its_times_lengths_and_shared_blocks(tmp_path: Path) -> None:
    rows = [
        {"timestamp": 1000, "input_length": 1030, "output_length": 5, "hash_ids": [7, 8, 9]},
        {"timestamp": 3000, "input_length": 600, "output_length": 6, "hash_ids": [7, 3]},
    ]
    found = sessions(tmp_path, "\n".join(map(json.dumps, rows)), speed=2.0)
    assert is_trace(tmp_path / "file")
    (first_s, _, ((first, out),)), (second_s, _, ((second, _),)) = found  # type: ignore[misc]
    assert (first_s, second_s, out) == (0.0, 1.0, 5)
    one, two = first.split(), second.split()
    assert (len(one), len(two)) == (1030, 600)
    assert one[:512] == two[:512]
    assert one[512:600] != two[512:]
