"""`prfaas chat`: a conversation in the terminal, with what each answer cost. Answers go to stdout, all else to stderr."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain

from rich.console import Console

from prfaas.cli.demo import facts, speed
from prfaas.cli.prompt_line import PromptLine
from prfaas.cli.router_api import Piece, RouterApi, Summary
from prfaas.cli.screen import Screen
from prfaas.errors import PrfaasError

HELP = (
    "/reset forgets the conversation, /retry asks the last question again, /facts shows how answers were served, "
    "/quit (or Ctrl-D) ends; Ctrl-C stops an answer; a line that ends with \\ goes on"
)


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """How to talk, and to whom. With a `question` that is all that is asked."""

    url: str
    key: str | None
    model: str | None
    system: str | None
    temperature: float | None
    max_tokens: int | None
    question: str | None = None


class Conversation:
    """The messages so far. A question whose answer failed is not part of it."""

    def __init__(self, system: str | None) -> None:
        self._opening = [{"role": "system", "content": system}] if system is not None else []
        self._messages = list(self._opening)

    def with_question(self, text: str) -> list[dict[str, str]]:
        """The messages to send for a new question."""
        return [*self._messages, {"role": "user", "content": text}]

    def add(self, question: str, answer: str) -> None:
        """Remember a finished turn."""
        self._messages = [*self.with_question(question), {"role": "assistant", "content": answer}]

    def take_back(self) -> str | None:
        """Forget the last turn; returns its question, None if there is none."""
        if len(self._messages) < len(self._opening) + 2:
            return None
        *self._messages, question, _ = self._messages
        return question["content"]

    def reset(self) -> None:
        """Forget all turns but keep the system prompt."""
        self._messages = list(self._opening)


def run_chat(options: ChatOptions, screen: Screen) -> None:
    """Read questions until the input ends. Raises WorkerUnreachable when there is no router, and for a single question
    whatever its answer fails with."""
    api = RouterApi(options.url, api_key=options.key)
    try:
        talk = _Talk(api, options.model or api.model(), options, screen)
        if options.question is not None:
            talk.ask(options.question)
        else:
            talk.until_told()
    except KeyboardInterrupt:
        screen.plain()
    finally:
        api.close()


class _Talk:
    """One session at the terminal."""

    def __init__(self, api: RouterApi, model: str, options: ChatOptions, screen: Screen) -> None:
        self._api = api
        self._model = model
        self._options = options
        self._screen = screen
        self._answers = Console(highlight=False, soft_wrap=True)
        self._conversation = Conversation(options.system)
        self._show_facts = False

    def until_told(self) -> None:
        """Questions and commands until the input ends."""
        self._screen.step(f"{self._model} at {self._options.url}. {HELP}")
        lines = PromptLine("you> ", self._screen.console)
        while (line := lines.read()) is not None:
            if line in ("/quit", "/exit"):
                return
            question = self._obey(line) if line.startswith("/") else line
            if question:
                self._turn(question)

    def _obey(self, command: str) -> str | None:
        """Carry out a command; returns a question that it asks."""
        if command == "/reset":
            self._conversation.reset()
            self._screen.step("a new conversation")
        elif command == "/facts":
            self._show_facts = not self._show_facts
            self._screen.step("facts follow each answer" if self._show_facts else "no more facts")
        elif command == "/retry":
            question = self._conversation.take_back()
            if question is None:
                self._screen.step("nothing was asked yet")
            return question
        else:
            self._screen.step(HELP)
        return None

    def _turn(self, question: str) -> None:
        """Ctrl-C cancels the answer (and the work behind it), not the conversation; nor does a failure end it."""
        try:
            self.ask(question)
        except PrfaasError as error:
            self._screen.error(error)
        except KeyboardInterrupt:
            self._screen.warn("stopped; the question is forgotten")

    def ask(self, question: str) -> None:
        """Show an answer as it comes, and remember the turn. Raises as `RouterApi.chat`."""
        options = self._options
        events = self._api.chat(
            self._model,
            self._conversation.with_question(question),
            max_tokens=options.max_tokens,
            temperature=options.temperature,
        )
        console = self._screen.console
        pieces: list[Piece] = []
        with console.status("") if console.is_terminal else nullcontext():
            first = next(events)
        console.print(f"{self._model}> ", end="", markup=False, style="bold")
        try:
            for event in chain((first,), events):
                if isinstance(event, Piece):
                    self._show(event)
                    pieces.append(event)
                else:
                    self._conversation.add(question, "".join(piece.text for piece in pieces if not piece.thinking))
                    self._answers.print()
                    self._account(event, pieces[0].at_s if pieces else None)
        except (PrfaasError, KeyboardInterrupt):
            self._answers.print()  # what follows gets a line of its own
            raise

    def _show(self, piece: Piece) -> None:
        """Thinking is for the reader, not for a pipe."""
        if piece.thinking:
            self._screen.console.print(piece.text, end="", markup=False, style="dim")
        else:
            self._answers.print(piece.text, end="", markup=False)

    def _account(self, summary: Summary, first_s: float | None) -> None:
        """What the answer cost: one line, or all there is to say."""
        if self._show_facts:
            for fact in facts(summary, first_s):
                self._screen.step(fact)
        elif first_s is not None:
            said = [f"{first_s:.2f} s to the first token", *speed(summary.usage, summary.total_s, first_s)]
            said += [f"{summary.report['route']} prefill"] if summary.report.get("route") else []
            self._screen.console.print(", ".join(said), style="dim", markup=False)
