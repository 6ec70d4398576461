"""The reference pages against the code: docs/loop-toml.md has every key, docs/cli.md every command, operating.md every
setting; links lead somewhere."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import click
import msgspec
import pytest

from loopline import config
from loopline.cli.root import COMMANDS, root
from loopline.domain.projects import Loop

DOCS = Path(__file__).resolve().parents[2] / "docs"
# Defaults that the code spells as None or "" and the page in words.
IN_WORDS = {
    ("pipeline", "name"): "the only one",
    ("gate", "positive"): "none",
    ("branches", "model"): "`[model] name`",
    ("branches", "endpoint"): "`[endpoint] name`",
    ("endpoint", "memory_mb"): "none",
    ("scaling", "target_in_flight"): "none",
    ("scaling", "target_latency_ms"): "none",
    ("scaling", "target_per_minute"): "none",
    ("rollout", "max_p99_ms"): "none",
    ("rollout", "max_seconds"): "none",
    ("alarms", "datapoints_to_alarm"): "all of them",
    ("triggers", "name"): "made from its content",
    ("notifications", "secret"): "made",
    ("functions", "code"): "all but loop.toml",
    ("functions", "memory_mb"): "none",
    ("tests", "when"): "by kind",
    ("tests", "body"): "none",
    ("tests", "max_p50_ms"): "none",
    ("tests", "max_p99_ms"): "none",
    ("tests", "min_rate"): "none",
}


def _struct(hint: Any) -> type[msgspec.Struct]:
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return hint
    return next(_struct(part) for part in get_args(hint) if part not in (str, type(None), ...))


def _keys() -> Iterator[tuple[str, str, str]]:
    """(table, key, default as the page writes it) of everything loop.toml may hold."""
    for table, hint in get_type_hints(Loop).items():
        for field in msgspec.structs.fields(_struct(hint)):
            if field.required:
                default = "required"
            else:
                value = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
                default = IN_WORDS.get((table, field.name)) or f"`{msgspec.json.encode(value).decode()}`"
            yield table, field.name, default


def _page() -> dict[tuple[str, str], str]:
    """(table, key) -> the default on the page."""
    found = {}
    for part in (DOCS / "loop-toml.md").read_text(encoding="utf-8").split("\n## ")[1:]:
        title = re.match(r"\[+(\w+)", part)
        assert title, part[:20]
        for row in re.finditer(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \|", part, re.MULTILINE):
            found[title[1], row[1]] = row[2]
    return found


def _same(written: str, default: str) -> bool:
    def value(text: str) -> Any:
        return msgspec.json.decode(text.strip("`")) if text.startswith("`") and not text.startswith("`[m") else text

    try:
        return bool(value(written) == value(default))
    except msgspec.DecodeError:
        return written == default


def test_every_key_of_loop_toml_stands_on_its_page_with_its_default() -> None:
    page = _page()
    assert set(page) == {(table, key) for table, key, _ in _keys()}
    wrong = [
        (table, key, page[table, key], default)
        for table, key, default in _keys()
        if not _same(page[table, key], default)
    ]
    assert wrong == []


def _leaves(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """Every command with its first line of help, as ``loopline NOUN VERB`` and what it takes."""
    if isinstance(command, click.Group):
        for name in command.list_commands(click.Context(command)):
            found = command.get_command(click.Context(command), name)
            assert found is not None
            yield from _leaves(found, (*path, name))
        return
    takes = [part for part in command.collect_usage_pieces(click.Context(command)) if part != "[OPTIONS]"]
    usage = " ".join(("loopline", *path, *takes)).replace("|", "\\|")  # as a cell of a table
    yield usage, command.get_short_help_str(200)


@pytest.mark.parametrize(("usage", "help_"), list(_leaves(root)), ids=lambda value: value)
def test_every_command_has_its_line(usage: str, help_: str) -> None:
    assert f"| `{usage}` | {help_} |" in (DOCS / "cli.md").read_text(encoding="utf-8").splitlines()


def test_no_command_on_the_page_is_gone() -> None:
    known = {usage for usage, _ in _leaves(root)}
    page = (DOCS / "cli.md").read_text(encoding="utf-8")
    assert [usage for usage in re.findall(r"^\| `(loopline [^`]+)`", page, re.MULTILINE) if usage not in known] == []
    assert [noun for noun in COMMANDS if f"`loopline {noun}" not in page] == []


def test_every_setting_is_told() -> None:
    page = (DOCS / "how-to" / "operating.md").read_text(encoding="utf-8")
    table = page.partition("| setting |")[2].partition("\n\n")[0]
    named = {name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert named == {setting.name for setting in config.SETTINGS}


@pytest.mark.parametrize("page", [DOCS.parent / "README.md", *sorted(DOCS.glob("**/*.md"))], ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    assert [link for link in links if link and not (page.parent / link).exists()] == []


def test_every_how_to_is_listed() -> None:
    listed = (DOCS / "how-to" / "README.md").read_text(encoding="utf-8")
    pages = {page.name for page in (DOCS / "how-to").glob("*.md")} - {"README.md"}
    assert pages == set(re.findall(r"\]\(([\w-]+\.md)\)", listed))
