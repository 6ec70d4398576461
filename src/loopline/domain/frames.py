"""The framing between a gateway and a model server: ``u32 length of the rest | u64 id | u8 kind | payload``.

Big-endian. A predict request's payload is ``u16 length | content type | u8 length | request id | body``; an answer's is
``u16 HTTP status | u16 length | content type | body``; a ping and its answer carry none. The request id is what the
caller was told, so that what predict code prints can be found by it. An answer to request 0, which nobody asked, says
that the server is about to end: the gateway sends it nothing more, and closes when the last answer has come. A function
asks an endpoint by a call, ``u8 length | endpoint | u16 length | content type | u32 ms | body``, with a number of its
own; the gateway's reply has that number, and the payload of an answer. To a model that reads bodies by itself the
content type is followed by a line ``name: value`` for each header that it is given; its answer's content
type by a line with what it tells the caller beside the answer.

Requests that leave together are one frame of kind 4, ``u16 length | content type | u16 count | u8 length of an id | ids
| u32 length of each body | bodies``: the frame's id is the first request's, the others follow it one by one. Answers
that leave together are one, too, to a gateway that has sent such a frame: ``u16 length | content type | u16 count | u64
request each | u16 status each | u32 length of each body | bodies``. ``loopline.runtime.frames`` states the same
contract for the model server, which may import nothing of this package; a test holds the two together.
"""

import re
import struct
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, pairwise

from loopline.errors import Corrupt

HEAD = struct.Struct(">IQB")
TEXT = struct.Struct(">H")
ANSWER = struct.Struct(">HH")
PREDICT = 1
PING = 2
CALL = 3
MANY = 4
LEAVING = 0  # the request whose answer says that the server is about to end
MAX_FRAME_BYTES = 64 * 1024 * 1024
MAX_TYPE_BYTES = 2048
MAX_TOGETHER = 1024  # requests in one frame
MAX_TOGETHER_BYTES = 1024 * 1024  # larger bodies are not copied once more to stand together
_REST = HEAD.size - 4
_WAIT = struct.Struct(">I")
_ANSWER_HEAD = struct.Struct(">IQBHH")
_ANSWER_SIZE = _ANSWER_HEAD.size
_LEAST = _REST + 1
_COUNTS = struct.Struct(">HB")
_pack_head = HEAD.pack
_SHORTS = [bytes([length]) for length in range(256)]
_PRINTABLE = re.compile(rb"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?(?:\n[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?)?")
_MAX_TYPES = 256
_types_out: dict[bytes, bytes] = {}
_types_in: dict[bytes, bytes] = {}

Answer = tuple[int, int, bytes, bytes]


def predict_parts(number: int, content_type: bytes, request_id: bytes, body: bytes) -> tuple[bytes, ...]:
    """A predict request, to be sent one part after the other; a request id has at most 255 bytes."""
    kind = _types_out.get(content_type)
    if kind is None:
        kind = TEXT.pack(len(content_type)) + content_type
        if len(_types_out) < _MAX_TYPES:
            _types_out[content_type] = kind
    more = len(request_id)
    return _pack_head(_LEAST + len(kind) + more + len(body), number, PREDICT), kind, _SHORTS[more], request_id, body


def predict_frames(first: int, content_type: bytes, ids: Sequence[bytes], bodies: Sequence[bytes]) -> list[bytes]:
    """Requests ``first``, ``first + 1``, ... of one content type, to be sent one part after the other: one frame where
    they fit into one."""
    lengths = list(map(len, bodies))
    size, count = sum(lengths), len(bodies)
    each = len(ids[0])
    if count == 1 or size > MAX_TOGETHER_BYTES or count > MAX_TOGETHER or any(len(id_) != each for id_ in ids):
        requests = zip(range(first, first + count), ids, bodies, strict=True)
        return [part for number, id_, body in requests for part in predict_parts(number, content_type, id_, body)]
    text = TEXT.pack(len(content_type)) + content_type + _COUNTS.pack(count, each)
    more = _REST + len(text) + count * (each + 4) + size
    return [_pack_head(more, first, MANY), text, *ids, _lengths(count).pack(*lengths), *bodies]


@lru_cache(maxsize=MAX_TOGETHER)
def _lengths(count: int) -> struct.Struct:
    return struct.Struct(f">{count}I")


@lru_cache(maxsize=MAX_TOGETHER)
def _answers_head(count: int) -> struct.Struct:
    return struct.Struct(f">{count}Q{count}H{count}I")


class AnswerReader:
    """Cuts what a model server sends into answers: (request, HTTP status, content type, body)."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, bytes, int]] = []  # what a function asks, each with how many answers of the same
        # bytes came before it; whoever reads takes it from here
        self._parts: list[bytes] = []
        self._size = 0
        self._need = 0

    def feed(self, data: bytes) -> list[Answer]:
        """The answers that ``data`` completes; those to pings are passed over. Raises ``Corrupt`` for what is none."""
        if self._parts:
            self._parts.append(data)
            self._size += len(data)
            if self._size < self._need:
                return []
            data = b"".join(self._parts)
        answers: list[Answer] = []
        at, size, need = 0, len(data), _ANSWER_SIZE
        unpack = _ANSWER_HEAD.unpack_from
        last = size - _ANSWER_SIZE
        while at <= last:
            length, number, kind, status, text = unpack(data, at)
            if not _REST <= length <= MAX_FRAME_BYTES:
                raise Corrupt(f"a frame of {length} bytes is not allowed")
            end = at + 4 + length
            if end > size:
                need = 4 + length
                break
            if kind == PREDICT:
                begin = at + _ANSWER_SIZE + text
                if begin > end or not 200 <= status <= 599:
                    raise Corrupt("an answer frame that is cut short or has no HTTP status")
                raw = data[begin - text : begin]
                answers.append((number, status, _types_in.get(raw) or _content_type(raw), data[begin:end]))
            elif kind == MANY:
                answers += _together(data, at + HEAD.size, end)
            elif kind == CALL:
                self.calls.append((number, data[at + HEAD.size : end], len(answers)))
            at = end
        _check_rest(data, at)
        self._parts, self._size, self._need = ([data[at:]] if at < size else []), size - at, need
        return answers


def _check_rest(data: bytes, at: int) -> None:
    """Whether what begins there may become a frame. Raises ``Corrupt``."""
    if len(data) - at >= 4 and not _REST <= int.from_bytes(data[at : at + 4], "big") <= MAX_FRAME_BYTES:
        raise Corrupt("a frame of a length that is not allowed")


def _together(data: bytes, at: int, end: int) -> list[Answer]:
    """The answers in a frame of several, which stands in ``data`` from ``at`` on. Raises ``Corrupt``."""
    try:
        begin = at + TEXT.size
        stop = begin + TEXT.unpack_from(data, at)[0]
        (count,) = TEXT.unpack_from(data, stop)
        if count > MAX_TOGETHER:
            raise Corrupt(f"{count} answers in one frame; there may be {MAX_TOGETHER}")
        head = _answers_head(count)
        values = head.unpack_from(data, stop + TEXT.size)
    except struct.error:
        raise Corrupt("an answer frame that is cut short") from None
    statuses, lengths = values[count : 2 * count], values[2 * count :]
    first = stop + TEXT.size + head.size
    if not count or first + sum(lengths) != end or min(statuses) < 200 or max(statuses) > 599:
        raise Corrupt("an answer frame whose parts do not add up, or that has no HTTP status")
    raw = data[begin:stop]
    kind = _types_in.get(raw) or _content_type(raw)
    bodies = [data[start:stop] for start, stop in pairwise(accumulate(lengths, initial=first))]
    return [(number, status, kind, body) for number, status, body in zip(values, statuses, bodies, strict=False)]


def decode_call(payload: bytes) -> tuple[bytes, bytes, int, bytes]:
    """(endpoint, content type, milliseconds, body) of a function's call. Raises ``Corrupt`` when it is cut short."""
    try:
        at = 1 + payload[0]
        end = at + TEXT.size + TEXT.unpack_from(payload, at)[0]
        milliseconds = _WAIT.unpack_from(payload, end)[0]
    except (IndexError, struct.error):
        raise Corrupt("a call that is cut short") from None
    return payload[1:at], payload[at + TEXT.size : end], milliseconds, payload[end + _WAIT.size :]


def encode_reply(number: int, status: int, content_type: bytes, body: bytes) -> bytes:
    """The reply to a function's call."""
    size = len(content_type)
    return _ANSWER_HEAD.pack(_REST + ANSWER.size + size + len(body), number, CALL, status, size) + content_type + body


def _content_type(raw: bytes) -> bytes:
    """A content type that may stand in a header, and a line more at most; the few types that models use are kept."""
    if len(raw) > MAX_TYPE_BYTES or not _PRINTABLE.fullmatch(raw):
        raise Corrupt("an answer frame whose content type is none")
    if len(_types_in) < _MAX_TYPES and b"\n" not in raw:
        _types_in[raw] = raw
    return raw
