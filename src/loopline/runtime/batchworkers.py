"""The processes that score a batch's chunks: each loads the model once and is handed one chunk after another.

The process that hands them out never loads the model: libraries with threads do not survive a fork. A worker dies with
its parent.
"""

# Jobs name files by plain paths, as all of the runtime does.
# ruff: noqa: PTH104, PTH108, PTH110, PTH123

import gc
import json
import os
import select
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from importlib import import_module
from typing import Any, NamedTuple, NoReturn

from . import batchoutput, processes, sandbox
from .batchdeaths import IDLE, LOADING, PREDICTING, READING, WRITING, Care, Deaths, Notes, how_it_ended
from .batchinput import Bad, Plan, Reader, Rows
from .signature import Signature
from .tables import TableError

TELL_SECONDS = 0.25
FIRST_REASONS = 3
READ_BYTES = 65536
LOOK_SECONDS, CLOSE_LOOK_SECONDS = 0.025, 0.005  # between looks at the memory: the longest, the shortest time
GROWTH_BYTES = 4 << 30  # that memory may grow by in a second
SPARE_BYTES, SPARE_SHARE = 256 << 20, 0.2  # of its limit, kept free because memory grows between two looks
GC_THRESHOLDS = (100_000, 50, 1000)


class WorkerError(RuntimeError):
    """A worker cannot go on; the message says why."""


class Told(NamedTuple):
    """What a worker says of a chunk: how many rows are scored so far, or (``last``) what came of it."""

    chunk: int
    last: bool
    body: dict[str, Any]


class _Worker(NamedTuple):
    pid: int
    handle: int  # becomes readable when it has died
    orders: int
    answers: int
    said: bytearray
    notes: Notes


class Workers:
    """``count`` processes for one table and one model. One that dies is replaced; see ``batchdeaths``."""

    def __init__(self, call: dict[str, Any], plan: Plan, kinds: list[str] | None, count: int) -> None:
        self._for = call, plan, kinds
        self._deaths = Deaths()
        self._poller = select.poll()
        self._workers: dict[int, _Worker] = {}  # by the descriptors of their answers and of their ends
        self._busy: dict[int, int] = {}  # the chunk that each works on, by its process
        self._hungry: set[int] = set()  # processes that are being ended for their memory
        limit = float(call.get("memory_mb") or 0) * 1048576
        self._most_bytes = max(limit - SPARE_BYTES, limit * (1 - SPARE_SHARE))
        self._look_at, self._pause = 0.0, LOOK_SECONDS
        for _ in range(count):
            self._fork()

    def _fork(self) -> None:
        orders, orders_end = os.pipe()
        answers_end, answers = os.pipe()
        notes = Notes()
        others = [end for worker in self._all() for end in (worker.handle, worker.orders, worker.answers)]
        parent = os.getpid()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            for end in (*others, orders_end, answers_end):
                os.close(end)
            _work(parent, orders, answers, notes, *self._for)
        os.close(orders)
        os.close(answers)
        os.set_blocking(answers_end, False)
        worker = _Worker(pid, os.pidfd_open(pid), orders_end, answers_end, bytearray(), notes)
        for end in (worker.answers, worker.handle):
            self._workers[end] = worker
            self._poller.register(end, select.POLLIN)

    def _all(self) -> list[_Worker]:
        return [worker for end, worker in self._workers.items() if end == worker.handle]

    def each(self, what: str, chunks: Iterable[int]) -> Iterator[Told]:
        """Have chunks worked on, in this order as workers become free, and give what is told of each.

        Raises ``WorkerError`` when a worker fails, and ``HopelessError`` when too many die.
        """
        waiting = deque(chunks)
        self._hand_out(what, waiting)
        while self._busy:
            for end, _ in self._poller.poll(self._pause * 1000):
                worker = self._workers.get(end)
                if worker is not None:
                    yield from self._heard(worker)
                    if end == worker.handle:
                        yield from self._died(worker, waiting)
                    self._hand_out(what, waiting)
            self._look_at_memory()

    def _hand_out(self, what: str, waiting: deque[int]) -> None:
        """Give every worker that has none a chunk, as long as there are some."""
        for worker in self._all():
            if waiting and worker.pid not in self._busy:
                chunk = self._busy[worker.pid] = waiting.popleft()
                order = [what, chunk, self._deaths.care_for(chunk)]
                with suppress(BrokenPipeError):  # it is gone, and its end says why
                    _write_all(worker.orders, json.dumps(order).encode() + b"\n")

    def _heard(self, worker: _Worker) -> Iterator[Told]:
        """What a worker has said and was not heard of before."""
        with suppress(BlockingIOError, KeyError):
            while data := os.read(worker.answers, READ_BYTES):
                worker.said.extend(data)
            self._poller.unregister(worker.answers)  # its other end is closed: no more will come, as was seen before
        *lines, rest = worker.said.split(b"\n")
        worker.said[:] = rest
        for line in lines:
            body = json.loads(line)
            if "failed" in body:
                raise WorkerError(body["failed"])
            told = Told(body["chunk"], body["last"], body["body"])
            if told.last:
                del self._busy[worker.pid]
                self._deaths.finished(told.chunk)
            yield told

    def _died(self, worker: _Worker, waiting: deque[int]) -> Iterator[Told]:
        """Learn from a death, and put another process in the dead one's place as long as there is work."""
        pid, status = os.waitpid(worker.pid, os.WNOHANG)
        if not pid:
            return
        note, chunk = worker.notes.read(), self._busy.pop(worker.pid, None)
        hungry = worker.pid in self._hungry
        self._hungry.discard(worker.pid)
        self._forget(worker)
        if chunk is None and not waiting:
            return
        how = how_it_ended(status)
        if hungry:
            how = f"was ended when the job was about to use more than its {self._for[0]['memory_mb']:g} MB of memory"
            if self._workers:  # alone, the others may have enough, and no row is to blame
                self._say(f"a process was ended for its memory; {len(self._all())} go on")
                waiting.extendleft([] if chunk is None else [chunk])
                return
        self._say(self._deaths.add(chunk, note, how))
        self._fork()
        if chunk is not None:
            waiting.appendleft(chunk)
            yield Told(chunk, last=False, body={"rows": 0, "aside": self._deaths.aside(chunk)})

    def _say(self, text: str) -> None:
        sys.stderr.write(f"[loopline] {text}\n")
        sys.stderr.flush()

    def _look_at_memory(self) -> None:
        """End the worker that takes most before the job as a whole is ended for what all of them take."""
        now = time.monotonic()
        if not self._most_bytes or self._hungry or now < self._look_at:
            return
        found = {worker.pid: [worker.pid, *processes.descendants(worker.pid)] for worker in self._all()}
        pids = [os.getpid(), *(pid for family in found.values() for pid in family)]
        used = processes.resident_bytes(pids)
        if used > self._most_bytes:  # or pages that several share were counted several times
            used = processes.proportional_bytes(pids)
        if found and used > self._most_bytes:
            self._end_largest(found)
        soonest = (self._most_bytes - used) / GROWTH_BYTES
        self._pause = min(max(soonest, CLOSE_LOOK_SECONDS), LOOK_SECONDS)
        self._look_at = time.monotonic() + self._pause

    def _end_largest(self, found: dict[int, list[int]]) -> None:
        largest = max(found, key=lambda pid: processes.resident_bytes(found[pid]))
        self._hungry.add(largest)
        for pid in reversed(found[largest]):
            processes.send(pid, signal.SIGKILL)

    def _forget(self, worker: _Worker) -> None:
        for end in (worker.handle, worker.answers):
            with suppress(KeyError):
                self._poller.unregister(end)
            del self._workers[end]
        for end in (worker.handle, worker.orders, worker.answers):
            os.close(end)
        worker.notes.close()

    def stop(self) -> None:
        """End every worker, whatever it does."""
        for worker in self._all():
            os.kill(worker.pid, signal.SIGKILL)
            os.waitpid(worker.pid, 0)
            self._forget(worker)


def _write_all(end: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(end, view) :]


# -- in the worker ----------------------------------------------------------------------------------------------------


def _work(
    parent: int, orders: int, answers: int, notes: Notes, call: dict[str, Any], plan: Plan, kinds: list[str] | None
) -> NoReturn:
    def say(message: dict[str, Any]) -> None:
        _write_all(answers, json.dumps(message).encode() + b"\n")

    try:
        sandbox.die_with_parent(parent, signal.SIGKILL)
        chunks = _Chunks(call, plan, kinds, say, notes)
        with open(orders, encoding="utf-8") as given:
            for line in given:
                what, number, care = json.loads(line)
                if what == "kinds":
                    chunks.kinds(number)
                else:
                    chunks.score(number, Care(care))
                notes.write(IDLE)
    except BaseException as error:  # noqa: BLE001 - the process ends here, and its parent has to learn why
        if isinstance(error, TableError | batchoutput.OutputError | _CannotLoad):
            say({"failed": str(error)})
        elif not isinstance(error, BrokenPipeError):
            traceback.print_exc()
            say({"failed": f"{type(error).__name__}: {error}"})
    finally:
        os._exit(0)


class _Chunks:
    """A worker's reader, its model, and its way to speak."""

    def __init__(
        self,
        call: dict[str, Any],
        plan: Plan,
        kinds: list[str] | None,
        say: Callable[[dict[str, Any]], None],
        notes: Notes,
    ) -> None:
        self._call, self._say, self._notes = call, say, notes
        signature = None if call["signature"] is None else Signature(call["signature"]["features"])
        self._reader = Reader(call["table"]["path"], plan, signature, call["keep"], kinds)
        self._predict: Callable[[list[Any]], Any] | None = None
        self._told_at = 0.0

    def kinds(self, number: int) -> None:
        """What each column of a chunk may be."""
        self._notes.write(READING)
        self._say({"chunk": number, "last": True, "body": {"kinds": self._reader.possible_kinds(number)}})

    def score(self, number: int, care: Care) -> None:
        """Write a chunk's pieces, then say so."""
        self._notes.write(LOADING)
        model = self._loaded()
        self._notes.write(READING)
        found = self._reader.read(number, matrix=getattr(model, "takes_matrix", False))
        scored = _Scored([], [], list(found.bad))
        step = max(1, int(self._call["rows_per_call"]))
        for start in range(0, len(found.rows), step):
            end = min(start + step, len(found.rows))
            self._score(found, start, end, scored, care)
            self._progress(number, end)
        self._notes.write(WRITING)
        columns, data = self._part(found, scored)
        bad = sorted(scored.bad, key=lambda each: each.row)
        lines = "".join(json.dumps(each._asdict(), ensure_ascii=False, default=str) + "\n" for each in bad)
        bad_data = lines.encode(errors="replace")
        name = f"{self._call['folder']}/{number:08d}"
        _write_synced(f"{name}.out", data)
        _write_synced(f"{name}.bad", bad_data)
        body = {
            "rows": len(scored.places) + len(bad),
            "bad": len(bad),
            "columns": columns if scored.places else [],
            "size": len(data),
            "bad_size": len(bad_data),
            "first": [each.reason[:300] for each in bad[:FIRST_REASONS]],
        }
        self._say({"chunk": number, "last": True, "body": body})

    def _score(self, found: Rows, start: int, end: int, scored: "_Scored", care: Care) -> None:
        """Predict some rows. Where a call fails, its halves are tried alone, so that one poisonous row costs nobody
        else a prediction; where one has ended a process, so are the parts that ``care`` says."""
        part = care.parts.get((start, end))
        if part:
            for first in range(start, end, part):
                self._score(found, first, min(first + part, end), scored, care)
            return
        if end - start == 1 and start in care.aside:
            scored.set_aside(found, start, care.aside[start])
            return
        self._notes.write(PREDICTING, start, end, found.numbers[start], found.numbers[end - 1])
        try:
            result = _one_per_row(self._loaded()(found.rows[start:end]), end - start)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the user's code, on rows that it may not take
            if end - start == 1:
                scored.set_aside(found, start, f"{type(error).__name__}: {error}"[:500])
                return
            middle = (start + end) // 2
            self._score(found, start, middle, scored, care)
            self._score(found, middle, end, scored, care)
            return
        scored.results.append(result)
        scored.places.extend(range(start, end))

    def _part(self, found: Rows, scored: "_Scored") -> tuple[list[str], bytes]:
        """The piece of output; predictions that are not JSON are taken out and set aside."""
        form, keep = "csv" if self._call["form"] == "csv" else "jsonl", self._call["keep"]
        whole = len(scored.places) == len(found.kept)
        kept = found.kept if whole else [found.kept[place] for place in scored.places]
        labelled = _labelled(scored.results) if form == "csv" else None
        predictions = [each for result in scored.results for each in _as_list(result)] if labelled is None else []
        try:
            if labelled is not None:
                return batchoutput.part_of_columns(keep, kept, *labelled)
            return batchoutput.part(form, keep, kept, predictions)
        except batchoutput.OutputError:
            raise
        except (TypeError, ValueError, RecursionError):
            predictions = [each for result in scored.results for each in _as_list(result)]
            problems = [batchoutput.problem_of(prediction) for prediction in predictions]
        for at in reversed(range(len(problems))):
            problem = problems[at]
            if problem is not None:
                del predictions[at]
                scored.set_aside(found, scored.places.pop(at), problem)
        return batchoutput.part(form, keep, [found.kept[place] for place in scored.places], predictions)

    def _progress(self, number: int, rows: int) -> None:
        now = time.monotonic()
        if now - self._told_at > TELL_SECONDS:
            self._told_at = now
            self._say({"chunk": number, "last": False, "body": {"rows": rows}})

    def _loaded(self) -> Callable[[list[Any]], Any]:
        if self._predict is None:
            # The handlers are of the model server, which knows them by the package's own name.
            load = import_module("loopline.runtime.loading").load_model
            spec = {name: self._call[name] for name in ("handler", "model_dir", "signature")}
            try:
                self._predict = load({**spec, "code_dir": self._call["tree"]})
            except Exception as error:
                raise _CannotLoad(str(error)) from error
            # A chunk is many small lists without cycles: looking through them again and again cost a third of the time.
            gc.freeze()
            gc.set_threshold(*GC_THRESHOLDS)
        return self._predict


class _CannotLoad(BaseException):
    """The model cannot be loaded: no row is at fault."""


class _Scored(NamedTuple):
    """What came of a chunk so far: results of calls, in order, the places of their rows, and what is set aside."""

    results: list[Any]
    places: list[int]
    bad: list[Bad]

    def set_aside(self, found: Rows, place: int, reason: str) -> None:
        """Give a row up."""
        row = found.numbers[place]
        self.bad.append(Bad(row, f"row {row}: {reason}", found.inputs(place)))


def _one_per_row(result: Any, count: int) -> Any:
    """A model's answer, one prediction for each row, as a list or as ``answers.Labelled``; raises ``WorkerError``."""
    if hasattr(result, "columns") and hasattr(result, "to_dict"):  # a data frame iterates over its columns
        result = result.to_dict("records")
    elif hasattr(result, "tolist") and not _is_labelled(result):
        result = result.tolist()
    if isinstance(result, str | bytes | dict) or not (hasattr(result, "__iter__") or _is_labelled(result)):
        raise WorkerError(f"predict must return one prediction per row, not a {type(result).__name__}")
    result = result if _is_labelled(result) else list(result)
    given = len(result.chosen) if _is_labelled(result) else len(result)
    if given != count:
        raise WorkerError(f"predict returned {given} predictions for {count} rows")
    return result


def _is_labelled(result: Any) -> bool:
    return type(result).__name__ == "Labelled"  # of the package that the handlers are in


def _as_list(result: Any) -> list[Any]:
    found: list[Any] = result.tolist() if _is_labelled(result) else result
    return found


def _labelled(results: list[Any]) -> tuple[list[str], list[list[Any]]] | None:
    """Classes and probabilities as columns, without an object for each row; None when that is not what they are."""
    if not results or not all(map(_is_labelled, results)):
        return None
    values, names = results[0].classes.values, results[0].classes.names
    chosen = [values[place] for result in results for place in result.chosen]
    rows = (row for result in results for row in result.probabilities)
    columns = [chosen, *(list(column) for column in zip(*rows, strict=True))]
    return [batchoutput.PLAIN, *(f"probabilities.{name}" for name in names)], columns


def _write_synced(path: str, data: bytes) -> None:
    """A piece, whole and on disk; an empty one is no file."""
    if not data:
        if os.path.exists(path):
            os.unlink(path)
        return
    temporary = f"{path}.{os.getpid()}.new"
    with open(temporary, "wb", buffering=0) as file:
        view = memoryview(data)
        while view:
            view = view[file.write(view) :]
        os.fdatasync(file.fileno())
    os.rename(temporary, path)
