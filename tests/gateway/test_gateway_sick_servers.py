"""What a model server does on its socket harms its own endpoint only."""

import contextlib
import json
import re
import socket
import threading
from pathlib import Path

import pytest

from loopline.runtime.frames import ANSWER, HEAD, MANY, PREDICT, FrameReader, decode_many, encode_answer

ECHO = "def load(d): pass\ndef predict(m, batch): return [row[0] for row in batch]"


class Sick:
    """A model server that does what ``behave(connection)`` does on every connection, in a thread."""

    def __init__(self, path, behave):
        self.path, self.behave = str(path), behave
        self.listening = socket.socket(socket.AF_UNIX)
        self.listening.bind(self.path)
        self.listening.listen(8)
        self.open = []
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        while True:
            try:
                connection, _ = self.listening.accept()
            except OSError:
                return
            self.open.append(connection)
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection):
        with contextlib.suppress(OSError):
            self.behave(connection)

    def close(self):
        for each in (self.listening, *self.open):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


def first_id(connection):
    """The number of the first request; the rest of what came is passed over."""
    data = connection.recv(1 << 20)
    if not data:
        raise ConnectionError("the gateway has gone")
    return HEAD.unpack_from(data)[1]


def answer_with(data):
    def behave(connection):
        first_id(connection)
        connection.sendall(data)
        connection.recv(1)

    return behave


def answer_in(make):
    """Answers the first request with the bytes that ``make(number)`` returns."""

    def behave(connection):
        connection.sendall(make(first_id(connection)))
        connection.recv(1)

    return behave


def answer_twice(connection):
    reader = FrameReader()
    while data := connection.recv(1 << 20):
        for number, kind, payload in reader.feed(data):
            for each in range(number, number + (len(decode_many(payload)) if kind == MANY else 1)):
                connection.sendall(encode_answer(each, 200, b"a/b", b"{}") * 2)


def frame(number, payload):
    return HEAD.pack(HEAD.size - 4 + len(payload), number, PREDICT) + payload


def never_read(connection):
    threading.Event().wait(3600)
    connection.close()


def flood(connection):
    answers = encode_answer(1 << 40, 200, b"application/json", b"{}") * 5000
    while True:
        connection.sendall(answers)


BEHAVIOUR = {
    "noise": (answer_with(b"\xff" * 100), {503}),
    "a frame without an end": (answer_with((1 << 20).to_bytes(4, "big") + b"\0" * 20), {504}),
    "a frame of no length": (answer_with(bytes(64)), {503}),
    "an HTTP answer": (answer_with(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"), {503}),
    "half an answer, and the end": (
        lambda connection: connection.sendall(frame(first_id(connection), b"\0\xc8")[:15]),
        {503},
    ),
    "a status of none": (answer_in(lambda number: frame(number, ANSWER.pack(99, 1) + b"a")), {503}),
    "a header in the content type": (
        answer_in(lambda number: encode_answer(number, 200, b"a/b\r\nset-cookie: c=d", b"{}")),
        {503},
    ),
    "an answer to somebody else": (answer_in(lambda number: encode_answer(number + 1000, 200, b"a/b", b"{}")), {504}),
    "the same answer twice": (answer_twice, {200}),
    "never reads": (never_read, {504, 429, 503}),
    "floods": (flood, {503, 504}),
    "ends at once": (lambda connection: connection.close(), {503}),
}


@pytest.fixture(params=BEHAVIOUR)
def beside(rig, make_variant, request):
    """A sick endpoint ``sick`` beside the good one ``e``; the statuses that the sick one may answer."""
    behave, statuses = BEHAVIOUR[request.param]
    sick = Sick(rig.run / "sick.sock", behave)
    rig.publish(make_variant("v1", rig.start_server("a", ECHO)), wait=False)
    document = json.loads((rig.folder / "snapshot.json").read_text())
    document["endpoints"]["sick"] = {
        **document["endpoints"]["e"],
        "variants": [make_variant("v1", sick.path)],
        "timeout_ms": 60_000 if statuses == {200} else 400,
    }
    rig.write_snapshot(json.dumps(document))
    rig.start_gateway()
    yield rig, statuses
    sick.close()


def test_a_sick_server_harms_its_own_endpoint_only(beside):
    rig, statuses = beside
    good, told = rig.client(), []
    big = b'{"x": 1' + b" " * 90_000 + b"}"
    asking = [threading.Thread(target=lambda: told.append(rig.ask(big, name="sick"))) for _ in range(8)]
    for thread in asking:
        thread.start()
    count = 0
    while any(thread.is_alive() for thread in asking) or count < 50:
        assert rig.ask({"x": count}, good)[:2] == (200, {"predictions": [count]})
        count += 1
    found = {status for status, _, _ in told}
    assert len(told) == 8
    assert found <= statuses | {503, 504}  # a server that has been taken out answers nothing
    assert all(answer.headers["x-request-id"].startswith("rq_") for _, _, answer in told)
    assert all("set-cookie" not in answer.headers for _, _, answer in told)
    assert (200 in found) == (200 in statuses)


def test_a_server_that_reads_nothing_fills_no_more_than_its_own_buffer(rig, make_variant, until):
    sick = Sick(rig.run / "sick.sock", never_read)
    rig.publish(make_variant("v1", sick.path), wait=False, timeout_ms=300, max_body_bytes=8_000_000)
    gateway = rig.start_gateway()
    client, body = rig.client(), b"x" * 7_000_000
    statuses = [rig.ask(body, client)[0] for _ in range(30)]
    assert set(statuses) <= {429, 503, 504}
    text = Path(f"/proc/{gateway.pid}/status").read_text()
    assert int(re.search(r"VmRSS:\s+(\d+) kB", text)[1]) < 600_000
    sick.close()
