"""Asks an endpoint for predictions from inside: over the private socket that each gateway listens on beside its port.

Such a request passes through the same stages as a caller's, and is recorded with its ``purpose``; what a run of tests
asks counts in no metric.
"""

import http.client
import itertools
import socket
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import quote

from loopline.control.context import Context
from loopline.errors import InvalidInput, Timeout, Unavailable

Purpose = Literal["test", "async", "function"]

MAX_ANSWER_BYTES = 1 << 28  # the largest frame of a model server
_turns = itertools.count()


class Answer(NamedTuple):
    """What came back: ``headers`` have lower-case names."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class _Connection(http.client.HTTPConnection):
    """HTTP to a gateway's private socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def invoke(
    ctx: Context,
    endpoint: str,
    body: bytes,
    *,
    purpose: Purpose,
    timeout_seconds: float,
    content_type: str = "application/json",
    variant: str | None = None,
    model: str | None = None,
    inference_id: str | None = None,
    headers: Mapping[str, str] | None = None,
    method: str = "POST",
    path: str | None = None,
    tested: str | None = None,
) -> Answer:
    """One request and its answer, whatever its status.

    ``variant`` and ``model`` choose by name; ``path`` asks a function's route in place of the endpoint's own;
    ``tested`` names the variant that answers what the function asks the endpoint on behalf of this request.
    Raises ``Unavailable`` when no gateway answers (the request may have reached a model server all the same, and is
    not sent again) and ``Timeout`` when there is no answer within ``timeout_seconds``.
    """
    chosen = {
        "content-type": content_type,
        "x-loopline-purpose": purpose,
        "x-loopline-variant": variant,
        "x-loopline-model": model,
        "x-loopline-inference-id": inference_id,
        "x-loopline-tested": f"{endpoint}/{tested}" if tested is not None else None,
    }
    sent = {name.lower(): value for name, value in (headers or {}).items()}
    sent.update({name: value for name, value in chosen.items() if value is not None})
    target = path or f"/endpoints/{quote(endpoint, safe='')}/invocations"
    with closing(_connect(ctx, timeout_seconds)) as connection:
        try:
            connection.request(method, target, body, sent)
            answer = connection.getresponse()
            data = answer.read(MAX_ANSWER_BYTES)
        except TimeoutError:
            raise Timeout(f"{endpoint} did not answer within {timeout_seconds:g} s") from None
        except ValueError as error:  # http.client's word for a header or target that no request may have
            raise InvalidInput(f"{endpoint} cannot be asked this: {error}") from None
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(f"the gateway ended while it had a request for {endpoint} ({error!r})") from None
        return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, data)


def _connect(ctx: Context, timeout_seconds: float) -> _Connection:
    """A connection to a gateway that lives; the gateways take turns."""
    paths = sockets(ctx)
    turn = next(_turns)
    for position in range(len(paths)):
        connection = _Connection(str(paths[(turn + position) % len(paths)]), timeout_seconds)
        try:
            connection.connect()
        except OSError:
            connection.close()
            continue
        return connection
    raise Unavailable("no gateway is running")


def sockets(ctx: Context) -> list[Path]:
    """The private sockets of the gateways."""
    return sorted(ctx.settings.run_dir.glob("gateway-*.http.sock"))
