"""The monitor's work: read the spools, count, judge windows, report. One ``Monitor`` per data directory."""

import contextlib
import json
import os
import socket
import sys
from typing import Any

import numpy as np

from loopline.config import Settings
from loopline.domain.capturecolumns import Columns
from loopline.errors import InvalidInput
from loopline.monitor.compaction import Compaction
from loopline.monitor.counters import UNCOUNTED, Counters
from loopline.monitor.reports import ReportStream
from loopline.monitor.tail import READ_BYTES, Position, Tail, delete_old
from loopline.monitor.windows import Watched, Window

READ_BUDGET_BYTES = 8 << 20  # of each gateway between two looks at the clock
FLUSH_SECONDS = 0.5
STATE_SECONDS = 5.0
CLEAN_SECONDS = 60.0


class Monitor:
    """``step`` does what is due. ``folder`` is ``DIR/spool/monitor``."""

    def __init__(self, settings: Settings, now: float) -> None:
        self._settings = settings
        self._spool = settings.dir / "spool"
        self._folder = self._spool / "monitor"
        self._watched_file = settings.dir / "monitors.json"
        self._watched_mark: tuple[int, int] | None = None
        self._windows: dict[tuple[str, str], Window] = {}
        self._due: dict[tuple[str, str], float] = {}
        self._counters = Counters()
        self._findings: list[dict[str, Any]] = []
        self._stream = ReportStream(self._folder)
        self._flushed_at = self._saved_at = self._cleaned_at = now
        self._recover(now)
        self._tail = Tail(self._spool, self._stream.positions)
        self._compaction = Compaction(settings, now)

    def step(self, now: float) -> bool:
        """Read, judge, report; says whether there was so much that it should be called again at once."""
        self._load_watched(now)
        pieces = 0
        for piece in self._tail.read(READ_BUDGET_BYTES):
            pieces += 1
            self._counters.add(piece.records)
            self._look(piece.records)
        self._evaluate(now)
        if now - self._flushed_at >= FLUSH_SECONDS:
            self.flush(now)
        if now - self._saved_at >= STATE_SECONDS:
            self.save(now)
        if now - self._cleaned_at >= CLEAN_SECONDS:
            self._clean(now)
        return pieces >= READ_BUDGET_BYTES // READ_BYTES

    def flush(self, now: float) -> None:
        """Write one line with everything found since the last one, and wake control."""
        self._flushed_at = now
        rows = [*self._counters.take(), *self._findings]
        if rows:
            self._stream.append(now, self._tail.positions, rows)
            self._findings = []
            self._wake()

    def close(self, now: float) -> None:
        """Report and keep everything, and end what was started."""
        self.step(now)
        self.save(now)
        self._compaction.stop()

    def save(self, now: float) -> None:
        """Write the state of the windows. It may lag behind the report stream: a restart reads the gap once more."""
        self.flush(now)
        self._saved_at = now
        state = {
            "positions": self._tail.positions,
            "windows": [[*key, window.to_dict()] for key, window in self._windows.items()],
        }
        temporary = self._folder / f".state.{os.getpid()}"
        temporary.write_text(json.dumps(state, separators=(",", ":")))
        temporary.replace(self._folder / "state.json")

    def _look(self, records: Columns) -> None:
        """Show the windows what was answered; what the platform asked to try a version out is no traffic."""
        if not self._windows:
            return
        wanted: dict[tuple[str, str], list[int]] = {}
        for number, context in enumerate(records.contexts):
            key = (str(context.get("endpoint")), str(context.get("variant") or ""))
            if key in self._windows and context.get("purpose") != UNCOUNTED:
                wanted.setdefault(key, []).append(number)
        answered = (records.status == 200) & np.isfinite(records.at)
        for key, numbers in wanted.items():
            mine = np.isin(records.context, numbers) if len(numbers) < len(records.contexts) else True
            self._windows[key].add(records, np.flatnonzero(answered & mine))

    def _evaluate(self, now: float) -> None:
        for key, window in self._windows.items():
            if now < self._due[key]:
                continue
            self._due[key] = max(self._due[key] + window.watched.step_seconds, now)
            try:
                found = window.evaluate(now)
            except InvalidInput as error:
                _log(f"{key[0]}/{key[1]}: this window was not judged: {error.message}")
                continue
            if found is not None:
                self._findings.append(found)

    def _load_watched(self, now: float) -> None:
        """Take over ``monitors.json`` when it has changed; windows whose definition is the same go on."""
        try:
            status = self._watched_file.stat()
        except FileNotFoundError:
            return
        mark = (status.st_mtime_ns, status.st_ino)
        if mark == self._watched_mark:
            return
        self._watched_mark = mark
        wanted = _read_watched(json.loads(self._watched_file.read_text()))
        for key in [key for key in self._windows if key not in wanted]:
            del self._windows[key], self._due[key]
        for key, watched in wanted.items():
            there = self._windows.get(key)
            if there is None or there.watched != watched:
                window = Window(watched)
                if there is not None:
                    window.restore(there.to_dict())
                self._windows[key] = window
                self._due[key] = now + watched.step_seconds

    def _recover(self, now: float) -> None:
        """Windows as they were saved, and then what was reported after that once more, for the windows alone."""
        self._load_watched(now)
        try:
            state = json.loads((self._folder / "state.json").read_text())
        except (FileNotFoundError, ValueError):
            return
        for endpoint, variant, stored in state["windows"]:
            if (endpoint, variant) in self._windows:
                self._windows[endpoint, variant].restore(stored)
        saved: dict[str, Position] = {folder: (str(p[0]), int(p[1])) for folder, p in state["positions"].items()}
        gap = Tail(self._spool, saved, until=self._stream.positions, index=False)
        while True:
            pieces = list(gap.read(READ_BUDGET_BYTES))
            for piece in pieces:
                self._look(piece.records)
            if not pieces:
                return

    def _clean(self, now: float) -> None:
        self._cleaned_at = now
        self._compaction.poll(now)
        self.save(now)  # what is deleted must not be needed again
        before = now - self._settings.capture_days * 86_400
        for folder, (segment, _) in self._tail.positions.items():
            keep = self._settings.capture_mb << 20
            with contextlib.suppress(FileNotFoundError):
                delete_old(self._spool / folder, segment, before=before, keep_bytes=keep)

    def _wake(self) -> None:
        """Tell control that there is something; it finds it by itself, too."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender, contextlib.suppress(OSError):
            sender.setblocking(False)
            sender.sendto(b'{"kind":"spool","name":"monitor"}', str(self._settings.run_dir / "wake.sock"))


def _read_watched(given: dict[str, Any]) -> dict[tuple[str, str], Watched]:
    found = {}
    for endpoint, entry in given.get("endpoints", {}).items():
        settings = {**(entry.get("monitor") or {}), "positive": entry.get("positive")}
        for variant, what in entry.get("variants", {}).items():
            if not what.get("baseline"):
                continue
            try:
                found[endpoint, variant] = Watched.from_dict(endpoint, variant, settings, what)
            except (InvalidInput, KeyError, TypeError, ValueError) as error:
                _log(f"{endpoint}/{variant} is not watched for drift: {error}")
    return found


def _log(text: str) -> None:
    print(f"monitor: {text}", file=sys.stderr, flush=True)
