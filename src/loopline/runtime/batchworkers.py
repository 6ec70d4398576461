"""The processes that score a batch's chunks: each loads the model once and is handed one chunk after another.

The process that hands them out never loads the model: libraries with threads do not survive a fork. A worker dies with
its parent.
"""

# Jobs name files by plain paths, as all of the runtime does.
# ruff: noqa: PTH104, PTH108, PTH110, PTH123

import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from typing import Any, NamedTuple, NoReturn

from . import batchoutput, sandbox
from .batchinput import Bad, Plan, Reader, Rows
from .signature import Signature
from .tables import TableError

TELL_SECONDS = 0.25
FIRST_REASONS = 3
READ_BYTES = 65536


class WorkerError(RuntimeError):
    """A worker cannot go on; the message says why."""


class Told(NamedTuple):
    """What a worker says of a chunk: how many rows are scored so far, or (``last``) what came of it."""

    chunk: int
    last: bool
    body: dict[str, Any]


class _Worker(NamedTuple):
    pid: int
    orders: int
    answers: int
    said: bytearray


class Workers:
    """``count`` processes for one table and one model."""

    def __init__(self, call: dict[str, Any], plan: Plan, kinds: list[str] | None, count: int) -> None:
        self._workers: dict[int, _Worker] = {}  # by the descriptor of its answers
        self._busy: dict[int, int] = {}  # the chunk that each works on
        for _ in range(count):
            worker = self._fork(call, plan, kinds)
            self._workers[worker.answers] = worker

    def _fork(self, call: dict[str, Any], plan: Plan, kinds: list[str] | None) -> _Worker:
        orders, orders_end = os.pipe()
        answers_end, answers = os.pipe()
        others = [end for worker in self._workers.values() for end in (worker.orders, worker.answers)]
        parent = os.getpid()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            for end in (*others, orders_end, answers_end):
                os.close(end)
            _work(parent, orders, answers, call, plan, kinds)
        os.close(orders)
        os.close(answers)
        return _Worker(pid, orders_end, answers_end, bytearray())

    def each(self, what: str, chunks: Iterable[int]) -> Iterator[Told]:
        """Have chunks worked on, in this order as workers become free, and give what is told of each.

        Raises ``WorkerError`` when a worker fails or dies.
        """
        waiting = iter(chunks)
        poller = select.poll()
        for answers, worker in self._workers.items():
            poller.register(answers, select.POLLIN)
            self._hand_out(worker, what, waiting)
        while self._busy:
            for answers, _ in poller.poll():
                worker = self._workers[answers]
                for told in self._heard(worker):
                    if told.last:
                        del self._busy[answers]
                        self._hand_out(worker, what, waiting)
                    yield told

    def _hand_out(self, worker: _Worker, what: str, waiting: Iterator[int]) -> None:
        chunk = next(waiting, None)
        if chunk is not None:
            self._busy[worker.answers] = chunk
            os.write(worker.orders, json.dumps([what, chunk]).encode() + b"\n")

    def _heard(self, worker: _Worker) -> list[Told]:
        data = os.read(worker.answers, READ_BYTES)
        if not data:
            raise WorkerError(self._how_it_died(worker))
        worker.said.extend(data)
        *lines, rest = worker.said.split(b"\n")
        worker.said[:] = rest
        found = []
        for line in lines:
            body = json.loads(line)
            if "failed" in body:
                raise WorkerError(body["failed"])
            found.append(Told(body["chunk"], body["last"], body["body"]))
        return found

    def _how_it_died(self, worker: _Worker) -> str:
        _, status = os.waitpid(worker.pid, 0)
        del self._workers[worker.answers]
        how = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"status {os.WEXITSTATUS(status)}"
        chunk = self._busy.get(worker.answers)
        where = "" if chunk is None else f" while it scored chunk {chunk}"
        return f"the process that runs the model ended with {how}{where}: one of the rows there may be its end"

    def stop(self) -> None:
        """End every worker, whatever it does."""
        for worker in self._workers.values():
            os.close(worker.orders)
            os.close(worker.answers)
            os.kill(worker.pid, signal.SIGKILL)
            os.waitpid(worker.pid, 0)
        self._workers.clear()


# -- in the worker ----------------------------------------------------------------------------------------------------


def _work(
    parent: int, orders: int, answers: int, call: dict[str, Any], plan: Plan, kinds: list[str] | None
) -> NoReturn:
    def say(message: dict[str, Any]) -> None:
        data = memoryview(json.dumps(message).encode() + b"\n")
        while data:
            data = data[os.write(answers, data) :]

    try:
        sandbox.die_with_parent(parent, signal.SIGKILL)
        chunks = _Chunks(call, plan, kinds, say)
        with open(orders, encoding="utf-8") as given:
            for line in given:
                what, number = json.loads(line)
                {"kinds": chunks.kinds, "score": chunks.score}[what](number)
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
    ) -> None:
        self._call, self._say = call, say
        signature = None if call["signature"] is None else Signature(call["signature"]["features"])
        self._reader = Reader(call["table"]["path"], plan, signature, call["keep"], kinds)
        self._predict: Callable[[list[Any]], Any] | None = None
        self._told_at = 0.0

    def kinds(self, number: int) -> None:
        """What each column of a chunk may be."""
        self._say({"chunk": number, "last": True, "body": {"kinds": self._reader.possible_kinds(number)}})

    def score(self, number: int) -> None:
        """Write a chunk's pieces, then say so."""
        found = self._reader.read(number)
        bad = list(found.bad)
        places: list[int] = []
        predictions: list[Any] = []
        step = max(1, int(self._call["rows_per_call"]))
        for start in range(0, len(found.rows), step):
            for place, prediction, reason in self._scored(found.rows, start, min(start + step, len(found.rows))):
                if reason is None:
                    places.append(place)
                    predictions.append(prediction)
                else:
                    row = found.numbers[place]
                    bad.append(Bad(row, f"row {row}: {reason}", found.inputs(place)))
            self._progress(number, start + step)
        columns, data = self._part(found, places, predictions, bad)
        bad.sort(key=lambda each: each.row)
        lines = "".join(json.dumps(each._asdict(), ensure_ascii=False, default=str) + "\n" for each in bad)
        bad_data = lines.encode(errors="replace")
        name = f"{self._call['folder']}/{number:08d}"
        _write_synced(f"{name}.out", data)
        _write_synced(f"{name}.bad", bad_data)
        body = {
            "rows": len(predictions) + len(bad),
            "bad": len(bad),
            "columns": columns if predictions else [],
            "size": len(data),
            "bad_size": len(bad_data),
            "first": [each.reason[:300] for each in bad[:FIRST_REASONS]],
        }
        self._say({"chunk": number, "last": True, "body": body})

    def _part(self, found: Rows, places: list[int], predictions: list[Any], bad: list[Bad]) -> tuple[list[str], bytes]:
        """The piece of output; predictions that are not JSON are taken out and go to ``bad``."""
        form, keep = "csv" if self._call["form"] == "csv" else "jsonl", self._call["keep"]
        kept = found.kept if len(places) == len(found.kept) else [found.kept[place] for place in places]
        try:
            return batchoutput.part(form, keep, kept, predictions)
        except batchoutput.OutputError:
            raise
        except (TypeError, ValueError, RecursionError):
            problems = [batchoutput.problem_of(prediction) for prediction in predictions]
        for at in reversed(range(len(problems))):
            if problems[at] is not None:
                place = places.pop(at)
                del predictions[at]
                row = found.numbers[place]
                bad.append(Bad(row, f"row {row}: {problems[at]}", found.inputs(place)))
        return batchoutput.part(form, keep, [found.kept[place] for place in places], predictions)

    def _progress(self, number: int, rows: int) -> None:
        now = time.monotonic()
        if now - self._told_at > TELL_SECONDS:
            self._told_at = now
            self._say({"chunk": number, "last": False, "body": {"rows": rows}})

    def _scored(self, rows: list[Any], start: int, end: int) -> Iterator[tuple[int, Any, str | None]]:
        """(place, prediction, None) or (place, None, reason) of some rows. Where a call fails, its halves are tried
        alone, so that one poisonous row costs nobody else a prediction."""
        try:
            answers = _one_per_row(self._model()(rows[start:end]), end - start)
            problem = None
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the user's code, on rows that it may not take
            problem = f"{type(error).__name__}: {error}"[:500]
        if problem is None:
            for place, answer in enumerate(answers, start):
                yield place, answer, None
        elif end - start == 1:
            yield start, None, problem
        else:
            middle = (start + end) // 2
            yield from self._scored(rows, start, middle)
            yield from self._scored(rows, middle, end)

    def _model(self) -> Callable[[list[Any]], Any]:
        if self._predict is None:
            # The handlers are of the model server, which knows them by the package's own name.
            load = import_module("loopline.runtime.loading").load_model
            spec = {name: self._call[name] for name in ("handler", "model_dir", "signature")}
            try:
                self._predict = load({**spec, "code_dir": self._call["tree"]})
            except Exception as error:
                raise _CannotLoad(str(error)) from error
        return self._predict


class _CannotLoad(BaseException):
    """The model cannot be loaded: no row is at fault."""


def _one_per_row(result: Any, count: int) -> list[Any]:
    """A model's answer as a list with one prediction for each row; raises ``WorkerError``."""
    if hasattr(result, "columns") and hasattr(result, "to_dict"):  # a data frame iterates over its columns
        result = result.to_dict("records")
    elif hasattr(result, "tolist"):
        result = result.tolist()
    if isinstance(result, str | bytes | dict) or not hasattr(result, "__iter__"):
        raise WorkerError(f"predict must return one prediction per row, not a {type(result).__name__}")
    predictions = list(result)
    if len(predictions) != count:
        raise WorkerError(f"predict returned {len(predictions)} predictions for {count} rows")
    return predictions


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
