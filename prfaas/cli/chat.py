"""`prfaas chat`: a conversation in the terminal, with what each answer cost."""

from __future__ import annotations

from dataclasses import dataclass

from prfaas.cli.demo import facts
from prfaas.cli.router_api import Piece, RouterApi
from prfaas.cli.screen import Screen
from prfaas.errors import RequestError

HELP = "/reset forgets the conversation, /facts shows how answers were served, /quit (or Ctrl-D) ends"


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """How to talk, and to whom."""

    url: str
    key: str | None
    model: str | None
    system: str | None
    temperature: float | None
    max_tokens: int | None


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

    def reset(self) -> None:
        """Forget all turns but keep the system prompt."""
        self._messages = list(self._opening)


def run_chat(options: ChatOptions, screen: Screen) -> None:
    """Read questions until the input ends. Raises WorkerUnreachable when there is no router."""
    api = RouterApi(options.url, api_key=options.key)
    conversation, show_facts = Conversation(options.system), False
    try:
        model = options.model or api.model()
        screen.step(f"{model} at {options.url}. {HELP}")
        while True:
            line = screen.console.input("[bold]you>[/] ").strip()
            if line in ("/quit", "/exit"):
                return
            if line == "/reset":
                conversation.reset()
            elif line == "/facts":
                show_facts = not show_facts
            elif line.startswith("/"):
                screen.step(HELP)
            elif line:
                _turn(api, model, options, conversation, line, screen, show_facts)
    except (EOFError, KeyboardInterrupt):
        screen.plain()
    finally:
        api.close()


def _turn(
    api: RouterApi, model: str, options: ChatOptions, conversation: Conversation, line: str, screen: Screen, show_facts: bool
) -> None:
    """One question and its answer. Ctrl-C cancels the answer (and the work behind it), not the conversation."""
    screen.console.print(f"{model}> ", end="", markup=False)
    answer, first_s = "", None
    events = api.chat(model, conversation.with_question(line), max_tokens=options.max_tokens, temperature=options.temperature)
    try:
        for event in events:
            if isinstance(event, Piece):
                first_s = event.at_s if first_s is None else first_s
                answer += event.text
                screen.console.print(event.text, end="", markup=False)
            elif show_facts:
                screen.plain()
                for fact in facts(event, first_s):
                    screen.step(fact)
    except RequestError as error:
        screen.error(error)
        return
    except KeyboardInterrupt:
        screen.warn("cancelled")
        return
    finally:
        screen.plain()
    conversation.add(line, answer)
