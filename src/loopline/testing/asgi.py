"""Asks an ASGI application one question, without a server and without a network."""

import json
from dataclasses import dataclass, field
from typing import Any

import anyio
from starlette.types import ASGIApp, Message


@dataclass(frozen=True)
class Answer:
    """What came back. Of headers that stand several times the last counts."""

    status: int
    headers: dict[str, str]
    body: bytes = field(repr=False)

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


def ask(
    app: ASGIApp,
    method: str,
    path: str,
    body: Any = b"",
    *,
    key: str | None = None,
    headers: dict[str, str] | None = None,
    chunks: int = 1,
) -> Answer:
    """The application's answer. ``body``: bytes, or what becomes JSON; it arrives in so many ``chunks``."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    size = -(-len(data) // chunks) or 1
    parts = [data[start : start + size] for start in range(0, len(data), size)] or [b""]
    given = {"host": "testing", **({"authorization": f"Bearer {key}"} if key else {}), **(headers or {})}
    path, _, query = path.partition("?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": query.encode(),
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
        "server": ("testing", 80),
        "client": ("testing", 1),
    }
    sent: list[Message] = []

    async def receive() -> Message:
        if not parts:
            await anyio.sleep_forever()  # the client stays and says nothing more
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    async def send(message: Message) -> None:
        sent.append(message)

    anyio.run(app, scope, receive, send)
    found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return Answer(sent[0]["status"], found, b"".join(message.get("body", b"") for message in sent[1:]))
