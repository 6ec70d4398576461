"""The framing between a gateway and a model server: ``u32 length of the rest | u64 id | u8 kind | payload``.

Big-endian. A predict request's payload is ``u16 length | content type | u8 length | request id | body``; an answer's is
``u16 HTTP status | u16 length | content type | body``; a ping and its answer carry none. An answer to request 0, which
nobody asked, says that the server is about to end: the gateway sends it nothing more, and closes when the last answer
has come. A function asks an endpoint by a call, ``u8 length | endpoint | u16 length | content type | u32 ms | body``,
with a number of its own; the gateway's reply has that number, and the payload of an answer. To a model that
reads bodies by itself the content type is followed by a line ``name: value`` for each header that it is given;
its answer's content type by a line with what it tells the caller beside the answer.

Requests that leave together are one frame of kind 4, ``u16 length | content type | u16 count | u8 length of an id | ids
| u32 length of each body | bodies``: the frame's id is the first request's, the others follow it one by one. Answers
that leave together are one, too, to a gateway that has sent such a frame: ``u16 length | content type | u16 count | u64
request each | u16 status each | u32 length of each body | bodies``.
``loopline.domain.frames`` states the same contract for the gateway; a test holds the two together.
"""

import struct
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import NamedTuple

HEAD = struct.Struct(">IQB")
TEXT = struct.Struct(">H")
ANSWER = struct.Struct(">HH")
WAIT = struct.Struct(">I")
PREDICT = 1
PING = 2
CALL = 3
MANY = 4
LEAVING = 0  # the request whose answer says that the server is about to end
MAX_FRAME_BYTES = 64 * 1024 * 1024
MAX_TOGETHER = 1024  # requests in one frame
MAX_TOGETHER_BYTES = 1024 * 1024  # larger bodies are not copied once more to stand together
_COUNTS = struct.Struct(">HB")
_REST = HEAD.size - 4
_REPLY = struct.Struct(">IQBHH")
_tuple = tuple.__new__  # what a named tuple's own constructor does, at a third of its price


class Frame(NamedTuple):
    """One frame: which request it belongs to, what it is, and its payload."""

    id: int
    kind: int
    payload: bytes


class FrameError(ValueError):
    """The bytes are no frames: the connection has to be closed."""


class FrameReader:
    """Cuts a byte stream into frames."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0
        self._need = 0

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that ``data`` completes. Raises ``FrameError`` for one that is too long or too short."""
        if self._parts:
            self._parts.append(data)
            self._size += len(data)
            if self._size < self._need:
                return []
            data = b"".join(self._parts)
        frames: list[Frame] = []
        at, size, need = 0, len(data), HEAD.size
        unpack = HEAD.unpack_from
        while size - at >= HEAD.size:
            length, number, kind = unpack(data, at)
            if not _REST <= length <= MAX_FRAME_BYTES:
                raise FrameError(f"a frame of {length} bytes is not allowed")
            end = at + 4 + length
            if end > size:
                need = 4 + length
                break
            frames.append(_tuple(Frame, (number, kind, data[at + HEAD.size : end])))
            at = end
        self._parts, self._size, self._need = ([data[at:]] if at < size else []), size - at, need
        return frames


def encode_frame(number: int, kind: int, payload: bytes) -> bytes:
    """One frame."""
    return HEAD.pack(_REST + len(payload), number, kind) + payload


def encode_answer(number: int, status: int, content_type: bytes, body: bytes) -> bytes:
    """The answer to a predict request."""
    size = len(content_type)
    return b"%b%b%b" % (_REPLY.pack(_REST + 4 + size + len(body), number, PREDICT, status, size), content_type, body)


def encode_answers(
    content_type: bytes, numbers: Sequence[int], statuses: Sequence[int], bodies: Sequence[bytes]
) -> bytes:
    """The answers to predict requests, one frame where they fit into one."""
    lengths = list(map(len, bodies))
    size, count = sum(lengths), len(bodies)
    if count == 1 or size > MAX_TOGETHER_BYTES or count > MAX_TOGETHER:
        answers = zip(numbers, statuses, bodies, strict=True)
        return b"".join([encode_answer(number, status, content_type, body) for number, status, body in answers])
    packed = _answers_head(count).pack(*numbers, *statuses, *lengths)
    text = TEXT.pack(len(content_type)) + content_type + TEXT.pack(count)
    more = _REST + len(text) + len(packed) + size
    return b"".join((HEAD.pack(more, numbers[0], MANY), text, packed, *bodies))


@lru_cache(maxsize=MAX_TOGETHER)
def _lengths(count: int) -> struct.Struct:
    return struct.Struct(f">{count}I")


@lru_cache(maxsize=MAX_TOGETHER)
def _answers_head(count: int) -> struct.Struct:
    return struct.Struct(f">{count}Q{count}H{count}I")


def encode_call(number: int, endpoint: bytes, content_type: bytes, milliseconds: int, body: bytes) -> bytes:
    """A function's question to an endpoint, which waits for so long."""
    head = b"%c%b%b%b" % (len(endpoint), endpoint, TEXT.pack(len(content_type)), content_type)
    return encode_frame(number, CALL, head + WAIT.pack(milliseconds) + body)


def decode_reply(payload: bytes) -> tuple[int, bytes, bytes]:
    """(HTTP status, content type, body) of the reply to a call. Raises ``FrameError`` when it is cut short."""
    if len(payload) < ANSWER.size:
        raise FrameError("a reply without a status")
    status, size = ANSWER.unpack_from(payload)
    end = ANSWER.size + size
    return status, payload[ANSWER.size : end], payload[end:]


def decode_predict(payload: bytes) -> tuple[bytes, bytes, bytes]:
    """(content type, request id, body) of a predict request. Raises ``FrameError`` when it is cut short."""
    size = len(payload)
    if size < TEXT.size:
        raise FrameError("a predict frame without a content type")
    end = TEXT.size + TEXT.unpack_from(payload)[0]
    start = end + 1
    if start > size:
        raise FrameError("a predict frame that is cut short")
    after = start + payload[end]
    if after > size:
        raise FrameError("a predict frame that is cut short")
    return payload[TEXT.size : end], payload[start:after], payload[after:]


def decode_many(payload: bytes) -> list[tuple[bytes, bytes, bytes]]:
    """(content type, request id, body) of each request in a frame of several. Raises ``FrameError``."""
    try:
        end = TEXT.size + TEXT.unpack_from(payload)[0]
        count, each = _COUNTS.unpack_from(payload, end)
        if count > MAX_TOGETHER:
            raise FrameError(f"{count} requests in one frame; there may be {MAX_TOGETHER}")
        first = end + _COUNTS.size
        after = first + count * each
        lengths = _lengths(count).unpack_from(payload, after)
    except struct.error:
        raise FrameError("a predict frame that is cut short") from None
    begin = after + 4 * count
    if not count or begin + sum(lengths) != len(payload):
        raise FrameError("a predict frame whose parts do not add up")
    kind = payload[TEXT.size : end]
    ids = [payload[at : at + each] for at in range(first, after, each)] if each else [b""] * count
    bodies = [payload[start:stop] for start, stop in pairwise(accumulate(lengths, initial=begin))]
    return [(kind, id_, body) for id_, body in zip(ids, bodies, strict=True)]
