"""Both statements of the frame contract, the gateway's and the model server's."""

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
    for name in ("PREDICT", "PING", "CALL", "MAX_FRAME_BYTES"):
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
    ((number, payload),) = reader.calls
    assert number == 7
    assert near.decode_call(payload) == (b"patients", b"application/json", 1500, b'{"x": 1}')
    reply = near.encode_reply(7, 404, b"application/json", b"{}")
    ((number, kind, payload),) = far.FrameReader().feed(reply)
    assert (number, kind) == (7, far.CALL)
    assert far.decode_reply(payload) == (404, b"application/json", b"{}")
    for cut in (b"", b"\x08pat", b"\x01e\x00\x10a", b"\x01e\x00\x01a\x00\x00"):
        with pytest.raises(Corrupt):
            near.decode_call(cut)
