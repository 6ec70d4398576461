"""JSON as it comes in, with its limits, and as it goes out, with times that people can read."""

import json
import math
from datetime import UTC, datetime
from typing import Any

import msgspec

from loopline.errors import InvalidInput

MAX_DEPTH = 64

# What users wrote themselves stays as it is, whatever its fields are called.
_OPAQUE = frozenset(
    {
        *("parameters", "metrics", "tags", "metadata", "value", "values", "label", "row", "rows", "body", "answer"),
        *("outputs", "baseline", "signature", "warmup", "arguments", "instances", "predictions"),
    }
)


def decode(data: bytes) -> dict[str, Any]:
    """A JSON object; raises ``InvalidInput`` for anything else.

    Refused are NaN and infinite numbers, duplicate keys, numbers beyond 64 bits, nesting deeper than `MAX_DEPTH`, and
    text that cannot be stored (lone surrogates, NUL).
    """
    try:
        document = json.loads(data.decode("utf-8"), object_pairs_hook=_object, parse_constant=_refuse)
    except UnicodeDecodeError as error:
        raise InvalidInput(f"the body is not UTF-8: {error.reason} at byte {error.start}") from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:
        raise InvalidInput(f"the body is not valid JSON: {error}") from None
    if not isinstance(document, dict):
        raise InvalidInput(f"the body must be a JSON object, not {_kind(document)}")
    # A NUL or half a surrogate pair can only have come in as an escape, or in bytes beyond ASCII.
    _check(document, texts=b"\\u" in data or not data.isascii())
    return document


def _kind(document: Any) -> str:
    names = {list: "an array", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(document), "null")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise InvalidInput(f"the key {twice!r} stands twice in one object", field=twice)
    return found


def _refuse(name: str) -> None:
    raise InvalidInput(f"{name} is not JSON; leave the value out or write null")


def _too_deep() -> InvalidInput:
    return InvalidInput(f"the body is nested deeper than {MAX_DEPTH} levels")


def _check(document: Any, *, texts: bool) -> None:
    """Look at every value, level by level, and with ``texts`` at keys and texts, too."""
    level: list[Any] = [document]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below.extend(item.values())
                if texts:
                    below.extend(item)
            elif isinstance(item, list):
                below.extend(item)
            else:
                _check_leaf(item, texts)
        level = below
        if not level:
            return
    raise _too_deep()


def _check_leaf(item: Any, texts: bool) -> None:
    """Raise ``InvalidInput`` for a value that cannot be stored."""
    if isinstance(item, str):
        if texts:
            check_text(item)
    elif isinstance(item, float):
        if not math.isfinite(item):
            raise InvalidInput("a number is too large")
    elif isinstance(item, int) and not -(1 << 63) <= item < 1 << 64:
        raise InvalidInput("a whole number is beyond 64 bits; send it as text")


def check_text(text: str) -> None:
    """Raise ``InvalidInput`` for text that no database stores."""
    if "\0" in text:
        raise InvalidInput("text must not hold the NUL character")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InvalidInput("text must not hold half of a surrogate pair") from None


def encode(answer: Any) -> bytes:
    """An answer as JSON: fields ending in ``_at``, and ``at``, as RFC 3339 in UTC; NaN as null."""
    return msgspec.json.encode(readable(answer))


def readable(value: Any) -> Any:
    """The value with its times as text."""
    if isinstance(value, dict):
        return {
            key: item if item is None or isinstance(item, str) or key in _OPAQUE else _field(key, item)
            for key, item in value.items()
        }
    return [readable(item) for item in value] if isinstance(value, list | tuple) else value


def _field(key: Any, item: Any) -> Any:
    if not isinstance(item, int | float):
        return readable(item)
    named = isinstance(key, str) and (key == "at" or key.endswith("_at"))
    return _time(item) if named and not isinstance(item, bool) else item


def _time(seconds: float) -> str | None:
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    except (ValueError, OverflowError, OSError):
        return None


def parse_time(text: str, name: str) -> float:
    """Seconds since the epoch of RFC 3339 text (without a zone: UTC) or of a number; raises ``InvalidInput``."""
    try:
        return float(text)
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text.replace(" ", "+") if text.count(":") == 3 else text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise InvalidInput(f"{name}: {text!r} is not a time; write e.g. 2026-01-31T12:00:00Z", field=name) from None
