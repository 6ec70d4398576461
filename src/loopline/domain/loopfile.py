"""Reads ``loop.toml`` and explains every mistake in it at once: where, what, and how to put it right.

``tomllines`` says on which line a key stands, ``looprules`` judges values and references, ``projects`` says which keys
there are; this module reads and checks types.
"""

import datetime
import difflib
import functools
import math
import re
import tomllib
import types
import typing
from collections.abc import Collection, Mapping
from typing import Any, Literal, get_args, get_origin

import msgspec

from loopline.domain import looprules
from loopline.domain.projects import EndpointTest, Loop, MultiModelTable
from loopline.domain.tomllines import Path, key_lines
from loopline.errors import InvalidInput

_UNREADABLE = "unreadable-line-"  # stands for a table whose header could not be read
MAX_LINE_CHARS = 2000  # reading takes time that grows with the square of a line
_RECOVERIES = 20  # mistakes of grammar that one reading goes over


class Problem(msgspec.Struct, frozen=True):
    """One mistake: ``key`` is dotted (``alarms[0].metric``), ``line`` counts from 1, ``cure`` says what to write."""

    file: str
    line: int
    key: str
    message: str
    cure: str
    level: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        cure = f"; {self.cure}" if self.cure else ""
        return f"{self.file}:{self.line}: {self.level}: {self.message}{cure}"


def parse(
    text: str, filename: str = "loop.toml", files: Collection[str] | None = None
) -> tuple[Loop | None, list[Problem]]:
    """The loop, and every mistake in order of lines; the loop is None when one of them is an error.

    ``files``: the project's files, relative and with ``/``; when given, files that the loop names must be among them.
    """
    longest = max(enumerate(text.split("\n"), 1), key=lambda numbered: len(numbered[1]))
    if len(longest[1]) > MAX_LINE_CHARS:
        message = f"the line has {len(longest[1])} characters, more than {MAX_LINE_CHARS}"
        return None, [Problem(filename, longest[0], "", message, "split it: lists may go over several lines")]
    try:
        document, problems, lost = _read_toml(text, filename)
    except RecursionError:
        return None, [Problem(filename, 1, "", "lists or tables are nested too deep", "nest them less")]
    reader = _Reader(filename, _lines_of(text, problems), lost)
    cleaned = reader.table(document, Loop, ())
    loop = msgspec.convert(cleaned, Loop)
    looprules.check(loop, frozenset(reader.lines), reader.say, files)
    problems += reader.problems
    problems.sort(key=lambda problem: (problem.line, problem.level))
    return (None if any(p.level == "error" for p in problems) else loop), problems


def check_endpoint(name: str, model: str, settings: Mapping[str, Any]) -> None:
    """Judge the settings of an endpoint made by hand: the keys of ``[endpoint]``, and those of ``[rollout]`` and
    ``[monitor]`` as tables in it. Raises ``InvalidInput`` with every mistake.
    """
    tables = {key: value for key, value in settings.items() if key in ("rollout", "comparison", "monitor", "scaling")}
    own = {key: value for key, value in settings.items() if key not in tables and key != "multi_model"}
    if "name" in own:
        raise InvalidInput("name: it is the endpoint's own, and no setting")
    names = {"project": {"name": model}, "model": {"name": model}}
    reader = _Reader("settings", {}, set())
    cleaned = reader.table({**names, **tables, "endpoint": {**own, "name": name}}, Loop, ())
    _many(settings, reader)
    if not any(problem.level == "error" for problem in reader.problems):
        looprules.check(msgspec.convert(cleaned, Loop), frozenset(), reader.say, None)
    errors = [problem for problem in reader.problems if problem.level == "error"]
    if errors:
        raise InvalidInput("\n".join(f"{problem.key}: {problem.message} ({problem.cure})" for problem in errors))


def _many(settings: Mapping[str, Any], reader: "_Reader") -> None:
    if settings.get("multi_model") is None:
        return
    path = ("multi_model",)
    cleaned = reader.value(settings["multi_model"], MultiModelTable, path)
    if cleaned is not _DROP and not reader.problems:
        looprules.check_ranges(path, msgspec.convert(cleaned, MultiModelTable), reader.say)
    if "scaling" in settings:
        reader.say(path, "many models are not scaled: each has one server, on demand", "leave scaling out")


def check_test(endpoint: str, definition: Mapping[str, Any]) -> EndpointTest:
    """An endpoint's test made by hand, from the keys of ``[[tests]]``. Raises ``InvalidInput`` with every mistake."""
    reader = _Reader("test", {("tests", 0, key): 1 for key in definition}, set())
    named = {"project": {"name": endpoint}, "model": {"name": endpoint}, "endpoint": {"name": endpoint}}
    cleaned = reader.table({**named, "tests": [dict(definition)]}, Loop, ())
    loop = msgspec.convert(cleaned, Loop)
    if not reader.problems:
        looprules.check(loop, frozenset(reader.lines), reader.say, None)
    errors = [problem for problem in reader.problems if problem.level == "error"]
    if errors:
        told = [f"{p.key.removeprefix('tests[0].')}: {p.message}" + (f" ({p.cure})" if p.cure else "") for p in errors]
        raise InvalidInput("\n".join(told))
    return loop.tests[0]


def _lines_of(text: str, problems: list[Problem]) -> dict[Path, int]:
    lines = text.split("\n")
    for problem in problems:
        lines[problem.line - 1] = ""
    try:
        return key_lines("\n".join(lines))
    except (ValueError, IndexError, RecursionError):
        return {}


# -- grammar ----------------------------------------------------------------------------------------------------------


def _read_toml(text: str, filename: str) -> tuple[dict[str, Any], list[Problem], set[str]]:
    """The document, its mistakes of grammar, and the last part of each key that stood on a line with one."""
    lines = text.replace("\r\n", "\n").split("\n")
    problems: list[Problem] = []
    lost: set[str] = set()
    last = 0
    while True:
        try:
            return tomllib.loads("\n".join(lines)), problems, lost
        except tomllib.TOMLDecodeError as error:
            line = _line_of(str(error), lines)
            problems.append(_syntax_problem(str(error), lines[line - 1], filename, line))
            if line <= last or len(problems) > _RECOVERIES:
                return {}, problems, {"*"}
            found = re.match(r"\s*\[*\s*([A-Za-z0-9_.-]+)", lines[line - 1])
            lost.add(found[1].rpartition(".")[2] if found else "*")
            is_header = lines[line - 1].lstrip().startswith("[")
            lines[line - 1] = (
                f"[{_UNREADABLE}{line}]" if is_header else ""
            )  # what is below it belongs to no other table
            last = line


def _line_of(message: str, lines: list[str]) -> int:
    found = re.search(r"at line (\d+)", message)
    if found:
        return min(int(found[1]), len(lines))
    filled = [number for number, line in enumerate(lines, 1) if line.strip()]
    return filled[-1] if filled else 1


def _syntax_problem(error: str, line: str, filename: str, number: int) -> Problem:
    what = re.sub(r" \(at .*\)$", "", error)
    key, equals, value = (part.strip() for part in line.partition("="))
    if "overwrite" in what or "twice" in what or "Cannot" in what:
        return Problem(filename, number, key, f"{line.strip()!r} stands in this file twice", "keep one of the two")
    cure = "see https://toml.io for the grammar"
    if equals and what.startswith("Invalid value"):
        if value in ("True", "False"):
            cure = f"write {key} = {value.lower()}"
        elif value:
            cure = f'text stands in quotes: {key} = "{value.strip(chr(39) + chr(34))}"'
        else:
            cure = f'write the value behind the equals sign: {key} = "..."'
    elif line.strip().startswith("["):
        cure = "a table is written [name], an element of a list of tables [[name]]"
    elif not equals:
        cure = 'every line is a [table], key = value, or a # comment; text stands in quotes: key = "text"'
    elif "array" in what or "Unclosed" in what or "end of document" in error:
        cure = 'close what was opened: " with ", [ with ], { with }'
    return Problem(filename, number, key if equals else "", f"not TOML: {what}: {line.strip()!r}", cure)


# -- types ------------------------------------------------------------------------------------------------------------

_INDEX = re.compile(r"\[\d+\]")
_DROP = object()  # the value was wrong and has been reported
_KINDS = {str: "text in quotes", int: "a whole number", float: "a number", bool: "true or false"}


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


@functools.cache
def _homes() -> dict[str, list[str]]:
    """key -> the tables that have it."""
    homes: dict[str, list[str]] = {}
    for table, hint in _hints(Loop).items():
        for cls in _structs_in(hint):
            for key in _hints(cls):
                homes.setdefault(key, []).append(table)
    return homes


def _structs_in(hint: Any) -> list[type]:
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return [hint]
    return [cls for part in get_args(hint) for cls in _structs_in(part)]


def dotted(path: Path) -> str:
    """``("alarms", 0, "metric")`` as ``alarms[0].metric``."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + (part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else f'"{part}"')
    return text


class _Reader:
    """Gives a copy of the document without what is wrong in it, and reports that."""

    def __init__(self, filename: str, lines: dict[Path, int], lost: set[str]) -> None:
        self.filename = filename
        self.lines = lines
        self.lost = lost  # keys that are not missing: their line could not be read
        self.problems: list[Problem] = []
        self._reported: set[Path] = set()

    def say(self, path: Path, message: str, cure: str, level: Literal["error", "warning"] = "error") -> None:
        """Report, unless something at this place or around it has been reported."""
        if any(path[:length] in self._reported for length in range(1, len(path) + 1)):
            return
        near = path
        while near and near not in self.lines:
            near = near[:-1]
        self.problems.append(
            Problem(self.filename, self.lines.get(near, 1), dotted(path), message, cure, level),
        )

    def wrong(self, path: Path, message: str, cure: str) -> Any:
        """Report a value that cannot be used."""
        self.say(path, message, cure)
        self._reported.add(path)
        return _DROP

    def table(self, value: Mapping[str, Any], cls: type, path: Path) -> dict[str, Any]:
        """``value`` with the keys that ``cls`` has; what is required and missing is made up, after the report."""
        fields = {field.name: field for field in msgspec.structs.fields(cls)}
        cleaned: dict[str, Any] = {}
        for key, item in value.items():
            if not path and key.startswith(_UNREADABLE):
                continue
            if key not in fields:
                self._unknown(key, list(fields), path)
                continue
            found = self.value(item, _hints(cls)[key], (*path, key))
            if found is not _DROP:
                cleaned[key] = found
        made_up = [name for name, field in fields.items() if field.required and name not in cleaned]
        for name in made_up:
            if name not in value and not self.lost & {name, "*"}:
                self._missing(name, _hints(cls)[name], path)
            cleaned[name] = _made_up(_hints(cls)[name], len(self._reported))
        if made_up and path:
            self._reported.add(path)  # nothing that was made up is to be judged
        return cleaned

    def _unknown(self, key: str, known: list[str], path: Path) -> None:
        what = f"there is no key {key!r} in [{dotted(path)}]" if path else f"there is no table or key {key!r}"
        close = difflib.get_close_matches(key, known, 1)
        homes = [home for home in _homes().get(key, []) if home not in path]
        if close:
            cure = f"did you mean {close[0]!r}?"
        elif homes:
            cure = f"it belongs in [{homes[0]}]"
        else:
            cure = f"known: {', '.join(known)}"
        self.wrong((*path, key), what, cure)

    def _missing(self, name: str, hint: Any, path: Path) -> None:
        if path:
            example = f'{name} = "..."' if hint is str else f"{name} = ..."
            self.say((*path, name), f"{name!r} is missing in [{dotted(path)}]", f"add {example}")
        else:
            self.say((name,), f"the table [{name}] is missing", f'add [{name}] with name = "..."')
            self._reported.add((name,))

    def value(self, value: Any, hint: Any, path: Path) -> Any:
        """``value`` as the hint wants it, or ``_DROP``."""
        origin = get_origin(hint)
        if hint is Any:
            return self._plain(value, path)
        if origin in (typing.Union, types.UnionType):
            return self.value(value, next(part for part in get_args(hint) if part is not type(None)), path)
        if origin is Literal:
            return self._choice(value, get_args(hint), path)
        if origin is tuple:
            return self._list(value, get_args(hint)[0], path)
        if origin is dict or issubclass(hint, msgspec.Struct):
            return self._table_value(value, hint, path)
        return self._scalar(value, hint, path)

    def _choice(self, value: Any, choices: tuple[Any, ...], path: Path) -> Any:
        if value in choices:
            return value
        close = difflib.get_close_matches(str(value), [str(choice) for choice in choices], 1)
        known = ", ".join(repr(choice) for choice in choices)
        hint = f"did you mean {close[0]!r}? " if close else ""
        return self.wrong(path, f"{dotted(path)} cannot be {value!r}", f"{hint}one of: {known}")

    def _list(self, value: Any, hint: Any, path: Path) -> Any:
        tables = isinstance(hint, type) and issubclass(hint, msgspec.Struct)
        if not isinstance(value, list):
            if tables:
                return self.wrong(
                    path, f"{dotted(path)} is a list of tables", f"write [[{_INDEX.sub('', dotted(path))}]]"
                )
            return self.wrong(path, f"{dotted(path)} is a list", f"write {path[-1]} = [{_toml(value)}]")
        items = [self.value(item, hint, (*path, position)) for position, item in enumerate(value)]
        if tables:  # a wrong table stays in its place, made up, so that the others keep their numbers
            return [_made_up(hint, len(self._reported)) if item is _DROP else item for item in items]
        return [item for item in items if item is not _DROP]

    def _table_value(self, value: Any, hint: Any, path: Path) -> Any:
        if not isinstance(value, dict):
            cure = f"write [{dotted(path)}] on a line, and its keys below it"
            return self.wrong(path, f"{dotted(path)} is a table, not {_toml(value)}", cure)
        if get_origin(hint) is not dict:
            return self.table(value, hint, path)
        found = {key: self.value(item, get_args(hint)[1], (*path, key)) for key, item in value.items()}
        return {key: item for key, item in found.items() if item is not _DROP}

    def _scalar(self, value: Any, kind: Any, path: Path) -> Any:
        good = type(value) is kind or (kind is float and type(value) is int)
        if good and not (isinstance(value, float) and not math.isfinite(value)):
            return value
        return self.wrong(
            path, f"{dotted(path)} must be {_KINDS[kind]}, not {_toml(value)}", f"write {path[-1]} = {_as(value, kind)}"
        )

    def _plain(self, value: Any, path: Path) -> Any:
        if isinstance(value, dict):
            for key, item in value.items():
                self._plain(item, (*path, key))
        elif isinstance(value, list):
            for position, item in enumerate(value):
                self._plain(item, (*path, position))
        elif isinstance(value, datetime.date | datetime.time):
            return self.wrong(path, f"{dotted(path)} is a date", f'write it as text: {path[-1]} = "{value}"')
        elif isinstance(value, float) and not math.isfinite(value):
            return self.wrong(path, f"{dotted(path)} is {value}", "write a finite number")
        return value


def _made_up(hint: Any, number: int) -> Any:
    """A value of the type, so that what is right can be judged beside what is missing."""
    if get_origin(hint) is Literal:
        return get_args(hint)[0]
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return {f.name: _made_up(_hints(hint)[f.name], number) for f in msgspec.structs.fields(hint) if f.required}
    return {str: f"missing-{number}", int: 1, float: 1.0, bool: False}.get(hint)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return "a table" if isinstance(value, dict) else str(value)


def _as(value: Any, kind: type) -> str:
    """What the writer probably meant, as the type that is wanted."""
    text = str(value).strip().lower()
    if kind is str:
        return _toml(_toml(value)) if not isinstance(value, dict | list) else '"..."'
    if kind is bool:
        return "true" if text in ("true", "yes", "on", "1") else "false"
    try:
        number = float(text)
    except ValueError:
        return "..."
    if not math.isfinite(number):
        return "..."
    return str(round(number)) if kind is int else f"{number:g}"
