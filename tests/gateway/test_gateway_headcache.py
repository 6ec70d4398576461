"""A head that is known by its bytes comes to what the strict parser makes of it: both ways run on the same streams."""

import hashlib
import itertools
import random
import re
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopline.domain.capture import encode_captured, iter_records
from loopline.gateway import headcache
from loopline.gateway.allowances import Allowances
from loopline.gateway.answers import RequestIds
from loopline.gateway.connection import Connection
from loopline.gateway.headcache import HeadCache
from loopline.gateway.limits import Limits
from loopline.gateway.routing import Table
from loopline.gateway.snapshot import EndpointSpec, KeySpec, Snapshot, VariantSpec

SECRET = "s" * 43
SHA = hashlib.sha256(SECRET.encode()).hexdigest()
SNAPSHOT = Snapshot(
    number=1,
    at=0.0,
    allowed_hosts=("localhost",),
    endpoints={
        "e": EndpointSpec(variants=(VariantSpec("v", 1.0, ("s",), 1, "m"),), max_body_bytes=100),
        "open": EndpointSpec(variants=(VariantSpec("v", 1.0, ("s",), 1, "m"),), auth=False),
    },
    keys={
        "abcdefgh": KeySpec(SHA, "invoker", ("*",)),
        "scoped00": KeySpec(SHA, "invoker", ("open",)),
        "soon0000": KeySpec(SHA, "invoker", ("*",), expires_at=4e9),
    },
)


class EchoLink:
    """A link whose server answers in the order that the test asks for."""

    connected = True
    congested = False

    def __init__(self):
        self.waiting = []

    def submit(self, waiting, content_type, request_id, body):
        self.waiting.append((waiting, content_type, bytes(body)))

    def answer(self):
        waiting, self.waiting = self.waiting, []
        for request, content_type, body in waiting:
            request.answered(200, b"application/json", b'"%b %d"' % (content_type, len(body)) + body.hex().encode())


class Pipe:
    """A transport that keeps what is written."""

    def __init__(self):
        self.written, self.closed = b"", False

    def write(self, data):
        assert not self.closed
        self.written += data

    def get_extra_info(self, _):
        return None

    def can_write_eof(self):
        return True

    def write_eof(self):
        self.closed = True

    close = abort = write_eof

    def is_closing(self):
        return self.closed

    def pause_reading(self):
        """Nothing to pause."""

    resume_reading = pause_reading


class Rig:
    """What connections need of a gateway, without an event loop."""

    def __init__(self, cached, folder=Path("/nonexistent")):
        self.link = EchoLink()
        limits = Limits(folder, 0, 1, time.perf_counter, lambda _seconds, _call: None)
        self.table = self.table_in_force = Table(SNAPSHOT, {"s": self.link}, limits, Allowances(folder))
        self.heads = HeadCache(self.table, exposed=False) if cached else None
        self.request_ids = RequestIds(random.Random(1))
        self.chance = random.Random(1).random
        self.now = itertools.count().__next__
        self.stopping = self.exposed = False
        self.connections = set()
        self.spool = self
        self.records = []
        self.control_socket = "nobody"

    def add(self, context, captured):
        self.records.append(encode_captured(context, [captured]))

    def spawn(self, work):
        work.close()  # what is for control is not answered here

    def unknown_endpoint(self, _head, _name, _request_id):
        return 404, b"{}", b""

    def run(self, pieces):
        """What a client gets for a stream: the bytes, without ids, whether it was closed, and the records."""
        connection, pipe = Connection(self), Pipe()
        connection.connection_made(pipe)
        self.records = []
        for piece in pieces:
            if not pipe.closed:
                connection.data_received(piece)
                self.link.answer()
        receiving, written, closed = connection._receiving, pipe.written, pipe.closed
        records = iter_records(b"".join(self.records))[0]
        told = [
            ({name: value for name, value in meta.items() if name not in ("id", "at", "latency_us")}, body, answer)
            for meta, body, answer in records
        ]
        connection.connection_lost(None)
        return re.sub(rb"rq_[0-9a-z]{20}", b"rq", written), closed, receiving, told


def message(extra="", body=b'{"x": 1}', key="abcdefgh", path="/endpoints/e/invocations", length=None, method="POST"):
    """One request that may be known: framed by its length."""
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nX-Api-Key: lk_{key}_{SECRET}\r\n{extra}"
    return f"{head}Content-Length: {len(body) if length is None else length}\r\n\r\n".encode() + body


MESSAGES = [
    message(),
    message(body=b'{"x": 2}'),
    message("Content-Type: text/csv\r\n", b"1,2"),
    message(body=b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"),
    message(body=b"\r\n\r\n" * 5),
    message(body=b""),
    message(body=b"x" * 101),
    message(length=101),
    message(path="/endpoints/open/invocations"),
    message(path="http://localhost/endpoints/e/invocations?a=b"),
    message(path="/endpoints/none/invocations"),
    message(path="/endpoints//invocations"),
    message(path="/endpoints/invocations"),
    message(path="/endpoints/e/ping", method="GET", body=b""),
    message(key="scoped00"),
    message(key="soon0000"),
    message(key="unknown0"),
    message("X-Loopline-Inference-Id: a\r\n"),
    message("X-Loopline-Timeout-Ms: 5000\r\n"),
    message("X-Loopline-Purpose: test\r\n"),
    message("Connection: close\r\n"),
    message("Connection: keep-alive\r\n"),
    message("Connection: Upgrade\r\nUpgrade: h2c\r\n"),
    message("Expect: 100-continue\r\n"),
    message("Host: localhost\r\n"),
    message("Content-Length: 8\r\n"),
    message("Transfer-Encoding: chunked\r\n"),
    message("X-A: b\r\n c\r\n"),
    message("X-A: a\0b\r\n"),
    message("X-A : b\r\n"),
    message("X-A: " + "b" * 3000 + "\r\n"),
    message("X-A: b\r\n" * 120),
    message("X-A: b\n"),
    message("\r\r\n"),
    message().replace(b"localhost", b"evil"),
    message().replace(b"HTTP/1.1", b"HTTP/1.0"),
    message().replace(b"HTTP/1.1", b"HTTP/1.2"),
    message().replace(b"\r\n", b"\n"),
    message().replace(b"Content-Length: 8\r\n", b""),
    message().replace(b"Length: 8", b"Length: +8"),
    message().replace(b"Length: 8", b"Length:\t8 "),
    message().replace(b"Content-Length: 8\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n8\r\n") + b"\r\n0\r\n\r\n",
    b"\r\n",
    b"\r\n\r\n" + message(),
    b"\n" + message(),
    b" " + message(),
    message()[:-3],
    message()[:40],
    b"GET / HTTP/1.1\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01",
]
STREAMS = st.lists(st.sampled_from(MESSAGES) | st.sampled_from(MESSAGES[:3]), min_size=1, max_size=8)


def both(pieces):
    """The two outcomes; everything that can be known is known from the beginning."""
    cached, strict = Rig(cached=True), Rig(cached=False)
    for raw in MESSAGES * 2:
        cached.run([raw])
    return cached.run(pieces), strict.run(pieces)


@settings(deadline=None, max_examples=150)
@given(STREAMS, st.data())
def test_the_same_bytes_come_to_the_same_verdict_however_they_are_cut(messages, data):
    stream = b"".join(messages)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    pieces = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    known, read = both([piece for piece in pieces if piece])
    assert known == read


@settings(deadline=None, max_examples=150)
@given(STREAMS, st.data())
def test_damaged_streams_come_to_the_same_verdict(messages, data):
    stream = bytearray(b"".join(messages))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(stream) - 1))
        stream[place] = data.draw(st.sampled_from([0, 9, 10, 13, 32, 43, 48, 58, 255]) | st.integers(0, 255))
    known, read = both([bytes(stream)])
    assert known == read


@pytest.mark.parametrize("first", range(len(MESSAGES)))
def test_what_came_before_changes_nothing(first):
    pieces = [MESSAGES[first], MESSAGES[0], MESSAGES[0] + MESSAGES[1]]
    known, read = both(pieces)
    assert known == read


@pytest.fixture
def looked(monkeypatch):
    """How many heads a parser has read."""
    count = [0]
    real = headcache.httptools.HttpRequestParser

    def counted(reader):
        count[0] += 1
        return real(reader)

    monkeypatch.setattr(headcache.httptools, "HttpRequestParser", counted)
    return count


def test_a_head_is_known_at_its_third_sighting_and_then_read_no_more(looked):
    rig = Rig(cached=True)
    assert rig.heads.find(message(), 0) is None
    assert looked == [0]
    known = rig.heads.find(message(), 0)
    assert (known.endpoint.name, known.key.meta, known.length) == ("e", b'"abcdefgh"', 8)
    for _ in range(3):
        assert rig.heads.find(message(body=b"anything"), 0) is known
    assert looked == [1]


REFUSED = [
    raw
    for raw in MESSAGES
    if re.match(rb"HTTP/1.1 [45]", Rig(cached=False).run([raw])[0])
    and not raw.startswith(message()[:60] + b"X-Api")  # those whose head is good
]


@pytest.mark.parametrize("raw", REFUSED)
def test_a_head_that_is_refused_is_never_kept(raw):
    rig = Rig(cached=True)
    if b"Content-Length: 101\r\n" in raw:
        return  # its body is what is wrong
    for _ in range(4):
        assert rig.heads.find(raw, 0) is None


def test_heads_that_differ_each_time_do_not_crowd_out_the_others():
    rig = Rig(cached=True)
    for _ in range(2):
        rig.heads.find(message(), 0)
    for number in range(3 * headcache.MAX_HEADS):
        assert rig.heads.find(message(f"X-A: {number}\r\n"), 0) is None
    assert rig.heads.find(message(), 0) is not None


def test_the_number_of_known_heads_is_bounded():
    rig = Rig(cached=True)
    for number in range(headcache.MAX_HEADS + 10):
        for _ in range(2):
            rig.heads.find(message(f"X-A: {number}\r\n"), 0)
    assert len(rig.heads._known) == headcache.MAX_HEADS


def test_a_key_that_has_expired_since_is_refused(monkeypatch):
    rig = Rig(cached=True)
    raw = message(key="soon0000")
    for _ in range(3):
        assert rig.run([raw])[0].startswith(b"HTTP/1.1 200 ")
    monkeypatch.setattr(time, "time", lambda: 4e9 + 1)
    assert rig.run([raw])[0].startswith(b"HTTP/1.1 401 ")


def test_a_new_table_forgets_what_was_known():
    rig = Rig(cached=True)
    for _ in range(3):
        assert rig.run([message()])[0].startswith(b"HTTP/1.1 200 ")
    other = Rig(cached=True)
    other.table = other.table_in_force = Table(
        Snapshot(2, 0.0, ("localhost",), SNAPSHOT.endpoints, {}),
        {"s": other.link},
        Limits(Path("/nonexistent"), 0, 1, time.perf_counter, lambda _seconds, _call: None),
        Allowances(Path("/nonexistent")),
    )
    connection, pipe = Connection(rig), Pipe()
    connection.connection_made(pipe)
    connection.data_received(message())
    rig.table = rig.table_in_force = other.table
    rig.heads = HeadCache(other.table, exposed=False)
    connection.data_received(message())
    rig.link.answer()
    assert re.findall(rb"HTTP/1.1 (\d+)", pipe.written) == [b"200", b"401"]
