"""Capture records: how one invocation is written to a spool segment and read back. Pure functions over bytes.

A record is four big-endian 32-bit words (CRC-32 of everything after the first word, then the lengths in bytes of meta,
body and answer) followed by those three parts. Meta is a JSON object with the fields of ``META_FIELDS``; body and
answer are the raw bytes that went over the wire, empty when the invocation was not sampled. Two more fields may follow:
``purpose``, one of ``PURPOSES``, when the platform itself asked and no caller did, and ``shadow``, true for a copy of a
request whose answer nobody was given.

A segment is appended to and never rewritten, but a process may die within a write. A reader therefore stops at a tail
that is incomplete or does not match its checksum and continues there later; when a later segment of the same folder
exists, nobody will complete that tail and the reader goes on with the later one.
"""

import json
import struct
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

HEADER = struct.Struct(">IIII")
LENGTHS = struct.Struct(">III")
MAX_META_BYTES = 1 << 20
MAX_PART_BYTES = 1 << 28  # larger than any frame; a longer length can only be damage

META_FIELDS = (
    "id",
    "at",
    "endpoint",
    "variant",
    "version",
    "model",
    "key",
    "status",
    "latency_us",
    "content_type",
    "join",
)

PURPOSES = ("async", "function", "test")


class CaptureRecord(NamedTuple):
    """One invocation as it was captured."""

    meta: dict[str, Any]
    body: bytes
    answer: bytes


def encode_record(meta: Mapping[str, Any] | bytes, body: bytes = b"", answer: bytes = b"") -> bytes:
    """The bytes of one record; ``meta`` may be given as its JSON text already."""
    text = meta if isinstance(meta, bytes) else json.dumps(meta, separators=(",", ":")).encode()
    rest = b"%b%b%b%b" % (LENGTHS.pack(len(text), len(body), len(answer)), text, body, answer)
    return b"%b%b" % (zlib.crc32(rest).to_bytes(4, "big"), rest)


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
        if end > len(view) or zlib.crc32(view[at + 4 : end]) != crc:
            break
        meta = _meta(bytes(view[start : start + meta_length]))
        if meta is None:
            break
        middle = start + meta_length + body_length
        records.append(CaptureRecord(meta, bytes(view[start + meta_length : middle]), bytes(view[middle:end])))
        at = end
    return records, at


def _meta(text: bytes) -> dict[str, Any] | None:
    try:
        meta = json.loads(text)
    except ValueError:
        return None
    return meta if isinstance(meta, dict) else None
