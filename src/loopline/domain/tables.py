"""Rows of JSON values as rows of a CSV file that is there already: its columns, and its way of writing values."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

_INTEGERS = frozenset("0123456789")


class Style(NamedTuple):
    """How a file writes values, column by column: texts for true and false, and columns of whole numbers."""

    truths: Mapping[str, tuple[str, str]]
    integers: frozenset[str]

    @classmethod
    def of(cls, header: Sequence[str], rows: Sequence[Sequence[str]]) -> "Style":
        """Learnt from the file's first rows; a row of another length than the header says nothing."""
        truths: dict[str, tuple[str, str]] = {}
        integers = set()
        for position, name in enumerate(header):
            seen = {row[position].strip() for row in rows if len(row) == len(header)} - {""}
            if seen and seen <= {"0", "1"}:
                truths[name] = ("1", "0")
            for pair in (("true", "false"), ("TRUE", "FALSE"), ("True", "False")):
                if seen and seen <= {*pair}:
                    truths[name] = pair
            if seen and all(_is_integer(text) for text in seen):
                integers.add(name)
        return cls(truths, frozenset(integers))


def _is_integer(text: str) -> bool:
    digits = text[1:] if text[:1] in "+-" else text
    return bool(digits) and _INTEGERS.issuperset(digits)


def cells(values: Mapping[str, Any], header: Sequence[str], style: Style) -> list[str]:
    """A row's cells in the header's order; what the row lacks is empty, what the header lacks is left out."""
    return [_cell(values.get(name), name, style) for name in header]


def _cell(value: Any, name: str, style: Style) -> str:
    truth = style.truths.get(name)
    if value is None:
        return ""
    if isinstance(value, bool):
        yes, no = truth or ("True", "False")
        return yes if value else no
    if isinstance(value, int | float):
        if truth is not None and value in (0, 1):
            return truth[0] if value else truth[1]
        if isinstance(value, float) and name in style.integers and value.is_integer():
            return str(int(value))
        return repr(value)
    return str(value)
