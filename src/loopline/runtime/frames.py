"""The framing between a gateway and a model server: ``u32 length of the rest | u64 id | u8 kind | payload``.

Big-endian. A predict request's payload is ``u16 length | content type | u8 length | request id | body``; an answer's is
``u16 HTTP status | u16 length | content type | body``; a ping and its answer carry none. An answer to request 0, which
nobody asked, says that the server is about to end: the gateway sends it nothing more, and closes when the last answer
has come. A function asks an endpoint by a call, ``u8 length | endpoint | u16 length | content type | u32 ms | body``,
with a number of its own; the gateway's reply has that number, and the payload of an answer. To a model that reads
bodies by itself the content type is followed by a line ``name: value`` for each header that it is given.
``loopline.domain.frames`` states the same contract for the gateway; a test holds the two together.
"""

import struct
from typing import NamedTuple

HEAD = struct.Struct(">IQB")
TEXT = struct.Struct(">H")
ANSWER = struct.Struct(">HH")
WAIT = struct.Struct(">I")
PREDICT = 1
PING = 2
CALL = 3
LEAVING = 0  # the request whose answer says that the server is about to end
MAX_FRAME_BYTES = 64 * 1024 * 1024
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
