"""A request to the dict of its operation's input, by botocore's parsers; the path and the query by hand."""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from botocore.awsrequest import HeadersDict
from botocore.parsers import ResponseParserError
from botocore.utils import parse_timestamp

from loopline.domain.sigv4 import Request
from loopline.errors import AwsError
from loopline.fronts.aws import form, models
from loopline.fronts.aws.models import JSON, QUERY, REST_JSON
from loopline.fronts.aws.services import Target

_BAD = (
    msgspec.MsgspecError,
    ResponseParserError,
    AttributeError,
    IndexError,
    KeyError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,
)


def read(target: Target, head: Request, body: bytes | Iterator[bytes]) -> dict[str, Any]:
    """The input; a streamed payload is ``body`` itself. Raises ``AwsError`` SerializationException for what cannot be
    read as this operation's input."""
    shape: Any = target.wire.input
    if shape is None:
        return {}
    try:
        if target.protocol == QUERY:
            return form.read(shape, target.fields)
        given = _parse(target, head, body, shape)
        if target.labels or head.query:
            _add_located(given, shape, target.labels, head)
        return given
    except _BAD as error:
        raise AwsError("SerializationException", f"the request cannot be read: {error}") from None


def _parse(target: Target, head: Request, body: bytes | Iterator[bytes], shape: Any) -> dict[str, Any]:
    payload = shape.serialization.get("payload")
    raw = payload is not None and shape.members[payload].type_name == "blob"
    plain_json = target.protocol == JSON or (target.protocol == REST_JSON and payload is None)
    if plain_json and isinstance(body, bytes) and body.strip():
        msgspec.json.decode(body, type=dict[str, msgspec.Raw])  # botocore takes a body that is no JSON for a message
    answer = {"body": body or b"{}", "headers": HeadersDict(dict(head.headers)), "status_code": 200}
    if raw or not plain_json:
        answer["body"] = None if raw else body
    given: dict[str, Any] = models.parser(target.protocol).parse(answer, shape)
    given.pop("ResponseMetadata", None)
    if raw:
        if body == b"":
            given.pop(payload, None)
        else:
            given[payload] = body
    return given


def _add_located(given: dict[str, Any], shape: Any, labels: Mapping[str, str], head: Request) -> None:
    arguments: dict[str, list[str]] = {}
    for name, value in head.arguments():
        arguments.setdefault(name, []).append(value)
    for name, member in shape.members.items():
        place, key = member.serialization.get("location"), member.serialization.get("name", name)
        if place == "uri" and key in labels:
            given[name] = _scalar(member, labels[key])
        elif place == "querystring" and member.type_name == "map":
            several = member.value.type_name == "list"
            given[name] = {key: values if several else values[0] for key, values in arguments.items()}
        elif place == "querystring" and key in arguments:
            values = [_scalar(getattr(member, "member", member), value) for value in arguments[key]]
            given[name] = values if member.type_name == "list" else values[0]


def _scalar(shape: Any, text: str) -> Any:
    if shape.type_name == "boolean":
        return {"true": True, "false": False}[text.lower()]
    if shape.type_name in ("integer", "long"):
        return int(text)
    if shape.type_name in ("float", "double"):
        return float(text)
    return parse_timestamp(text) if shape.type_name == "timestamp" else text
