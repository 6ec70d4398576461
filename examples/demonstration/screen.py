"""What a demonstration shows: coloured on a terminal, plain text everywhere else."""

import os
import shlex
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

WIDTH = 112  # of a line of a command's output; more is cut


class DemoFailed(Exception):
    """Something that the demo promises did not happen."""


class Declined(Exception):
    """A person said no: the demo ends there, as the loop does."""


def expect(holds: object, otherwise: str) -> None:
    """Go on only when this holds."""
    if not holds:
        raise DemoFailed(otherwise)


class Done(NamedTuple):
    """A stage that is over."""

    number: int
    title: str
    result: str
    seconds: float


class Screen:
    """Prints stages, commands and figures, and keeps each stage's result for the table at the end."""

    def __init__(self) -> None:
        width = None if sys.stdout.isatty() else WIDTH + 6
        self._out = Console(highlight=False, soft_wrap=True, file=sys.stdout, width=width)
        self.interactive = os.environ.get("INTERACTIVE") == "1"
        self.done: list[Done] = []
        self._result = ""

    @contextmanager
    def stage(self, number: int, title: str) -> Iterator[None]:
        """A stage: its heading, then whatever is printed inside, then how long it took."""
        began = time.monotonic()
        self._result = ""
        self._print(Text(f"\n{number:>2}  {title}", style="bold cyan"))
        yield
        seconds = time.monotonic() - began
        self.done.append(Done(number, title, self._result, seconds))
        self._print(Text(f"    {seconds:.1f} s", style="dim"))

    def result(self, text: str) -> None:
        """What the stage came to, for the table at the end."""
        self._result = text

    def say(self, text: str) -> None:
        """A sentence."""
        self._print(Text(f"    {text}"))

    def good(self, text: str) -> None:
        """A figure or an outcome worth looking at."""
        first, *rest = textwrap.wrap(text, WIDTH)
        self._print(Text.assemble("    ", ("* ", "bold green"), first))
        for line in rest:
            self._print(Text(f"      {line}"))

    def command(self, words: Sequence[str] | str, who: str | None = None) -> None:
        """A command that is about to run, as one would type it; a text stands there as it is."""
        as_whom = f"    (as {who})" if who else ""
        typed = words if isinstance(words, str) else shlex.join(words)
        self._print(Text.assemble("    ", ("$ ", "dim"), (typed, "bold"), (as_whom, "dim")))

    def output(self, text: str, lines: int = 8) -> None:
        """What a command printed: its first ``lines``, or its last when negative; a long line takes two at most."""
        found = [line.rstrip() for line in text.replace("\t", "  ").splitlines() if line.strip()]
        room = abs(lines)
        if len(found) > room:
            left = f"… {len(found) - room + 1} more lines"
            found = [*found[: room - 1], left] if lines > 0 else [left, *found[1 - room :]]
        for line in found:
            for piece in textwrap.wrap(line, WIDTH, max_lines=2, placeholder=" …", subsequent_indent="  "):
                self._print(Text(f"      {piece}", style="dim"))

    def ask(self, question: str) -> bool:
        """A person's yes or no."""
        while True:
            answer = self._typed(f"{question} [y/n]")
            if answer is None:
                raise DemoFailed("INTERACTIVE=1 asks questions, and nobody is there to answer")
            if answer.lower() in ("y", "yes", "n", "no"):
                return answer.lower().startswith("y")

    def ask_for(self, what: str) -> str:
        """What a person types; empty when nothing, or when nobody is there."""
        return self._typed(f"{what}:") or ""

    def _typed(self, prompt: str) -> str | None:
        try:
            return self._out.input(Text(f"    {prompt} ", style="bold yellow")).strip()
        except EOFError:
            return None

    def summary(self) -> None:
        """The table at the end."""
        table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
        for title in ("", "stage", "result"):
            table.add_column(title, overflow="fold")
        table.add_column("seconds", justify="right")
        for done in self.done:
            table.add_row(str(done.number), done.title, done.result, f"{done.seconds:.1f}")
        table.add_row("", "", "all stages", f"{sum(done.seconds for done in self.done):.1f}", style="bold")
        self._out.print(table, soft_wrap=False)

    def failed(self, text: str) -> None:
        """Why the demo ends early."""
        self._print(Text(f"\n    FAILED: {text}", style="bold red"))

    def _print(self, text: Text) -> None:
        self._out.print(text)
        self._out.file.flush()
