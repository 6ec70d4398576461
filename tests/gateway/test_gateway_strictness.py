"""What the gateway refuses on a raw socket, and how long it waits."""

import random
import re
import socket
import time

import pytest

from loopline.domain import names
from loopline.gateway import connection as connection_module
from loopline.gateway.answers import RequestIds

PATH = "/endpoints/e/invocations"
SPLIT = b"POST / HTTP/1.1\r\nHost: evil\r\n\r\n"


def until_closed(sock):
    data = b""
    while part := sock.recv(65536):
        data += part
    return data


def case(rig, text):
    """The bytes of a case: HOST, KEY and PATH stand for themselves, a line feed for CRLF."""
    filled = text.replace("HOST", rig.address).replace("KEY", rig.key).replace("PATH", PATH)
    return re.sub(r"(?<!\r)\n", "\r\n", filled).encode("latin-1")


REFUSED = {
    "TE beside CL": (400, "POST PATH HTTP/1.1\nHost: HOST\nTransfer-Encoding: chunked\nContent-Length: 5\n\n0\n\n"),
    "CL beside TE": (400, "POST PATH HTTP/1.1\nHost: HOST\nContent-Length: 5\nTransfer-Encoding: chunked\n\n0\n\n"),
    "two lengths": (400, "POST PATH HTTP/1.1\nHost: HOST\nContent-Length: 5\nContent-Length: 6\n\nhello"),
    "two equal lengths": (400, "POST PATH HTTP/1.1\nHost: HOST\nContent-Length: 5\nContent-Length: 5\n\nhello"),
    "list of lengths": (400, "POST PATH HTTP/1.1\nHost: HOST\nContent-Length: 5, 5\n\nhello"),
    "signed length": (400, "POST PATH HTTP/1.1\nHost: HOST\nContent-Length: +5\n\nhello"),
    "negative length": (400, "POST PATH HTTP/1.1\nHost: HOST\nContent-Length: -5\n\nhello"),
    "huge length": (400, "POST PATH HTTP/1.1\nHost: HOST\nContent-Length: 99999999999999999999999\n\n"),
    "hexadecimal length": (400, "POST PATH HTTP/1.1\nHost: HOST\nContent-Length: 0x5\n\nhello"),
    "two numbers as a length": (400, "POST PATH HTTP/1.1\nHost: HOST\nContent-Length: 5 5\n\nhello"),
    "fractional length": (400, "POST PATH HTTP/1.1\nHost: HOST\nContent-Length: 5.0\n\nhello"),
    "no number as a length": (400, "POST PATH HTTP/1.1\nHost: HOST\nContent-Length: five\n\nhello"),
    "length with an underscore": (400, "POST PATH HTTP/1.1\nHost: HOST\nContent-Length: 1_0\n\nhellohello"),
    "folded length": (400, "POST PATH HTTP/1.1\nHost: HOST\nContent-Length: 5\n 5\n\nhello"),
    "TE beside CL, folded": (
        400,
        "POST PATH HTTP/1.1\nHost: HOST\nContent-Length: 5\nTransfer-Encoding:\n chunked\n\n0\n\n",
    ),
    "two TE": (
        400,
        "POST PATH HTTP/1.1\nHost: HOST\nTransfer-Encoding: chunked\nTransfer-Encoding: identity\n\n0\n\n",
    ),
    "two equal TE": (
        400,
        "POST PATH HTTP/1.1\nHost: HOST\nTransfer-Encoding: chunked\nTransfer-Encoding: chunked\n\n0\n\n",
    ),
    "TE twice in one": (400, "POST PATH HTTP/1.1\nHost: HOST\nTransfer-Encoding: chunked, chunked\n\n0\n\n"),
    "TE and identity": (400, "POST PATH HTTP/1.1\nHost: HOST\nTransfer-Encoding: chunked, identity\n\n0\n\n"),
    "TE with a vertical tab": (400, "POST PATH HTTP/1.1\nHost: HOST\nTransfer-Encoding: \x0bchunked\n\n0\n\n"),
    "TE in quotes": (400, 'POST PATH HTTP/1.1\nHost: HOST\nTransfer-Encoding: "chunked"\n\n0\n\n'),
    "TE with a parameter": (400, "POST PATH HTTP/1.1\nHost: HOST\nTransfer-Encoding: chunked;a=b\n\n0\n\n"),
    "TE with a space before the colon": (
        400,
        "POST PATH HTTP/1.1\nHost: HOST\nContent-Length: 5\nTransfer-Encoding : chunked\n\n0\n\n",
    ),
    "TE behind a NUL": (400, "POST PATH HTTP/1.1\nHost: HOST\nX-A: b\0\nTransfer-Encoding: chunked\n\n0\n\n"),
    "TE behind a bare CR": (
        400,
        "POST PATH HTTP/1.1\nHost: HOST\nX-A: b\rTransfer-Encoding: chunked\nContent-Length: 5\n\nhello",
    ),
    "no coding": (400, "POST PATH HTTP/1.1\nHost: HOST\nTransfer-Encoding: \nContent-Length: 5\n\nhello"),
    "a header without a colon": (400, "GET / HTTP/1.1\nHost: HOST\nX-A\n\n"),
    "a blank before the first header": (400, "GET / HTTP/1.1\n Host: HOST\n\n"),
    "a name that is no token": (400, "GET / HTTP/1.1\nHost: HOST\nX(A): b\n\n"),
    "a name beyond ASCII": (400, "GET / HTTP/1.1\nHost: HOST\nX-\xe9: b\n\n"),
    "a blank within a target": (400, "GET /a b HTTP/1.1\nHost: HOST\n\n"),
    "a control character in a target": (400, "GET /a\x01b HTTP/1.1\nHost: HOST\n\n"),
    "a NUL in a target": (400, "GET /a\0b HTTP/1.1\nHost: HOST\n\n"),
    "a target without a slash": (400, "GET a HTTP/1.1\nHost: HOST\n\n"),
    "a small protocol name": (400, "GET / http/1.1\nHost: HOST\n\n"),
    "no protocol": (505, "GET /\nHost: HOST\n\n"),
    "a version that does not exist": (400, "GET / HTTP/1.9\nHost: HOST\n\n"),
    "a method with a blank before it": (400, " GET / HTTP/1.1\nHost: HOST\n\n"),
    "an answer": (400, "HTTP/1.1 200 OK\nContent-Length: 0\n\n"),
    "the preface of HTTP/2": (400, "PRI * HTTP/2.0\n\nSM\n\n"),
    "folded header": (400, "GET / HTTP/1.1\nHost: HOST\nX-A: b\n c\n\n"),
    "folded with a tab": (400, "GET / HTTP/1.1\nHost: HOST\nX-A: b\n\tc\n\n"),
    "space before colon": (400, "GET / HTTP/1.1\nHost : HOST\n\n"),
    "nul in a value": (400, "GET / HTTP/1.1\nHost: HOST\nX-A: a\0b\n\n"),
    "bare CR": (400, "GET / HTTP/1.1\nHost: HOST\nX-A: a\rb\n\n"),
    "empty header name": (400, "GET / HTTP/1.1\nHost: HOST\n: a\n\n"),
    "bad chunk size": (
        400,
        "POST PATH HTTP/1.1\nHost: HOST\nX-Api-Key: KEY\nTransfer-Encoding: chunked\n\nzz\nab\n0\n\n",
    ),
    "chunk longer than said": (
        400,
        "POST PATH HTTP/1.1\nHost: HOST\nX-Api-Key: KEY\nTransfer-Encoding: chunked\n\n2\nabc\n0\n\n",
    ),
    "chunk size with a sign": (
        400,
        "POST PATH HTTP/1.1\nHost: HOST\nX-Api-Key: KEY\nTransfer-Encoding: chunked\n\n+2\nab\n0\n\n",
    ),
    "negative chunk size": (
        400,
        "POST PATH HTTP/1.1\nHost: HOST\nX-Api-Key: KEY\nTransfer-Encoding: chunked\n\n-2\nab\n0\n\n",
    ),
    "chunk size with 0x": (
        400,
        "POST PATH HTTP/1.1\nHost: HOST\nX-Api-Key: KEY\nTransfer-Encoding: chunked\n\n0x2\nab\n0\n\n",
    ),
    "absurd chunk size": (
        400,
        "POST PATH HTTP/1.1\nHost: HOST\nX-Api-Key: KEY\nTransfer-Encoding: chunked\n\nfffffffffffffffff\nab\n0\n\n",
    ),
    "chunk size of nothing": (
        400,
        "POST PATH HTTP/1.1\nHost: HOST\nX-Api-Key: KEY\nTransfer-Encoding: chunked\n\n\nab\n0\n\n",
    ),
    "blank before a chunk size": (
        400,
        "POST PATH HTTP/1.1\nHost: HOST\nX-Api-Key: KEY\nTransfer-Encoding: chunked\n\n 2\nab\n0\n\n",
    ),
    "bare CR in a chunk extension": (
        400,
        "POST PATH HTTP/1.1\nHost: HOST\nX-Api-Key: KEY\nTransfer-Encoding: chunked\n\n2;a\rb\nab\n0\n\n",
    ),
    "a chunk without its end": (
        400,
        "POST PATH HTTP/1.1\nHost: HOST\nX-Api-Key: KEY\nTransfer-Encoding: chunked\n\n2\nab0\n\n",
    ),
    "other coding": (400, "POST PATH HTTP/1.1\nHost: HOST\nTransfer-Encoding: gzip, chunked\n\n0\n\n"),
    "unknown coding": (400, "POST PATH HTTP/1.1\nHost: HOST\nTransfer-Encoding: xchunked\n\n0\n\n"),
    "TE in HTTP/1.0": (400, "POST PATH HTTP/1.0\nHost: HOST\nTransfer-Encoding: chunked\n\n0\n\n"),
    "no Host": (400, "GET / HTTP/1.1\n\n"),
    "no Host in HTTP/1.0": (400, "GET / HTTP/1.0\n\n"),
    "two Hosts": (400, "GET / HTTP/1.1\nHost: HOST\nHost: HOST\n\n"),
    "other Host": (421, "GET / HTTP/1.1\nHost: evil.example\n\n"),
    "Host with another port": (421, "GET / HTTP/1.1\nHost: 127.0.0.1:1\n\n"),
    "Host with a suffix": (421, "GET / HTTP/1.1\nHost: HOST.evil.example\n\n"),
    "empty Host": (421, "GET / HTTP/1.1\nHost: \n\n"),
    "other host on an endpoint": (421, "POST PATH HTTP/1.1\nHost: evil\nContent-Length: 0\n\n"),
    "absolute form to another host": (421, "GET http://evil.example/ HTTP/1.1\nHost: HOST\n\n"),
    "absolute form, both others": (421, "GET http://evil.example/ HTTP/1.1\nHost: evil.example\n\n"),
    "other scheme": (400, "GET ftp://HOST/ HTTP/1.1\nHost: HOST\n\n"),
    "absolute form to another port": (421, "GET http://127.0.0.1:1/ HTTP/1.1\nHost: HOST\n\n"),
    "absolute form with a user": (421, "GET http://evil@HOST/ HTTP/1.1\nHost: HOST\n\n"),
    "absolute form, secure, to another host": (421, "GET https://evil.example/ HTTP/1.1\nHost: HOST\n\n"),
    "no authority": (421, "GET http:///a HTTP/1.1\nHost: HOST\n\n"),
    "Host with a user": (421, "GET / HTTP/1.1\nHost: evil@HOST\n\n"),
    "Host list": (421, "GET / HTTP/1.1\nHost: HOST, evil.example\n\n"),
    "fragment": (400, "GET /a#b HTTP/1.1\nHost: HOST\n\n"),
    "CONNECT": (400, "CONNECT HOST HTTP/1.1\nHost: HOST\n\n"),
    "HTTP/2": (505, "GET / HTTP/2.0\nHost: HOST\n\n"),
    "HTTP/0.9": (505, "GET /\n\n"),
    "unknown method": (400, "BREW / HTTP/1.1\nHost: HOST\n\n"),
    "TLS": (400, "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
    "other expectation": (417, "POST PATH HTTP/1.1\nHost: HOST\nExpect: tea\nContent-Length: 1\n\n"),
    "100 headers and one": (431, "GET / HTTP/1.1\nHost: HOST\n" + "X-A: b\n" * 100 + "\n"),
    "one large header": (431, "GET / HTTP/1.1\nHost: HOST\nX-A: " + "b" * 33000 + "\n\n"),
    "a header without an end": (431, "GET / HTTP/1.1\nHost: HOST\nX-A: " + "b" * 3_000_000),
    "many middling headers": (431, "GET / HTTP/1.1\nHost: HOST\n" + f"X-A: {'b' * 1000}\n" * 40 + "\n"),
    "large target": (431, "GET /" + "a" * 33000 + " HTTP/1.1\nHost: HOST\n\n"),
    "many trailers": (
        431,
        "POST PATH HTTP/1.1\nHost: HOST\nX-Api-Key: KEY\nTransfer-Encoding: chunked\n\n0\n" + "X-A: b\n" * 200 + "\n",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_ambiguous_request_is_refused_and_nothing_after_it_is_read(shared_rig, name):
    status, text = REFUSED[name]
    with shared_rig.raw() as sock:
        try:
            sock.sendall(case(shared_rig, text) + shared_rig.request_bytes())
        except ConnectionError:
            assert len(text) > 100_000
        try:
            answer = until_closed(sock)
        except ConnectionResetError:
            assert len(text) > 100_000  # the answer may be lost where the client sends far more than is read
            answer = b"HTTP/1.1 %d \r\nconnection: close\r\n" % status
    assert answer.startswith(b"HTTP/1.1 %d " % status), answer[:300]
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"connection: close\r\n" in answer
    assert shared_rig.ask({"x": 1})[0] == 200


ACCEPTED = {
    "Host in capitals": 'POST PATH HTTP/1.1\nHOST: LOCALHOST\nX-Api-Key: KEY\nContent-Length: 8\n\n{"x": 1}',
    "absolute form": "POST http://localhostPATH HTTP/1.1\nHost: localhost\nX-Api-Key: KEY\n"
    'Content-Length: 8\n\n{"x": 1}',
    "query": 'POST PATH?a=b HTTP/1.1\nHost: localhost\nX-Api-Key: KEY\nContent-Length: 8\n\n{"x": 1}',
    "HTTP/1.0": 'POST PATH HTTP/1.0\nHost: localhost\nX-Api-Key: KEY\nContent-Length: 8\n\n{"x": 1}',
    "upgrade declined, chunked": "POST PATH HTTP/1.1\nHost: localhost\nX-Api-Key: KEY\n"
    "Connection: Upgrade\nUpgrade: h2c\n"
    'Transfer-Encoding: chunked\n\n8\n{"x": 1}\n0\n\n',
    "upgrade declined": "POST PATH HTTP/1.1\nHost: localhost\nX-Api-Key: KEY\nConnection: Upgrade\nUpgrade: h2c\n"
    'Content-Length: 8\n\n{"x": 1}',
    "close": 'POST PATH HTTP/1.1\nHost: localhost\nX-Api-Key: KEY\nConnection: close\nContent-Length: 8\n\n{"x": 1}',
    "100 headers": "POST PATH HTTP/1.1\nHost: localhost\nX-Api-Key: KEY\n"
    + "X-A: b\n" * 97
    + 'Content-Length: 8\n\n{"x": 1}',
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_an_unusual_but_clear_request_is_answered(shared_rig, name):
    with shared_rig.raw() as sock:
        text = ACCEPTED[name].replace("HOST:", "Host:").replace("LOCALHOST", "LocalHost")
        sock.sendall(case(shared_rig, text))
        sock.shutdown(socket.SHUT_WR)
        answer = until_closed(sock)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b'{"predictions":[1.0]}')


def test_a_request_may_come_byte_by_byte(shared_rig):
    with shared_rig.raw() as sock:
        for byte in shared_rig.request_bytes({"x": 9}):
            sock.sendall(bytes([byte]))
        assert sock.recv(1000).endswith(b'{"predictions":[9.0]}')


def test_the_body_of_a_declined_upgrade_is_never_read_as_a_request(shared_rig):
    inner = shared_rig.request_bytes({"x": 5})
    head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nX-Api-Key: {shared_rig.key}\r\nConnection: Upgrade\r\n"
    with shared_rig.raw() as sock:
        sock.sendall(f"{head}Upgrade: h2c\r\nContent-Length: {len(inner)}\r\n\r\n".encode())
        for byte in inner:
            sock.sendall(bytes([byte]))
        sock.sendall(shared_rig.request_bytes({"x": 6}))
        sock.shutdown(socket.SHUT_WR)
        answer = until_closed(sock)
    assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"400", b"200"]
    assert answer.endswith(b'{"predictions":[6.0]}')


BARE = {
    "every line": b"POST /endpoints/e/invocations HTTP/1.1\nHost: %b\nContent-Length: 2\n\n{}",
    "the request line": b"POST /endpoints/e/invocations HTTP/1.1\nHost: %b\r\nContent-Length: 2\r\n\r\n{}",
    "a header": b"POST /endpoints/e/invocations HTTP/1.1\r\nHost: %b\nContent-Length: 2\r\n\r\n{}",
    "the empty line": b"POST /endpoints/e/invocations HTTP/1.1\r\nHost: %b\r\nContent-Length: 2\r\n\n{}",
    "a chunk size": b"POST /a HTTP/1.1\r\nHost: %b\r\nTransfer-Encoding: chunked\r\n\r\n2\n{}\r\n0\r\n\r\n",
    "a chunk's end": b"POST /a HTTP/1.1\r\nHost: %b\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\n0\r\n\r\n",
}


@pytest.mark.parametrize("name", BARE)
def test_a_line_feed_alone_ends_no_line(shared_rig, name):
    with shared_rig.raw() as sock:
        sock.sendall(BARE[name] % shared_rig.address.encode() + SPLIT)
        answer = until_closed(sock)
    assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"400"]


def test_a_small_body_in_chunks_with_extensions_is_read(shared_rig):
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nX-Api-Key: {shared_rig.key}\r\nTransfer-Encoding: Chunked\r\n\r\n"
    )
    with shared_rig.raw() as sock:
        sock.sendall(head.encode() + b'4;a=b;c="d"\r\n{"x"\r\n0004\r\n: 1}\r\n0\r\nX-Trailer: a\r\n\r\n')
        assert sock.recv(1000).endswith(b'{"predictions":[1.0]}')


def test_earlier_answers_leave_before_the_refusal(shared_rig):
    with shared_rig.raw() as sock:
        sock.sendall(shared_rig.request_bytes({"x": 1}) * 3 + b"GET / HTTP/1.1\r\nBad Header\r\n\r\n")
        statuses = re.findall(rb"HTTP/1.1 (\d+)", until_closed(sock))
    assert statuses == [b"200", b"200", b"200", b"400"]


class Clock:
    """What a connection sees of its gateway while only time passes."""

    def __init__(self):
        self.time = 0.0
        self.connections = set()
        self.request_ids = RequestIds(random.Random(1))
        self.stopping = False
        self.table = None
        self.heads = None

    def now(self):
        return self.time


class Pipe:
    """A transport that keeps what is written."""

    def __init__(self):
        self.written = b""
        self.closed = False

    def write(self, data):
        self.written += data

    def get_extra_info(self, _):
        return None

    def can_write_eof(self):
        return True

    def write_eof(self):
        self.written += b"<eof>"

    def close(self):
        self.closed = True

    abort = close

    def is_closing(self):
        return self.closed


@pytest.fixture
def waiting():
    clock, pipe = Clock(), Pipe()
    connection = connection_module.Connection(clock)
    connection.connection_made(pipe)

    def pass_time(seconds):
        clock.time += seconds
        if connection.deadline < clock.time:
            connection.expire()

    return connection, pipe, pass_time


def test_a_silent_connection_is_closed_after_the_header_deadline(waiting):
    _, pipe, pass_time = waiting
    pass_time(9.9)
    assert not pipe.closed
    pass_time(0.2)
    assert pipe.closed
    assert pipe.written == b""


def test_a_head_that_trickles_in_gets_408_after_ten_seconds(waiting):
    connection, pipe, pass_time = waiting
    connection.data_received(b"GET / HTTP/1.1\r\n")
    for _ in range(9):
        pass_time(1.05)
        connection.data_received(b"X-A: b\r\n")
    assert pipe.written == b""
    pass_time(1.05)
    assert pipe.written.startswith(b"HTTP/1.1 408 ")
    pass_time(3)
    assert pipe.closed


def test_a_body_that_trickles_in_gets_408_after_sixty_seconds(waiting):
    connection, pipe, pass_time = waiting
    connection.data_received(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n")
    for _ in range(59):
        pass_time(1.01)
        connection.data_received(b"x")
    assert pipe.written == b""
    pass_time(1)
    assert pipe.written.startswith(b"HTTP/1.1 408 ")


def test_a_body_that_comes_quickly_enough_has_its_time(waiting, monkeypatch):
    monkeypatch.setattr(connection_module, "LEAST_BODY_RATE", 100)
    connection, pipe, pass_time = waiting
    connection.data_received(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 60000\r\n\r\n")
    for _ in range(300):
        pass_time(1.01)
        connection.data_received(b"x" * 101)
    assert pipe.written == b""
    pass_time(62)
    assert pipe.written.startswith(b"HTTP/1.1 408 ")


def test_an_idle_connection_is_closed_after_seventy_five_seconds(waiting):
    connection, pipe, pass_time = waiting
    connection.data_received(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert pipe.written.startswith(b"HTTP/1.1 503 ")  # no snapshot yet
    pass_time(74.9)
    assert not pipe.closed
    pass_time(0.2)
    assert pipe.closed


def test_request_ids_have_the_form_of_every_id_and_sort_by_time():
    ids = RequestIds(random.Random(3))
    before = time.time()
    made = []
    for _ in range(5):
        made.append(ids.new(time.time()).decode())
        time.sleep(0.002)
    assert made == sorted(made)
    assert len(set(made)) == 5
    assert all(before - 0.001 <= names.time_of_id(identifier) <= time.time() for identifier in made)
