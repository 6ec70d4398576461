"""Lines that predict code prints bear the time and the ids of the requests that were being predicted."""

import os
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopline.runtime import printed

LINE = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z \[([^\]]*)\] (.*)")


@pytest.fixture
def pipe(monkeypatch):
    """A tagged stream, and a function that gives the (ids, text) of each line written to it since the last call."""
    reading, writing = os.pipe2(os.O_NONBLOCK)
    stream = printed.Tagged(writing)
    monkeypatch.setattr(printed, "_streams", [stream])

    def lines():
        try:
            data = os.read(reading, 1 << 16)
        except BlockingIOError:
            return []
        assert data.endswith(b"\n")
        return [LINE.fullmatch(line).groups() for line in data[:-1].split(b"\n")]

    yield stream, lines
    printed.end()
    os.close(reading)
    os.close(writing)


def call(request_id: bytes) -> printed.Call:
    return b"application/json", request_id, b""


def test_a_line_bears_the_requests_of_its_batch(pipe):
    stream, lines = pipe
    stream.write(b"loading\n")
    printed.begin([call(b"one")])
    stream.write(b"first\nsecond\n")
    printed.end()
    printed.begin([call(b"a%d" % number) for number in range(5)])
    stream.write(b"many\n")
    printed.end()
    stream.write(b"after\n")
    assert lines() == [
        (b"-", b"loading"),
        (b"one", b"first"),
        (b"one", b"second"),
        (b"a0,a1,a2,+2", b"many"),
        (b"-", b"after"),
    ]


def test_a_part_of_a_line_waits_and_ends_with_its_batch(pipe):
    stream, lines = pipe
    printed.begin([call(b"one")])
    stream.write(b"begun")
    assert lines() == []
    stream.write(b" and done\nleft open")
    assert lines() == [(b"one", b"begun and done")]
    printed.end()
    assert lines() == [(b"one", b"left open")]


def test_a_line_without_an_end_is_cut_and_takes_no_more_memory(pipe):
    stream, lines = pipe
    stream.write(b"x" * (printed.MAX_LINE_BYTES - 1))
    assert lines() == []
    stream.write(b"xx")
    assert lines() == [(b"-", b"x" * printed.MAX_LINE_BYTES)]


@given(st.lists(st.binary(max_size=20), max_size=8))
def test_nothing_is_lost_however_it_is_written(parts):
    reading, writing = os.pipe()
    stream = printed.Tagged(writing)
    for part in parts:
        assert stream.write(part) == len(part)
    stream.write(b"\n")
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        written = file.read()
    texts = [re.fullmatch(rb"(?s)\S+ \[-\] (.*)", line)[1] for line in written[:-1].split(b"\n")]
    assert b"\n".join(texts) == b"".join(parts)


def test_a_log_that_takes_nothing_more_fails_no_prediction():
    reading, writing = os.pipe2(os.O_NONBLOCK)
    stream = printed.Tagged(writing)
    for _ in range(100):
        stream.write(b"x" * 5000 + b"\n")
    os.close(reading)
    stream.write(b"nobody reads\n")
    os.close(writing)
