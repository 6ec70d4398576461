"""The whole REST surface against somebody who means no good: every route of the table, every parameter of each."""

import http.client
import inspect
import json
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest

from loopline.domain.access import ROLES, Permission
from loopline.fronts.native.routes import Call, Parameter, read_all
from loopline.fronts.native.table import TABLE
from loopline.testing.live import Answer, Platform

CALLS = read_all(TABLE)
STRANGE = {
    "climbing": "../../etc/passwd",
    "climbing, quoted": "%2e%2e/%2e%2e/etc/passwd",
    "absolute": "/etc/passwd",
    "long": "n" * 300,
    "control characters": "a\x01\x1b[31m\r\nx: y",
    "newline": "boxes\n",
    "emoji": "\N{PILE OF POO}",
    "NUL": "a\0b",
    "a space": " ",
    "empty": "",
    "SQL": "x' OR '1'='1' --",
    "LIKE": "%",
    "format": "%s%n{0}",
    "dots": "..",
}
WRONG: dict[type, tuple[Any, ...]] = {
    str: (1, True, ["x"], {"a": 1}),
    int: ("x", 1.5, True, [1], {"a": 1}, 2**63, 1 << 200),
    float: ("x", True, [1.0], {"a": 1}),
    bool: ("x", 1, [True], {"a": 1}),
    dict: ("x", 1, [1], True),
    list: ("x", 1, {"a": 1}, True),
}


class Asker:
    """Many requests over one connection."""

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        self.connection = http.client.HTTPConnection(platform.host, timeout=60)

    def __call__(
        self, method: str, path: str, body: bytes | None = None, key: str | None = "", kind: str = "application/json"
    ) -> Answer:
        headers = {"content-type": kind}
        if key is not None:
            headers["authorization"] = f"Bearer {key or self.platform.key}"
        try:
            self.connection.request(method, path, body, headers)
            answer = self.connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, found, answer.read())
        except (http.client.HTTPException, OSError):
            self.connection.close()
            raise


@pytest.fixture(scope="module")
def ask(platform: Platform) -> Iterator[Asker]:
    asker = Asker(platform)
    yield asker
    asker.connection.close()


def core(hint: Any) -> type:
    """The type behind ``X | None``, ``list[X]`` and the like."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        hint = next(part for part in typing.get_args(hint) if part is not types.NoneType)
    found = typing.get_origin(hint) or hint
    return found if isinstance(found, type) else str


def harmless(parameter: Parameter) -> Any:
    """A value of the right type that names nothing."""
    return {str: "nothing-here", int: 999, float: 1.0, bool: False, dict: {}, list: []}.get(core(parameter.hint), "x")


def request_of(call: Call, given: dict[str, Any]) -> tuple[str, str, bytes | None]:
    """Method, path with query, and body of a request with these arguments, the required others harmless."""
    wanted = {p.name: harmless(p) for p in call.parameters if p.required} | given
    path, query, body = call.route.path, {}, {}
    for parameter in call.parameters:
        if parameter.name not in wanted:
            continue
        value = wanted[parameter.name]
        if parameter.place == "path":
            quoted = quote(str(value), safe="")
            path = re.sub(rf"{{{parameter.name}(:path)?}}", lambda _, quoted=quoted: quoted, path)
        elif parameter.place == "query":
            query[parameter.name] = value if isinstance(value, str) else json.dumps(value)
        else:
            body[parameter.name] = value
    data = b"not a tar" if call.route.raw else json.dumps(body).encode() if call.has_body else None
    return call.route.method, f"{path}?{urlencode(query)}" if query else path, data


def files_around(platform: Platform) -> set[str]:
    """Every file beside the data directory, and what a climbing name would hit first."""
    beside = {str(path) for path in platform.folder.parent.rglob("*") if platform.folder not in path.parents}
    return beside | {str(path) for path in Path("/etc").glob("passwd*")}


# -- who may ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", [*ROLES, None])
def test_every_route_demands_what_it_declares(ask: Asker, keys: dict[str, str], role: str | None) -> None:
    if role == "admin":
        keys = {**keys, "admin": ask.platform.key}
    for call in CALLS:
        method, path, body = request_of(call, {})
        answer = ask(method, path, body, key=keys[role] if role else None)
        if call.permission is Permission.PUBLIC:
            wrong = 400 if call.name == "confirmations.confirm" else 200  # it wants a token
            assert answer.status == wrong, (call.name, answer)
        elif role is None:
            assert (answer.status, answer.error["code"]) == (401, "unauthenticated"), (call.name, answer)
        elif call.permission not in ROLES[role]:
            assert (answer.status, answer.error["code"]) == (403, "forbidden"), (call.name, answer)
            assert role in answer.error["message"]
        else:
            assert answer.status not in (401, 403) and answer.status < 500, (call.name, answer)


def test_a_key_that_is_wrong_expired_or_revoked_opens_nothing(platform: Platform, keys: dict[str, str]) -> None:
    good = keys["viewer"]
    platform.call("POST", "/api/users", {"name": "leaver", "role": "editor"})
    expired = platform.call("POST", "/api/keys", {"user": "leaver", "name": "old", "expires_days": 1e-9})["key"]
    revoked = platform.call("POST", "/api/keys", {"user": "leaver", "name": "lost"})["key"]
    assert platform.ask("GET", "/api/models", key=revoked).status == 200
    platform.call("DELETE", f"/api/keys/{revoked[3:11]}")
    gone = platform.call("POST", "/api/keys", {"user": "leaver", "name": "gone"})["key"]
    platform.call("DELETE", "/api/users/leaver")
    flipped = good[:-1] + ("A" if good[-1] != "A" else "B")
    wrong = (expired, revoked, gone, flipped, good[:-1], good + "A", good.upper(), "lk_", "x" * 5000, "\xe9")
    for key in wrong:
        for method, path in (("GET", "/api/models"), ("POST", "/endpoints/boxes/invocations")):
            answer = platform.ask(method, path, {"size": 1.0} if method == "POST" else None, key=key)
            assert (answer.status, answer.error["code"]) == (401, "unauthenticated"), (key, path, answer)
    for header in ("", "Bearer", f"Basic {good}", f"{good}", f"Bearer  {good} x"):
        answer = platform.ask("GET", "/api/models", key=None, headers={"authorization": header})
        assert answer.error["code"] == "unauthenticated", header


def test_a_key_never_grows_beyond_its_user(platform: Platform, keys: dict[str, str]) -> None:
    asked = {"role": "admin", "name": "more"}
    assert platform.ask("POST", "/api/keys", asked, key=keys["editor"]).error["code"] == "forbidden"
    asked = {"user": "admin", "name": "more"}
    assert platform.ask("POST", "/api/keys", asked, key=keys["approver"]).error["code"] == "forbidden"
    first = next(key for key in platform.call("GET", "/api/keys")["items"] if key["user"] == "admin")
    assert platform.ask("DELETE", f"/api/keys/{first['id']}", key=keys["approver"]).error["code"] == "forbidden"
    assert "sha256" not in first and "key" not in first


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost", "localhost:1", "", "[::1]"])
def test_another_host_is_refused_before_anything_is_looked_at(platform: Platform, host: str) -> None:
    for path in ("/", "/api/health", "/api/models", "/endpoints/boxes/ping", "/git/boxes.git/info/refs"):
        answer = platform.ask("GET", path, headers={"host": host})
        assert answer.status in (400, 421), (host, path, answer)
        assert answer.json["error"]["code"] in ("misdirected", "bad_request"), answer


# -- what is asked for ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strange", STRANGE.values(), ids=list(STRANGE))
def test_strange_names_reach_no_file_and_break_nothing(ask: Asker, strange: str) -> None:
    before = files_around(ask.platform)
    for call in CALLS:
        for parameter in call.parameters:
            if core(parameter.hint) is not str and parameter.place == "body":
                continue
            answer = ask(*request_of(call, {parameter.name: strange}))
            where = (call.name, parameter.name, answer)
            assert answer.status < 500, where
            assert b"root:x:" not in answer.body, where
            if answer.status >= 400:
                assert answer.error["code"] in ("invalid_input", "not_found", "method_not_allowed", "conflict"), where
    assert files_around(ask.platform) == before
    assert ask("GET", "/api/status").status == 200


def test_every_parameter_refuses_what_is_not_of_its_type(ask: Asker) -> None:
    tried = 0
    for call in CALLS:
        for parameter in call.parameters:
            kind = core(parameter.hint)
            if parameter.hint is Any or (parameter.place in ("query", "header") and kind in (str, list)):
                continue  # any text will do
            if parameter.place == "path" and kind is str:
                continue
            for value in ("yesterday", [1.0]) if parameter.is_time else WRONG.get(kind, ()):
                if parameter.place != "body" and kind in (bool, float) and value in (1, True):
                    continue  # text that reads as such a value is one
                answer = ask(*request_of(call, {parameter.name: value}))
                where = (call.name, parameter.name, value, answer)
                assert 400 <= answer.status < 500, where
                assert answer.error["code"] in ("invalid_input", "not_found"), where
                tried += 1
    assert tried > 300


def test_a_parameter_that_is_missing_or_unknown_is_named(ask: Asker) -> None:
    for call in CALLS:
        method, path, body = request_of(call, {})
        if call.has_body:
            for parameter in call.parameters:
                if parameter.required and parameter.place == "body":
                    left = {k: v for k, v in json.loads(body or b"{}").items() if k != parameter.name}
                    error = ask(method, path, json.dumps(left).encode()).error
                    assert parameter.name in error["message"], (call.name, error)
            wrong = json.dumps({**json.loads(body or b"{}"), "surprise": 1}).encode()
            assert "surprise" in ask(method, path, wrong).error["message"]
        else:
            joint = "&" if "?" in path else "?"
            assert "surprise" in ask(method, f"{path}{joint}surprise=1", body).error["message"], call.name


BODIES = {
    "deep arrays": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    "deep and closed": b'{"name":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "huge": b'{"name":"' + b"x" * (1 << 20) + b'"}',
    "NaN": b'{"name": NaN}',
    "Infinity": b'{"name": -Infinity}',
    "overflow": b'{"name": 1e999}',
    "many digits": b'{"name": ' + b"9" * 10_000 + b"}",
    "twice": b'{"name": "a", "name": "b"}',
    "not JSON": b"name=a",
    "not UTF-8": b'{"name": "\xff\xfe"}',
    "UTF-16": '{"name": "a"}'.encode("utf-16"),
    "BOM": b'\xef\xbb\xbf{"name": "a"}',
    "half a surrogate": b'{"name": "\\ud800"}',
    "NUL": b'{"name": "\\u0000"}',
    "an array": b"[]",
    "null": b"null",
    "a string": b'"x"',
    "two documents": b"{} {}",
    "empty": b"",
    "cut off": b'{"name": "a"',
}


@pytest.mark.parametrize("body", BODIES.values(), ids=list(BODIES))
def test_bodies_that_are_no_json_object_are_explained_and_do_nothing(ask: Asker, body: bytes) -> None:
    before = ask("GET", "/api/events?limit=1").json["items"]
    for call in CALLS:
        if not call.has_body or not any(p.required and p.place == "body" for p in call.parameters):
            continue
        method, path, _ = request_of(call, {})
        answer = ask(method, path, body)
        assert answer.status in (400, 413, 404), (call.name, answer)
        assert answer.error["code"] in ("invalid_input", "too_large", "not_found"), call.name
    assert ask("GET", "/api/events?limit=1").json["items"] == before


def test_a_form_is_no_json_whatever_it_is_called(ask: Asker) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""):
        answer = ask("POST", "/api/models", b"name=sneaked", kind=kind)
        assert answer.error["code"] == "invalid_input", (kind, answer)
    assert ask("GET", "/api/models/sneaked").status == 404


def test_unknown_paths_and_methods(ask: Asker) -> None:
    for path in (
        "/api",
        "/api/",
        "/api/nothing",
        "/api/models/",
        "//api/models",
        "/api/./models",
        "/api/models/a/b/c/d",
    ):
        assert ask("GET", path).error["code"] == "not_found", path
    for method in ("PATCH", "TRACE", "OPTIONS", "DELETE"):
        assert ask(method, "/api/models").status in (404, 405), method


def test_no_use_case_takes_what_no_test_here_knows() -> None:
    """A parameter of a new kind needs values above, or nothing hostile is ever sent for it."""
    known = {*WRONG, inspect.Parameter}
    assert {core(p.hint) for call in CALLS for p in call.parameters if p.hint is not Any} <= known
