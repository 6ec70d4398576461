"""What many requests carried, read in one go: bodies and answers become values of the watched features.

JSON is decoded into types made for the features, many bodies at once, which costs a third of decoding each by itself.
A body that does not fit them is found by halves and then read alone, as patiently as ``domain.captured`` reads it.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from loopline.domain.captured import Row, arrange, class_key, prediction_of, predictions_of, rows_of, typed

Column = Sequence[Any] | npt.NDArray[Any]

_CLASSES = {int, str, bool}
_OTHER_FORMS = ("text/csv", "application/x-npy")  # than JSON
_TYPES: dict[str, Any] = {"number": float | None, "integer": float | None}


class Rows(NamedTuple):
    """Values of the watched features, in their order. ``matrix`` holds rows of numbers only, ``rows`` any others."""

    requests: Sequence[int]  # the places of those that could be read
    matrix: npt.NDArray[np.float64] | None
    rows: list[Sequence[Any]]

    def total(self) -> int:
        """How many rows there are."""
        return len(self.rows) + (0 if self.matrix is None else len(self.matrix))


class _Answers(msgspec.Struct):
    predictions: list[Any]


class _Labelled(msgspec.Struct, forbid_unknown_fields=True):
    prediction: int | str | bool
    probabilities: dict[str, float]


class _LabelledAnswers(msgspec.Struct):
    predictions: list[_Labelled]


class RowReader:
    """Reads the requests of one variant. ``names`` and ``kinds``: the features as arrays bring them; ``watched``: those
    wanted; ``numeric``: those of them whose baseline counts numbers."""

    def __init__(
        self, names: Sequence[str], kinds: Sequence[str], watched: Sequence[str], numeric: Sequence[str]
    ) -> None:
        self._names, self._kinds = list(names), list(kinds)
        self._places = [self._names.index(name) for name in watched]
        self._in_order = self._places == list(range(len(self._names)))
        self._all_numbers = list(watched) == list(numeric)
        wanted = {name: _TYPES.get(self._kinds[self._names.index(name)], Any) for name in numeric}
        kind: Any = tuple[tuple(wanted.get(name, Any) for name in self._names)]  # type: ignore[misc]
        fields = [(f"f{place}", wanted.get(name, Any), None) for place, name in enumerate(watched)]
        by_name = {f"f{place}": name for place, name in enumerate(watched)}
        item = msgspec.defstruct("Item", fields, rename=by_name, gc=False)
        self._forms = [_decoder(kind), _decoder(item)]

    def read(self, content_type: str, bodies: Sequence[bytes]) -> Rows:
        """The rows of these bodies, which are all of one content type."""
        if not self._places:
            return Rows(range(len(bodies)), None, [])  # only the answers are watched
        if content_type.startswith(_OTHER_FORMS):
            return self._one_by_one(content_type, bodies)
        text = b"[" + b",".join(bodies) + b"]"
        for form, decoder in enumerate(self._forms):
            try:
                decoded = decoder.decode(text)
            except (msgspec.DecodeError, RecursionError):
                continue
            if len(decoded) != len(bodies):
                break  # a body that held a comma between two values: as a text of its own it is none
            if form:
                self._forms.reverse()  # clients stay with one form
            return self._arranged(range(len(bodies)), list(chain.from_iterable(each.instances for each in decoded)))
        if len(bodies) == 1:
            return self._one_by_one(content_type, bodies)
        middle = len(bodies) // 2
        return _join(self.read(content_type, bodies[:middle]), self.read(content_type, bodies[middle:]), middle)

    def _arranged(self, requests: range, rows: list[Any]) -> Rows:
        if rows and isinstance(rows[0], msgspec.Struct):
            rows = [msgspec.structs.astuple(row) for row in rows]
            chosen = None
        else:
            chosen = None if self._in_order else self._places
        if not self._all_numbers:
            return Rows(requests, None, rows if chosen is None else [[row[c] for c in chosen] for row in rows])
        if not rows:
            return Rows(requests, None, [])
        try:
            flat = np.fromiter(chain.from_iterable(rows), np.float64, len(rows) * len(rows[0]))
            matrix = flat.reshape(len(rows), -1)
        except (TypeError, ValueError):  # null, or what is no number where nobody looks
            wanted = rows if chosen is None else [[row[c] for c in chosen] for row in rows]
            return self._with_gaps(requests, wanted)
        return Rows(requests, matrix if chosen is None else matrix[:, chosen], [])

    def _with_gaps(self, requests: range, rows: list[Any]) -> Rows:
        try:
            return Rows(requests, np.array(rows, dtype=np.float64), [])
        except (TypeError, ValueError):
            return Rows(requests, None, rows)

    def _one_by_one(self, content_type: str, bodies: Sequence[bytes]) -> Rows:
        text = content_type.startswith("text/csv")
        requests: list[int] = []
        found: list[Sequence[Any]] = []
        for place, body in enumerate(bodies):
            rows: list[Row] | None = rows_of(content_type, body)
            if rows is not None:
                requests.append(place)
            for row in rows or ():
                values = arrange(row, self._names)
                if values is not None:
                    values = typed(values, self._kinds) if text else values
                    found.append([values[column] for column in self._places])
        return Rows(requests, None, found)


def _decoder(row: Any) -> msgspec.json.Decoder[Any]:
    body = msgspec.defstruct("Body", [("instances", list[row])])
    return msgspec.json.Decoder(list[body])  # type: ignore[valid-type]


def _join(first: Rows, second: Rows, middle: int) -> Rows:
    matrices = [each.matrix for each in (first, second) if each.matrix is not None]
    matrix = np.concatenate(matrices) if matrices else None
    requests = [*first.requests, *(middle + place for place in second.requests)]
    return Rows(requests, matrix, [*first.rows, *second.rows])


_answers = msgspec.json.Decoder(list[_Answers])
_labelled = msgspec.json.Decoder(list[_LabelledAnswers])


def read_answers(answers: Sequence[bytes], positive: Any, *, scores: bool = True) -> tuple[Column, Column]:
    """The predictions and, where they are wanted, the scores of these answers; what an answer lacks is left out."""
    text = b"[" + b",".join(answers) + b"]"
    if answers and b'"probabilities"' in answers[0]:
        labelled = _read_labelled(text, len(answers), positive, scores)
        if labelled is not None:
            return labelled
    try:
        decoded = _answers.decode(text)
    except (msgspec.DecodeError, RecursionError):
        decoded = []
    if len(decoded) == len(answers):
        values = list(chain.from_iterable(each.predictions for each in decoded))
        kinds = set(map(type, values))
        if kinds == {float}:
            numbers = np.array(values)
            return numbers, numbers[(numbers >= 0.0) & (numbers <= 1.0)]
        if kinds <= _CLASSES:
            return values, []
        found = [prediction_of(value, positive) for value in values]
    else:
        found = [each for answer in answers for each in predictions_of(answer, positive) or ()]
    return (
        [each.value for each in found if each.value is not None],
        [each.score for each in found if each.score is not None],
    )


def _read_labelled(text: bytes, count: int, positive: Any, scores: bool) -> tuple[Column, Column] | None:
    """Labels and scores of predictions with their probabilities, as the built-in handlers give them; else None."""
    try:
        decoded = _labelled.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return None
    if len(decoded) != count:
        return None
    found = list(chain.from_iterable(each.predictions for each in decoded))
    labels = [each.prediction for each in found]
    if not scores:
        return labels, []
    try:
        if positive is None:
            return labels, np.array([max(each.probabilities.values()) for each in found])
        key = class_key(positive)
        return labels, np.array([each.probabilities[key] for each in found])
    except (KeyError, ValueError):  # some have no such class, or none at all
        return None
