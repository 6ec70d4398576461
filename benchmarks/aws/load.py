"""InvokeEndpoint as fast as it goes: requests that are signed once, sent over connections that stay open."""

import select
import socket
import time
from urllib.parse import urlsplit

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from servers import ENDPOINT, REGION, Server

BODY = b"[[1.0, 2.0, 3.0]]"
CHUNK_BYTES = 65536


def signed(server: Server) -> bytes:
    """The bytes of one InvokeEndpoint request; they are good for a quarter of an hour."""
    url = f"{server.url}/endpoints/{ENDPOINT}/invocations"
    headers = {"host": urlsplit(server.url).netloc, "content-type": "application/json", "accept": "application/json"}
    request = AWSRequest("POST", url, data=BODY, headers=headers)
    SigV4Auth(Credentials(server.key["id"], server.key["secret_key"]), "sagemaker", REGION).add_auth(request)
    lines = [f"POST /endpoints/{ENDPOINT}/invocations HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in request.headers.items()]
    lines.append(f"content-length: {len(BODY)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + BODY


class _Connection:
    """One request at a time; opened again where the server closes after each answer."""

    def __init__(self, server: Server, request: bytes) -> None:
        parts = urlsplit(server.url)
        self._address, self._request = (parts.hostname or "", parts.port or 80), request
        self._held = b""
        self._open()

    def _open(self) -> None:
        self.socket = socket.create_connection(self._address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self) -> None:
        self.socket.sendall(self._request)

    def take(self) -> bool:
        """Read what is there; True when an answer is whole. Raises ``RuntimeError`` for any but 200."""
        data = self.socket.recv(CHUNK_BYTES)
        if not data:
            raise RuntimeError("the server closed a connection within an answer")
        self._held += data
        head, found, body = self._held.partition(b"\r\n\r\n")
        if not found:
            return False
        lines = head.lower().split(b"\r\n")
        if b" 200 " not in lines[0] + b" ":
            raise RuntimeError(f"the answer is {lines[0].decode()}: {body[:200]!r}")
        size = next(int(line[15:]) for line in lines if line.startswith(b"content-length:"))
        if len(body) < size:
            return False
        self._held = b""
        if b"connection: close" in lines or lines[0].startswith(b"http/1.0"):
            self.socket.close()
            self._open()
        return True


def rate(server: Server, connections: int, seconds: float) -> float:
    """Answers a second over so many connections, each with one request on its way; the first tenth is not counted."""
    request = signed(server)
    known = {connection.socket.fileno(): connection for connection in _opened(server, request, connections)}
    poller = select.poll()
    for descriptor, connection in known.items():
        poller.register(descriptor, select.POLLIN)
        connection.send()
    began = time.perf_counter()
    counted, start = 0, began + seconds / 10
    while (now := time.perf_counter()) < began + seconds:
        for descriptor, _ in poller.poll(1000):
            connection = known[descriptor]
            if connection.take():
                counted += now >= start
                again = connection.socket.fileno()
                if again != descriptor or known.get(again) is not connection:
                    known[again] = known.pop(descriptor)
                poller.register(again, select.POLLIN)
                connection.send()
    for connection in known.values():
        connection.socket.close()
    return counted / (time.perf_counter() - start)


def _opened(server: Server, request: bytes, connections: int) -> list[_Connection]:
    return [_Connection(server, request) for _ in range(connections)]
