"""Rows that end the process which predicts them: how they are found, and when a batch gives up.

A worker notes in memory that it shares with its parent what it is about to do (``Notes``), which costs it nothing to
speak of. When it has died, another one scores the same chunk again, by what its deaths have shown (``Care``). A call
in which a worker died is made once more as it was, because it may have been killed from outside; then in parts of a
sixty-fourth, in which the next death says where the row is; and a part of one row in which it dies is that row. All
other calls are made as ever, so that their predictions are what they would have been.
"""

import mmap
import signal
import struct
from typing import Any, NamedTuple

LOADING, READING, PREDICTING, WRITING, IDLE = range(5)
DOING = {
    LOADING: "loaded the model",
    READING: "read the table",
    PREDICTING: "predicted",
    WRITING: "wrote predictions down",
    IDLE: "had nothing to do",
}
PARTS = 64
MOST_OF_A_CHUNK = 40  # deaths
MOST_OF_ALL = 1000
MOST_ELSEWHERE = 3  # deaths that no row is to blame for, since a chunk was finished
_NOTE = struct.Struct("=5q")


class Note(NamedTuple):
    """What a worker was doing: the places in its chunk of the rows that it predicted, and their numbers in the table
    (the first, and the last)."""

    stage: int
    start: int
    end: int
    first: int
    last: int


class Notes:
    """Where a worker says what it is about to do; whoever forked it reads it."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _NOTE.size)

    def write(self, stage: int, start: int = 0, end: int = 0, first: int = 0, last: int = 0) -> None:
        """Note it."""
        _NOTE.pack_into(self._memory, 0, stage, start, end, first, last)

    def read(self) -> Note:
        """What was noted last."""
        return Note(*_NOTE.unpack_from(self._memory))

    def close(self) -> None:
        """Give the memory back."""
        self._memory.close()


class Care:
    """What the deaths of a chunk have shown: which calls are made in parts, and which rows are not predicted at all."""

    def __init__(self, told: dict[str, Any] | None = None) -> None:
        given = told or {"parts": [], "aside": []}
        self.parts: dict[tuple[int, int], int] = {(start, end): size for start, end, size in given["parts"]}
        self.aside: dict[int, str] = {place: reason for place, reason in given["aside"]}
        self._seen: set[tuple[int, int]] = set()
        self.deaths = 0
        self.reasons: list[str] = []  # why rows are set aside, with their numbers

    def told(self) -> dict[str, Any]:
        """For a worker, as JSON."""
        parts = [[start, end, size] for (start, end), size in self.parts.items()]
        return {"parts": parts, "aside": [[place, reason] for place, reason in self.aside.items()]}

    def learn(self, note: Note, how: str) -> None:
        """A worker died while it predicted these rows."""
        self.deaths += 1
        call, count = (note.start, note.end), note.end - note.start
        narrowed = any(start <= note.start and note.end <= end for start, end in self.parts)
        if not narrowed and call not in self._seen:
            self._seen.add(call)
        elif count == 1:
            reason = self.aside[note.start] = f"the process that predicted it {how}"
            self.reasons.append(f"row {note.first}: {reason}")
        else:
            self.parts[call] = -(-count // PARTS)


class Deaths:
    """The deaths of a batch's workers. Raises ``HopelessError`` when there are too many."""

    def __init__(self) -> None:
        self._care: dict[int, Care] = {}
        self._all = 0
        self._elsewhere = 0

    def care_for(self, chunk: int) -> dict[str, Any] | None:
        """What a worker has to know of a chunk; None where nobody died."""
        care = self._care.get(chunk)
        return None if care is None else care.told()

    def aside(self, chunk: int) -> list[str]:
        """Of the rows of a chunk that are known to end a process, the reasons."""
        care = self._care.get(chunk)
        return [] if care is None else list(care.reasons)

    def finished(self, chunk: int) -> None:
        """The chunk is scored."""
        self._care.pop(chunk, None)
        self._elsewhere = 0

    def add(self, chunk: int | None, note: Note, how: str) -> str:
        """Learn from a death; gives what to tell of it."""
        self._all += 1
        where = f"the process that runs the model {how} while it {DOING[note.stage]}"
        if note.stage == PREDICTING and chunk is not None:
            rows = f"row {note.first}" if note.first == note.last else f"rows {note.first} to {note.last}"
            where += f" {rows}"
            care = self._care.setdefault(chunk, Care())
            care.learn(note, how)
            if care.deaths >= MOST_OF_A_CHUNK:
                raise HopelessError(
                    f"{where}; {care.deaths} processes ended so in the chunk of these rows, {len(care.aside)} rows of "
                    "it end each process that predicts them: mend the model, or take such rows out of the table"
                )
        else:
            self._elsewhere += 1
            if self._elsewhere >= MOST_ELSEWHERE:
                raise HopelessError(f"{where}, {self._elsewhere} times one after another: no row is to blame for that")
        if self._all >= MOST_OF_ALL:
            raise HopelessError(f"{where}; {self._all} processes ended so in this batch: mend the model")
        return where


class HopelessError(RuntimeError):
    """So many processes have died that the batch ends; the message says how."""


def how_it_ended(status: int) -> str:
    """The status of ``waitpid`` in words."""
    if status & 0x7F == 0:
        return f"ended with status {status >> 8}"
    number = status & 0x7F
    try:
        return f"ended with signal {number} ({signal.Signals(number).name})"
    except ValueError:
        return f"ended with signal {number}"
