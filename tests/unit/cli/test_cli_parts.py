"""The small parts of the command line: run directories, stop signals, ports, facts, conversations, sites."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from prfaas.cli.chat import Conversation
from prfaas.cli.demo import facts, snippets
from prfaas.cli.fetch import fetch_model
from prfaas.cli.ports import free_port, require_free
from prfaas.cli.router_api import Summary
from prfaas.cli.run_directory import KEPT_RUNS, RunDirectory
from prfaas.cli.screen import Screen
from prfaas.cli.site import SiteRequest, choose_sites, run_site
from prfaas.cli.stop_signal import STOPPING, StopSignal
from prfaas.cluster.api import PoolMember
from prfaas.config import DeploymentSettings, validate
from prfaas.errors import ConfigError, FetchError, StartupError


def test_a_run_keeps_its_files_to_this_user_and_publishes_members_whole(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, 1)
    settings = run.write_settings("router", "{}")
    assert (run.path.stat().st_mode & 0o777, settings.stat().st_mode & 0o777) == (0o700, 0o600)
    first = (PoolMember("a", 1, True, 0), PoolMember("b", None, False, 2, 1))
    run.write_members("site-x", first)
    run.write_members("site-y", (PoolMember("c", 3, True, 0),))
    assert run.read_members() == (*first, PoolMember("c", 3, True, 0))


def test_old_runs_are_removed_but_never_one_in_use(tmp_path: Path) -> None:
    mine = RunDirectory.create(tmp_path, os.getpid())
    os.utime(mine.path, (1, 1))
    dead = 2**22 + 1  # above the kernel's largest process id
    for number in range(dead, dead + 2 * KEPT_RUNS):
        RunDirectory.create(tmp_path, number)
    left = {path.name for path in (tmp_path / "runs").iterdir()}
    assert mine.path.name in left
    assert str(dead + 2 * KEPT_RUNS - 1) in left
    assert str(dead) not in left
    assert len(left) <= KEPT_RUNS + 1


def test_the_tail_of_a_log_is_its_last_lines(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, 1)
    assert "no log" in run.tail("router")
    run.log_file("router").write_text("\n".join(f"line {n}" for n in range(100_000)))
    assert run.tail("router", lines=2) == "line 99998\nline 99999"


@pytest.fixture
def stop() -> Iterator[StopSignal]:
    saved = {number: signal.getsignal(number) for number in STOPPING}
    made = StopSignal()
    made.install()
    yield made
    for number, handler in saved.items():
        signal.signal(number, handler)


def test_the_first_stop_signal_interrupts_and_later_ones_only_count(stop: StopSignal) -> None:
    assert not stop.asked
    with pytest.raises(KeyboardInterrupt), stop.interruptible():
        signal.raise_signal(signal.SIGTERM)
    assert (stop.asked, stop.hurried) == (True, False)
    signal.raise_signal(signal.SIGINT)
    assert stop.hurried


def test_a_stop_signal_outside_an_interruptible_part_waits_for_the_next_one(stop: StopSignal) -> None:
    signal.raise_signal(signal.SIGINT)
    assert stop.asked
    entered = False
    with pytest.raises(KeyboardInterrupt), stop.interruptible():
        entered = True
    assert not entered


def test_a_taken_port_is_an_error_that_proposes_another() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StartupError, match=rf"127\.0\.0\.1:{port}.*--port \d+"):
            require_free("127.0.0.1", port, "--port")
    require_free("127.0.0.1", free_port("127.0.0.1"), "--port")


def test_a_proposed_port_is_none_that_outgoing_connections_take() -> None:
    assert all(free_port() < 32_768 for _ in range(50))
    with pytest.raises(StartupError, match=r"192\.0\.2\.1"):
        free_port("192.0.2.1")  # reserved for documentation: no machine has it


def test_facts_say_when_how_and_why() -> None:
    report = {
        "route": "remote", "worker": "p-0", "decode_worker": "d-0", "reasons": ["42 > 16"], "kv_bytes": 967_680,
        "stages": {"tokenize": 0.002, "prefill": 0.5}, "attempts": ["p-1:queue_full"],
    }  # fmt: skip
    lines = facts(Summary({"prompt_tokens": 42, "completion_tokens": 11}, report, total_s=1.5), first_s=0.5)
    assert lines == [
        "time to first token 500 ms (tokenize 2.0 ms, prefill 500.0 ms)",
        "remote prefill by p-0, because 42 > 16",
        "0.97 MB of KV cache moved to d-0",
        "failed attempts before that: p-1:queue_full",
        "11 tokens, 10.0 tokens/s after the first (42 prompt tokens)",
    ]


def test_facts_of_an_empty_answer_claim_nothing() -> None:
    assert facts(Summary({}, {}, total_s=0.1), first_s=None) == []


def test_the_python_snippet_is_python_and_the_curl_line_names_the_server() -> None:
    text = snippets("http://127.0.0.1:8000", "smollm2")
    code = "\n".join(line[2:] for line in text[text.index("  from openai") :].splitlines())
    compile(code, "snippet", "exec")
    assert "curl http://127.0.0.1:8000/v1/chat/completions" in text


def test_a_conversation_remembers_finished_turns_only() -> None:
    conversation = Conversation("be brief")
    conversation.with_question("lost")
    conversation.add("q1", "a1")
    assert [m["content"] for m in conversation.with_question("q2")] == ["be brief", "q1", "a1", "q2"]
    assert conversation.take_back() == "q1"
    assert [m["content"] for m in conversation.with_question("q2")] == ["be brief", "q2"]
    assert conversation.take_back() is None
    conversation.add("q1", "a1")
    conversation.reset()
    assert [m["role"] for m in conversation.with_question("q3")] == ["system", "user"]


def deployment(*addresses: str | None) -> DeploymentSettings:
    sites = [{"name": f"s{n}", "ray_address": address, "pools": [{"role": "decode"}]} for n, address in enumerate(addresses)]
    return validate(DeploymentSettings, {"model": "m", "sites": sites})


def test_only_named_sites_are_run() -> None:
    assert [s.name for s in choose_sites(deployment(None, None), ())] == ["s0", "s1"]
    assert [s.name for s in choose_sites(deployment("a:1", "b:1"), ("s1",))] == ["s1"]
    with pytest.raises(ConfigError, match="no site s9; it has s0, s1"):
        choose_sites(deployment(None, None), ("s9",))
    with pytest.raises(ConfigError, match="one process drives one cluster"):
        choose_sites(deployment("a:1", "b:1"), ())


def test_text_from_outside_is_not_markup() -> None:
    out = StringIO()
    screen = Screen(Console(file=out, width=200))
    screen.error(FetchError("no [bold]such[/] model"))
    screen.step("[red]x[/]")
    assert "[bold]such[/]" in out.getvalue()
    assert "[red]x[/]" in out.getvalue()


def test_fetch_links_to_the_model_and_never_replaces_anything_else(tmp_path: Path) -> None:
    model, link = tmp_path / "m.gguf", tmp_path / "models" / "served"
    model.write_bytes(b"GGUF")
    screen = Screen(Console(file=StringIO()))
    for _ in range(2):
        assert fetch_model(str(model), weights=True, link=link, screen=screen) == str(model)
        assert link.resolve() == model
    (tmp_path / "other").write_text("mine")
    with pytest.raises(ConfigError, match="not a symbolic link"):
        fetch_model(str(model), weights=True, link=tmp_path / "other", screen=screen)


@pytest.mark.parametrize("router", ["nohost", "127.0.0.1:99999", ":7000", "a:b", "127.0.0.1:0"])
def test_up_refuses_an_address_that_is_none(router: str, tmp_path: Path) -> None:
    request = SiteRequest(tmp_path / "absent.yaml", (), router, None, "site", 1.0)
    with pytest.raises(ConfigError, match="HOST:PORT"):
        run_site(request, Screen())


def test_up_refuses_two_sites_of_one_name(tmp_path: Path) -> None:
    file = tmp_path / "twice.yaml"
    file.write_text("model: m\nsites:\n  - {name: a, pools: [{role: decode}]}\n  - {name: a, pools: [{role: decode}]}\n")
    with pytest.raises(ConfigError, match="a name of its own"):
        run_site(SiteRequest(file, (), "127.0.0.1:7000", None, "site", 1.0), Screen())
