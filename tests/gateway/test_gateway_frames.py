"""Both statements of the frame contract, the gateway's and the model server's."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopline.domain import frames as near
from loopline.errors import Corrupt
from loopline.runtime import frames as far

IDS = st.integers(0, 2**64 - 1)
TYPES = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=300).map(str.encode)


def pieces(stream, data):
    """The stream in the pieces of a few drawn cuts."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    return [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]


def test_the_constants_agree():
    for name in ("PREDICT", "PING", "CALL", "MANY", "MAX_FRAME_BYTES", "MAX_TOGETHER", "MAX_TOGETHER_BYTES"):
        assert getattr(near, name) == getattr(far, name)
    for name in ("HEAD", "TEXT", "ANSWER"):
        assert getattr(near, name).format == getattr(far, name).format


@given(
    st.lists(st.tuples(IDS, st.binary(max_size=300), st.binary(max_size=255), st.binary(max_size=3000)), max_size=4),
    st.data(),
)
def test_requests_survive_any_cut_of_the_stream(requests, data):
    stream = b"".join(part for request in requests for part in near.predict_parts(*request))
    reader = far.FrameReader()
    found = []
    for piece in pieces(stream, data):
        found += reader.feed(piece)
    assert [(frame.id, *far.decode_predict(frame.payload)) for frame in found] == requests
    assert {frame.kind for frame in found} <= {near.PREDICT}


@given(
    st.lists(st.tuples(IDS, st.integers(200, 599), TYPES, st.binary(max_size=3000)), max_size=4),
    st.sets(st.integers(0, 3)),
    st.data(),
)
def test_answers_survive_any_cut_of_the_stream_and_answers_to_pings_are_passed_over(answers, pinged, data):
    frames = [far.encode_answer(*answer) for answer in answers]
    stream = b"".join(
        (far.encode_frame(7, far.PING, b"") if place in pinged else b"") + frame for place, frame in enumerate(frames)
    )
    reader = near.AnswerReader()
    found = []
    for piece in pieces(stream, data):
        found += reader.feed(piece)
    assert found == answers


def read_all(frames):
    """(number, content type, request id, body) of the requests in these frames, as a model server takes them."""
    found = []
    for frame in frames:
        calls = far.decode_many(frame.payload) if frame.kind == far.MANY else [far.decode_predict(frame.payload)]
        found += [(frame.id + place, *call) for place, call in enumerate(calls)]
    return found


@given(
    st.integers(0, 2**60),
    TYPES,
    st.lists(st.tuples(st.sampled_from([b"rq_1", b"rq_2", b"long"]), st.binary(max_size=300)), min_size=1, max_size=9),
    st.data(),
)
def test_requests_that_leave_together_are_one_frame_and_survive_any_cut(first, content_type, requests, data):
    ids, bodies = [each for each, _ in requests], [body for _, body in requests]
    stream = b"".join(near.predict_frames(first, content_type, ids, bodies))
    reader = far.FrameReader()
    found = [frame for piece in pieces(stream, data) for frame in reader.feed(piece)]
    assert len(found) == 1
    assert read_all(found) == [(first + place, content_type, *request) for place, request in enumerate(requests)]


@pytest.mark.parametrize(
    ("ids", "bodies", "frames"),
    [
        ([b"a", b"bc"], [b"1", b"2"], 2),
        ([b"a", b"b"], [b"x" * near.MAX_TOGETHER_BYTES, b"y"], 2),
        ([b""] * 3, [b"1", b"2", b"3"], 1),
        ([b"a"] * near.MAX_TOGETHER, [b"1"] * near.MAX_TOGETHER, 1),
        ([b"a"] * (near.MAX_TOGETHER + 1), [b"1"] * (near.MAX_TOGETHER + 1), near.MAX_TOGETHER + 1),
    ],
    ids=["ids of two lengths", "a large body", "no ids", "as many as may be", "one more"],
)
def test_requests_that_do_not_fit_together_leave_one_by_one(ids, bodies, frames):
    stream = b"".join(near.predict_frames(5, b"a/b", ids, bodies))
    found = far.FrameReader().feed(stream)
    assert len(found) == frames
    together = list(zip(range(5, 5 + len(ids)), [b"a/b"] * len(ids), ids, bodies, strict=True))
    assert read_all(found) == together


@given(
    st.lists(st.tuples(IDS, st.integers(200, 599), st.binary(max_size=300)), min_size=1, max_size=9), TYPES, st.data()
)
def test_answers_that_leave_together_survive_any_cut(answers, content_type, data):
    stream = far.encode_answers(content_type, *(list(column) for column in zip(*answers, strict=True)))
    reader = near.AnswerReader()
    found = [answer for piece in pieces(stream, data) for answer in reader.feed(piece)]
    assert found == [(number, status, content_type, body) for number, status, body in answers]


@pytest.mark.parametrize("sizes", [[near.MAX_TOGETHER_BYTES, 1], [1] * (near.MAX_TOGETHER + 1)], ids=["large", "many"])
def test_answers_that_do_not_fit_together_leave_one_by_one(sizes):
    answers = [(number, 200, bytes(size)) for number, size in enumerate(sizes)]
    stream = far.encode_answers(b"a/b", *(list(column) for column in zip(*answers, strict=True)))
    assert [frame.kind for frame in far.FrameReader().feed(stream)] == [far.PREDICT] * len(sizes)
    assert near.AnswerReader().feed(stream) == [(number, 200, b"a/b", body) for number, _, body in answers]


@given(st.data())
def test_a_damaged_frame_of_several_is_refused_or_read_whole(data):
    requests = b"".join(near.predict_frames(1, b"a/b", [b"id1", b"id2"], [b"12", b"345"]))[near.HEAD.size :]
    answers = far.encode_answers(b"a/b", [1, 2], [200, 404], [b"12", b"345"])[near.HEAD.size :]
    for whole in (requests, answers):
        at = data.draw(st.integers(0, len(whole) - 1))
        damaged = whole[:at] + data.draw(st.sampled_from([b"", b"\x00", b"\xff", b"\x01\x02"])) + whole[at + 1 :]
        with contextlib.suppress(far.FrameError):
            assert sum(len(body) for _, _, body in far.decode_many(damaged)) <= len(damaged)
        with contextlib.suppress(Corrupt):
            found = near.AnswerReader().feed(near.HEAD.pack(9 + len(damaged), 1, near.MANY) + damaged)
            assert all(200 <= status <= 599 for _, status, _, _ in found)


@given(st.binary(max_size=200), st.data())
def test_garbage_is_refused_or_waited_for_and_never_anything_else(garbage, data):
    reader = near.AnswerReader()
    try:
        for piece in pieces(garbage, data):
            for _, status, content_type, _ in reader.feed(piece):
                assert 200 <= status <= 599
                assert b"\r" not in content_type
                assert b"\n" not in content_type
    except Corrupt:
        pass


@pytest.mark.parametrize(
    ("reader", "error"), [(near.AnswerReader, Corrupt), (far.FrameReader, far.FrameError)], ids=["near", "far"]
)
@pytest.mark.parametrize("length", [0, 8, 64 * 1024 * 1024 + 1, 2**32 - 1])
def test_a_frame_of_a_forbidden_length_is_refused(reader, error, length):
    with pytest.raises(error):
        reader().feed(length.to_bytes(4, "big") + bytes(9))


@pytest.mark.parametrize("payload", [b"", b"\x00", b"\x00\x05abc", b"\x00\x01a", b"\x00\x01a\x04abc"])
def test_a_cut_payload_is_refused(payload):
    with pytest.raises(far.FrameError):
        far.decode_predict(payload)


ANSWERS = {
    "nothing": b"",
    "half a status": b"\x00",
    "no status": b"\x00\x01\x00\x01a",
    "a status below 200": b"\x00\x64\x00\x01a",
    "a status above 599": b"\x02\x58\x00\x01a",
    "a type longer than the frame": b"\x00\xc8\x00\x05abc",
    "no type": b"\x00\xc8\x00\x00body",
    "a header behind the type": b"\x00\xc8\x00\x0aa\r\nx-b: cd",
    "a type that is no text": b"\x00\xc8\x00\x02\xff\x00",
    "a type of blanks": b"\x00\xc8\x00\x02  ",
}


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_that_is_none_is_refused(name):
    frame = near.HEAD.pack(9 + len(ANSWERS[name]), 1, near.PREDICT) + ANSWERS[name]
    with pytest.raises(Corrupt):
        near.AnswerReader().feed(frame + bytes(8))


def test_a_functions_call_and_its_reply_are_the_same_to_both_sides():
    sent = far.encode_call(7, b"patients", b"application/json", 1500, b'{"x": 1}')
    reader = near.AnswerReader()
    assert reader.feed(sent[:9]) == [] and reader.feed(sent[9:]) == []
    ((number, payload, _),) = reader.calls
    assert number == 7
    assert near.decode_call(payload) == (b"patients", b"application/json", 1500, b'{"x": 1}')
    reply = near.encode_reply(7, 404, b"application/json", b"{}")
    ((number, kind, payload),) = far.FrameReader().feed(reply)
    assert (number, kind) == (7, far.CALL)
    assert far.decode_reply(payload) == (404, b"application/json", b"{}")
    for cut in (b"", b"\x08pat", b"\x01e\x00\x10a", b"\x01e\x00\x01a\x00\x00"):
        with pytest.raises(Corrupt):
            near.decode_call(cut)


def test_a_line_beside_the_content_type_is_one_line_of_print_and_no_more():
    told = far.encode_answer(7, 200, b"text/csv\ntrace=7; b", b"1,2")
    assert near.AnswerReader().feed(told) == [(7, 200, b"text/csv\ntrace=7; b", b"1,2")]
    for bad in (
        b"text/csv\na\nb",
        b"text/csv\n",
        b"text/csv\r\nx-header: 1",
        b"\ntext/csv",
        b"text/csv\n a",
        b"a\n\x00",
    ):
        with pytest.raises(Corrupt):
            near.AnswerReader().feed(far.encode_answer(7, 200, bad, b""))
