"""Both statements of the frame contract, the gateway's and the model server's."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopline.domain import frames as near
from loopline.errors import Corrupt
from loopline.runtime import frames as far

IDS = st.integers(0, 2**64 - 1)


def test_the_constants_agree():
    for name in ("PREDICT", "PING", "MAX_FRAME_BYTES"):
        assert getattr(near, name) == getattr(far, name)
    for name in ("HEAD", "TEXT", "ANSWER"):
        assert getattr(near, name).format == getattr(far, name).format


@given(
    st.lists(st.tuples(IDS, st.binary(max_size=300), st.binary(max_size=255), st.binary(max_size=3000)), max_size=4),
    st.data(),
)
def test_requests_survive_any_cut_of_the_stream(requests, data):
    stream = b"".join(near.encode_predict(*request) for request in requests)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    reader = far.FrameReader()
    found = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += reader.feed(stream[start:end])
    assert [(frame.id, *far.decode_predict(frame.payload)) for frame in found] == requests
    assert {frame.kind for frame in found} <= {near.PREDICT}


@given(IDS, st.integers(200, 599), st.binary(max_size=300), st.binary(max_size=3000))
def test_answers_survive(number, status, content_type, body):
    (frame,) = near.FrameReader().feed(far.encode_answer(number, status, content_type, body))
    assert (frame.id, *near.decode_answer(frame.payload)) == (number, status, content_type, body)


@pytest.mark.parametrize(("module", "error"), [(near, Corrupt), (far, far.FrameError)])
@pytest.mark.parametrize("length", [0, 8, 64 * 1024 * 1024 + 1, 2**32 - 1])
def test_a_frame_of_a_forbidden_length_is_refused(module, error, length):
    with pytest.raises(error):
        module.FrameReader().feed(length.to_bytes(4, "big") + bytes(9))


@pytest.mark.parametrize("payload", [b"", b"\x00", b"\x00\x05abc", b"\x00\x01a", b"\x00\x01a\x04abc"])
def test_a_cut_payload_is_refused(payload):
    with pytest.raises(far.FrameError):
        far.decode_predict(payload)
    with pytest.raises(Corrupt):
        near.decode_answer(payload)
