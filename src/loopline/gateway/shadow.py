"""Shadows: variants that get copies of requests which others have answered. Nobody waits for them.

A copy is sent after the caller's answer has been handed to the connection, to a server that takes it at once, and at
most ``MAX_COPIES`` are under way; whatever stands in its way, the copy is dropped and only noted. What the shadow
answers goes to the spool under the request's id.
"""

import time
from typing import NamedTuple, Protocol

from loopline.domain.capture import Captured
from loopline.gateway.links import Link
from loopline.gateway.snapshot import EndpointSpec, VariantSpec

MAX_COPIES = 64  # of one shadow, in flight
MAX_SECONDS = 5.0
DROPPED, LATE, LOST = 429, 504, 503  # what is noted of a copy that has no answer


class Spool(Protocol):
    """Where records go."""

    def add(self, context: bytes, captured: Captured) -> None:
        """Keep one."""


class Original(NamedTuple):
    """The request that is copied. ``context``: what the copy's record says beside its own figures."""

    context: bytes
    request_id: bytes
    at: float
    content_type: bytes
    body: bytes


class Shadow:
    """One shadow of an endpoint: the links to its servers, and the share of requests that it gets."""

    def __init__(self, spec: VariantSpec, links: list[Link], meta: bytes, endpoint: EndpointSpec) -> None:
        self.name = spec.name
        self.share = spec.shadow
        self.whole = spec.whole
        self.meta = meta
        self.in_flight = 0
        self._links = links
        self._turn = 0
        self._seconds = min(endpoint.timeout_ms / 1000, MAX_SECONDS)

    def copy(self, original: Original, spool: Spool) -> None:
        """Send a copy, or note that it was dropped."""
        link = self._free_link()
        now = time.perf_counter()
        copy = Copy(self, original, spool, now, now + self._seconds)
        if link is None:
            copy.record(DROPPED, b"")
            return
        self.in_flight += 1
        link.submit(copy, original.content_type, original.request_id, original.body)

    def _free_link(self) -> Link | None:
        """A server that takes a copy at once."""
        if self.in_flight >= MAX_COPIES:
            return None
        for _ in self._links:
            self._turn = (self._turn + 1) % len(self._links)
            link = self._links[self._turn]
            if link.connected and not link.congested:
                return link
        return None


class Copy:
    """A copy that is under way; see ``links.Waiting``."""

    __slots__ = ("_original", "_shadow", "_spool", "_started", "deadline", "expired")

    def __init__(self, shadow: Shadow, original: Original, spool: Spool, started: float, deadline: float) -> None:
        self._shadow = shadow
        self._original = original
        self._spool = spool
        self._started = started
        self.deadline = deadline
        self.expired = False

    def answered(self, status: int, content_type: bytes, body: bytes) -> None:  # noqa: ARG002 - as links calls it
        """The shadow's answer."""
        self._shadow.in_flight -= 1
        if not self.expired:
            self.record(status, body)

    def lost(self) -> None:
        """The shadow's server died."""
        self._shadow.in_flight -= 1
        if not self.expired:
            self.record(LOST, b"")

    def expire_if_late(self, now: float) -> None:
        """Note a copy that takes too long; it stays under way until the server answers."""
        if not self.expired and now >= self.deadline:
            self.expired = True
            self.record(LATE, b"")

    def record(self, status: int, answer: bytes) -> None:
        """Write what became of it."""
        latency_us = int((time.perf_counter() - self._started) * 1e6)
        _, request_id, at, _, body = self._original
        kept = body if answer else b""
        context = self._original.context
        self._spool.add(context, (request_id, at, status, latency_us, kept, answer))
