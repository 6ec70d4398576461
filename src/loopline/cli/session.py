"""What every command has: the server it speaks to, and how it shows what it found.

On a terminal: coloured tables that fit it. Into a pipe: one line per item, tab-separated. With ``--json``: the
server's answer as it is. Progress and remarks go to stderr, always.
"""

import functools
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

from loopline.cli import tables

if TYPE_CHECKING:
    from loopline.sdk.client import Client

Column = tuple[str, str | Callable[[dict[str, Any]], Any]]

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # what a terminal would obey
_COLOURS = {
    **dict.fromkeys(("Succeeded", "Approved", "InService", "Ready", "OK", "Passed", "Started", "Delivered"), "green"),
    **dict.fromkeys(("Failed", "Rejected", "ALARM", "Refused", "Lost", "RolledBack", "RollingBack"), "red"),
    **dict.fromkeys(("PendingManualApproval", "Stopping", "Stopped", "INSUFFICIENT_DATA", "Warm"), "yellow"),
    **dict.fromkeys(
        ("Running", "Scoring", "Testing", "Shifting", "Baking", "Starting", "Updating", "Preparing"), "cyan"
    ),
}


class Session:
    """One command's options, its client, and its ways of showing."""

    def __init__(self, url: str | None, key: str | None, as_json: bool) -> None:
        self._url, self._key = url, key
        self.as_json = as_json

    @functools.cached_property
    def client(self) -> "Client":
        """The server, opened when it is first needed."""
        from loopline.sdk.client import Client

        return Client(self._url, self._key)

    def note(self, text: str) -> None:
        """Say something on stderr."""
        click.echo(clean(text), err=True)

    def json(self, value: Any) -> None:
        """Print the answer as it is."""
        click.echo(json.dumps(value, indent=2 if sys.stdout.isatty() else None, ensure_ascii=False))

    def table(self, answer: dict[str, Any], columns: Sequence[Column], empty: str = "nothing here") -> None:
        """A list answer, one line per item. ``columns``: title, and the item's key (dotted) or a function of it."""
        if self.as_json:
            self.json(answer)
            return
        rows = [[text(_take(item, column)) for _, column in columns] for item in answer["items"]]
        titles = [title for title, _ in columns]
        if not sys.stdout.isatty():
            for row in rows:
                click.echo("\t".join(cell.replace("\t", " ").replace("\n", " ") for cell in row))
        elif rows:
            self._show(titles, rows)
        else:
            self.note(empty)
        if answer.get("next") and not _limited():
            self.note("there are more: --limit shows more of them")

    def _show(self, titles: list[str], rows: list[list[str]]) -> None:
        table = tables.fit(titles, rows, shutil.get_terminal_size().columns, _COLOURS)
        click.echo("\n".join(tables.lines(table, _COLOURS)))
        if table.cut:
            self.note("ids are shortened to fit this terminal; in a pipe, as in `| cat`, they are whole")

    def record(self, answer: dict[str, Any], keys: Iterable[str] | None = None) -> None:
        """One record, a field per line; ``keys`` picks and orders them (dotted)."""
        if self.as_json:
            self.json(answer)
            return
        picked = [(key, _take(answer, key)) for key in (keys or answer)]
        shown = [(key, text(value)) for key, value in picked if value not in (None, "", [], {})]
        width = max((len(key) for key, _ in shown), default=0)
        for key, value in shown:
            if not sys.stdout.isatty():
                click.echo(f"{key}\t{value}".replace("\n", " "))
            else:
                click.echo(f"{click.style(key.ljust(width), dim=True)}  {colour(value)}")

    def done(self, answer: dict[str, Any], sentence: str) -> None:
        """What was done: a sentence, or the answer with ``--json``."""
        if self.as_json:
            self.json(answer)
        else:
            click.echo(clean(sentence))


def _limited() -> bool:
    """Whether the person chose the length of the list."""
    source = click.get_current_context().get_parameter_source("limit")
    return source is click.core.ParameterSource.COMMANDLINE


def _take(item: Any, column: str | Callable[[dict[str, Any]], Any]) -> Any:
    if callable(column):
        return column(item)
    for part in column.split("."):
        item = item.get(part) if isinstance(item, dict) else None
    return item


def clean(value: str) -> str:
    """Text without what would steer a terminal."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", value)


def text(value: Any) -> str:
    """A value as a cell."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict | list):
        return clean(json.dumps(value, ensure_ascii=False))
    found = str(value)
    if re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", found):
        return found[:19].replace("T", " ")
    return clean(found)


def colour(value: str) -> str:
    """A status in its colour, anything else as it is."""
    return click.style(value, fg=_COLOURS[value]) if value in _COLOURS else value


def options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of every command; the function gets a ``Session`` first."""

    @click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")
    @click.option("--url", metavar="URL", help="The server (default: LOOPLINE_URL, or this machine's).")
    @click.option("--key", metavar="KEY", help="The API key (default: LOOPLINE_KEY, or this machine's).")
    @click.option("--debug", is_flag=True, help="Show where an error came from.")
    @functools.wraps(function)
    def wrapped(*args: Any, as_json: bool, url: str | None, key: str | None, debug: bool, **kwargs: Any) -> Any:
        del debug  # read by ``root.run``, which sees the errors
        return function(Session(url, key, as_json), *args, **kwargs)

    return wrapped


def limit_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """``--limit`` of lists."""
    return click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 1000))(function)


def assignments(pairs: Sequence[str]) -> dict[str, Any]:
    """``name=value`` options as a dict: a value that reads as JSON is that, anything else is text."""
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{pair!r} is not NAME=VALUE")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def pairs_of(pairs: Sequence[str]) -> dict[str, str]:
    """``name=text`` options as a dict of texts."""
    found: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{pair!r} is not NAME=TEXT")
        found[name] = value
    return found


def model_and_number(reference: str, number: int | None) -> tuple[str, int]:
    """``MODEL 3``, ``MODEL:3`` or ``MODEL 'v3'``."""
    name, colon, rest = reference.partition(":")
    if colon and rest.lstrip("v").isdecimal():
        return name, int(rest.lstrip("v"))
    if number is None:
        raise click.UsageError(f"say which version: {reference} 1, or {reference}:1")
    return reference, number


class VersionNumber(click.ParamType[int, int]):
    """``3`` or ``v3``."""

    name = "version"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number."""
        digits = str(value).removeprefix("v")
        if not digits.isdecimal() or int(digits) < 1:
            self.fail(f"{value!r} is not a version number such as 3", param, ctx)
        return int(digits)


VERSION = VersionNumber()


def moment(value: str | None) -> str | None:
    """A time as the server takes it: RFC 3339, or ``10m`` / ``2h`` / ``1d`` ago."""
    if value is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd])(?:\s+ago)?", value.strip())
    if not found:
        return value
    import time

    return str(time.time() - float(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]])
