"""Values that are known only when a step of a pipeline starts, in a request that is translated when it is written.

A marker stands in for each: a text for a text, a number for a number. The functions that translate a direct call
translate the step's request with markers in it; what they give is then turned into values, markers and all.
"""

import re
from typing import Any

import msgspec

from loopline.domain.values import Join, Value
from loopline.errors import InvalidInput

FIRST = 7_700_000_000_000_000  # numbers from here on are markers; a float holds them exactly
_MARK = re.compile("\ue000late-([0-9]+)\ue001")
_NUMBERS = ("integer", "long", "float", "double")


def is_marker(text: object) -> bool:
    """Whether a text is, or holds, what is known later."""
    return isinstance(text, str) and _MARK.search(text) is not None


class Late:
    """The values that markers stand for, in one step."""

    def __init__(self) -> None:
        self._values: list[Value] = []

    def hide(self, value: Value, shape: Any) -> Any:
        """What stands in for a value where the service's model has ``shape`` (None where it says nothing).

        Raises ``InvalidInput`` where neither a text nor a number belongs: nothing else may be known so late.
        """
        if value.value is not msgspec.UNSET:
            return value.value
        kind = "string" if shape is None else shape.type_name
        if kind not in ("string", *_NUMBERS):
            raise InvalidInput(f"{shape.name} has to be written out: only texts and numbers may be references")
        self._values.append(value)
        number = len(self._values) - 1
        return FIRST + number if kind in _NUMBERS else f"\ue000late-{number}\ue001"

    def restore(self, plain: Any) -> Value:
        """A translated request as a value, with what the markers stood for."""
        if isinstance(plain, str):
            return self._text(plain)
        if isinstance(plain, int | float) and not isinstance(plain, bool) and plain >= FIRST:
            place = int(plain) - FIRST
            return self._values[place] if place < len(self._values) else Value(value=plain)
        inner: list[Value] = []
        if isinstance(plain, dict):
            inner = [self.restore(item) for item in plain.values()]
        elif isinstance(plain, list | tuple):
            inner = [self.restore(item) for item in plain]
        if all(item.value is not msgspec.UNSET for item in inner):
            return Value(value=list(plain) if isinstance(plain, tuple) else plain)
        return (
            Value(entries=dict(zip(plain, inner, strict=True)))
            if isinstance(plain, dict)
            else Value(items=tuple(inner))
        )

    def _text(self, text: str) -> Value:
        parts = _MARK.split(text)  # literal, number, literal, ...
        found: list[Value] = []
        for place, part in enumerate(parts):
            if place % 2 and int(part) < len(self._values):
                found.append(self._values[int(part)])
            elif part:
                found.append(Value(value=part))
        if not found or len(found) == 1:
            return found[0] if found else Value(value="")
        return Value(join=Join(on="", values=tuple(found)))
