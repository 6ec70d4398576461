"""Endpoints with many models, as ``[[multi_model]]`` of loop.toml and the setting ``multi_model`` declare them: what
they may say, found before anything is applied."""

import re
from collections.abc import Callable, Iterable

from loopline.domain import names
from loopline.domain.projects import MultiModelEndpoint
from loopline.errors import InvalidInput

Say = Callable[..., None]

RANGES: dict[tuple[str, str], tuple[float, float]] = {  # the least and the most of each number
    ("multi_model", "memory_mb"): (64, 1 << 24),
    ("multi_model", "idle_seconds"): (1, 1e9),
    ("multi_model", "cold_start_seconds"): (0.001, 600),
    ("multi_model", "capture"): (0, 1),
    ("multi_model", "timeout_seconds"): (0.001, 3600),
    ("multi_model", "max_concurrent"): (1, 65536),
    ("multi_model", "queue_seconds"): (0, 3600),
    ("multi_model", "threads"): (1, 1024),
}
_PATTERN = re.compile(r"[A-Za-z0-9._*?\[\]!-]+")


def check(declared: Iterable[MultiModelEndpoint], endpoint: str | None, say: Say) -> None:
    """Report every mistake. ``endpoint``: the name of the project's own endpoint."""
    seen = {} if endpoint is None else {endpoint: "endpoint"}
    for position, table in enumerate(declared):
        path = ("multi_model", position)
        try:
            names.check_name(table.name, "an endpoint")
        except InvalidInput as error:
            message, _, cure = error.message.partition(": ")
            say((*path, "name"), message, cure)
        if table.name in seen:
            cure = f"give one of {seen[table.name]} and multi_model[{position}] another name"
            say((*path, "name"), f"two endpoints are called {table.name!r}", cure)
        seen.setdefault(table.name, f"multi_model[{position}]")
        for number, pattern in enumerate(table.follow):
            if not _PATTERN.fullmatch(pattern):
                cure = 'write the name of a model, or a pattern such as "shops-*"'
                say((*path, "follow", number), f"{pattern!r} fits no model's name", cure)
