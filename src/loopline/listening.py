"""The public port before a gateway has it: bound, checked for whom it may face, and asked whether it answers.

Standard library only, because the supervisor is.
"""

import errno
import socket
import ssl
from pathlib import Path
from typing import Any

from loopline.config import Settings, check_exposure
from loopline.errors import Conflict, Forbidden, InvalidInput

BACKLOG = 1024
PORTS_TO_TRY = 100
ANSWER_SECONDS = 0.5


def check(settings: Settings) -> None:
    """Say at once what every gateway would stumble over."""
    check_exposure(settings, settings.host)
    if settings.tls_certificate:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(settings.tls_certificate, settings.tls_key)
        except (OSError, ssl.SSLError) as error:
            raise InvalidInput(
                f"tls_certificate {settings.tls_certificate} and tls_key {settings.tls_key}: {error}"
            ) from None


def bind(host: str, port: int) -> socket.socket:
    """The public port, listening. Errors name the setting, and the next free port when this one is taken."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise InvalidInput(f"host {host!r} is no address of this machine: {error.strerror}") from None
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            free = _next_free(host, port)
            hint = f"; port {free} is free: loopline up --port {free}" if free else ""
            raise Conflict(f"port {port} on {host} is in use{hint}", port=port, free_port=free) from None
        if error.errno == errno.EACCES:
            raise Forbidden(f"this user may not listen on port {port}; ports from 1024 are open to all") from None
        raise InvalidInput(f"cannot listen on {host}:{port}: {error.strerror}") from None
    listener.setblocking(False)
    return listener


def _next_free(host: str, port: int) -> int | None:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    for candidate in range(port + 1, min(port + 1 + PORTS_TO_TRY, 65536)):
        with socket.socket(family, kind, protocol) as attempt:
            attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                attempt.bind((address[0], candidate, *address[2:]))
                attempt.listen(1)
            except OSError:
                continue
            return candidate
    return None


class Probe:
    """Whether the tree serves: control's socket takes a connection, and a gateway has answered on the public port, or,
    where that speaks TLS, on its private socket, which it opens last."""

    def __init__(self, control: Path, address: tuple[Any, ...] | str, family: int) -> None:
        self.control, self.family = str(control), family
        self.address: tuple[Any, ...] | str = address
        self.gateway_answered = False
        self._open: socket.socket | None = None
        if isinstance(address, str):
            return
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address[0], address[0])  # noqa: S104 - compared, not bound
        self.address = (host, *address[1:])

    def look(self) -> bool:
        """One look, which never waits."""
        if not self.gateway_answered:
            self.gateway_answered = self._gateway()
        return self.gateway_answered and self._control()

    def close(self) -> None:
        if self._open:
            self._open.close()
            self._open = None

    def _control(self) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as attempt:
            attempt.setblocking(False)
            return attempt.connect_ex(self.control) == 0

    def _gateway(self) -> bool:
        try:
            if self._open is None:
                # The kernel completes this connection whether or not a gateway is there yet.
                self._open = socket.socket(self.family, socket.SOCK_STREAM)
                self._open.settimeout(ANSWER_SECONDS)
                self._open.connect(self.address)
                self._open.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                self._open.setblocking(False)
            if self._open.recv(64):
                self.close()
                return True
        except BlockingIOError:
            return False
        except OSError:
            pass
        self.close()  # that gateway died before it answered: ask the next
        return False
