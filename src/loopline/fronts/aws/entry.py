"""The door: requests that are AWS's go to this front, all others go on. Nothing of AWS is loaded before the first."""

from collections.abc import Mapping

import anyio.to_thread
from starlette.types import ASGIApp, Receive, Scope, Send

from loopline.control.context import Context
from loopline.domain.sigv4 import ALGORITHM

_SIGNED = (ALGORITHM.encode(), b"AWS ")
_MARKS = frozenset((b"amz-sdk-invocation-id", b"x-amz-target", b"x-amz-date", b"x-amz-content-sha256"))
_IN_QUERY = (b"X-Amz-Algorithm=", b"AWSAccessKeyId=")


def is_aws(headers: Mapping[bytes, bytes], query: bytes) -> bool:
    """Whether a request is for this front: it is signed as AWS's are, or bears a header that AWS's SDKs send and no
    page can make a browser send. ``headers``: lower-case names."""
    return (
        headers.get(b"authorization", b"").startswith(_SIGNED)
        or not _MARKS.isdisjoint(headers)
        or any(mark in query for mark in _IN_QUERY)
    )


class Entry:
    """An ASGI application before ``otherwise``."""

    def __init__(self, ctx: Context, otherwise: ASGIApp) -> None:
        self._ctx = ctx
        self._otherwise = otherwise
        self._front: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not is_aws(dict(scope["headers"]), scope["query_string"]):
            await self._otherwise(scope, receive, send)
            return
        if self._front is None:
            self._front = await anyio.to_thread.run_sync(self._load)
        await self._front(scope, receive, send)

    def _load(self) -> ASGIApp:
        from loopline.fronts.aws.app import Front

        return Front(self._ctx)
