"""The generic front: authentication, permission, arguments, the use case in a thread, the answer."""

import errno
import functools
import itertools
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import parse_qsl

import anyio
import anyio.from_thread
import anyio.to_thread
from starlette.applications import Starlette
from starlette.concurrency import iterate_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route as StarletteRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from loopline.control import access as keys
from loopline.control.context import Context
from loopline.domain import access
from loopline.domain.access import Actor, Permission
from loopline.errors import InvalidInput, LooplineError, TooLarge, Unauthenticated, Unavailable
from loopline.fronts.native import documents, openapi, routes

log = logging.getLogger(__name__)

THREADS = 16
UPLOAD_THREADS = 4  # a slow upload holds its thread; questions must go on
ANYBODY = Actor(name="anybody", role="")
ENDPOINTS = "/endpoints/"  # the gateway's own; what it does not know below it comes here
_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


def build(ctx: Context, table: Iterable[routes.Route] | None = None) -> Starlette:
    """The REST application over a table of routes (loopline's own unless given).

    Raises ``TypeError`` when a route declares no permission or does not fit its use case.
    """
    if table is None:
        from loopline.fronts.native.table import TABLE

        table = TABLE
    calls = routes.read_all(table)
    description = documents.encode(openapi.describe(calls))
    limiters = (anyio.CapacityLimiter(THREADS), anyio.CapacityLimiter(UPLOAD_THREADS))
    served = [
        StarletteRoute(call.route.path, _endpoint(ctx, call, limiters[call.route.raw]), methods=[call.route.method])
        for call in sorted(calls, key=_literal_first)
    ]

    async def openapi_json(_: Request) -> Response:
        return _json(description)

    served.append(StarletteRoute("/api/openapi.json", openapi_json, methods=["GET"]))
    app = Starlette(routes=served, exception_handlers={HTTPException: _http_error})
    app.router.redirect_slashes = False
    app.add_middleware(_Outside, ctx=ctx)
    return app


def _literal_first(call: routes.Call) -> list[bool]:
    """Sorts /api/runs/compare before /api/runs/{run}."""
    return [part.startswith("{") for part in call.route.path.split("/")]


def _json(body: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(body, status, headers, "application/json")


# -- around every request ---------------------------------------------------------------------------------------------


class _Outside:
    """Gives each request its id, each answer its headers, and each exception the one JSON shape."""

    def __init__(self, app: ASGIApp, ctx: Context) -> None:
        self.app = app
        self.ctx = ctx

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        request_id = given if _REQUEST_ID.fullmatch(given) else self.ctx.ids.new("rq")
        scope.setdefault("state", {})["request_id"] = request_id
        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self.app(scope, receive, send_with_headers)
        except ClientDisconnect:
            return
        except Exception as error:
            if started:  # too late for another answer: the broken connection says it
                raise
            await error_response(error, request_id)(scope, receive, send_with_headers)


def error_response(error: Exception, request_id: str) -> Response:
    """The one JSON error shape; what loopline did not raise on purpose is logged and not shown."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        log.error("request %s: %s", request_id, error)
        error = Unavailable("the disk is full: free some space and try again")
    if not isinstance(error, LooplineError):
        log.error("request %s failed", request_id, exc_info=error)
        error = LooplineError("something went wrong inside loopline; its log has the request id", kind="unexpected")
    elif error.status >= 500:
        log.warning("request %s: %s: %s", request_id, error.code, error.message)
    headers = {}
    if isinstance(error, Unavailable):
        headers["retry-after"] = str(error.details.get("retry_after_seconds", 1))
    if isinstance(error, Unauthenticated):
        headers["www-authenticate"] = "Bearer"
    body = documents.encode({"error": {**error.to_dict(), "request_id": request_id}})
    return _json(body, error.status, headers)


async def _http_error(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    codes = {404: "not_found", 405: "method_not_allowed"}
    path = request.url.path
    cure = "/api/openapi.json lists what there is"
    if path.startswith(ENDPOINTS):
        cure = "an endpoint is asked by POST /endpoints/NAME/invocations"
    messages = {
        404: f"there is no {request.method} {path}; {cure}",
        405: f"{path} does not take {request.method}",
    }
    shape = {"code": codes.get(status, "invalid_input"), "message": messages.get(status, str(error))}
    headers = error.headers if isinstance(error, HTTPException) else None
    return _json(documents.encode({"error": {**shape, "request_id": request.state.request_id}}), status, headers)


# -- one request ------------------------------------------------------------------------------------------------------


def _endpoint(
    ctx: Context, call: routes.Call, limiter: anyio.CapacityLimiter
) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        actor = ANYBODY
        if call.permission is not Permission.PUBLIC:
            token = bearer(request)
            if keys.is_at_hand(ctx, token):
                actor = keys.authenticate(ctx, token)
            else:
                actor = await _in_thread(limiter, keys.authenticate, ctx, token)
            access.require(actor, call.permission)
        arguments = await _arguments(request, call)
        if call.stream:
            arguments[call.stream] = _Body(request, call.route.max_body_bytes)
        result = await _in_thread(limiter, call.route.use_case, ctx, actor, **arguments)
        if call.route.download:
            return await _download(ctx, result, limiter)
        return _json(documents.encode(result), call.route.status)

    return answer


async def _in_thread(limiter: anyio.CapacityLimiter, work: Callable[..., Any], /, *given: Any, **named: Any) -> Any:
    return await anyio.to_thread.run_sync(functools.partial(work, *given, **named), limiter=limiter)


def bearer(request: Request) -> str | None:
    """The key of ``Authorization: Bearer KEY``."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


async def _arguments(request: Request, call: routes.Call) -> dict[str, Any]:
    query: dict[str, list[str]] = {}
    for name, value in parse_qsl(request.scope["query_string"].decode("latin-1"), keep_blank_values=True):
        documents.check_text(value)
        query.setdefault(name, []).append(value)
    for value in request.path_params.values():
        documents.check_text(value)
    body: dict[str, Any] = {}
    if not call.route.raw:
        data = b"".join([chunk async for chunk in _limited(request, call.route.max_body_bytes)])
        body = documents.decode(data) if data.strip() else {}
    given = request.headers.get("content-type")
    header = {} if given is None else {routes.CONTENT_TYPE: given}
    return call.arguments(request.path_params, query, body, header)


async def _limited(request: Request, limit: int) -> AsyncIterator[bytes]:
    declared = request.headers.get("content-length", "0")
    if not declared.isdecimal():
        raise InvalidInput("content-length is not a number")
    total = int(declared)
    if total <= limit:
        total = 0
        async for chunk in request.stream():
            total += len(chunk)
            if total > limit:
                break
            yield chunk
    if total > limit:
        raise TooLarge(f"the body is larger than {limit} bytes", limit_bytes=limit)


class _Body(Iterator[bytes]):
    """The request's body for a use case in a thread: each chunk is awaited on the event loop."""

    def __init__(self, request: Request, limit: int) -> None:
        self._chunks = _limited(request, limit)

    def __next__(self) -> bytes:
        chunk = anyio.from_thread.run(self._next)
        if chunk is None:
            raise StopIteration
        return chunk

    async def _next(self) -> bytes | None:
        return await anext(self._chunks, None)


async def _download(
    ctx: Context, result: Mapping[str, Any] | Iterator[bytes], limiter: anyio.CapacityLimiter
) -> Response:
    headers = {"content-disposition": "attachment"}
    if isinstance(result, Mapping):
        headers["etag"] = f'"{result["digest"]}"'
        headers["content-length"] = str(result["size_bytes"])
        chunks = ctx.blobs.chunks(result["digest"])
    else:
        chunks = result
    # A missing or corrupt blob is told while it can be: what a chunk's digest says is known when the next is asked for.
    first = await _in_thread(limiter, list, itertools.islice(chunks, 2))
    whole = iterate_in_threadpool(itertools.chain(first, chunks))
    return StreamingResponse(whole, headers=headers, media_type="application/octet-stream")
