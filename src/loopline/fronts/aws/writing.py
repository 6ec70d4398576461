"""A handler's result, or an error, as the answer that clients of one protocol read."""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple
from xml.sax.saxutils import escape

import msgspec

from loopline.fronts.aws import models
from loopline.fronts.aws.models import CBOR, JSON, QUERY, REST_JSON, REST_XML, Wire

_S3_NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
_CONTROL = re.compile(rb"[\x00-\x08\x0b-\x1f]")
_DECLARATION = b"<?xml version='1.0' encoding='utf-8'?>\n"


class Answer(NamedTuple):
    """What is sent."""

    status: int
    headers: dict[str, str]
    body: bytes | Iterator[bytes]


def write(wire: Wire, protocol: str, result: dict[str, Any], request_id: str) -> Answer:
    """The answer to an operation that succeeded. Raises for a result that does not fit the output shape."""
    status, headers, body = wire.status, {"x-amzn-RequestId": request_id}, _nothing(protocol)
    shape: Any = wire.mirror.input_shape
    given = _without_none(result)
    if shape is not None:
        for name, member in shape.members.items() if protocol in (REST_JSON, REST_XML) else ():
            if member.serialization.get("location") == "statusCode" and name in given:
                status = int(given.pop(name))
        stream = given.pop(wire.streams_out, b"") if wire.streams_out else None
        written = models.serializer(protocol).serialize_to_request(given, wire.mirror)
        kept = (pair for pair in written["headers"].items() if pair[0].lower() not in ("x-amz-target", "accept"))
        headers.update(kept)
        body = written["body"] if stream is None else stream
    if protocol == QUERY:
        body = _wrapped(wire, body, request_id)
    if protocol in (QUERY, REST_XML):
        headers.setdefault("Content-Type", "application/xml" if protocol == REST_XML else "text/xml")
    if protocol == REST_XML:
        headers["x-amz-request-id"] = request_id
        if isinstance(body, bytes) and shape is not None and not wire.is_raw_out:
            body = _s3_body(wire, given, body)
    elif protocol == JSON:
        headers.setdefault("Content-Type", "application/x-amz-json-1.1")
    elif protocol == CBOR:
        headers.update({"smithy-protocol": "rpc-v2-cbor", "Content-Type": "application/cbor"})
    return Answer(status, headers, body)


def _s3_body(wire: Wire, given: dict[str, Any], body: bytes) -> bytes:
    """A body as S3 writes it: a region bare in its element, a list of nothing as its element, keys with line feeds."""
    shape: Any = wire.mirror.input_shape
    if wire.name == "GetBucketLocation":
        body = _element("LocationConstraint", escape(given.get("LocationConstraint") or ""))
    elif not body and any("location" not in member.serialization for member in shape.members.values()):
        body = _element(shape.serialization["name"], "")
    if not body:
        return body
    body = _DECLARATION + body.removeprefix(_DECLARATION)
    return _CONTROL.sub(lambda found: b"&#%d;" % found[0][0], body)  # a reader of XML would drop them


def _element(name: str, text: str) -> bytes:
    return f'<{name} xmlns="{_S3_NAMESPACE}">{text}</{name}>'.encode()


def _nothing(protocol: str) -> bytes:
    return {JSON: b"{}", CBOR: b"\xa0"}.get(protocol, b"")


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_none(item) for name, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_without_none(item) for item in value]
    return value


def _wrapped(wire: Wire, result: Any, request_id: str) -> bytes:
    """The two wrappers of the query protocol."""
    namespace = wire.model.metadata.get("xmlNamespace", "")
    inner = result.removeprefix(_DECLARATION).decode()
    if not inner and wire.output is not None and "resultWrapper" in wire.output.serialization:
        inner = f"<{wire.output.serialization['resultWrapper']}/>"
    return (
        f'<{wire.name}Response xmlns="{namespace}">{inner}'
        f"<ResponseMetadata><RequestId>{escape(request_id)}</RequestId></ResponseMetadata></{wire.name}Response>"
    ).encode()


# -- errors -----------------------------------------------------------------------------------------------------------


def write_error(protocol: str, code: str, message: str, status: int, request_id: str, resource: str = "") -> Answer:
    """An error as a client of the protocol reads it."""
    headers = {"x-amzn-RequestId": request_id}
    if protocol == REST_XML:
        headers.update({"x-amz-request-id": request_id, "Content-Type": "application/xml"})
        inner = "".join(
            f"<{name}>{escape(text)}</{name}>"
            for name, text in (("Code", code), ("Message", message), ("Resource", resource), ("RequestId", request_id))
        )
        return Answer(status, headers, _DECLARATION + f"<Error>{inner}</Error>".encode())
    if protocol == QUERY:
        headers["Content-Type"] = "text/xml"
        kind = "Sender" if status < 500 else "Receiver"
        text = (
            f"<ErrorResponse><Error><Type>{kind}</Type><Code>{escape(code)}</Code>"
            f"<Message>{escape(message)}</Message></Error><RequestId>{escape(request_id)}</RequestId></ErrorResponse>"
        )
        return Answer(status, headers, text.encode())
    if protocol == CBOR:
        headers.update({"smithy-protocol": "rpc-v2-cbor", "Content-Type": "application/cbor"})
        return Answer(status, headers, b"\xa2" + b"".join(map(_cbor_text, ("__type", code, "message", message))))
    headers["x-amzn-ErrorType"] = code
    headers["Content-Type"] = "application/json" if protocol == REST_JSON else "application/x-amz-json-1.1"
    body = {"message": message} if protocol == REST_JSON else {"__type": code, "message": message, "Message": message}
    return Answer(status, headers, msgspec.json.encode(body))


def _cbor_text(text: str) -> bytes:
    """RFC 8949, major type 3, with a length of 4 bytes."""
    data = text.encode()
    return b"\x7a" + len(data).to_bytes(4, "big") + data
