"""`prfaas bench` against a real HTTP server: what it sends, what it reports, and that it fails loudly."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from prfaas.cli.app import app
from prfaas.errors import ConfigError, EngineFailed, InvalidRequest, PrfaasError
from tests.support.fake_pipeline import Script
from tests.support.http_server import ServedGateway, served_gateway

ANSWER = "one two three four five six"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedGateway]:
    with served_gateway(tmp_path_factory.mktemp("gateway")) as served:
        yield served


@pytest.fixture(autouse=True)
def script(gateway: ServedGateway) -> None:
    gateway.pipeline.script = Script(replies=(ANSWER,), token_delay_s=0.005, end_with_eos=False)
    gateway.pipeline.requests.clear()


def run(gateway: ServedGateway, *flags: str) -> tuple[int, dict[str, Any]]:
    """Exit status and JSON document."""
    done = CliRunner().invoke(app, ["bench", "--url", gateway.url, "--warmup", "0", "--json", "-", *flags])
    if isinstance(done.exception, PrfaasError):
        raise done.exception
    return done.exit_code, json.loads(done.stdout)


def prompts(gateway: ServedGateway) -> list[str]:
    """What was asked, without the two questions that gauge the server's tokens."""
    return [gateway.pipeline.text.decode(request.tokens) for request in gateway.pipeline.requests[2:]]


def test_what_is_sent_is_what_was_asked_for(gateway: ServedGateway) -> None:
    status, document = run(
        gateway, "--isl", "200", "--osl", "4", "-n", "6", "-c", "3", "--slo-ttft", "1000", "--slo-itl", "0.1", "--extra",
        "temperature=0.5", "--extra", "user=anna",
    )  # fmt: skip
    assert status == 0
    figures, sent = document["figures"], gateway.pipeline.requests[2:]
    assert (figures["num_requests"], figures["num_good"], figures["errors"]) == (6, 6, {})
    assert sum(len(request.tokens) for request in sent) / 6 == pytest.approx(200, rel=0.1)
    assert {(r.sampling.max_tokens, r.sampling.ignore_eos, r.sampling.temperature, r.tenant) for r in sent} == {
        (4, True, 0.5, "anna")
    }
    assert figures["mean_prompt_tokens"] == pytest.approx(sum(len(r.tokens) for r in sent) / 6)
    assert figures["mean_output_tokens"] == 4
    assert 0.004 < figures["itl_s"]["p50"] < 1
    assert figures["ttft_s"]["p50"] > 0.004
    assert figures["goodput_rps"] == 0.0  # no token comes within a tenth of a millisecond
    assert figures["routes"] == {"remote": 6}
    assert document["model"] == "test-model"
    assert len(document["requests"]) == 6
    assert [len(request["gaps_s"]) for request in document["requests"]] == [3] * 6


def test_the_same_seed_sends_the_same_and_another_does_not(gateway: ServedGateway) -> None:
    seen = []
    for seed in ("1", "1", "2"):
        gateway.pipeline.requests.clear()
        run(gateway, "--isl", "100:200", "--osl", "2", "-n", "4", "-c", "1", "--seed", seed)
        seen.append(prompts(gateway))
    assert seen[0] == seen[1]
    assert set(seen[0]).isdisjoint(seen[2])


def test_turns_carry_the_conversation(gateway: ServedGateway) -> None:
    status, document = run(gateway, "--isl", "60", "--osl", "40", "-n", "1", "--turns", "3")
    assert status == 0
    assert document["figures"]["num_requests"] == 3
    first, second, third = prompts(gateway)
    assert second.count(ANSWER) == 1
    assert third.count(ANSWER) == 2
    assert first.split()[1:4] == third.split()[1:4]
    completions, _ = run(gateway, "--isl", "60", "--osl", "40", "-n", "1", "--turns", "2", "--endpoint", "completions")
    assert completions == 0
    assert prompts(gateway)[-1].count(ANSWER) == 1


def test_a_rate_does_not_wait_for_answers(gateway: ServedGateway) -> None:
    gateway.pipeline.script = Script(replies=(ANSWER,), token_delay_s=0.2)
    status, document = run(gateway, "--isl", "60", "--osl", "2", "-n", "8", "--rate", "100", "--cv", "0")
    assert status == 0
    due = [request["due_s"] for request in document["requests"]]
    assert due == pytest.approx([0.01 * at for at in range(8)], abs=1e-6)
    assert max(request["sent_s"] for request in document["requests"]) < min(r["end_s"] for r in document["requests"])


def test_files(gateway: ServedGateway, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "alpha beta", "max_tokens": 2}\n{"prompt": [70, 71, 72]}\n')
    status, document = run(gateway, "--file", str(file), "--endpoint", "completions", "-c", "1")
    assert status == 0
    assert prompts(gateway)[0] == "alpha beta"
    assert gateway.pipeline.requests[-1].tokens == (70, 71, 72)
    assert document["requests"][0]["output_tokens"] == 2
    with pytest.raises(ConfigError, match="token ids"):
        run(gateway, "--file", str(file))


def test_a_trace_is_played_in_its_own_time(gateway: ServedGateway, tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl"
    rows = [{"timestamp": at, "input_length": 80, "output_length": 3} for at in (0, 100, 200)]
    file.write_text("\n".join(map(json.dumps, rows)))
    status, document = run(gateway, "--file", str(file), "--speed", "2")
    assert status == 0
    assert [request["due_s"] for request in document["requests"]] == pytest.approx([0.0, 0.05, 0.1])
    assert [request["output_tokens"] for request in document["requests"]] == [3, 3, 3]


def test_errors_and_silence_fail_the_run(gateway: ServedGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    status, document = run(gateway, "--isl", "900", "--osl", "4", "-n", "3")
    assert status == 1
    assert document["figures"]["num_good"] == 0
    assert all("too many" in error for error in document["figures"]["errors"])
    gateway.pipeline.script = Script(replies=(ANSWER,), fail_at="token:3", error=EngineFailed("died"))
    status, document = run(gateway, "--isl", "100", "--osl", "16", "-n", "3")
    assert status == 1
    assert all("died" in error for error in document["figures"]["errors"])
    assert sum(document["figures"]["errors"].values()) == 3
    gateway.pipeline.script = Script(replies=(ANSWER,), token_delay_s=0.5)
    status, document = run(gateway, "--isl", "100", "--osl", "1", "-n", "2", "--timeout-s", "0.9", "--turns", "1")
    assert status == 0
    gateway.pipeline.script = Script(replies=(ANSWER,), token_delay_s=0.05)
    status, document = run(gateway, "--isl", "100", "--osl", "16", "-n", "2", "--timeout-s", "0.2")
    assert status == 1
    assert list(document["figures"]["errors"]) == ["no end after 0.2 s"]


def test_what_cannot_be_run_is_said_before_anything_is_sent(gateway: ServedGateway) -> None:
    for flags, says in (
        (("--concurrency", "2", "--rate", "1"), "one of them"),
        (("--endpoint", "embeddings"), "chat or completions"),
        (("--plot", "x.gif"), "png"),
        (("--extra", "x"), "KEY=JSON"),
    ):
        with pytest.raises(ConfigError, match=says):
            run(gateway, *flags)
    assert gateway.pipeline.requests == []
    with pytest.raises(InvalidRequest, match="does not exist"):
        run(gateway, "--model", "other")


def test_two_servers_and_two_files_beside_each_other(gateway: ServedGateway, tmp_path: Path) -> None:
    picture, file = tmp_path / "run.svg", tmp_path / "run.json"
    flags = ["--isl", "60", "--osl", "2", "-n", "4", "--warmup", "1"]
    both = CliRunner().invoke(app, ["bench", "--url", gateway.url, "--against", gateway.url, *flags, "--plot", str(picture)])
    assert both.exit_code == 0, both.output
    assert "ratio" in both.stdout
    assert picture.read_text().count("<svg") == 1
    CliRunner().invoke(app, ["bench", "--url", gateway.url, *flags, "--json", str(file)])
    shown = CliRunner().invoke(app, ["bench", "compare", str(file), str(file)])
    assert shown.exit_code == 0
    assert "TTFT P50" in shown.stdout
    assert "differ" not in shown.stdout
