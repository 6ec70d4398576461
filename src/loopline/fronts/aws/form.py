"""The query protocol: a form to a dict, by the input shape. Source: Smithy, "AWS query protocol".

``Members.member.1.Name=x``: lists by numbers, maps by ``entry.1.key`` and ``entry.1.value``.
"""

import base64
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl

from botocore.utils import parse_timestamp

from loopline.errors import AwsError

MAX_FIELDS = 10_000


def decode(body: bytes) -> dict[str, str]:
    """The fields of a form; raises ``AwsError`` for one that is none."""
    try:
        pairs = parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=MAX_FIELDS)
    except (UnicodeDecodeError, ValueError):
        raise AwsError("MalformedInput", "the body is not a form") from None
    return dict(pairs)


def read(shape: Any, fields: dict[str, str]) -> dict[str, Any]:
    """The members of an input shape; raises ``AwsError`` for a value of another type."""
    return {} if shape is None else _structure(shape, _tree(fields))


def _tree(fields: dict[str, str]) -> dict[str, Any]:
    """``a.b.1=x`` as ``{"a": {"b": {"1": {"": "x"}}}}``."""
    root: dict[str, Any] = {}
    for name, value in fields.items():
        node = root
        for part in name.split(".", 32):
            node = node.setdefault(part, {})
        node[""] = value
    return root


def _value(shape: Any, node: dict[str, Any]) -> Any:
    kind = shape.type_name
    if kind == "structure":
        return _structure(shape, node)
    if kind == "list":
        return [_value(shape.member, item) for item in _items(shape, node, shape.member, "member")]
    if kind == "map":
        return dict(_pairs(shape, node))
    return _scalar(shape, node.get("", ""))


def _structure(shape: Any, tree: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for name, member in shape.members.items():
        key = member.serialization.get("name", name)
        if member.type_name == "list" and member.serialization.get("flattened"):
            key = member.member.serialization.get("name", key)
        if key in tree:
            found[name] = _value(member, tree[key])
    return found


def _items(shape: Any, node: dict[str, Any], member: Any, name: str) -> list[dict[str, Any]]:
    if not shape.serialization.get("flattened"):
        node = node.get(member.serialization.get("name", name) if member is not None else name, {})
    numbers = sorted((key for key in node if re.fullmatch("[0-9]{1,9}", key)), key=int)
    return [node[number] for number in numbers]


def _pairs(shape: Any, node: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    key, value = shape.key.serialization.get("name", "key"), shape.value.serialization.get("name", "value")
    for entry in _items(shape, node, None, "entry"):
        yield _value(shape.key, entry.get(key, {})), _value(shape.value, entry.get(value, {}))


def _scalar(shape: Any, text: str) -> Any:
    try:
        if shape.type_name == "boolean":
            return {"true": True, "false": False}[text.lower()]
        if shape.type_name in ("integer", "long"):
            return int(text)
        if shape.type_name in ("float", "double"):
            return float(text)
        if shape.type_name == "timestamp":
            return parse_timestamp(text)
        return base64.b64decode(text, validate=True) if shape.type_name == "blob" else text
    except (KeyError, ValueError):
        raise AwsError("MalformedInput", f"{text!r} is no {shape.type_name}") from None
