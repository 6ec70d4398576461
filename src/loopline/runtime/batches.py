"""Many predict requests, one call of the model: rows are put together, predicted once, and cut apart again.

A request that is wrong fails alone. When the model fails on rows of several requests, each request is predicted alone,
so that one poisonous row costs nobody else an answer.
"""

import re
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from . import printed
from .answers import Body, Encoder, ModelError, error_body, one_per_row
from .contents import Part, Reader
from .loading import Asked, Model, Told
from .printed import Call
from .signature import InputError, Signature

DEFAULT_MAX_BATCH_ROWS = 1024
MAX_ATTRIBUTES_BYTES = 1024
Answer = tuple[int, bytes]  # HTTP status, JSON body
_TYPE = re.compile(rb"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")


class Batcher:
    """Predicts for many requests at once."""

    def __init__(
        self,
        model: Model,
        signature: Signature | None,
        max_rows: int = DEFAULT_MAX_BATCH_ROWS,
        core: Any = None,
    ) -> None:
        self._model = model
        self._signature = signature
        self._max_rows = max(1, max_rows)
        self._reader = Reader(signature, core, matrices=model.takes_matrix, columns=model.columns)
        self._encoder = Encoder(core)

    def warm_up(self, rows: list[Any]) -> None:
        """Predict rows as a request would carry them. Raises ``InputError`` or ``ModelError``."""
        if rows:
            check = self._signature
            checked = rows if check is None else [check.check(row, index) for index, row in enumerate(rows)]
            try:
                for result, count in self._call([checked]):
                    self._encoder.bodies(result, [count])
            except ModelError:
                raise
            except BaseException as error:
                raise _model_error(error) from error
            finally:
                printed.end()

    def answer(self, calls: Sequence[Call]) -> list[Answer]:
        """One answer per call, in the same order. Never raises for what a request or the model does."""
        if self._model.whole is not None:
            return [self._answer_whole(self._model.whole, call) for call in calls]
        answers: list[Answer | None] = [None] * len(calls)
        places: list[int] = []  # among the calls, of the group
        group: list[Part] = []
        size = 0
        for position, part in enumerate(self._reader.read(calls)):
            if isinstance(part, InputError):
                refusal = error_body("invalid_input", str(part), row=part.row, feature=part.feature)
                answers[position] = (400, refusal)
                continue
            if group and size + len(part) > self._max_rows:
                self._answer_group(calls, places, group, answers)
                places, group, size = [], [], 0
            places.append(position)
            group.append(part)
            size += len(part)
        if group:
            self._answer_group(calls, places, group, answers)
        return answers  # type: ignore[return-value]  # every position has been answered

    def _answer_whole(self, whole: Callable[[Asked], Told], call: Call) -> Answer:
        """What a model that reads and writes bodies by itself answers."""
        printed.begin([call])
        try:
            told = whole(asked_by(call))
            body = Body(told.body)
            body.content_type = told.content_type.encode("ascii")
            if not _TYPE.fullmatch(body.content_type) or not 200 <= told.status <= 599:
                raise ModelError(f"{told.status} {told.content_type[:80]!r} is no status and content type")
            if told.attributes:
                body.content_type += b"\n" + _attributes(told.attributes)
            return told.status, body
        except InputError as error:
            return 400, error_body("invalid_input", str(error))
        except BaseException as error:  # noqa: BLE001 - see _model_error
            return _failed(_model_error(error))
        finally:
            printed.end()

    def _answer_group(
        self, calls: Sequence[Call], places: list[int], group: list[Part], answers: list[Answer | None]
    ) -> None:
        printed.begin(calls if len(group) == len(calls) else [calls[place] for place in places])
        try:
            bodies: list[Answer] | None = self._bodies(self._call(group), list(map(len, group)))
        except BaseException as error:  # noqa: BLE001 - see _model_error
            failed = _failed(_model_error(error))
            bodies = [failed] if len(group) == 1 else None
        finally:
            printed.end()
        if bodies is None:
            for place, part in zip(places, group, strict=True):
                self._answer_group(calls, [place], [part], answers)
            return
        for place, answer in zip(places, bodies, strict=True):
            answers[place] = answer

    def _bodies(self, results: list[tuple[Any, int]], counts: list[int]) -> list[Answer]:
        """An answer for each request of a group. Raises ``ModelError`` for what is not one prediction per row."""
        if len(results) == 1:
            result = results[0][0]
        else:
            result = [each for part, count in results for each in one_per_row(part, count)]
        return [
            (500, error_body("model_error", str(body), row=body.row)) if isinstance(body, ModelError) else (200, body)
            for body in self._encoder.bodies(result, counts)
        ]

    def _call(self, parts: list[Part]) -> list[tuple[Any, int]]:
        """What the model gave, with the number of rows it was asked for: at most ``max_rows`` at a time."""
        rows = parts[0] if len(parts) == 1 else self._model.join(parts)
        if len(rows) <= self._max_rows:
            return [(self._model.predict(rows), len(rows))] if len(rows) else []
        slices = (rows[start : start + self._max_rows] for start in range(0, len(rows), self._max_rows))
        return [(self._model.predict(each), len(each)) for each in slices]


def _model_error(error: BaseException) -> ModelError:
    """What predict code raised, or what looking at its answer raised, as a ``ModelError``; its traceback is printed.

    A panic of compiled code and a cancelled task are no ``Exception``, and a model's failure all the same. Raises what
    ends the process.
    """
    if isinstance(error, ModelError):
        return error
    if isinstance(error, KeyboardInterrupt | GeneratorExit):
        raise error
    traceback.print_exception(error, file=sys.stderr)
    return ModelError(f"{type(error).__name__}: {error}"[:500])


def asked_by(call: Call) -> Asked:
    """The request of a call, whose content type is followed by a line ``name: value`` for each header."""
    kind, *lines = call[0].decode("latin-1").split("\n")
    headers = {name: value for name, _, value in (line.partition(": ") for line in lines)}
    return Asked(kind, headers.pop("accept", ""), headers, call[2])


def _attributes(text: str) -> bytes:
    """What a model tells the caller beside its answer, as it may stand in a header. Raises ``ModelError``."""
    found = text.encode("ascii", "replace")
    if len(found) > MAX_ATTRIBUTES_BYTES or not _TYPE.fullmatch(found):
        limit = MAX_ATTRIBUTES_BYTES
        raise ModelError(
            f"custom attributes are one line of at most {limit} printable characters, unlike {text[:80]!r}"
        )
    return found


def _failed(error: ModelError) -> Answer:
    return 500, error_body("model_error", str(error), row=error.row)
