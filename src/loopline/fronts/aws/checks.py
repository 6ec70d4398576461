"""Whether an input keeps to its shape. Required members, types and minima always hold, as they do in every client;
enums, patterns and maxima only in strict mode. Otherwise they become warnings, because calls that AWS's own documents
show break them.

The words are those of AWS: ``Value 'x' at 'name' failed to satisfy constraint: Member must ...``.
"""

import functools
import re
from typing import Any

from loopline.errors import AwsError

MAX_SHOWN = 60
MAX_MATCHED = 4096  # characters that a pattern is tried on
_TYPES: dict[str, tuple[type, ...]] = {
    "structure": (dict,),
    "map": (dict,),
    "list": (list,),
    "string": (str,),
    "integer": (int,),
    "long": (int,),
    "float": (int, float),
    "double": (int, float),
    "boolean": (bool,),
}


class Findings:
    """What is wrong with one input."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.warnings: list[str] = []


def check(shape: Any, given: dict[str, Any], strict: bool) -> list[str]:
    """The warnings; raises ``AwsError`` ValidationException for what must not be."""
    found = Findings()
    if shape is not None:
        _walk(shape, given, "", found)
    wrong = found.errors + (found.warnings if strict else [])
    if wrong:
        plural = "s" if len(wrong) > 1 else ""
        raise AwsError("ValidationException", f"{len(wrong)} validation error{plural} detected: {'; '.join(wrong)}")
    return found.warnings


def _walk(shape: Any, value: Any, place: str, found: Findings) -> None:
    kind = shape.type_name
    wanted = _TYPES.get(kind)
    if getattr(shape, "is_document_type", False) or (kind == "string" and "jsonvalue" in shape.serialization):
        return
    if wanted and (not isinstance(value, wanted) or (isinstance(value, bool) and kind != "boolean")):
        found.errors.append(_told(value, place, f"be a {kind}"))
        return
    if kind == "structure":
        _structure(shape, value, place, found)
    elif kind in ("list", "map"):
        _items(shape, value, place, found)
    elif kind == "string":
        _string(shape, value, place, found)
    elif kind == "blob" and isinstance(value, bytes):
        _range(shape, value, len(value), place, found, "have length")
    elif wanted:
        _range(shape, value, value, place, found, "have value")


def _items(shape: Any, value: Any, place: str, found: Findings) -> None:
    _range(shape, value, len(value), place, found, "have length")
    if shape.type_name == "list":
        for number, item in enumerate(value, 1):
            _walk(shape.member, item, f"{place}.{number}.member", found)
        return
    for key, item in value.items():
        _walk(shape.key, key, f"{place}.key", found)
        _walk(shape.value, item, f"{place}.{key}", found)


def _structure(shape: Any, value: dict[str, Any], place: str, found: Findings) -> None:
    prefix = f"{place}." if place else ""
    for name in shape.required_members:
        if name not in value:
            found.errors.append(_told(None, prefix + _lower(name), "not be null"))
    members = shape.members
    for name, item in value.items():
        if name in members:
            _walk(members[name], item, prefix + _lower(name), found)


def _string(shape: Any, value: str, place: str, found: Findings) -> None:
    facts = shape.metadata
    if not facts:
        return
    _range(shape, value, len(value), place, found, "have length")
    enum = facts.get("enum")
    if enum and value not in enum:
        found.warnings.append(_told(value, place, f"satisfy enum value set: [{', '.join(enum)}]"))
    pattern = facts.get("pattern")
    if pattern and not _matches(pattern, value[:MAX_MATCHED]):
        found.warnings.append(_told(value, place, f"satisfy regular expression pattern: {pattern}"))


def _range(shape: Any, value: Any, size: float, place: str, found: Findings, what: str) -> None:
    facts = shape.metadata
    if "min" in facts and size < facts["min"]:
        found.errors.append(_told(value, place, f"{what} greater than or equal to {facts['min']}"))
    if "max" in facts and size > facts["max"]:
        found.warnings.append(_told(value, place, f"{what} less than or equal to {facts['max']}"))


def _matches(pattern: str, text: str) -> bool:
    expression = _compiled(pattern)
    if expression is None:
        return True
    return bool(expression.search(text) if pattern.startswith("^") else expression.fullmatch(text))


@functools.cache
def _compiled(pattern: str) -> re.Pattern[str] | None:
    """None for what Python's expressions do not know."""
    try:
        return re.compile(pattern)
    except re.error:
        return None


def _lower(name: str) -> str:
    return name[:1].lower() + name[1:]


def _told(value: Any, place: str, must: str) -> str:
    if value is None:
        shown = "null"
    else:
        text = str(value)
        shown = f"'{text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + '...'}'"
    return f"Value {shown} at '{place}' failed to satisfy constraint: Member must {must}"
