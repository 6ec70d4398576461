"""Capture records side by side, for those who count many. Pure functions over bytes; the format is ``capture``'s.

What stands at the same place in every record, or in a row in every block, is taken out of all of them at once.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from loopline.domain.capture import (
    COMPACT,
    COMPACT_HEAD,
    HEADER,
    MAX_META_BYTES,
    Block,
    block_of,
    context_of,
)

_FIXED = np.dtype(  # HEADER and COMPACT_HEAD as a type of numpy
    {
        "names": ["meta", "body", "answer", "form", "status", "latency_us", "at"],
        "formats": [">u4", ">u4", ">u4", "u1", ">u2", ">u4", ">f8"],
        "offsets": [4, 8, 12, 16, 17, 19, 46],
        "itemsize": HEADER.size + COMPACT_HEAD.size,
    }
)
_VALUES = ("at", "status", "latency_us")
_HEADER_SIZE = HEADER.size


@dataclass(frozen=True, slots=True)
class Columns:
    """Whole records side by side: entry n of each sequence belongs to the n-th record.

    What is not a number in a record is NaN here. ``places`` (n x 5) says where in ``data`` its record or block begins,
    its body begins and ends, and its answer begins and ends.
    """

    data: bytes
    contexts: list[dict[str, Any]]  # meta without what the other columns hold; many records share one
    context: npt.NDArray[np.int64]  # the place in `contexts`
    at: npt.NDArray[np.float64]
    status: npt.NDArray[np.float64]
    latency_us: npt.NDArray[np.float64]
    places: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.places)

    def bodies(self, numbers: npt.NDArray[np.int64]) -> list[bytes]:
        """The bodies of these records."""
        data = self.data
        return [data[start:end] for start, end in self.places[numbers, 1:3].tolist()]

    def answers(self, numbers: npt.NDArray[np.int64]) -> list[bytes]:
        """The answers of these records."""
        data = self.data
        return [data[start:end] for start, end in self.places[numbers, 3:5].tolist()]


class _Part(NamedTuple):
    """Some of the columns of ``Columns``, of records that follow one another."""

    context: npt.NDArray[np.int64]
    places: npt.NDArray[np.int64]
    values: list[npt.NDArray[np.float64]]  # as _VALUES


def read_columns(data: bytes) -> tuple[Columns, int]:
    """As ``iter_records``, side by side: the whole records at the front of ``data``, and the bytes they take."""
    at, view = 0, memoryview(data)
    contexts: list[dict[str, Any]] = []
    known: dict[bytes, int] = {}
    parts: list[_Part] = []
    alone: list[tuple[int, int]] = []  # where a record begins, and the number of its context
    while (frame := _frame(data, view, at)) is not None:
        raw, block, end = frame
        number = known.get(raw, -1)
        if number < 0:
            context = context_of(raw)
            if context is None:
                break
            number = known[raw] = len(contexts)
            contexts.append(context)
        if block is None:
            alone.append((at, number))
        else:
            part = _of_block(data, at, block, number)
            if part is None:
                break
            if alone:
                parts.append(_of_records(data, contexts, alone))
                alone = []
            parts.append(part)
        at = end
    if alone or not parts:
        parts.append(_of_records(data, contexts, alone))
    context_numbers, places = (np.concatenate([part[field] for part in parts]) for field in (0, 1))
    values = [np.concatenate([part.values[column] for part in parts]) for column in range(len(_VALUES))]
    return Columns(data, contexts, context_numbers, values[0], values[1], values[2], places), at


def _frame(data: bytes, view: memoryview, at: int) -> tuple[bytes, Block | None, int] | None:
    """(context, the block if it is one, end) of the record or block at ``at``; None where it is not whole."""
    if len(data) - at < _HEADER_SIZE:
        return None
    crc, meta_length, body_length, answer_length = HEADER.unpack_from(data, at)
    meta = at + _HEADER_SIZE
    end = meta + meta_length + body_length + answer_length
    if end > len(data) or crc32(view[at + 4 : end]) != crc or meta_length > MAX_META_BYTES:
        return None
    raw = data[meta : meta + meta_length]
    if raw[:1] == b"\x02":
        block = block_of(raw)
        return None if block is None else (block[2], block, end)
    return raw[COMPACT_HEAD.size :] if raw[:1] == b"\x01" else raw, None, end


def _of_block(data: bytes, start: int, block: Block, number: int) -> _Part | None:
    """The records of a block; None when their lengths do not add up."""
    count, columns, _ = block
    _, meta, body, answer = HEADER.unpack_from(data, start)
    at = start + HEADER.size + columns
    times = np.frombuffer(data, ">f8", count, at)
    statuses = np.frombuffer(data, ">u2", count, at + 8 * count)
    latencies, bodies, answers = np.frombuffer(data, ">u4", 3 * count, at + 10 * count).reshape(3, count)
    places = np.empty((count, 5), np.int64)
    places[:, 0] = start
    for column, lengths, first in (
        (1, bodies, start + HEADER.size + meta),
        (3, answers, start + HEADER.size + meta + body),
    ):
        ends = places[:, column + 1]
        np.cumsum(lengths, out=ends)
        ends += first
        places[0, column] = first
        places[1:, column] = ends[:-1]
    if places[-1, 2] != places[0, 3] or places[-1, 4] != places[0, 3] + answer:
        return None
    values = [column.astype(np.float64) for column in (times, statuses, latencies)]
    return _Part(np.full(count, number), places, values)


def _of_records(data: bytes, contexts: list[dict[str, Any]], alone: list[tuple[int, int]]) -> _Part:
    """Records that stand alone."""
    table = np.array(alone, dtype=np.int64).reshape(-1, 2)
    begin, context = table[:, 0], table[:, 1]
    room = np.frombuffer(data + bytes(_FIXED.itemsize), dtype=np.uint8)  # a short record may stand at the end
    fixed = sliding_window_view(room, _FIXED.itemsize)[begin].view(_FIXED)[:, 0]
    body = begin + HEADER.size + fixed["meta"]
    answer = body + fixed["body"]
    values = [fixed[name].astype(np.float64) for name in _VALUES]
    for place in np.flatnonzero(fixed["form"] != COMPACT).tolist():
        for column, name in zip(values, _VALUES, strict=True):
            column[place] = _number(contexts[alone[place][1]].get(name))
    return _Part(context, np.column_stack([begin, body, answer, answer, answer + fixed["answer"]]), values)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
