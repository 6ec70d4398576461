"""Everything that is no invocation: streamed to control and back."""

import contextlib
import hashlib
import json
import os
import re
import socket
import threading
import time
from pathlib import Path

import pytest

MEGABYTE = 1 << 20


class Control:
    """A stand-in for control on its Unix socket: one scripted handler per connection, in a thread."""

    def __init__(self, path, handler):
        self.listening = socket.socket(socket.AF_UNIX)
        self.listening.bind(str(path))
        self.listening.listen(16)
        self.errors = []
        self.thread = threading.Thread(target=self.run, args=(handler,), daemon=True)
        self.thread.start()

    def run(self, handler):
        while True:
            try:
                connection, _ = self.listening.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(60)
                try:
                    handler(connection, *read_head(connection))
                except Exception as error:
                    self.errors.append(error)

    def close(self):
        self.listening.shutdown(socket.SHUT_RDWR)
        self.listening.close()
        self.thread.join(60)


def read_head(sock):
    """(head, what came after it)."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = sock.recv(65536)
        assert part, data
        data += part
    head, _, rest = data.partition(b"\r\n\r\n")
    return head.decode("latin-1"), rest


def read_exactly(sock, rest, count, digest=None):
    seen = len(rest)
    if digest:
        digest.update(rest)
    while seen < count:
        part = sock.recv(1 << 16)
        assert part
        seen += len(part)
        if digest:
            digest.update(part)
    return seen


@pytest.fixture
def control(shared_rig):
    made = []

    def make(handler):
        path = shared_rig.run / "control.sock"
        path.unlink(missing_ok=True)
        made.append(Control(path, handler))
        return made[-1]

    yield make
    for one in made:
        one.close()
        assert not one.errors
    (shared_rig.run / "control.sock").unlink(missing_ok=True)


def resident_bytes(pid):
    return int(re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) * 1024


def test_without_control_the_answer_is_503_and_invocations_go_on(shared_rig):
    client = shared_rig.client()
    client.request("GET", "/api/v1/models")
    answer = client.getresponse()
    document = json.loads(answer.read())
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert document["error"]["code"] == "unavailable"
    assert document["error"]["request_id"] == answer.headers["x-request-id"]
    assert shared_rig.ask({"x": 1}, client)[0] == 200  # on the same connection


def test_a_request_waits_while_control_is_started_again(shared_rig, control):
    client = shared_rig.client()
    client.request("POST", "/api/v1/models", body=b"x" * 100)
    assert shared_rig.ask({"x": 1})[0] == 200  # a later connection: the first one's request has come
    control(lambda sock, *_: sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"))
    answer = client.getresponse()
    assert (answer.status, answer.read()) == (200, b"ok")


def test_headers_travel_except_those_of_one_hop_and_those_of_trust(shared_rig, control):
    heads = []

    def handler(sock, head, rest):
        heads.append(head)
        if head.startswith("PUT"):
            read_exactly(sock, rest, 3)
        sock.sendall(
            b"HTTP/1.1 201 Made\r\nX-Kept: 1\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n"
            b"X-Hop: 1\r\nX-Request-Id: mine\r\n"
            b"Connection: close, X-Hop\r\nKeep-Alive: timeout=5\r\nContent-Length: 2\r\n\r\nok"
        )

    control(handler)
    client = shared_rig.client()
    client.putrequest("PUT", "/a%2Fb/../c?d=%20", skip_accept_encoding=True)
    for name, value in {
        "Authorization": "AWS4-HMAC-SHA256 Credential=x",
        "X-Loopline-Role": "admin",
        "x-loopline-client": "1.2.3.4",
        "X-Request-Id": "forged",
        "Connection": "keep-alive, X-Drop, Content-Length",
        "X-Drop": "1",
        "TE": "trailers",
        "Content-Length": "3",
    }.items():
        client.putheader(name, value)
    client.endheaders(b"abc")
    answer = client.getresponse()
    assert (answer.status, answer.reason, answer.read()) == (201, "Made", b"ok")
    lines = heads[0].split("\r\n")
    sent = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    assert lines[0] == "PUT /a%2Fb/../c?d=%20 HTTP/1.1"
    assert sent.keys() == {
        "host",
        "authorization",
        "content-length",
        "x-request-id",
        "x-loopline-client",
    }
    assert sent["host"] == shared_rig.address
    assert sent["x-loopline-client"].startswith("127.0.0.1:")
    assert answer.headers.get_all("set-cookie") == ["a=1", "b=2"]
    assert answer.headers.get_all("x-request-id") == [sent["x-request-id"]]
    assert "x-hop" not in answer.headers
    assert "keep-alive" not in answer.headers
    assert answer.headers["x-kept"] == "1"
    client.request("GET", "/again")
    assert client.getresponse().read() == b"ok"


def test_twenty_megabytes_travel_both_ways_in_little_memory(shared_rig, control):
    size = 20 * MEGABYTE
    body = os.urandom(MEGABYTE) * 20
    digests = []

    def handler(sock, head, rest):
        digest = hashlib.sha256()
        read_exactly(sock, rest, size, digest)
        digests.append(digest.hexdigest())
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        sock.sendall(body)

    control(handler)
    before = resident_bytes(shared_rig.processes["gateway"].pid)
    client = shared_rig.client()
    client.request("PUT", "/objects/a", body)
    answer = client.getresponse()
    found = hashlib.sha256()
    while part := answer.read(1 << 16):
        found.update(part)
    assert digests == [hashlib.sha256(body).hexdigest()] == [found.hexdigest()]
    assert resident_bytes(shared_rig.processes["gateway"].pid) - before < 6 * MEGABYTE


def test_a_side_that_does_not_read_makes_the_other_wait(shared_rig, control):
    go, sent = threading.Event(), []

    def handler(sock, head, rest):
        go.wait(60)
        read_exactly(sock, rest, 30 * MEGABYTE)
        sock.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")

    control(handler)
    with shared_rig.raw() as sock:
        sock.sendall(f"PUT /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: {30 * MEGABYTE}\r\n\r\n".encode())
        sock.settimeout(1.0)
        block, total = bytes(MEGABYTE), 0
        try:
            while total < 30 * MEGABYTE:
                total += sock.send(block[: min(MEGABYTE, 30 * MEGABYTE - total)])
        except TimeoutError:
            sent.append(total)
        assert sent, "everything was taken although nobody read"
        assert sent[0] < 15 * MEGABYTE
        go.set()
        sock.settimeout(60)
        while total < 30 * MEGABYTE:
            total += sock.send(block[: min(MEGABYTE, 30 * MEGABYTE - total)])
        assert sock.recv(1000).startswith(b"HTTP/1.1 204 No Content\r\n")


def test_a_client_that_does_not_read_makes_control_wait(shared_rig, control):
    sent = []

    def handler(sock, head, rest):
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (60 * MEGABYTE))
        sock.settimeout(1.0)
        block, total = bytes(MEGABYTE), 0
        try:
            while total < 60 * MEGABYTE:
                total += sock.send(block)
        except TimeoutError:
            sent.append(total)
        sock.settimeout(60)
        while total < 60 * MEGABYTE:
            total += sock.send(block[: min(MEGABYTE, 60 * MEGABYTE - total)])

    control(handler)
    before = resident_bytes(shared_rig.processes["gateway"].pid)
    with shared_rig.raw() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        sock.sendall(b"GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n")
        deadline = time.monotonic() + 60
        while not sent:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        _, rest = read_head(sock)
        assert read_exactly(sock, rest, 60 * MEGABYTE) == 60 * MEGABYTE
    assert sent[0] < 20 * MEGABYTE
    assert resident_bytes(shared_rig.processes["gateway"].pid) - before < 6 * MEGABYTE


def test_an_expectation_is_left_to_control(shared_rig, control):
    def handler(sock, head, rest):
        assert "expect: 100-continue" in head.lower()
        assert rest == b""
        sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        read_exactly(sock, b"", 5)
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone")

    control(handler)
    with shared_rig.raw() as sock:
        sock.sendall(b"PUT /x HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
        assert sock.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(b"hello")
        assert read_head(sock)[0].startswith("HTTP/1.1 200 OK")


def test_an_early_refusal_reaches_the_client_and_ends_the_connection(shared_rig, control):
    def handler(sock, head, rest):
        sock.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")

    control(handler)
    with shared_rig.raw() as sock:
        sock.sendall(b"PUT /x HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
        head, rest = read_head(sock)
        assert head.startswith("HTTP/1.1 403 ")
        assert rest + sock.recv(10) in (b"no", b"no")
        assert sock.recv(10) == b""


def test_an_answer_before_the_body_has_come_says_that_the_connection_ends(shared_rig, control):
    answered = threading.Event()

    def handler(sock, head, rest):
        assert "connection: close" not in head.lower()  # or control would close before the body has been written
        sock.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno")
        assert answered.wait(60)

    control(handler)
    with shared_rig.raw() as sock:
        sock.sendall(b"POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\n")
        head, _ = read_head(sock)
        answered.set()
        assert head.startswith("HTTP/1.1 404 ") and "connection: close" in head
        with contextlib.suppress(ConnectionError):  # the gateway waits for what is still to come, but not for long
            sock.sendall(b"hello")
            while sock.recv(100):
                pass


def test_chunks_stay_chunked_in_both_directions(shared_rig, control):
    bodies = []

    def handler(sock, head, rest):
        assert "transfer-encoding: chunked" in head.lower()
        assert "content-length" not in head.lower()
        while not rest.endswith(b"0\r\n\r\n"):
            rest += sock.recv(65536)
        bodies.append(rest)
        sock.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")

    control(handler)
    client = shared_rig.client()
    client.request("POST", "/x", iter([b"hello", b"world!"]), {"content-encoding": "aws-chunked"}, encode_chunked=True)
    answer = client.getresponse()
    assert answer.headers["transfer-encoding"] == "chunked"
    assert answer.read() == b"abcde"
    assert re.sub(rb"\r\n|[0-9a-f]+(?=\r\n)", b"", bodies[0]) == b"helloworld!"
    assert shared_rig.ask({"x": 1}, client)[0] == 200


def test_an_answer_that_ends_with_its_connection_is_whole(shared_rig, control):
    control(lambda sock, head, rest: sock.sendall(b"HTTP/1.1 200 OK\r\nX-A: 1\r\n\r\nuntil the end"))
    client = shared_rig.client()
    client.request("GET", "/x")
    assert client.getresponse().read() == b"until the end"
    with shared_rig.raw() as sock:
        sock.sendall(b"GET /x HTTP/1.0\r\nHost: localhost\r\n\r\n")
        head, rest = read_head(sock)
        while part := sock.recv(1000):
            rest += part
        assert rest == b"until the end"
        assert "chunked" not in head


def test_an_answer_streams_before_it_is_whole(shared_rig, control):
    go = threading.Event()

    def handler(sock, head, rest):
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n")
        assert go.wait(60)
        sock.sendall(b"data: 2\n\n")

    control(handler)
    client = shared_rig.client()
    client.request("GET", "/events")
    answer = client.getresponse()
    assert answer.read(9) == b"data: 1\n\n"
    go.set()
    assert answer.read() == b"data: 2\n\n"


@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_answers_without_a_body_end_at_the_head(shared_rig, control, method):
    status = b"200 OK\r\nContent-Length: 1000" if method == "HEAD" else b"304 Not Modified"
    control(lambda sock, head, rest: sock.sendall(b"HTTP/1.1 " + status + b"\r\n\r\n"))
    client = shared_rig.client()
    for _ in range(2):
        client.request(method, "/x")
        assert client.getresponse().read() == b""


def test_a_torn_answer_is_not_passed_off_as_whole(shared_rig, control):
    control(lambda sock, head, rest: sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"))
    with shared_rig.raw() as sock:
        sock.sendall(b"GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n")
        data = b""
        try:
            while part := sock.recv(1000):
                data += part
        except ConnectionResetError:
            pass
        assert len(data.partition(b"\r\n\r\n")[2]) <= 4


def test_control_that_ends_before_it_answers_is_502(shared_rig, control):
    control(lambda sock, head, rest: None)
    client = shared_rig.client()
    client.request("POST", "/x", b"abc")
    answer = client.getresponse()
    assert answer.status == 502
    assert json.loads(answer.read())["error"]["code"] == "unavailable"


def test_order_holds_between_proxied_requests_and_invocations(shared_rig, control):
    control(
        lambda sock, head, rest: sock.sendall(
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n" + head.split()[1].encode()
        )
    )
    with shared_rig.raw() as sock:
        get = b"GET /%d HTTP/1.1\r\nHost: localhost\r\n\r\n"
        ping = b"GET /endpoints/e/ping HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        sock.sendall(
            get % 1111 + shared_rig.request_bytes({"x": 2}) + get % 3333 + shared_rig.request_bytes({"x": 4}) + ping
        )
        data = b""
        while part := sock.recv(65536):
            data += part
    bodies = [part.partition(b"\r\n\r\n")[2] for part in data.split(b"HTTP/1.1 ")[1:]]
    assert bodies == [b"/1111", b'{"predictions":[2.0]}', b"/3333", b'{"predictions":[4.0]}', b'{"ready": true}']
