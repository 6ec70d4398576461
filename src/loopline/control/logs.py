"""What the model servers of an endpoint print and log, by request id, as its readers ask for it.

A line of a server's log is ``<time> [<request ids>] <text>`` (``runtime.printed``); what is not, such as what compiled
code prints, has the time of the line before it. Files are found by the ids of the endpoint's servers alone.
"""

import base64
import binascii
import json
import re
from collections import deque
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import sqlalchemy as sa

from loopline.control import endpoints, functions
from loopline.control.context import Context
from loopline.domain.access import FUNCTION_SCOPE, Actor
from loopline.errors import InvalidInput, NotFound
from loopline.store.schema import variants

MAX_LINES = 10_000
MAX_CHARACTERS = 16_000  # of a line
BLOCK_BYTES = 1 << 16
MAX_READ_BYTES = 1 << 20  # of one server's log, when what is new is asked for
_LINE = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z) \[([^\]\n]*)\] (.*)", re.DOTALL)


class _Server(NamedTuple):
    """A model server and the file that holds its log; ``cut`` is its older part, set aside when it grew big."""

    id: str
    variant: str
    log: Path

    @property
    def cut(self) -> Path:
        return self.log.with_name(f"{self.log.name}.1")


def read(
    ctx: Context,
    actor: Actor,
    *,
    endpoint: str,
    variant: str | None = None,
    request: str | None = None,
    contains: str | None = None,
    start: float | None = None,
    lines: int = 100,
    cursor: str | None = None,
) -> dict[str, Any]:
    """The last ``lines`` of an endpoint's log, by time, and from then on, with ``next`` as ``cursor``, what is new.
    ``endpoint`` may also be ``function:NAME``.

    ``request``: only what was printed while this request was predicted, possibly with others. ``contains``: only lines
    with this text. ``start``: only what is not older. Each item: at, variant, server, requests, text.
    """
    if not 1 <= lines <= MAX_LINES:
        raise InvalidInput(f"lines: must be between 1 and {MAX_LINES}", field="lines")
    wanted = _Wanted(request, contains, start)
    known = _offsets(cursor)
    found: list[dict[str, Any]] = []
    offsets = {}
    for server in _servers(ctx, endpoint, variant):
        if cursor is None:
            items, offset = _last(server, wanted, lines)
        else:
            items, offset = _new(server, wanted, known.get(server.id, 0))
        found += items
        offsets[server.id] = offset
    found.sort(key=lambda item: str(item["at"] or ""))  # stable: the order of one server's lines stays
    if cursor is None:
        found = found[-lines:]
    return {"items": found, "next": _cursor(offsets)}


def _servers(ctx: Context, endpoint: str, variant: str | None) -> list[_Server]:
    query = sa.select(variants).where(variants.c.endpoint == endpoint).order_by(variants.c.created_at)
    kind, _, function = endpoint.partition(":")
    with ctx.db.read() as tx:
        if kind == FUNCTION_SCOPE and function:
            rows = [{**functions.function_row(tx, function), "name": FUNCTION_SCOPE}]
        else:
            endpoints.endpoint_row(tx, endpoint)
            rows = tx.rows(query)
    if variant is not None and variant not in [row["name"] for row in rows]:
        there = ", ".join(row["name"] for row in rows) or "none"
        raise NotFound(f"{endpoint} has no variant {variant!r}; it has: {there}")
    folder = ctx.settings.dir / "logs"
    return [
        _Server(entry["id"], row["name"], folder / f"{entry['id']}.log")
        for row in rows
        if variant in (None, row["name"])
        for entry in row["server"] or ()
    ]


class _Wanted:
    """Which lines are asked for."""

    def __init__(self, request: str | None, contains: str | None, start: float | None) -> None:
        self._request = None if request is None else request.encode()
        self._contains = None if contains is None else contains.encode()
        self._start = start

    def item(self, server: _Server, line: bytes, before: bytes) -> tuple[dict[str, Any] | None, bytes]:
        """(the line's item, None when it is not wanted; its time) after a line of the time ``before``."""
        parsed = _LINE.fullmatch(line)
        at, ids, text = (parsed[1], parsed[2], parsed[3]) if parsed else (before, b"", line)
        requests = [] if ids in (b"", b"-") else ids.split(b",")
        if self._request is not None and self._request not in requests:
            return None, at
        if self._contains is not None and self._contains not in text:
            return None, at
        if self._start is not None and (not at or _seconds(at) < self._start):
            return None, at
        item = {
            "at": at.decode() or None,
            "variant": server.variant,
            "server": server.id,
            "requests": [each.decode("utf-8", "replace") for each in requests],
            "text": text.rstrip(b"\r").decode("utf-8", "replace")[:MAX_CHARACTERS],
        }
        return item, at


def _seconds(at: bytes) -> float:
    try:
        return datetime.fromisoformat(at.decode()).timestamp()
    except ValueError:
        return 0.0  # digits that are no time


def _last(server: _Server, wanted: _Wanted, lines: int) -> tuple[list[dict[str, Any]], int]:
    """The last wanted lines of a log, and where what is new begins."""
    kept: deque[dict[str, Any]] = deque(maxlen=lines)
    at, offset = b"", 0
    for path in (server.cut, server.log):
        offset = 0
        for line, length in _lines(path, 0, None):
            offset += length
            item, at = wanted.item(server, line, at)
            if item is not None:
                kept.append(item)
    return list(kept), offset


def _new(server: _Server, wanted: _Wanted, offset: int) -> tuple[list[dict[str, Any]], int]:
    """Wanted lines from an offset on. A log that is shorter by now was cut, and begins anew."""
    try:
        if server.log.stat().st_size < offset:
            offset = 0
    except OSError:
        return [], 0
    items, at = [], b""
    for line, length in _lines(server.log, offset, MAX_READ_BYTES):
        offset += length
        item, at = wanted.item(server, line, at)
        if item is not None:
            items.append(item)
    return items, offset


def _lines(path: Path, offset: int, most: int | None) -> Iterator[tuple[bytes, int]]:
    """Each whole line of a file from an offset on, and its length there; of about ``most`` bytes, if that is said.

    A line that has not ended is not given, unless it is longer than ``MAX_READ_BYTES``: then in pieces.
    """
    try:
        file = path.open("rb")
    except OSError:
        return
    with file:
        file.seek(offset)
        rest = b""
        taken = 0
        while (most is None or taken < most) and (block := file.read(BLOCK_BYTES)):
            taken += len(block)
            *whole, rest = (rest + block).split(b"\n")
            for line in whole:
                yield line, len(line) + 1
            if len(rest) >= MAX_READ_BYTES:
                yield rest, len(rest)
                rest = b""


def _cursor(offsets: dict[str, int]) -> str:
    return base64.urlsafe_b64encode(json.dumps(offsets, separators=(",", ":")).encode()).decode()


def _offsets(cursor: str | None) -> dict[str, int]:
    if cursor is None:
        return {}
    try:
        found = json.loads(base64.urlsafe_b64decode(cursor.encode()))
        return {str(name): max(0, int(offset)) for name, offset in found.items()}
    except (ValueError, binascii.Error, AttributeError, TypeError, RecursionError):
        raise InvalidInput("cursor: is not one that this list gave", field="cursor") from None
