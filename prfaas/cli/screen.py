"""What commands say to a person. Everything but results goes to stderr, so that output can be piped."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape

from prfaas.errors import PrfaasError


class Screen:
    """Lines for a person: steps, facts and errors. Text from outside is never read as markup."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False, soft_wrap=True)

    def step(self, text: str) -> None:
        """Something is about to happen, or is happening."""
        self.console.print(f"[cyan]·[/] {escape(text)}")

    def done(self, text: str) -> None:
        """Something succeeded."""
        self.console.print(f"[green]✓[/] {escape(text)}")

    def warn(self, text: str) -> None:
        """Something needs attention, but the command goes on."""
        self.console.print(f"[yellow]![/] {escape(text)}")

    def error(self, error: PrfaasError) -> None:
        """The command ends with this."""
        self.console.print(f"[bold red]error:[/] {escape(error.message)}")

    def plain(self, text: str = "") -> None:
        """Text as it is, for snippets that are copied from the screen."""
        self.console.print(text, markup=False)
