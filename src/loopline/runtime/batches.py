"""Many predict requests, one call of the model: rows are put together, predicted once, and cut apart again.

A request that is wrong fails alone. When the model fails on rows of several requests, each request is predicted alone,
so that one poisonous row costs nobody else an answer.
"""

import json
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NamedTuple

from .loading import Predict
from .signature import InputError, Signature, read_rows

DEFAULT_MAX_BATCH_ROWS = 1024
JSON_TYPE = b"application/json"


class Answer(NamedTuple):
    """What one request gets: an HTTP status and a JSON body."""

    status: int
    body: bytes


class ModelError(Exception):
    """The model raised, or what it returned is no answer; ``row`` says where, when the place is known."""

    def __init__(self, message: str, row: int | None = None) -> None:
        super().__init__(message)
        self.row = row


def _plain(value: Any) -> Any:
    for name in ("tolist", "item"):
        method = getattr(value, name, None)
        if callable(method):
            return method()
    raise TypeError(f"a {type(value).__name__} is not JSON")


_encode = json.JSONEncoder(allow_nan=False, separators=(",", ":"), default=_plain).encode


def error_body(code: str, message: str, **place: Any) -> bytes:
    """The one JSON error shape, with ``row`` and ``feature`` where they are known."""
    known = {name: value for name, value in place.items() if value is not None}
    return json.dumps({"error": {"code": code, "message": message, **known}}).encode()


def _one_per_row(result: Any, count: int) -> list[Any]:
    if hasattr(result, "columns") and hasattr(result, "to_dict"):  # a data frame iterates over its columns
        result = result.to_dict("records")
    elif hasattr(result, "tolist"):
        result = result.tolist()
    if isinstance(result, str | bytes | dict) or not hasattr(result, "__iter__"):
        raise ModelError(f"predict must return one prediction per row, not a {type(result).__name__}")
    predictions = list(result)
    if len(predictions) != count:
        raise ModelError(f"predict returned {len(predictions)} predictions for {count} rows")
    return predictions


def _encode_predictions(predictions: list[Any]) -> bytes:
    try:
        return _encode({"predictions": predictions}).encode()
    except (TypeError, ValueError, RecursionError):
        pass
    for row, prediction in enumerate(predictions):
        try:
            _encode(prediction)
        except (TypeError, ValueError, RecursionError) as error:
            raise ModelError(f"the prediction for row {row} is not JSON: {error}", row) from error
    raise ModelError("the predictions are not JSON")


class Batcher:
    """Predicts for many requests at once."""

    def __init__(self, predict: Predict, signature: Signature | None, max_rows: int = DEFAULT_MAX_BATCH_ROWS) -> None:
        self._predict = predict
        self._signature = signature
        self._max_rows = max(1, max_rows)

    def warm_up(self, rows: list[Any]) -> None:
        """Predict rows as a request would carry them. Raises ``InputError`` or ``ModelError``."""
        if rows:
            check = self._signature
            checked = rows if check is None else [check.check(row, index) for index, row in enumerate(rows)]
            _encode_predictions(self._call(checked))

    def answer(self, requests: Sequence[tuple[bytes, bytes]]) -> list[Answer]:
        """One answer per (content type, body), in the same order. Never raises for what a request or the model does."""
        answers: list[Answer | None] = [None] * len(requests)
        group: list[tuple[int, list[Any]]] = []
        size = 0
        for position, (content_type, body) in enumerate(requests):
            try:
                rows = read_rows(content_type, body, self._signature)
            except InputError as error:
                refusal = error_body("invalid_input", str(error), row=error.row, feature=error.feature)
                answers[position] = Answer(400, refusal)
                continue
            if group and size + len(rows) > self._max_rows:
                self._answer_group(group, answers)
                group, size = [], 0
            group.append((position, rows))
            size += len(rows)
        if group:
            self._answer_group(group, answers)
        return [answer for answer in answers if answer is not None]

    def _answer_group(self, group: list[tuple[int, list[Any]]], answers: list[Answer | None]) -> None:
        try:
            predictions = self._call([row for _, rows in group for row in rows])
        except ModelError as error:
            if len(group) == 1:
                answers[group[0][0]] = _failed(error)
            else:
                for member in group:
                    self._answer_group([member], answers)
            return
        start = 0
        for position, rows in group:
            try:
                answers[position] = Answer(200, _encode_predictions(predictions[start : start + len(rows)]))
            except ModelError as error:
                answers[position] = _failed(error)
            start += len(rows)

    def _call(self, rows: list[Any]) -> list[Any]:
        """The model's predictions, asked for at most ``max_rows`` rows at a time."""
        predictions: list[Any] = []
        for start in range(0, len(rows), self._max_rows):
            part = rows[start : start + self._max_rows]
            try:
                predictions += _one_per_row(self._predict(part), len(part))
            except ModelError:
                raise
            except (Exception, SystemExit) as error:
                traceback.print_exc(file=sys.stderr)
                raise ModelError(f"{type(error).__name__}: {error}"[:500]) from error
        return predictions


def _failed(error: ModelError) -> Answer:
    return Answer(500, error_body("model_error", str(error), row=error.row))
