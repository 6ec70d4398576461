"""The report stream: numbered lines, each carrying what was found *and* how far the spools had been read for it.

One line is one JSON object ``{"seq", "at", "positions": {folder: [segment, offset]}, "rows": [...]}``. A line is there
when its newline is: findings and positions become true at the same moment, so that a process killed anywhere continues
after the last whole line, and nothing is lost or counted twice. Control takes each ``seq`` once.
"""

import json
import os
from pathlib import Path
from typing import Any

from loopline.monitor.tail import Position

ROTATE_BYTES = 8 << 20
PREFIX, SUFFIX = "reports-", ".jsonl"


def file_name(first_seq: int) -> str:
    """The file whose first line has this number; text order is number order."""
    return f"{PREFIX}{first_seq:015d}{SUFFIX}"


class ReportStream:
    """Appends lines to ``folder``; one process at a time."""

    def __init__(self, folder: Path, *, rotate_bytes: int = ROTATE_BYTES) -> None:
        self._folder = folder
        self._rotate_bytes = rotate_bytes
        folder.mkdir(parents=True, exist_ok=True)
        self.seq = 0
        self.positions: dict[str, Position] = {}
        self._path: Path | None = None
        self._resume()

    def append(self, at: float, positions: dict[str, Position], rows: list[dict[str, Any]]) -> int:
        """Write one line and give its number; it is on disk when this returns."""
        seq = self.seq + 1
        if self._path is None or self._path.stat().st_size >= self._rotate_bytes:
            self._path = self._folder / file_name(seq)
        line = {"seq": seq, "at": at, "positions": positions, "rows": rows}
        data = json.dumps(line, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)
        self.seq, self.positions = seq, dict(positions)
        return seq

    def _resume(self) -> None:
        """Find the last whole line and cut off what a killed process left after it."""
        for path in sorted(self._folder.glob(f"{PREFIX}*{SUFFIX}"), reverse=True):
            data = path.read_bytes()
            end = data.rfind(b"\n") + 1
            if end < len(data):
                os.truncate(path, end)
            if end:
                last = json.loads(data[data.rfind(b"\n", 0, end - 1) + 1 : end])
                self.seq = int(last["seq"])
                self.positions = {folder: (str(p[0]), int(p[1])) for folder, p in last["positions"].items()}
                self._path = path
                return
            path.unlink()
