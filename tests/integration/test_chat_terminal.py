"""`prfaas chat` at a terminal and in a pipe, against a real HTTP server over a scripted pipeline."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from prfaas.errors import EngineFailed
from tests.support.fake_pipeline import Script
from tests.support.http_server import ServedGateway, served_gateway
from tests.support.pools import eventually

ANSWER = "Paris is the capital of France."
PRFAAS = (sys.executable, "-m", "prfaas.cli", "chat")


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedGateway]:
    with served_gateway(tmp_path_factory.mktemp("gateway")) as served:
        yield served


@pytest.fixture(autouse=True)
def script(gateway: ServedGateway) -> None:
    gateway.pipeline.script = Script()
    gateway.pipeline.requests.clear()
    gateway.pipeline.ended.clear()


class Terminal:
    """A command at a terminal of its own, whose Ctrl-C reaches it. `seen` is everything it showed."""

    def __init__(self, *command: str) -> None:
        self._fd, theirs = pty.openpty()
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "200"}
        self.process = subprocess.Popen(
            ["setsid", "--ctty", *command], stdin=theirs, stdout=theirs, stderr=theirs, env=environment
        )
        os.close(theirs)
        self.seen = ""

    def wait_for(self, text: str, count: int = 1, timeout_s: float = 30.0) -> None:
        end_s = time.monotonic() + timeout_s
        while self.seen.count(text) < count:
            assert time.monotonic() < end_s, f"no {text!r} in {self.seen!r}"
            if select.select([self._fd], [], [], 0.1)[0]:
                self.seen += os.read(self._fd, 65536).decode(errors="replace")

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._fd)


@pytest.fixture
def terminal(gateway: ServedGateway) -> Iterator[Terminal]:
    terminal = Terminal(*PRFAAS, "--url", gateway.url)
    terminal.wait_for("you> ")
    yield terminal
    terminal.close()


def prompt(gateway: ServedGateway) -> list[str]:
    return gateway.pipeline.text.decode(gateway.pipeline.requests[-1].tokens).split("\n")


def test_a_conversation(terminal: Terminal, gateway: ServedGateway) -> None:
    terminal.type("Capital of \\\nFrance?\n")
    terminal.wait_for("you> ", 2)
    assert ANSWER in terminal.seen
    assert "s to the first token" in terminal.seen
    assert "remote prefill" in terminal.seen
    assert prompt(gateway)[:3] == ["user", "Capital of ", "France?"]
    terminal.type("And Spain?\n")
    terminal.wait_for("you> ", 3)
    assert prompt(gateway).count(ANSWER) == 1
    terminal.type("/retry\n")
    terminal.wait_for("you> ", 4)
    assert prompt(gateway).count(ANSWER) == 1
    assert prompt(gateway).count("And Spain?") == 1
    terminal.type("/reset\nx\n")
    terminal.wait_for("you> ", 6)
    assert prompt(gateway)[:2] == ["user", "x"]
    terminal.type("\x04")
    assert terminal.process.wait(20) == 0


def test_ctrl_c_stops_the_answer_and_the_work_but_not_the_conversation(terminal: Terminal, gateway: ServedGateway) -> None:
    gateway.pipeline.script = Script(token_delay_s=0.5)
    terminal.type("long\n")
    terminal.wait_for("Paris")
    terminal.type("\x03")
    terminal.wait_for("stopped")
    eventually(lambda: gateway.pipeline.ended == ["closed"], "the work was cancelled")
    terminal.wait_for("you> ", 2)
    terminal.type("half a ques\x03")
    terminal.wait_for("you> ", 3)
    gateway.pipeline.script = Script()
    terminal.type("again\n")
    terminal.wait_for("you> ", 4)
    assert prompt(gateway)[:2] == ["user", "again"]


def test_a_failed_answer_is_told_and_forgotten(terminal: Terminal, gateway: ServedGateway) -> None:
    gateway.pipeline.script = Script(fail_at="token:2", error=EngineFailed("died"))
    terminal.type("first\n")
    terminal.wait_for("you> ", 2)
    assert "died" in terminal.seen
    gateway.pipeline.script = Script()
    terminal.type("second\n")
    terminal.wait_for("you> ", 3)
    assert "first" not in prompt(gateway)


@pytest.mark.parametrize("question", [("Capital?",), ()])
def test_only_answers_go_into_a_pipe(gateway: ServedGateway, question: tuple[str, ...]) -> None:
    done = subprocess.run(
        [*PRFAAS, "--url", gateway.url, *question], input="Capital?\n", capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == f"{ANSWER}\n"


def test_a_single_question_that_fails_fails_the_command(gateway: ServedGateway, tmp_path: Path) -> None:
    gateway.pipeline.script = Script(fail_at="decide", error=EngineFailed("died"))
    done = subprocess.run([*PRFAAS, "--url", gateway.url, "Capital?"], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.strip()) == (1, "")
    assert "died" in done.stderr
