"""Score a large table with a model, chunk by chunk, so that whoever comes after a death goes on where it was.

What is done stands in a folder that outlives the attempt: ``plan.json`` (where the table is cut), a piece of output and
one of rows set aside for each chunk, and ``done.jsonl``, a line for each finished chunk. A piece is synced before its
line is written; a chunk without a line, or with a line that is cut off, is scored again. Chunks are scored by several
processes in any order; the pieces are joined in the table's order, so that how many there are changes nothing.
"""

# Jobs name files by plain paths, as all of the runtime does.
# ruff: noqa: PTH103, PTH104, PTH120, PTH123, PTH202

import fcntl
import json
import os
import sys
import time
from typing import Any, NamedTuple

from . import batchinput, batchoutput
from .batchworkers import Told, Workers
from .tables import KINDS

PROGRESS_SECONDS = 0.5
FIRST_REASONS = 3
FORMAT = 1  # of the folder; another one begins anew


class BatchError(ValueError):
    """The batch cannot go on; the message says why."""


class Done(NamedTuple):
    """A finished chunk: its rows, those set aside, the columns of its piece and the sizes of both pieces."""

    rows: int
    bad: int
    columns: list[str]
    size: int
    bad_size: int
    first: list[str]  # the first reasons


def score(call: dict[str, Any], folder: str) -> dict[str, Any]:
    """Score ``call["table"]`` {path, format}; gives the manifest's entries ``output``, ``errors`` and ``summary``.

    ``call``: ``tree``, ``handler``, ``model_dir``, ``signature`` as for ``score.score``; ``keep`` (columns passed
    through), ``workers``, ``rows_per_call``, ``max_bad_share``, ``max_bytes`` (of all pieces), ``memory_mb`` (of all
    processes), ``form`` (csv, jsonl or parquet), ``output`` (the file's name) and ``folder``, which outlives this
    attempt.
    """
    work = _Work(call)
    try:
        work.run()
        return work.give(folder)
    finally:
        work.close()


class _Work:
    def __init__(self, call: dict[str, Any]) -> None:
        self.call, self.folder = call, call["folder"]
        self._lock = os.open(f"{self.folder}/lock", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)  # workers hold it too: nobody begins before the last of them is gone
        if call["form"] == "parquet":
            batchoutput.library_for_parquet()
        self.began, self.before = time.monotonic(), 0
        self.plan, self.kinds = self._planned()
        self.done = self._read_done()
        self.before = sum(done.rows for done in self.done.values())
        self._list = open(f"{self.folder}/done.jsonl", "ab", buffering=0)  # noqa: SIM115 - closed by ``close``
        self._told_at = 0.0
        self._going_on: dict[int, int] = {}  # rows of the chunks that are being scored
        self._deadly: dict[int, list[str]] = {}  # of those, the reasons of the rows that end a process

    def close(self) -> None:
        self._list.close()
        os.close(self._lock)

    # -- what is known from before

    def _planned(self) -> tuple[batchinput.Plan, list[str] | None]:
        path = f"{self.folder}/plan.json"
        stored = _read_json(path)
        if stored is not None and stored["version"] == FORMAT:
            chunks = [(start, length, rows) for start, length, rows in stored["chunks"]]
            return batchinput.Plan(stored["form"], stored["header"], chunks), stored["kinds"]
        table = self.call["table"]
        plan = batchinput.plan(table["path"], table["format"], self.call.get("chunk_rows") or batchinput.CHUNK_ROWS)
        if not plan.rows:
            raise BatchError("the table has no rows")
        kinds = None
        if plan.header and plan.form != "parquet" and self.call["signature"] is None:
            kinds = self._find_kinds(plan)
        stored = {"version": FORMAT, "form": plan.form, "header": plan.header, "chunks": plan.chunks, "kinds": kinds}
        _write(path, json.dumps(stored).encode())
        return plan, kinds

    def _find_kinds(self, plan: batchinput.Plan) -> list[str]:
        """How each column of a CSV is read: as the most special kind that fits all its cells."""
        possible = [set(KINDS) for _ in plan.header]
        workers = Workers(self.call, plan, None, self._count(plan))
        try:
            for told in workers.each("kinds", range(len(plan.chunks))):
                for left, found in zip(possible, told.body["kinds"], strict=True):
                    left.intersection_update(found)
        finally:
            workers.stop()
        return [next(kind for kind in KINDS if kind in left) for left in possible]

    def _read_done(self) -> dict[int, Done]:
        """The chunks whose line is whole and whose pieces are there as the line says."""
        found: dict[int, Done] = {}
        try:
            with open(f"{self.folder}/done.jsonl", "rb") as file:
                lines = file.read().split(b"\n")
        except FileNotFoundError:
            return found
        for line in lines:
            try:
                entry = json.loads(line)
                number, done = entry.pop("chunk"), Done(**entry)
            except (ValueError, TypeError, KeyError, AttributeError):
                continue  # cut off by a death
            if _size(self.piece(number, "out")) == done.size and _size(self.piece(number, "bad")) == done.bad_size:
                found[number] = done
        return found

    def piece(self, number: int, kind: str) -> str:
        """The path of a chunk's piece of output (``out``) or of rows set aside (``bad``)."""
        return f"{self.folder}/{number:08d}.{kind}"

    # -- the work

    def run(self) -> None:
        """Score the chunks that are missing."""
        self._check_share()
        missing = [number for number in range(len(self.plan.chunks)) if number not in self.done]
        if not missing:
            return
        if self.done:
            sys.stderr.write(f"[loopline] going on: {len(self.done)} of {len(self.plan.chunks)} chunks are done\n")
        if self._list.tell():
            self._list.write(b"\n")  # whatever was cut off ends here
        workers = Workers(self.call, self.plan, self.kinds, self._count(self.plan))
        try:
            for told in workers.each("score", missing):
                self._hear(told)
        finally:
            workers.stop()
        self._tell("Scored", now=True)

    def _count(self, plan: batchinput.Plan) -> int:
        return max(1, min(int(self.call["workers"]), len(plan.chunks)))

    def _hear(self, told: Told) -> None:
        if not told.last:
            self._going_on[told.chunk] = told.body["rows"]
            if told.body.get("aside"):
                self._deadly[told.chunk] = told.body["aside"]
                self._check_share()
        else:
            self._going_on.pop(told.chunk, None)
            self._deadly.pop(told.chunk, None)
            done = Done(**told.body)
            self.done[told.chunk] = done
            self._list.write(json.dumps({"chunk": told.chunk, **done._asdict()}).encode() + b"\n")
            os.fdatasync(self._list.fileno())
            self._check_share()
            if sum(done.size + done.bad_size for done in self.done.values()) > self.call["max_bytes"]:
                raise BatchError(f"the output is larger than {self.call['max_bytes'] / 1048576:g} MB, the disk limit")
        self._tell("Scoring")

    def _check_share(self) -> None:
        deadly = [reason for number in sorted(self._deadly) for reason in self._deadly[number]]
        bad, share = sum(done.bad for done in self.done.values()) + len(deadly), float(self.call["max_bad_share"])
        if bad <= share * self.plan.rows:
            return
        reasons = [reason for number in sorted(self.done) for reason in self.done[number].first] + deadly
        rows = sum(done.rows for done in self.done.values()) + len(deadly)
        raise BatchError(
            f"{bad} of {rows} rows were set aside so far, of {self.plan.rows}; max_bad_share is {share:g}: "
            + "; ".join(reasons[:FIRST_REASONS])
        )

    def _tell(self, stage: str, *, now: bool = False) -> None:
        """Say in ``progress.json`` how far it is, now and then."""
        at = time.monotonic()
        if not now and at - self._told_at < PROGRESS_SECONDS:
            return
        self._told_at = at
        rows = sum(done.rows for done in self.done.values()) + sum(self._going_on.values())
        progress = {
            "stage": stage,
            "rows_done": rows,
            "rows_total": self.plan.rows,
            "bad": sum(done.bad for done in self.done.values()),
            "rows_per_second": round((rows - self.before) / max(at - self.began, 1e-3), 1),
            "seconds": round(at - self.began, 3),
        }
        _write(f"{self.folder}/progress.json", json.dumps(progress).encode(), sync=False)

    # -- what it gives

    def give(self, folder: str) -> dict[str, Any]:
        """Join the pieces in order below the attempt's ``outputs``; gives the manifest."""
        from .values import save

        self._tell("Joining", now=True)
        order = [self.done[number] for number in range(len(self.plan.chunks))]
        given = [(self.piece(number, "out"), done.columns) for number, done in enumerate(order) if done.size]
        pieces = [path for path, _ in given]
        keep, form = self.call["keep"], self.call["form"]
        paths = {"output": f"outputs/output/{self.call['output']}", "errors": "outputs/errors/errors.jsonl"}
        for path in paths.values():
            os.makedirs(os.path.dirname(f"{folder}/{path}"), exist_ok=True)
        columns = [*keep, *dict.fromkeys(name for done in order for name in done.columns)]
        if form == "csv":
            columns, size, digest = batchoutput.join_csv(
                pieces, [names for _, names in given], keep, f"{folder}/{paths['output']}"
            )
        elif form == "parquet":
            size, digest = batchoutput.join_parquet(pieces, f"{folder}/{paths['output']}")
        else:
            size, digest = batchoutput.join(pieces, f"{folder}/{paths['output']}")
        bad_pieces = [self.piece(number, "bad") for number, done in enumerate(order) if done.bad]
        bad_size, bad_digest = batchoutput.join(bad_pieces, f"{folder}/{paths['errors']}")
        rows, seconds = sum(done.rows for done in order), time.monotonic() - self.began
        summary = {
            "rows": rows,
            "bad": sum(done.bad for done in order),
            "columns": columns,
            "seconds": round(seconds, 3),
            "rows_per_second": round((rows - self.before) / max(seconds, 1e-3), 1),
        }
        return {
            "output": _entry(paths["output"], size, digest),
            "errors": _entry(paths["errors"], bad_size, bad_digest),
            "summary": save("summary", summary, folder),
        }


def _entry(path: str, size: int, digest: str) -> dict[str, Any]:
    return {"format": "file", "path": path, "size_bytes": size, "sha256": digest, "executable": False}


def _size(path: str) -> int:
    try:
        return os.path.getsize(path)
    except FileNotFoundError:
        return 0  # an empty piece is not written


def _read_json(path: str) -> Any:
    try:
        with open(path, "rb") as file:
            return json.loads(file.read())
    except FileNotFoundError:
        return None


def _write(path: str, data: bytes, *, sync: bool = True) -> None:
    """Write a file whole or not at all."""
    temporary = f"{path}.{os.getpid()}.new"
    with open(temporary, "wb", buffering=0) as file:
        file.write(data)
        if sync:
            os.fdatasync(file.fileno())
    os.rename(temporary, path)
