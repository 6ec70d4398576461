"""Requests for predictions that no careful client would send."""

import json
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from loopline.testing.live import Answer, Platform


def fields(answer: Answer) -> tuple[int, str]:
    """Status and code of an error in the one shape."""
    return answer.status, str(answer.error["code"])


BODIES: dict[str, tuple[bytes, int]] = {
    "deep arrays": (b"[" * 100_000, 400),
    "deep objects": (b'{"a":' * 100_000, 400),
    "deep rows": (b'{"instances":' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400),
    "deep in a string is not deep": (b'{"size": 1.0, "note": "' + b"[" * 100_000 + b'"}', 400),
    "huge": (b'{"size": 1.0, "x": "' + b"x" * (6 << 20) + b'"}', 413),
    "NaN": (b'{"size": NaN}', 400),
    "Infinity": (b'{"size": Infinity}', 400),
    "overflow": (b'{"size": 1e999}', 400),
    "many digits": (b'{"size": ' + b"9" * 10_000 + b"}", 400),
    "a key twice": (b'{"size": 1.0, "size": 2.0}', 400),
    "not JSON": (b"size=1.0", 400),
    "not UTF-8": (b'{"size": "\xff\xfe"}', 400),
    "UTF-16": ('{"size": 1.0}'.encode("utf-16"), 400),
    "empty": (b"", 400),
    "blank": (b" \n", 400),
    "null": (b"null", 400),
    "a number": (b"1", 400),
    "an array": (b"[[1.0]]", 400),
    "two documents": (b'{"size": 1.0} {"size": 1.0}', 400),
    "a cut document": (b'{"instances": [{"size": 1.0}', 400),
    "instances no list": (b'{"instances": {"size": 1.0}}', 400),
    "more beside instances": (b'{"instances": [], "also": 1}', 400),
}


@pytest.mark.parametrize(("body", "status"), BODIES.values(), ids=list(BODIES))
def test_a_body_that_is_no_request_is_refused(platform: Platform, body: bytes, status: int) -> None:
    answer = platform.predict(body)
    assert fields(answer) == (status, {400: "invalid_input", 413: "too_large"}[status]), answer
    assert "Traceback" not in answer.error["message"]
    assert platform.predict({"size": 3.0}).json == {"predictions": ["large"]}


ROWS: dict[str, tuple[Any, str | None]] = {
    "unknown feature": ({"size": 1.0, "weight": 2.0}, "weight"),
    "missing feature": ({}, "size"),
    "text for a number": ({"size": "big"}, "size"),
    "boolean for a number": ({"size": True}, "size"),
    "null": ({"size": None}, "size"),
    "a list": ({"size": [1.0]}, "size"),
    "row too long": ([1.0, 2.0], None),
    "row too short": ([], None),
    "row of another kind": ("size", None),
}


@pytest.mark.parametrize(("row", "feature"), ROWS.values(), ids=list(ROWS))
def test_a_row_that_is_wrong_is_named(platform: Platform, row: Any, feature: str | None) -> None:
    answer = platform.predict({"instances": [{"size": 1.0}, row]})
    assert fields(answer) == (400, "invalid_input"), answer
    assert answer.error["row"] == 1
    assert answer.error.get("feature") == feature


def test_no_rows_are_no_mistake_and_many_come_back_in_order(platform: Platform) -> None:
    assert platform.predict({"instances": []}).json == {"predictions": []}
    sizes = [float(number % 7 - 3) for number in range(100_000)]
    answer = platform.predict({"instances": [[size] for size in sizes]})
    assert answer.status == 200, answer.body[:300]
    told = answer.json["predictions"]
    assert len(told) == len(sizes)
    assert {told[n] for n, size in enumerate(sizes) if size == 3.0} == {"large"}
    assert {told[n] for n, size in enumerate(sizes) if size == -3.0} == {"small"}


@pytest.mark.parametrize(
    "kind", ["text/html", "application/x-python-pickle", "multipart/form-data; boundary=a", "é", ","]
)
def test_another_content_type_is_refused(platform: Platform, kind: str) -> None:
    answer = platform.predict({"size": 1.0}, headers={"content-type": kind.encode("latin-1")})
    assert fields(answer) == (400, "invalid_input"), answer


@pytest.mark.parametrize(
    "name", ["nothing-here", "..", "%2e%2e", "a" * 300, "%F0%9F%92%A9", "boxes%00", "boxes/", "Boxes"]
)
def test_an_unknown_endpoint_is_told(platform: Platform, name: str) -> None:
    answer = platform.predict({"size": 1.0}, endpoint=name)
    assert fields(answer) == (404, "not_found"), answer


def test_who_may_not_ask_learns_nothing_about_what_there_is(platform: Platform, keys: dict[str, str]) -> None:
    for name in ("boxes", "nothing-here"):
        assert fields(platform.predict({"size": 1.0}, name, key=None)) == (401, "unauthenticated"), name
        assert fields(platform.predict({"size": 1.0}, name, key=keys["viewer"])) == (403, "forbidden"), name
    platform.call("POST", "/api/users", {"name": "narrow", "role": "invoker"})
    key = platform.call("POST", "/api/keys", {"user": "narrow", "endpoints": ["elsewhere"]})["key"]
    assert fields(platform.predict({"size": 1.0}, key=key)) == (403, "forbidden")
    assert platform.predict({"size": 3.0}, key=keys["invoker"]).status == 200


def test_a_wrong_row_costs_nobody_else_an_answer(platform: Platform) -> None:
    def one(number: int) -> Answer:
        return platform.predict({"size": 3.0} if number % 2 else {"size": "poison"})

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(one, range(64)))
    for number, answer in enumerate(answers):
        assert answer.status == (200 if number % 2 else 400), answer
    assert len({answer.headers["x-request-id"] for answer in answers}) == 64


SMUGGLED = {
    "two lengths": b"content-length: 13\r\ncontent-length: 14\r\n",
    "length and chunks": b"content-length: 13\r\ntransfer-encoding: chunked\r\n",
    "a negative length": b"content-length: -1\r\n",
    "a signed length": b"content-length: +13\r\n",
    "a length in words": b"content-length: many\r\n",
    "another coding": b"transfer-encoding: gzip, chunked\r\n",
    "a folded header": b"content-length: 13\r\nx: a\r\n b\r\n",
    "a space before the colon": b"content-length : 13\r\n",
    "a NUL": b"content-length: 13\r\nx: a\0b\r\n",
    "two hosts": b"host: evil.example\r\ncontent-length: 13\r\n",
    "two keys": b"authorization: Bearer x\r\ncontent-length: 13\r\n",
    "too many headers": b"content-length: 13\r\n" + b"".join(b"x-%d: y\r\n" % n for n in range(200)),
    "headers too long": b"content-length: 13\r\nx: " + b"y" * 70_000 + b"\r\n",
    "an unknown expectation": b"content-length: 13\r\nexpect: miracles\r\n",
}


@pytest.mark.parametrize("lines", SMUGGLED.values(), ids=list(SMUGGLED))
def test_what_two_readers_could_understand_differently_is_refused(platform: Platform, lines: bytes) -> None:
    address, _, port = platform.host.partition(":")
    head = b"POST /endpoints/boxes/invocations HTTP/1.1\r\nhost: %b\r\nauthorization: Bearer %b\r\n%b\r\n" % (
        platform.host.encode(),
        platform.key.encode(),
        lines,
    )
    with socket.create_connection((address, int(port)), 20) as sock:
        sock.sendall(head + b'{"size": 3.0}')
        told = b""
        while part := sock.recv(65536):
            told += part
    status = int(told.split(b" ", 2)[1])
    assert status in (400, 417, 431), told[:300]
    assert told.count(b"HTTP/1.1 ") == 1  # nothing of it was taken for a second request
    assert json.loads(told.partition(b"\r\n\r\n")[2])["error"]["code"]
