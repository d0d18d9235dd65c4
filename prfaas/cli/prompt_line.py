"""Lines that a person types: with editing and history at a terminal, as they are from a pipe."""

from __future__ import annotations

import sys

from rich.console import Console

BOLD, PLAIN = "\x01\x1b[1m\x02", "\x01\x1b[0m\x02"  # marked, so that line editing knows they take no room


class PromptLine:
    """Reads whole inputs. `console` shows the prompt where the answers' stream goes elsewhere."""

    def __init__(self, prompt: str, console: Console) -> None:
        self._prompt = prompt
        self._console = console
        self._edits = sys.stdin.isatty() and sys.stdout.isatty()
        if self._edits:
            import readline  # noqa: F401  (input() edits lines from now on)

    def read(self) -> str | None:
        """The next input, stripped; a line that ends with a backslash goes on in the next. None at the end of the input.

        Ctrl-C drops what was typed.
        """
        lines: list[str] = []
        try:
            while not lines or lines[-1].endswith("\\"):
                lines.append(self._line(self._prompt if not lines else "...> "))
        except EOFError:
            self._console.print()
            if not lines:
                return None
        except KeyboardInterrupt:
            self._console.print("\nCtrl-D or /quit ends the conversation", style="dim")
            return ""
        return "\n".join(line.removesuffix("\\") for line in lines).strip()

    def _line(self, prompt: str) -> str:
        if self._edits:
            return input(f"{BOLD}{prompt}{PLAIN}")
        if sys.stdin.isatty():
            self._console.print(prompt, end="", style="bold", markup=False)
        return input()
