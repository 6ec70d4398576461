"""The generic front: what reaches a use case, what does not, and how answers and errors look."""

import inspect
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette

from loopline import errors
from loopline.control import access, access_keys
from loopline.control.context import Context
from loopline.domain.access import Actor, Permission
from loopline.errors import InvalidInput, LooplineError, NotFound
from loopline.fronts.native import build, documents
from loopline.fronts.native.routes import Route, read_all
from loopline.testing.asgi import ask
from loopline.testing.world import World


@pytest.fixture(scope="module")
def ctx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Context]:
    world = World(tmp_path_factory.mktemp("data"))
    yield world.ctx
    world.close()


# -- use cases to serve -----------------------------------------------------------------------------------------------


def greet(
    ctx: Context,
    actor: Actor,
    *,
    name: str,
    times: int = 1,
    tags: list[str] | None = None,
    share: float = 0.5,
    loud: bool = False,
    at: float | None = None,
    parameters: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Say hello.

    As often as is asked.
    """
    given = {k: v for k, v in locals().items() if k not in ("ctx", "actor")}
    return {"actor": actor.name, **given, "limit_at": None}


def items(ctx: Context, actor: Actor, *, limit: int = 50, cursor: str | None = None) -> dict[str, Any]:
    return {"items": [{"created_at": 0.5, "parameters": {"made_at": 5}}] * limit, "next": cursor}


def take(ctx: Context, actor: Actor, *, name: str, stream: Iterator[bytes]) -> dict[str, Any]:
    sizes = [len(chunk) for chunk in stream if chunk]
    return {"name": name, "total": sum(sizes), "chunks": len(sizes)}


def give(ctx: Context, actor: Actor, *, text: str) -> dict[str, Any]:
    blob = ctx.blobs.put_bytes(text.encode())
    return {"digest": blob.digest, "size_bytes": len(text)}


def pour(ctx: Context, actor: Actor, *, count: int) -> Iterator[bytes]:
    if count < 0:
        raise NotFound("nothing to pour")
    return (b"x" for _ in range(count))


def fail(ctx: Context, actor: Actor, *, kind: str) -> dict[str, Any]:
    if kind == "unexpected":
        raise RuntimeError("the secret reason")
    raise getattr(errors, kind)("told to", place="here")


PATHS = (
    Route("POST", "/api/greet/{name}", Permission.WRITE, greet, status=201),
    Route("GET", "/api/greet/{name}", Permission.READ, greet),
    Route("GET", "/api/items", Permission.PUBLIC, items),
    Route("PUT", "/api/takes/{name}", Permission.PUBLIC, take, raw=True, max_body_bytes=100_000),
    Route("GET", "/api/gives/{text}", Permission.PUBLIC, give, download=True),
    Route("GET", "/api/pours/{count}", Permission.PUBLIC, pour, download=True),
    Route("GET", "/api/fail/{kind}", Permission.PUBLIC, fail),
)


@pytest.fixture(scope="module")
def app(ctx: Context) -> Starlette:
    return build(ctx, PATHS)


@pytest.fixture(scope="module")
def keys(ctx: Context) -> dict[str, str]:
    root = Actor("root", "admin")
    made = {}
    for role in ("viewer", "editor"):
        access.create_user(ctx, root, name=role, role=role)
        made[role] = access.create_key(ctx, root, user=role)["key"]
    return made


def own_table() -> tuple[Route, ...]:
    from loopline.fronts.native.table import TABLE

    return TABLE


# -- the table --------------------------------------------------------------------------------------------------------


def test_a_route_without_permission_stops_the_start(ctx: Context) -> None:
    with pytest.raises(TypeError, match="GET /api/items declares no permission"):
        build(ctx, [Route("GET", "/api/items", None, items)])


def test_a_route_whose_path_its_use_case_does_not_know_stops_the_start(ctx: Context) -> None:
    with pytest.raises(TypeError, match="items has no keyword item"):
        build(ctx, [Route("GET", "/api/items/{item}", Permission.READ, items)])


def test_two_routes_for_the_same_stop_the_start(ctx: Context) -> None:
    routes = [
        Route("GET", "/api/x/{name}", Permission.READ, greet),
        Route("GET", "/api/x/{text}", Permission.READ, give),
    ]
    with pytest.raises(TypeError, match="twice"):
        build(ctx, routes)


def test_loopline_s_own_table_can_be_served_and_says_what_each_route_does(ctx: Context) -> None:
    calls = read_all(own_table())
    assert [call.name for call in calls if not inspect.getdoc(call.route.use_case)] == []
    public = [call.route.path for call in calls if call.permission is Permission.PUBLIC]
    assert public == ["/api/health", "/api/subscriptions/confirm"]  # the link in a message, which carries a token
    app = build(ctx)
    assert ask(app, "GET", "/api/health").json["status"] == "ok"
    described = ask(app, "GET", "/api/openapi.json").json["paths"]
    names = [operation["operationId"] for path in described.values() for operation in path.values()]
    assert len(names) == len(calls) == len(set(names))


def test_changing_something_needs_more_than_reading() -> None:
    own = (access.create_key, access.revoke_key, access_keys.create, access_keys.revoke)  # for oneself: they check
    weak = [
        f"{call.route.method} {call.route.path}"
        for call in read_all(own_table())
        if call.route.method != "GET"
        and call.permission in (Permission.READ, Permission.PUBLIC)
        and call.route.use_case not in own
    ]
    assert weak == []


# -- who may ----------------------------------------------------------------------------------------------------------


def test_without_a_key_nothing_but_public_routes_answers(app: Starlette) -> None:
    answer = ask(app, "GET", "/api/greet/ada")
    assert answer.status == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json["error"]["code"] == "unauthenticated"
    assert ask(app, "GET", "/api/items").status == 200


def test_a_wrong_key_is_refused(app: Starlette, keys: dict[str, str]) -> None:
    assert ask(app, "GET", "/api/greet/ada", key=keys["viewer"][:-1] + "!").status == 401
    assert ask(app, "GET", "/api/greet/ada", key="lk_" + "0" * 8 + "_" + "a" * 43).status == 401


def test_the_role_decides(app: Starlette, keys: dict[str, str]) -> None:
    assert ask(app, "GET", "/api/greet/ada", key=keys["viewer"]).status == 200
    refused = ask(app, "POST", "/api/greet/ada", {}, key=keys["viewer"])
    assert (refused.status, refused.json["error"]["code"]) == (403, "forbidden")
    assert ask(app, "POST", "/api/greet/ada", {}, key=keys["editor"]).status == 201


# -- what reaches the use case ----------------------------------------------------------------------------------------


def test_arguments_come_from_path_and_body_by_name(app: Starlette, keys: dict[str, str]) -> None:
    body = {"times": 3, "tags": ["a"], "at": "1970-01-01T00:01:00Z", "parameters": {"x": [1, None]}}
    got = ask(app, "POST", "/api/greet/ada", body, key=keys["editor"]).json
    assert got["actor"] == "editor"
    assert (got["name"], got["times"], got["tags"], got["parameters"]) == ("ada", 3, ["a"], {"x": [1, None]})
    assert got["at"] == "1970-01-01T00:01:00.000Z"


def test_arguments_come_from_the_query_as_their_types(app: Starlette, keys: dict[str, str]) -> None:
    query = "times=3&tags=a&tags=b&loud=true&share=1e-1&at=60"
    got = ask(app, "GET", f"/api/greet/ada?{query}", key=keys["viewer"]).json
    assert (got["times"], got["tags"], got["loud"], got["share"]) == (3, ["a", "b"], True, 0.1)
    assert got["at"] == "1970-01-01T00:01:00.000Z"


@pytest.mark.parametrize(
    ("query", "field", "message"),
    [
        ("times=x", "times", "expected int"),
        ("times=1&times=2", "times", "2 times"),
        ("time=1", "time", "did you mean 'times'?"),
        ("share=nan", "share", "finite"),
        ("times=99999999999999999999", "times", ""),
        ("at=yesterday", "at", "not a time"),
    ],
)
def test_a_wrong_query_is_explained(app: Starlette, keys: dict[str, str], query: str, field: str, message: str) -> None:
    answer = ask(app, "GET", f"/api/greet/ada?{query}", key=keys["viewer"])
    assert answer.status == 400
    assert answer.json["error"]["details"] == {"field": field}
    assert message in answer.json["error"]["message"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"[1]", "must be a JSON object, not an array"),
        (b"{", "not valid JSON"),
        (b'{"times": NaN}', "NaN is not JSON"),
        (b'{"share": 1e999}', "too large"),
        (b'{"times": 1, "times": 2}', "'times' stands twice"),
        (b'{"times": "1"}', "times: expected int, got str"),
        (b'{"times": true}', "times: expected int, got bool"),
        (b'{"tags": [1]}', "tags: expected str, got int at [0]"),
        (b'{"extra": 1}', "'extra' is not a field"),
        (b'{"name": "eve"}', "'name' is not a field"),
        (b'{"parameters": {"a": "\\u0000"}}', "NUL"),
        (b'{"parameters": {"a": "\\ud800"}}', "surrogate"),
        (b'{"parameters": {"a": 99999999999999999999}}', "64 bits"),
        (b'{"parameters": ' + b'{"a":' * 70 + b"1" + b"}" * 71, "nested deeper than 64"),
        (b"[" * 100_000, "nested deeper than 64"),
        (b'\xff{"times": 1}', "not UTF-8"),
    ],
)
def test_a_wrong_body_is_explained(app: Starlette, keys: dict[str, str], body: bytes, message: str) -> None:
    answer = ask(app, "POST", "/api/greet/ada", body, key=keys["editor"])
    assert answer.status == 400, answer.body
    assert answer.json["error"]["code"] == "invalid_input"
    assert message in answer.json["error"]["message"]


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_beyond_one_mebibyte_is_refused(app: Starlette, keys: dict[str, str], declared: bool) -> None:
    body = json.dumps({"parameters": {"a": "x" * (1 << 20)}}).encode()
    headers = {"content-length": str(len(body))} if declared else {}
    answer = ask(app, "POST", "/api/greet/ada", body, key=keys["editor"], headers=headers, chunks=9)
    assert (answer.status, answer.json["error"]["code"]) == (413, "too_large")


def test_a_page_has_a_limit(app: Starlette) -> None:
    assert ask(app, "GET", "/api/items?limit=1000").status == 200
    for limit in ("0", "-1", "1001"):
        answer = ask(app, "GET", f"/api/items?limit={limit}")
        assert (answer.status, answer.json["error"]["details"]["field"]) == (400, "limit")


def test_a_raw_body_is_streamed(app: Starlette) -> None:
    answer = ask(app, "PUT", "/api/takes/a", b"x" * 90_000, chunks=9)
    assert answer.json == {"name": "a", "total": 90_000, "chunks": 9}


def test_a_raw_body_has_its_own_limit(app: Starlette) -> None:
    assert ask(app, "PUT", "/api/takes/a", b"x" * 100_001, chunks=9).status == 413


# -- answers ----------------------------------------------------------------------------------------------------------


def test_times_are_rendered_and_what_users_wrote_is_not(app: Starlette) -> None:
    item = ask(app, "GET", "/api/items?limit=1").json["items"][0]
    assert item == {"created_at": "1970-01-01T00:00:00.500Z", "parameters": {"made_at": 5}}


def test_a_download_sends_the_bytes(app: Starlette) -> None:
    answer = ask(app, "GET", "/api/gives/hello")
    assert (answer.status, answer.body) == (200, b"hello")
    assert answer.headers["content-length"] == "5"
    assert answer.headers["content-disposition"] == "attachment"


def test_a_download_may_be_made_on_the_way(app: Starlette) -> None:
    assert ask(app, "GET", "/api/pours/3").body == b"xxx"
    assert ask(app, "GET", "/api/pours/0").body == b""
    assert ask(app, "GET", "/api/pours/-1").status == 404


def test_a_use_case_that_takes_bytes_needs_a_raw_route(ctx: Context) -> None:
    with pytest.raises(TypeError, match="do not fit"):
        build(ctx, [Route("PUT", "/api/takes/{name}", Permission.WRITE, take)])


def test_the_request_id_of_the_gateway_is_kept_and_a_strange_one_is_not(app: Starlette) -> None:
    assert ask(app, "GET", "/api/items", headers={"x-request-id": "rq_1"}).headers["x-request-id"] == "rq_1"
    made = ask(app, "GET", "/api/items", headers={"x-request-id": "a b<script>"}).headers["x-request-id"]
    assert made.startswith("rq_")
    assert ask(app, "GET", "/api/nothing").json["error"]["request_id"].startswith("rq_")


def test_every_answer_has_the_headers_that_keep_browsers_careful(app: Starlette) -> None:
    for path in ("/api/items", "/api/nothing", "/api/fail/unexpected", "/api/openapi.json"):
        headers = ask(app, "GET", path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["content-security-policy"].startswith("default-src 'none'")
        assert headers["cache-control"] == "no-store"


def error_classes() -> list[type[LooplineError]]:
    return [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, LooplineError)]


@pytest.mark.parametrize("kind", error_classes())
def test_every_error_maps(app: Starlette, kind: type[LooplineError]) -> None:
    answer = ask(app, "GET", f"/api/fail/{kind.__name__}")
    assert answer.status == kind.status
    error = answer.json["error"]
    assert (error["code"], error["message"], error["details"]) == (kind.code, "told to", {"place": "here"})
    assert error["request_id"] == answer.headers["x-request-id"]
    assert ("retry-after" in answer.headers) == issubclass(kind, errors.Unavailable)


def test_what_is_unexpected_is_logged_and_not_shown(app: Starlette, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        answer = ask(app, "GET", "/api/fail/unexpected")
    assert answer.status == 500
    assert b"secret" not in answer.body and b"Traceback" not in answer.body
    assert answer.json["error"]["request_id"] in caplog.text
    assert "the secret reason" in caplog.text


def test_unknown_paths_and_methods_have_the_same_shape(app: Starlette) -> None:
    missing = ask(app, "GET", "/api/nothing")
    assert (missing.status, missing.json["error"]["code"]) == (404, NotFound.code)
    assert "POST /endpoints/NAME/invocations" in ask(app, "GET", "/endpoints/x/invocations").json["error"]["message"]
    wrong = ask(app, "DELETE", "/api/items")
    assert (wrong.status, wrong.json["error"]["code"]) == (405, "method_not_allowed")
    assert "GET" in wrong.headers["allow"]


def test_the_description_says_what_the_signatures_say(app: Starlette) -> None:
    described = ask(app, "GET", "/api/openapi.json").json
    assert described["openapi"] == "3.1.0"
    post = described["paths"]["/api/greet/{name}"]["post"]
    assert (post["summary"], post["description"]) == ("Say hello.", "As often as is asked.")
    assert (post["x-permission"], post["x-roles"]) == ("write", ["editor", "approver", "admin"])
    schema = post["requestBody"]["content"]["application/json"]["schema"]
    assert schema["properties"]["times"] == {"type": "integer", "default": 1}
    assert "name" not in schema["properties"]
    assert [p["name"] for p in post["parameters"]] == ["name"]
    get = described["paths"]["/api/greet/{name}"]["get"]
    assert {p["name"]: p["in"] for p in get["parameters"]}["times"] == "query"
    assert get["responses"]["default"]["content"]["application/json"]["schema"]["$ref"].endswith("/Error")


_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abcd"), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.sampled_from("abcd"), _json))
def test_any_json_object_is_read_as_it_is(document: dict[str, Any]) -> None:
    assert documents.decode(json.dumps(document).encode()) == document


@given(st.binary(max_size=40))
def test_any_bytes_get_an_object_or_an_explanation(data: bytes) -> None:
    try:
        assert isinstance(documents.decode(data), dict)
    except InvalidInput as error:
        assert error.message
