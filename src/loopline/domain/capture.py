"""Capture records: how one invocation is written to a spool segment and read back. Pure functions over bytes.

A record is four big-endian 32-bit words (CRC-32 of everything after the first word, then the lengths in bytes of meta,
body and answer) followed by those three parts. Body and answer are the raw bytes that went over the wire, empty when
the invocation was not sampled. Meta has the fields of ``META_FIELDS``, and two more where they say something:
``purpose``, one of ``PURPOSES``, when the platform itself asked and no caller did, and ``shadow``, true for a copy of a
request whose answer nobody was given. It is written in one of two forms: a JSON object, or, as a gateway writes it, a
byte 1, the status (u16), the latency (u32), the id (23 bytes), the time (f64) and a JSON object with the rest, the
*context*, which many records repeat byte for byte. Either way the id stands 7 bytes behind the beginning of meta.

A segment is appended to and never rewritten, but a process may die within a write. A reader therefore stops at a tail
that is incomplete or does not match its checksum and continues there later; when a later segment of the same folder
exists, nobody will complete that tail and the reader goes on with the later one.
"""

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple
from zlib import crc32

import msgspec

if TYPE_CHECKING:  # a gateway, which writes records and is waited for when it starts again, has no need of it
    import numpy as np
    import numpy.typing as npt

HEADER = struct.Struct(">IIII")
LENGTHS = struct.Struct(">III")
MAX_META_BYTES = 1 << 20
MAX_PART_BYTES = 1 << 28  # larger than any frame; a longer length can only be damage

META_FIELDS = (
    "id",
    "at",
    "status",
    "latency_us",
    "endpoint",
    "variant",
    "version",
    "model",
    "key",
    "content_type",
    "join",
)

PURPOSES = ("async", "function", "test")
COPIES = "/shadow"  # behind a variant's name: its counters of copies, which belong to no total; no name has a slash

COMPACT = 1
_COMPACT = struct.Struct(">BHI23sd")
_WHOLE = struct.Struct(">III" + _COMPACT.format[1:])
_FIXED = {  # HEADER and _COMPACT as a type of numpy
    "names": ["meta", "body", "answer", "form", "status", "latency_us", "at"],
    "formats": [">u4", ">u4", ">u4", "u1", ">u2", ">u4", ">f8"],
    "offsets": [4, 8, 12, 16, 17, 19, 46],
    "itemsize": HEADER.size + _COMPACT.size,
}
_HEADER_SIZE, _COMPACT_SIZE = HEADER.size, _COMPACT.size
_MAX_LATENCY = 2**32 - 1
_MAX_CONTEXTS = 4096
_contexts: dict[bytes, dict[str, Any]] = {}


class CaptureRecord(NamedTuple):
    """One invocation as it was captured."""

    meta: dict[str, Any]
    body: bytes
    answer: bytes


@dataclass(frozen=True, slots=True)
class Columns:
    """Whole records side by side, for those who count many: entry n of each sequence belongs to the n-th record.

    What is not a number in a record is NaN here.
    """

    data: bytes
    contexts: list[dict[str, Any]]  # meta without what the other columns hold; many records share one
    context: "npt.NDArray[np.int64]"  # the place in `contexts`
    at: "npt.NDArray[np.float64]"
    status: "npt.NDArray[np.float64]"
    latency_us: "npt.NDArray[np.float64]"
    places: "npt.NDArray[np.int64]"  # where in `data` the record, its body and its answer begin, and the end: n x 4

    def __len__(self) -> int:
        return len(self.places)

    def bodies(self, numbers: "npt.NDArray[np.int64]") -> list[bytes]:
        """The bodies of these records."""
        data = self.data
        return [data[start:end] for start, end in self.places[numbers, 1:3].tolist()]

    def answers(self, numbers: "npt.NDArray[np.int64]") -> list[bytes]:
        """The answers of these records."""
        data = self.data
        return [data[start:end] for start, end in self.places[numbers, 2:4].tolist()]


def encode_record(meta: Mapping[str, Any] | bytes, body: bytes = b"", answer: bytes = b"") -> bytes:
    """The bytes of one record; ``meta`` may be given as its JSON text already."""
    text = meta if isinstance(meta, bytes) else json.dumps(meta, separators=(",", ":")).encode()
    rest = b"%b%b%b%b" % (LENGTHS.pack(len(text), len(body), len(answer)), text, body, answer)
    return b"%b%b" % (crc32(rest).to_bytes(4, "big"), rest)


def encode_compact(
    context: bytes, identifier: bytes, at: float, status: int, latency_us: int, body: bytes | bytearray, answer: bytes
) -> bytes:
    """The bytes of one record in the gateway's form; ``context`` is JSON, ``identifier`` has 23 bytes."""
    rest = b"".join(
        (
            _WHOLE.pack(
                _COMPACT.size + len(context),
                len(body),
                len(answer),
                COMPACT,
                status,
                latency_us if latency_us < _MAX_LATENCY else _MAX_LATENCY,
                identifier,
                at,
            ),
            context,
            body,
            answer,
        )
    )
    return crc32(rest).to_bytes(4, "big") + rest


def iter_records(buffer: bytes | bytearray | memoryview) -> tuple[list[CaptureRecord], int]:
    """The whole records at the front of ``buffer`` and how many bytes they take; the rest is an unfinished tail."""
    view = memoryview(buffer)
    records: list[CaptureRecord] = []
    at = 0
    while len(view) - at >= HEADER.size:
        crc, meta_length, body_length, answer_length = HEADER.unpack_from(view, at)
        if meta_length > MAX_META_BYTES or body_length > MAX_PART_BYTES or answer_length > MAX_PART_BYTES:
            break
        start = at + HEADER.size
        end = start + meta_length + body_length + answer_length
        if end > len(view) or crc32(view[at + 4 : end]) != crc:
            break
        meta = _meta(bytes(view[start : start + meta_length]))
        if meta is None:
            break
        middle = start + meta_length + body_length
        records.append(CaptureRecord(meta, bytes(view[start + meta_length : middle]), bytes(view[middle:end])))
        at = end
    return records, at


def read_columns(data: bytes) -> tuple[Columns, int]:
    """As ``iter_records``, side by side: the whole records at the front of ``data``, and the bytes they take."""
    at, size, view, unpack = 0, len(data), memoryview(data), HEADER.unpack_from
    contexts: list[dict[str, Any]] = []
    known: dict[bytes, int] = {}
    starts: list[int] = []
    numbers: list[int] = []
    last, number = b"", -1  # the context of the record before, which most records share
    while size - at >= _HEADER_SIZE:
        crc, meta_length, body_length, answer_length = unpack(data, at)
        meta = at + _HEADER_SIZE
        body = meta + meta_length
        end = body + body_length + answer_length
        if end > size or crc32(view[at + 4 : end]) != crc or meta_length > MAX_META_BYTES:
            break
        raw = data[meta + _COMPACT_SIZE if meta_length >= _COMPACT_SIZE and data[meta] == COMPACT else meta : body]
        if raw != last or number < 0:
            last, number = raw, known.get(raw, -1)
            if number < 0:
                context = _context(raw)
                if context is None:
                    break
                number = known[raw] = len(contexts)
                contexts.append(context)
        starts.append(at)
        numbers.append(number)
        at = end
    return _columns(data, contexts, numbers, starts), at


def _columns(data: bytes, contexts: list[dict[str, Any]], numbers: list[int], starts: list[int]) -> Columns:
    """What stands at the same place in every record, taken out of all of them at once."""
    import numpy as np
    from numpy.lib.stride_tricks import sliding_window_view

    begin, context = np.array(starts, dtype=np.int64), np.array(numbers, dtype=np.int64)
    kind: np.dtype[np.void] = np.dtype(_FIXED)  # type: ignore[call-overload]
    room = np.frombuffer(data + bytes(kind.itemsize), dtype=np.uint8)  # a short record may stand at the end
    fixed = sliding_window_view(room, kind.itemsize)[begin].view(kind)[:, 0]
    body = begin + HEADER.size + fixed["meta"]
    answer = body + fixed["body"]
    values = [fixed[name].astype(np.float64) for name in ("at", "status", "latency_us")]
    for place in np.flatnonzero(fixed["form"] != COMPACT).tolist():
        for column, name in zip(values, ("at", "status", "latency_us"), strict=True):
            column[place] = _number(contexts[numbers[place]].get(name))
    places = np.column_stack([begin, body, answer, answer + fixed["answer"]])
    return Columns(data, contexts, context, values[0], values[1], values[2], places)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _context(raw: bytes) -> dict[str, Any] | None:
    """The JSON object in these bytes, which callers must not change; None when they hold none."""
    context = _contexts.get(raw)
    if context is None:
        try:
            context = msgspec.json.decode(raw)
        except (msgspec.DecodeError, RecursionError):
            context = _decoded(raw)
        if not isinstance(context, dict):
            return None
        if len(_contexts) >= _MAX_CONTEXTS:
            _contexts.clear()
        _contexts[raw] = context
    return context


def _decoded(raw: bytes) -> Any:
    """JSON as Python writes it, Infinity and NaN included; None when it is none."""
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return None


def _meta(text: bytes) -> dict[str, Any] | None:
    if text[:1] == b"\x01":
        return _compact_meta(text)
    try:
        meta = json.loads(text)
    except ValueError:
        return None
    return meta if isinstance(meta, dict) else None


def _compact_meta(text: bytes) -> dict[str, Any] | None:
    if len(text) < _COMPACT.size:
        return None
    _, status, latency, identifier, at = _COMPACT.unpack_from(text)
    context = _context(text[_COMPACT.size :])
    if context is None:
        return None
    return {"id": identifier.decode("latin-1"), "at": at, "status": status, "latency_us": latency, **context}
