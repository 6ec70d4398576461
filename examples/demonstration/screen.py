"""What a demonstration shows: coloured on a terminal, plain text everywhere else."""

import os
import shlex
import shutil
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import click

from loopline.cli import tables

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
        self.interactive = os.environ.get("INTERACTIVE") == "1"
        self.done: list[Done] = []
        self._result = ""

    @contextmanager
    def stage(self, number: int, title: str) -> Iterator[None]:
        """A stage: its heading, then whatever is printed inside, then how long it took."""
        began = time.monotonic()
        self._result = ""
        _print(click.style(f"\n{number:>2}  {title}", bold=True, fg="cyan"))
        yield
        seconds = time.monotonic() - began
        self.done.append(Done(number, title, self._result, seconds))
        _print(click.style(f"    {seconds:.1f} s", dim=True))

    def result(self, text: str) -> None:
        """What the stage came to, for the table at the end."""
        self._result = text

    def say(self, text: str) -> None:
        """A sentence."""
        _print(f"    {text}")

    def good(self, text: str) -> None:
        """A figure or an outcome worth looking at."""
        first, *rest = textwrap.wrap(text, WIDTH)
        _print(f"    {click.style('*', bold=True, fg='green')} {first}")
        for line in rest:
            _print(f"      {line}")

    def command(self, words: Sequence[str] | str, who: str | None = None) -> None:
        """A command that is about to run, as one would type it; a text stands there as it is."""
        as_whom = f"    (as {who})" if who else ""
        typed = words if isinstance(words, str) else shlex.join(words)
        _print(f"    {click.style('$', dim=True)} {click.style(typed, bold=True)}{click.style(as_whom, dim=True)}")

    def output(self, text: str, lines: int = 8) -> None:
        """What a command printed: its first ``lines``, or its last when negative; a long line takes two at most."""
        found = [line.rstrip() for line in text.replace("\t", "  ").splitlines() if line.strip()]
        room = abs(lines)
        if len(found) > room:
            left = f"… {len(found) - room + 1} more lines"
            found = [*found[: room - 1], left] if lines > 0 else [left, *found[1 - room :]]
        for line in found:
            for piece in textwrap.wrap(line, WIDTH, max_lines=2, placeholder=" …", subsequent_indent="  "):
                _print(click.style(f"      {piece}", dim=True))

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
        text = f"    {prompt} "
        try:
            return input(click.style(text, bold=True, fg="yellow") if sys.stdout.isatty() else text).strip()
        except EOFError:
            return None

    def summary(self) -> None:
        """The table at the end."""
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else WIDTH + 6
        rows = [[str(done.number), done.title, done.result, f"{done.seconds:.1f}"] for done in self.done]
        total = f"{sum(done.seconds for done in self.done):.1f}"
        table = tables.fit(["", "stage", "result", "seconds"], [*rows, ["", "", "all stages", total]], width)
        for line in tables.lines(table, {}):
            _print(line)

    def failed(self, text: str) -> None:
        """Why the demo ends early."""
        _print(click.style(f"\n    FAILED: {text}", bold=True, fg="red"))


def _print(text: str) -> None:
    click.echo(text)
    sys.stdout.flush()
