"""Heads of invocations that were read before: the same bytes get the same verdict without being read again.

A client that keeps its connection repeats the head of its requests byte for byte. A head is kept once the strict
parser has accepted exactly these bytes, from the beginning of a message to the end of its head, and only where nothing
but the body is left to be read: an invocation that a key may make, framed by its Content-Length, on a connection that
goes on. What is kept belongs to one routing table and is forgotten with it; whether the key has expired since is asked
each time. Heads that differ in each request (an inference id) are read by the parser each time and never kept.
"""

import httptools

from loopline.errors import LooplineError
from loopline.gateway.head import MAX_HEAD_BYTES, MAX_HEADERS, Head
from loopline.gateway.routing import Endpoint, Key, Table

MAX_HEADS = 1024
MAX_KEPT_BYTES = min(2048, MAX_HEAD_BYTES)
MAX_SEEN = 8192
EMPTY_LINE = b"\r\n\r\n"


class KnownHead:
    """What one head came to: the endpoint, the key (None where the endpoint wants none), and the length of the body."""

    __slots__ = ("cache", "endpoint", "expires_at", "head", "key", "length", "raw", "size")

    def __init__(self, cache: "HeadCache", raw: bytes, head: Head, endpoint: Endpoint, key: Key | None) -> None:
        self.cache = cache
        self.raw = raw
        self.size = len(raw)
        self.head = head
        self.endpoint = endpoint
        self.key = key
        self.length = head.length
        self.expires_at = float("inf") if key is None or key.expires_at is None else key.expires_at


class HeadCache:
    """The known heads of one table. ``exposed``: other machines reach the gateway, so every request needs a key."""

    def __init__(self, table: Table, exposed: bool) -> None:
        self._exposed = exposed
        self._known: dict[bytes, KnownHead] = {}
        self._table = table
        self._seen: set[int] = set()

    def find(self, data: bytes, at: int) -> KnownHead | None:
        """The known head that ``data`` has at ``at``, where a message begins."""
        end = data.find(EMPTY_LINE, at, at + MAX_KEPT_BYTES) + len(EMPTY_LINE)
        if end < len(EMPTY_LINE):
            return None
        raw = data[at:end]
        return self._known.get(raw) or self._learn(raw)

    def _learn(self, raw: bytes) -> KnownHead | None:
        """Consider the bytes from the beginning of a message to the first empty line, and keep them when they were
        seen before."""
        if not raw.startswith(b"POST /endpoints/"):
            return None
        sighting = hash(raw)
        if sighting not in self._seen:
            if len(self._seen) >= MAX_SEEN:
                self._seen.clear()
            self._seen.add(sighting)
            return None
        try:
            found = self._judge(raw)
        except (LooplineError, httptools.HttpParserError, httptools.HttpParserUpgrade):
            return None
        if found is not None:
            if len(self._known) >= MAX_HEADS:
                del self._known[next(iter(self._known))]
            self._known[raw] = found
        return found

    def _judge(self, raw: bytes) -> KnownHead | None:
        """Read the head as a connection does. Raises what the parser, the head and the table raise."""
        reader = _Reader()
        parser = httptools.HttpRequestParser(reader)
        parser.feed_data(raw[:-1])
        if reader.complete:
            return None
        parser.feed_data(raw[-1:])
        if not reader.complete or parser.should_upgrade() or not parser.should_keep_alive():
            return None
        if len(reader.headers) > MAX_HEADERS:
            return None
        head = Head(parser.get_method(), reader.url, parser.get_http_version(), reader.headers)
        name = head.invokes()
        endpoint = self._table.endpoints.get(name) if name is not None else None
        if endpoint is None or head.chunked or head.expects or head.old or head.join is not None or head.signed:
            return None
        head.check_host(self._table.hosts)
        if head.length > endpoint.max_body_bytes or (self._exposed and not endpoint.spec.auth):
            return None
        key = self._table.authorise(head.credential, endpoint.name) if endpoint.spec.auth else None
        return KnownHead(self, raw, head, endpoint, key)


class _Reader:
    """httptools' callbacks for one head."""

    def __init__(self) -> None:
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.complete = False

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self.complete = True
