"""The routes of git's smart HTTP: who asks, whether they may, and then git itself."""

import asyncio
import base64
import binascii
import functools
import logging
import re
from collections.abc import Callable
from urllib.parse import parse_qs

import anyio
import anyio.to_thread
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route as StarletteRoute
from starlette.types import Receive, Scope, Send

from loopline.control import access as keys
from loopline.control import repositories
from loopline.control.context import Context
from loopline.domain import access, names
from loopline.domain.access import Actor
from loopline.errors import InvalidInput, LooplineError, Timeout, Unauthenticated, Unavailable
from loopline.fronts.git import cgi
from loopline.fronts.git.channel import Channel
from loopline.fronts.git.routes import PUSH, TABLE, Route, check

log = logging.getLogger(__name__)

AT_ONCE = 8  # git processes; others wait
ANSWER_SECONDS = 10.0  # how long a push waits at most for the lines that say what was recorded, on a busy machine too
LONGEST_SECONDS = 3600.0  # a fetch or a push in all
OVERHEAD_BYTES = 1 << 20  # what a push sends beside its pack
_PROTOCOL = re.compile(r"[a-z0-9=:.-]{1,64}")
_HEADERS = [(b"x-content-type-options", b"nosniff")]


def routes(ctx: Context, table: tuple[Route, ...] = TABLE) -> list[StarletteRoute]:
    """The routes below ``/git``; raises ``TypeError`` when one declares no permission."""
    check(table)
    places: dict[tuple[str, str], list[Route]] = {}
    slots, threads = asyncio.Semaphore(AT_ONCE), anyio.CapacityLimiter(2 * AT_ONCE)
    for route in table:
        places.setdefault((route.method, route.place), []).append(route)
    return [
        StarletteRoute(f"/git/{{project}}.git/{place}", _Place(ctx, found, slots, threads), methods=[method])
        for (method, place), found in places.items()
    ]


class _Place:
    """One path; what is asked for there is told by ``service``."""

    def __init__(
        self, ctx: Context, table: list[Route], slots: asyncio.Semaphore, threads: anyio.CapacityLimiter
    ) -> None:
        self._ctx, self._table, self._slots, self._threads = ctx, table, slots, threads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        answer = _Answer(send)
        try:
            route = self._route(request)
            actor = await anyio.to_thread.run_sync(keys.authenticate, self._ctx, _key(request))
            if route.permission is None:
                raise TypeError("a route without a permission is served")
            access.require(actor, route.permission)
            project = names.check_name(request.path_params["project"], "a project")
            async with self._slots, asyncio.timeout(LONGEST_SECONDS):
                await self._serve(route, actor, project, request, answer)
        except ClientDisconnect:
            return
        except (LooplineError, TimeoutError) as error:
            if answer.started:  # too late for another answer: the broken connection says it
                raise
            await _refuse(error if isinstance(error, LooplineError) else Timeout())(scope, receive, send)

    def _route(self, request: Request) -> Route:
        if request.method == "POST":
            return self._table[0]
        service = parse_qs(request.url.query).get("service", [""])[-1]
        for route in self._table:
            if route.service == service:
                return route
        raise InvalidInput("this server speaks git's smart HTTP only; use a git of this century")

    async def _serve(self, route: Route, actor: Actor, project: str, request: Request, answer: "_Answer") -> None:
        pushing = route.service == PUSH
        repository = await anyio.to_thread.run_sync(
            lambda: repositories.open_repository(self._ctx, actor, project=project, create=pushing)
        )
        environ = _environment(self._ctx, request, route, actor, repository.name)
        begin = functools.partial(cgi.Backend, repositories.program(self._ctx), environ, self._threads)
        if pushing and route.method == "POST":
            await _receive(repositories.receive(self._ctx, actor, project=project), request, answer, environ, begin)
            return
        async with begin() as backend:
            await _relay(backend, request, answer)


class _Answer:
    """Sends what a backend answers."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False

    async def begin(self, head: cgi.Head) -> None:
        self.started = True
        headers = [*head.headers, *_HEADERS]
        await self._send({"type": "http.response.start", "status": head.status, "headers": headers})

    async def chunk(self, data: bytes, *, more: bool = True) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": more})


async def _relay(backend: cgi.Backend, request: Request, answer: _Answer) -> None:
    """The request's body to git, and git's answer to the client."""
    backend.feed(request.stream(), repositories.MAX_PACK_BYTES + OVERHEAD_BYTES)
    await answer.begin(await backend.head())
    async for chunk in backend.body():
        await answer.chunk(chunk)
    await answer.chunk(b"", more=False)


# -- pushes -----------------------------------------------------------------------------------------------------------


async def _receive(
    receipt: repositories.Receipt,
    request: Request,
    answer: _Answer,
    environ: dict[str, str],
    begin: Callable[..., cgi.Backend],
) -> None:
    """Receive a push. What it moved is recorded as soon as git's hook says so, and at the latest when git has ended,
    whether the client is still there or not."""
    with Channel() as channel:
        environ["LOOPLINE_REPORT"], environ["LOOPLINE_ANSWER"] = map(str, channel.theirs)
        told = asyncio.create_task(_tell(channel, receipt))
        try:
            async with begin(descriptors=channel.theirs) as backend:
                channel.close_theirs()  # so that ours ends when the last of git's processes has
                await _relay(backend, request, answer)
        finally:
            channel.close_theirs()
            await asyncio.shield(asyncio.create_task(_close(told, receipt)))


async def _close(told: asyncio.Task[None], receipt: repositories.Receipt) -> None:
    """End a push, whatever becomes of the request."""
    try:
        await told
    except (LooplineError, OSError, ValueError):
        log.exception("a push was received and not recorded yet")
    finally:
        await anyio.to_thread.run_sync(receipt.close)


async def _tell(channel: Channel, receipt: repositories.Receipt) -> None:
    """Wait until git's hook says which refs have moved, record that, and say what was recorded."""
    report = await channel.report()
    if report is None:
        return  # git has ended without moving a ref
    recording = asyncio.ensure_future(anyio.to_thread.run_sync(receipt.record, report))
    try:
        lines = await asyncio.wait_for(asyncio.shield(recording), ANSWER_SECONDS)
    except TimeoutError:
        lines = ["loopline: the push is being recorded; see it with: loopline pushes list"]
    except (LooplineError, OSError):
        lines = ["loopline: the push was received and will be recorded in a moment"]
    channel.answer(lines)
    await recording


# -- who asks, and for what -------------------------------------------------------------------------------------------


def _key(request: Request) -> str | None:
    """The API key: the password of Basic credentials with any user name, or a bearer token."""
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return given.strip()
    if scheme.lower() != "basic":
        return None
    try:
        _, colon, password = base64.b64decode(given.strip(), validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return None
    return password if colon else None


def _environment(ctx: Context, request: Request, route: Route, actor: Actor, repository: str) -> dict[str, str]:
    """The CGI variables (RFC 3875). Every value is ours or checked: git never sees what the client wrote of a path."""
    environ = {
        **repositories.environment(ctx),
        "GATEWAY_INTERFACE": "CGI/1.1",
        "GIT_HTTP_EXPORT_ALL": "1",
        "GIT_PROJECT_ROOT": str(repositories.root(ctx)),
        "PATH_INFO": f"/{repository}/{route.place}",
        "QUERY_STRING": f"service={route.service}" if route.method == "GET" else "",
        "REMOTE_ADDR": "127.0.0.1",
        "REMOTE_USER": actor.name,
        "REQUEST_METHOD": route.method,
        "SERVER_PROTOCOL": "HTTP/1.1",
    }
    if route.method == "POST":
        environ["CONTENT_TYPE"] = f"application/x-{route.service}-request"
        if request.headers.get("content-type") != environ["CONTENT_TYPE"]:
            raise InvalidInput(f"the content type of this request is {environ['CONTENT_TYPE']}")
    length = request.headers.get("content-length", "")
    if length.isascii() and length.isdecimal():
        environ["CONTENT_LENGTH"] = str(int(length[:18]))
    if request.headers.get("content-encoding") in ("gzip", "x-gzip"):
        environ["HTTP_CONTENT_ENCODING"] = "gzip"
    protocol = request.headers.get("git-protocol", "")
    if _PROTOCOL.fullmatch(protocol):
        environ["HTTP_GIT_PROTOCOL"] = protocol
    return environ


def _refuse(error: LooplineError) -> PlainTextResponse:
    """An error as git shows it: plain text after ``remote:``."""
    headers = {"cache-control": "no-store", "x-content-type-options": "nosniff"}
    text = error.message
    if isinstance(error, Unauthenticated):
        headers["www-authenticate"] = 'Basic realm="loopline: any user name, an API key as the password"'
        text = "an API key is needed as the password, with any user name; `loopline remote` sets git up"
    if isinstance(error, Unavailable):
        headers["retry-after"] = "1"
    return PlainTextResponse(f"{text}\n", error.status, headers)
