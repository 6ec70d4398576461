"""The status page, a page for each endpoint, and their sign-in. No script runs in them; they ask the use cases that
the native API asks."""

import functools
from collections.abc import Callable
from importlib import resources
from typing import Any
from urllib.parse import parse_qs, urlsplit

import anyio.to_thread
import jinja2
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from loopline.console import endpoint, words
from loopline.console.sessions import LIFETIME_SECONDS, Sessions
from loopline.control import access as keys
from loopline.control import status
from loopline.control.context import Context
from loopline.domain import access
from loopline.domain.access import Actor, Permission
from loopline.errors import Forbidden, InvalidInput, LooplineError, Unauthenticated

COOKIE = "loopline"
TEMPLATES = ("layout.html", "parts.html", "status.html", "endpoint.html", "login.html")
MAX_FORM_BYTES = 4096
HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": (
        "default-src 'none'; style-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
}

Look = Callable[[Context, Actor], dict[str, Any]]


def routes(ctx: Context) -> list[Route]:
    """What a browser asks for. The page needs the permission to read; the form and the style sheet need none."""
    console = _Console(ctx)
    return [
        Route("/", console.page, methods=["GET"]),
        Route("/console/endpoints/{name}", console.endpoint, methods=["GET"]),
        Route("/login", console.login, methods=["POST"]),
        Route("/logout", console.logout, methods=["POST"]),
        Route("/console.css", console.style, methods=["GET"]),
    ]


class _Console:
    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._sessions = Sessions(ctx.clock.now)
        folder = resources.files("loopline.console") / "templates"
        self._style = (folder / "console.css").read_bytes()
        sources = {name: (folder / name).read_text(encoding="utf-8") for name in TEMPLATES}
        self._templates = jinja2.Environment(
            loader=jinja2.DictLoader(sources), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
        )
        self._templates.filters.update(words.FILTERS)

    async def page(self, request: Request) -> Response:
        """The status page, or the sign-in form."""
        return await self._page(request, "status.html", status.overview)

    async def endpoint(self, request: Request) -> Response:
        """An endpoint's page, or the sign-in form."""
        name = request.path_params["name"]
        return await self._page(request, "endpoint.html", lambda ctx, actor: endpoint.look(ctx, actor, name))

    async def _page(self, request: Request, template: str, look: Look) -> Response:
        key = self._sessions.key(request.cookies.get(COOKIE))
        if key is None:
            return self._login_page(None, 200)
        try:
            values, who = await anyio.to_thread.run_sync(functools.partial(self._look, key, look))
        except (Unauthenticated, Forbidden) as error:
            self._sessions.end(request.cookies.get(COOKIE))
            return self._login_page(error, error.status)
        except LooplineError as error:
            return self._html(f"{error.message}\n", error.status, "text/plain")
        return self._html(self._templates.get_template(template).render(values, who=who))

    def _look(self, key: str, look: Look) -> tuple[dict[str, Any], str]:
        actor = keys.authenticate(self._ctx, key)
        access.require(actor, Permission.READ)
        return look(self._ctx, actor), f"{actor.name}, {actor.role}"

    async def login(self, request: Request) -> Response:
        """Take an API key; a new session each time, so that nobody can be given one that is known."""
        try:
            _refuse_foreign(request)
            key = (await _form(request)).get("key", "").strip()
            actor = await anyio.to_thread.run_sync(keys.authenticate, self._ctx, key)
            access.require(actor, Permission.READ)
        except LooplineError as error:
            return self._login_page(error, error.status)
        self._sessions.end(request.cookies.get(COOKIE))
        answer = RedirectResponse("/", 303, HEADERS)
        answer.set_cookie(
            COOKIE,
            self._sessions.begin(key),
            max_age=LIFETIME_SECONDS,
            httponly=True,
            samesite="strict",
            secure=request.headers.get("x-forwarded-proto", request.url.scheme) == "https",
        )
        return answer

    async def logout(self, request: Request) -> Response:
        """Forget the session."""
        try:
            _refuse_foreign(request)
        except LooplineError as error:
            return self._login_page(error, error.status)
        self._sessions.end(request.cookies.get(COOKIE))
        answer = RedirectResponse("/", 303, HEADERS)
        answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return answer

    async def style(self, _: Request) -> Response:
        """The style sheet."""
        return Response(self._style, headers={**HEADERS, "cache-control": "max-age=300"}, media_type="text/css")

    def _login_page(self, error: LooplineError | None, code: int) -> Response:
        message = None if error is None else error.message
        return self._html(self._templates.get_template("login.html").render(message=message), code)

    def _html(self, text: str, code: int = 200, media_type: str = "text/html") -> Response:
        return Response(text, code, HEADERS, media_type)


def _refuse_foreign(request: Request) -> None:
    """Forms come from this site's own pages; another site's form must not sign anybody in or out."""
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
        raise Forbidden("this form was sent by another site")
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise Forbidden("this form was sent by another site")


async def _form(request: Request) -> dict[str, str]:
    data = b""
    async for chunk in request.stream():
        data += chunk
        if len(data) > MAX_FORM_BYTES:
            raise InvalidInput("the form is too large")
    try:
        return {name: values[-1] for name, values in parse_qs(data.decode("ascii"), max_num_fields=8).items()}
    except ValueError:
        raise InvalidInput("the form cannot be read") from None
