"""Capture records: how one invocation is written to a spool segment and read back. Pure functions over bytes.

A record is four big-endian 32-bit words (CRC-32 of everything after the first word, then the lengths in bytes of meta,
body and answer) followed by those three parts. Body and answer are the raw bytes that went over the wire, empty when
the invocation was not sampled. Meta has the fields of ``META_FIELDS``, and two more where they say something:
``purpose``, one of ``PURPOSES``, when the platform itself asked and no caller did, and ``shadow``, true for a copy of a
request whose answer nobody was given. It is written in one of two forms: a JSON object, or, as a gateway writes it, a
byte 1, the status (u16), the latency (u32), the id (23 bytes), the time (f64) and a JSON object with the rest, the
*context*, which many records repeat byte for byte. Either way the id stands 7 bytes behind the beginning of meta.

Records of one context that are written together are one *block*, which looks like a record: its meta is a byte 2, their
number n (u16), n ids, n times (f64), n statuses (u16), n latencies (u32), n lengths of bodies and n of answers (u32),
and the context; its body are their bodies, its answer their answers, one after the other.

A segment is appended to and never rewritten, but a process may die within a write. A reader therefore stops at a tail
that is incomplete or does not match its checksum and continues there later; when a later segment of the same folder
exists, nobody will complete that tail and the reader goes on with the later one.
"""

import json
import struct
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any, NamedTuple
from zlib import crc32

import msgspec

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

COMPACT, BLOCK = 1, 2
ID_BYTES = 23
COMPACT_HEAD = struct.Struct(">BHI23sd")
BLOCK_HEAD = struct.Struct(">BH")
_WHOLE = struct.Struct(">III" + COMPACT_HEAD.format[1:])
_MAX_LATENCY = 2**32 - 1
_MAX_CONTEXTS = 4096
_contexts: dict[bytes, dict[str, Any]] = {}


Block = tuple[int, int, bytes]  # number of records, where their columns begin in the meta, context
Captured = tuple[bytes, float, int, int, bytes | bytearray, bytes]  # id, time, status, latency in us, body, answer


class CaptureRecord(NamedTuple):
    """One invocation as it was captured."""

    meta: dict[str, Any]
    body: bytes
    answer: bytes


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
                COMPACT_HEAD.size + len(context),
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


def encode_captured(context: bytes, captured: Sequence[Captured]) -> bytes:
    """The bytes of records that share their context: a block, or the record alone. Their meta, 45 bytes each, must not
    exceed ``MAX_META_BYTES``."""
    if len(captured) == 1:
        return encode_compact(context, *captured[0])
    ids, times, statuses, latencies, bodies, answers = zip(*captured, strict=True)
    count, body_lengths, answer_lengths = len(ids), list(map(len, bodies)), list(map(len, answers))
    columns = _columns_of(count).pack(
        *times, *statuses, *(min(each, _MAX_LATENCY) for each in latencies), *body_lengths, *answer_lengths
    )
    meta = BLOCK_HEAD.size + ID_BYTES * count + len(columns) + len(context)
    lengths = LENGTHS.pack(meta, sum(body_lengths), sum(answer_lengths))
    rest = b"".join((lengths, BLOCK_HEAD.pack(BLOCK, count), *ids, columns, context, *bodies, *answers))
    return crc32(rest).to_bytes(4, "big") + rest


@lru_cache(maxsize=1024)
def _columns_of(count: int) -> struct.Struct:
    """Times, statuses, latencies, lengths of bodies and of answers of the records of a block."""
    return struct.Struct(f">{count}d{count}H{count}I{count}I{count}I")


def ids_at(data: bytes, at: int) -> list[bytes]:
    """The ids in the record or block that begins at ``at`` and is whole; of a record in JSON, what stands there."""
    meta = at + HEADER.size
    if data[meta : meta + 1] != b"\x02":
        return [data[meta + 7 : meta + 7 + ID_BYTES]]
    first, (_, count) = meta + BLOCK_HEAD.size, BLOCK_HEAD.unpack_from(data, meta)
    return [data[place : place + ID_BYTES] for place in range(first, first + ID_BYTES * count, ID_BYTES)]


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
        middle = start + meta_length + body_length
        body, answer = bytes(view[start + meta_length : middle]), bytes(view[middle:end])
        found = _records(bytes(view[start : start + meta_length]), body, answer)
        if found is None:
            break
        records += found
        at = end
    return records, at


def _records(meta: bytes, body: bytes, answer: bytes) -> list[CaptureRecord] | None:
    """The records of one frame; None when the frame makes no sense."""
    if meta[:1] != b"\x02":
        read = _meta(meta)
        return None if read is None else [CaptureRecord(read, body, answer)]
    block = block_of(meta)
    if block is None:
        return None
    count, columns, raw = block
    context, values = context_of(raw), _columns_of(count).unpack_from(meta, columns)
    bodies, answers = values[3 * count : 4 * count], values[4 * count :]
    if context is None or sum(bodies) != len(body) or sum(answers) != len(answer):
        return None
    ids = [meta[at : at + ID_BYTES].decode("latin-1") for at in range(BLOCK_HEAD.size, columns, ID_BYTES)]
    told = zip(ids, values[:count], values[count : 2 * count], values[2 * count : 3 * count], strict=True)
    return [
        CaptureRecord(
            {"id": identifier, "at": at, "status": status, "latency_us": latency, **context},
            body[first:last],
            answer[start:end],
        )
        for (identifier, at, status, latency), (first, last), (start, end) in zip(
            told, pairwise(accumulate(bodies, initial=0)), pairwise(accumulate(answers, initial=0)), strict=True
        )
    ]


def block_of(meta: bytes) -> Block | None:
    """(number of records, where their columns begin, context) of a block's meta; None when it is too short."""
    if len(meta) < BLOCK_HEAD.size:
        return None
    count = BLOCK_HEAD.unpack_from(meta)[1]
    columns = BLOCK_HEAD.size + ID_BYTES * count
    end = columns + _columns_of(count).size
    return (count, columns, meta[end:]) if count and end <= len(meta) else None


def context_of(raw: bytes) -> dict[str, Any] | None:
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
    if len(text) < COMPACT_HEAD.size:
        return None
    _, status, latency, identifier, at = COMPACT_HEAD.unpack_from(text)
    context = context_of(text[COMPACT_HEAD.size :])
    if context is None:
        return None
    return {"id": identifier.decode("latin-1"), "at": at, "status": status, "latency_us": latency, **context}
