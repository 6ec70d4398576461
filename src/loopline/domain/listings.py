"""Pages of long sorted lists of keys, with keys that share a beginning rolled up as one entry. Pure functions.

The entries of a list are keys and common prefixes, in the order of code points; a page goes on after the entry that
the one before ended with. Source: Amazon S3 API Reference, ListObjectsV2 and ListObjectVersions.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from loopline.domain.objects import following

Row = Mapping[str, Any]


class Position(NamedTuple):
    """Where to read on: at ``key``, or behind it; of ``key`` itself only rows with a ``number`` below the given."""

    key: str
    inclusive: bool
    below: int | None = None


# The rows from a position on that the list is about, by key, the highest number of each key first; at most so many.
Fetch = Callable[[Position, int], Sequence[Row]]


@dataclass
class Page:
    """One page: rows and common prefixes. ``last``: the entry that the next page begins behind, ``last_row`` its row
    unless it is a prefix; both None when there is no next page."""

    rows: list[Row] = field(default_factory=list)
    prefixes: list[str] = field(default_factory=list)
    last: str | None = None
    last_row: Row | None = None


def group(key: str, prefix: str, delimiter: str) -> str | None:
    """The common prefix that stands for a key: up to the first delimiter behind ``prefix``; None without one."""
    if not delimiter:
        return None
    place = key.find(delimiter, len(prefix))
    return None if place < 0 else key[: place + len(delimiter)]


def start(prefix: str, delimiter: str, after: str | None, below: int | None = None) -> Position | None:
    """Where a page begins that follows the entry ``after``; None when nothing can follow it.

    ``below``: the page goes on within the rows of ``after`` itself, below that number.
    """
    if after is None or after < prefix:
        return Position(prefix, True)
    if below is not None:
        return Position(after, True, below)
    rolled = group(after, prefix, delimiter) if after.startswith(prefix) else None
    if rolled is None:
        return Position(after, False)
    behind = following(rolled)
    return None if behind is None else Position(behind, True)


def page(fetch: Fetch, position: Position | None, *, prefix: str, delimiter: str, limit: int) -> Page:
    """At most ``limit`` entries from ``position`` on."""
    found = Page()
    room = limit
    skipped: str | None = None
    last: tuple[str, Row | None] | None = None
    while position is not None and limit > 0:
        rows = fetch(position, room + 1)
        asked = room + 1
        for row in rows:
            key = row["key"]
            if skipped is not None and key.startswith(skipped):
                continue
            if room == 0:
                assert last is not None
                found.last, found.last_row = last
                return found
            room -= 1
            skipped = group(key, prefix, delimiter)
            if skipped is None:
                found.rows.append(row)
                last, position = (key, row), Position(key, True, row["number"])
            else:
                found.prefixes.append(skipped)
                behind = following(skipped)
                last, position = (skipped, None), None if behind is None else Position(behind, True)
        if len(rows) < asked:
            break
    return found
