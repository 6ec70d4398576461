"""The framing between a gateway and a model server: ``u32 length of the rest | u64 id | u8 kind | payload``.

Big-endian. A predict request's payload is ``u16 length | content type | u8 length | request id | body``; an answer's is
``u16 HTTP status | u16 length | content type | body``; a ping and its answer carry none. The request id is what the
caller was told, so that what predict code prints can be found by it. ``loopline.runtime.frames`` states the same
contract for the model server, which may import nothing of this package; a test holds the two together.
"""

import struct
from typing import NamedTuple

from loopline.errors import Corrupt

HEAD = struct.Struct(">IQB")
TEXT = struct.Struct(">H")
SHORT = struct.Struct(">B")
ANSWER = struct.Struct(">HH")
PREDICT = 1
PING = 2
MAX_FRAME_BYTES = 64 * 1024 * 1024
_REST = HEAD.size - 4


class Frame(NamedTuple):
    """One frame: which request it belongs to, what it is, and its payload."""

    id: int
    kind: int
    payload: bytes


class FrameReader:
    """Cuts a byte stream into frames."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0
        self._need = 0

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that ``data`` completes. Raises ``Corrupt`` for one that is too long or too short."""
        if self._parts:
            self._parts.append(data)
            self._size += len(data)
            if self._size < self._need:
                return []
            data = b"".join(self._parts)
        frames: list[Frame] = []
        at, size, need = 0, len(data), HEAD.size
        while size - at >= HEAD.size:
            length, number, kind = HEAD.unpack_from(data, at)
            if not _REST <= length <= MAX_FRAME_BYTES:
                raise Corrupt(f"a frame of {length} bytes is not allowed")
            end = at + 4 + length
            if end > size:
                need = 4 + length
                break
            frames.append(Frame(number, kind, data[at + HEAD.size : end]))
            at = end
        self._parts, self._size, self._need = ([data[at:]] if at < size else []), size - at, need
        return frames


def encode_frame(number: int, kind: int, payload: bytes) -> bytes:
    """One frame."""
    return HEAD.pack(_REST + len(payload), number, kind) + payload


def encode_predict(number: int, content_type: bytes, request_id: bytes, body: bytes) -> bytes:
    """A predict request; a request id has at most 255 bytes."""
    head = b"%b%b%b%b" % (TEXT.pack(len(content_type)), content_type, SHORT.pack(len(request_id)), request_id)
    return encode_frame(number, PREDICT, head + body)


def decode_answer(payload: bytes) -> tuple[int, bytes, bytes]:
    """(HTTP status, content type, body) of an answer. Raises ``Corrupt`` when it is cut short."""
    if len(payload) < ANSWER.size:
        raise Corrupt("an answer frame without a status")
    status, length = ANSWER.unpack_from(payload)
    end = ANSWER.size + length
    if end > len(payload) or not 200 <= status <= 599:
        raise Corrupt("an answer frame that is cut short or has no HTTP status")
    return status, payload[ANSWER.size : end], payload[end:]
