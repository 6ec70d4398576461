"""``[[functions]]``: what would not run, found before anything is applied."""

from collections.abc import Callable, Collection
from fnmatch import fnmatchcase
from typing import Any

from loopline.domain import names
from loopline.domain.projects import FunctionTable
from loopline.errors import InvalidInput

Say = Callable[..., None]

RANGES: dict[tuple[str, str], tuple[float, float]] = {  # the least and the most of each number
    ("functions", "timeout_seconds"): (0.001, 3600),
    ("functions", "instances"): (1, 64),
    ("functions", "memory_mb"): (16, 1 << 20),
    ("functions", "capture"): (0, 1),
}


def check(functions: tuple[FunctionTable, ...], files: Collection[str] | None, say: Say) -> None:
    """Report every mistake; ``files`` are the project's paths, None where they are not known."""
    seen: dict[str, int] = {}
    for position, function in enumerate(functions):
        path = ("functions", position)
        _name(function.name, "a function", (*path, "name"), say)
        if function.name in seen:
            cure = f"give one of functions[{seen[function.name]}] and functions[{position}] another name"
            say((*path, "name"), f"two functions are called {function.name!r}", cure)
        seen.setdefault(function.name, position)
        for number, endpoint in enumerate(function.endpoints):
            _name(endpoint, "an endpoint", (*path, "endpoints", number), say)
        if not function.handler.isidentifier():
            say((*path, "handler"), f"{function.handler!r} is not the name of a function", 'write e.g. "handler"')
        parts = function.file.split("/")
        if not all(parts) or {".", ".."} & set(parts) or not function.file.endswith(".py"):
            cure = "write a relative path without '..' to a .py file"
            say((*path, "file"), f"{function.file!r} is not a Python file of the project", cure)
        elif files is not None and function.file not in files:
            cure = f"write {function.handler}(event, context) in it"
            say((*path, "file"), f"there is no file {function.file}", cure)
        for number, pattern in enumerate(function.code or ()):
            if files is not None and not any(fnmatchcase(each, pattern) for each in files):
                cure = "write a path of the project, or a pattern such as shared/*"
                say((*path, "code", number), f"no file of the project is {pattern!r}", cure)


def sees(function: FunctionTable, requirements: str, path: str) -> bool:
    """Whether a file of the project is among those that the function's process is given: by the patterns of ``code``
    (``*`` also matches ``/``), else all but the file that declares it. ``requirements`` says what its packages are."""
    if path in (function.file, requirements):
        return True
    if function.code is None:
        return path != "loop.toml"
    return any(fnmatchcase(path, pattern) for pattern in function.code)


def _name(value: str, what: str, path: tuple[Any, ...], say: Say) -> None:
    try:
        names.check_name(value, what)
    except InvalidInput as error:
        message, _, cure = error.message.partition(": ")
        say(path, message, cure)
