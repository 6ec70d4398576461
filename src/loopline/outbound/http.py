"""One HTTP POST to the outside: to a checked address, without redirects or proxies, within a deadline."""

import http.client
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple
from urllib.parse import SplitResult, urlsplit

from loopline import __version__
from loopline.errors import InvalidInput, Timeout, Unavailable
from loopline.outbound.addresses import (
    Resolver,
    check_addresses,
    normalise_allowed,
    resolve,
    resolve_within,
)

MAX_ANSWER_BYTES = 64 * 1024
MAX_URL_CHARACTERS = 2048
_PORTS = {"http": 80, "https": 443}
_HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_HEADER_VALUE = re.compile(r"[\x20-\x7e\t]*")
_HOST = re.compile(r"[0-9a-z](?:[0-9a-z._-]{0,251}[0-9a-z])?|[0-9a-f:.]+")
_SET_BY_US = frozenset({"host", "content-length", "transfer-encoding", "connection", "user-agent"})


class Answer(NamedTuple):
    """What came back: the first ``MAX_ANSWER_BYTES`` of the body, headers with lower-case names, seconds it took."""

    status: int
    body: bytes
    seconds: float
    headers: dict[str, str]


class Target(NamedTuple):
    """A URL taken apart and checked. ``path`` holds the query too; nothing but ``place`` may be shown to anybody."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def place(self) -> str:
        """Scheme, host and port: what may stand in a log, since paths and queries of webhooks are credentials."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}" + ("" if self.port == _PORTS[self.scheme] else f":{self.port}")


def parse_url(url: str) -> Target:
    """The parts of an http(s) URL that may be sent to; raises ``InvalidInput`` without repeating its secrets."""
    if not isinstance(url, str) or not url.isascii() or not url.isprintable() or " " in url:
        raise InvalidInput("a URL must be printable ASCII without spaces")
    if len(url) > MAX_URL_CHARACTERS or "\\" in url:
        raise InvalidInput(f"a URL must have at most {MAX_URL_CHARACTERS} characters and no backslash")
    try:
        parts: SplitResult = urlsplit(url)
        port = parts.port
    except ValueError:
        raise InvalidInput("the URL's host or port cannot be read") from None
    if parts.scheme not in _PORTS:
        raise InvalidInput(f"a URL must begin with https:// or http://, not {parts.scheme or 'nothing'!r}")
    if parts.username is not None or parts.password is not None:
        raise InvalidInput("a URL must not contain a user name or password")
    host = (parts.hostname or "").rstrip(".").lower()
    if not _HOST.fullmatch(host) or port == 0:
        raise InvalidInput("the URL names no host that can be reached")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(parts.scheme, host, port or _PORTS[parts.scheme], path)


class _Request(NamedTuple):
    target: Target
    headers: Mapping[str, str]
    body: bytes


_Answered = tuple[int, bytes, dict[str, str]]


class Sender:
    """Sends POST requests. ``allow``: the administrator's host:port entries that may be private.

    ``resolver`` and ``tls`` are for tests: a name service of their own and a certificate authority of their own.
    """

    def __init__(
        self,
        allow: tuple[str, ...] = (),
        *,
        resolver: Resolver = resolve,
        tls: ssl.SSLContext | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._allowed = normalise_allowed(allow)
        self._resolver = resolver
        self._tls = tls
        self._clock = clock

    def post(self, url: str, headers: Mapping[str, str], body: bytes, timeout: float = 10.0) -> Answer:
        """POST ``body``; ``timeout`` in seconds bounds everything: name, connection, TLS, request and answer.

        The connection goes to an address that was checked (a name is resolved once), with the name in Host and in
        TLS. Raises ``InvalidInput`` for an address that must not be reached or a header that would inject, ``Timeout``
        at the deadline and ``Unavailable`` when there is no connection or no HTTP answer. Every status is an answer.
        """
        target = parse_url(url)
        _check_headers(headers)
        begun = self._clock()
        deadline = begun + timeout
        found = resolve_within(self._resolver, target.host, target.port, timeout)
        check_addresses(target.host, target.port, found, self._allowed)
        connection = self._connect(target, found, deadline)
        try:
            status, answer, answered = self._exchange(connection, _Request(target, headers, body), deadline)
            return Answer(status, answer, self._clock() - begun, answered)
        finally:
            connection.close()

    def _connect(self, target: Target, found: list[str], deadline: float) -> socket.socket:
        failure: OSError | None = None
        for address in found:
            left = deadline - self._clock()
            if left <= 0:
                break
            try:
                return socket.create_connection((address, target.port), timeout=left)
            except OSError as error:
                failure = error
        if failure is None or isinstance(failure, TimeoutError):
            raise Timeout(f"{target.place} took no connection before the deadline")
        raise Unavailable(f"{target.place} takes no connection: {failure.strerror or failure}")

    def _exchange(self, connection: socket.socket, request: _Request, deadline: float) -> _Answered:
        # A peer may send one byte before each read times out; only cutting the connection bounds the whole exchange.
        cut = threading.Event()
        guard = connection.dup()
        timer = threading.Timer(max(deadline - self._clock(), 0.0), _cut, (guard, cut))
        timer.daemon = True
        timer.start()
        try:
            return self._speak(connection, request, cut)
        except (OSError, http.client.HTTPException, ValueError) as error:
            if cut.is_set() or isinstance(error, TimeoutError):
                raise Timeout(f"{request.target.place} did not answer before the deadline") from None
            raise Unavailable(f"{request.target.place} gave no HTTP answer: {_describe(error)}") from None
        finally:
            timer.cancel()
            guard.close()

    def _speak(self, connection: socket.socket, request: _Request, cut: threading.Event) -> _Answered:
        target = request.target
        if target.scheme == "https":
            context = self._tls or ssl.create_default_context()
            connection = context.wrap_socket(connection, server_hostname=target.host)
        client = http.client.HTTPConnection(target.host, target.port)
        client.default_port = _PORTS[target.scheme]  # Host carries the port only where it is another one
        client.sock = connection
        try:
            sent = {"User-Agent": f"loopline/{__version__}", **request.headers, "Connection": "close"}
            client.request("POST", target.path, body=request.body, headers=sent)
            response = client.getresponse()
            if cut.is_set():  # half of the headers would look like all of them
                raise TimeoutError
            answer = response.read(MAX_ANSWER_BYTES)
            return response.status, answer, {name.lower(): value for name, value in response.getheaders()}
        finally:
            client.close()


def _cut(guard: socket.socket, cut: threading.Event) -> None:
    cut.set()
    try:
        guard.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # the exchange ended at the same moment


def _describe(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not valid: {error.verify_message}"
    return str(error) or type(error).__name__


def _check_headers(headers: Mapping[str, str]) -> None:
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(value):
            raise InvalidInput(f"the header {name[:60]!r} has characters that a header must not have")
        if name.lower() in _SET_BY_US:
            raise InvalidInput(f"the header {name!r} is set by loopline")
