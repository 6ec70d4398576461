"""From what a model returned to the JSON bodies of its answers.

Numbers, and classes with probabilities, become text for all rows at once and are cut apart; everything else is encoded
request by request. Both ways give the same values, and refuse the same.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

_SCALARS = frozenset({str, int, float, bool, type(None)})
_NUMBERS = frozenset({int, float})
_TEXT = frozenset({str})
_DEEPEST = 4  # answers nested deeper are encoded by the standard library


class Body(bytes):
    """The body of an answer that is no JSON, or not of ours: ``content_type`` says what it is."""

    content_type = b"application/json"


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


_dumps = json.JSONEncoder(allow_nan=False, separators=(",", ":"), default=_plain).encode


def error_body(code: str, message: str, **place: Any) -> bytes:
    """The one JSON error shape, with ``row`` and ``feature`` where they are known."""
    known = {name: value for name, value in place.items() if value is not None}
    return json.dumps({"error": {"code": code, "message": message, **known}}).encode()


def one_per_row(result: Any, count: int) -> list[Any]:
    """A model's result as a list of ``count`` predictions. Raises ``ModelError``."""
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


class Classes:
    """The classes of a classifier, with the text of an answer prepared for each."""

    def __init__(self, values: Sequence[Any]) -> None:
        self.values = [value.item() if hasattr(value, "item") else value for value in values]
        self.names = [str(value) for value in self.values]
        shape = ",".join(json.dumps(name).replace("%", "%%") + ":%b" for name in self.names)
        self.templates = [
            f'{{"prediction":{_dumps(value)},"probabilities":{{'.replace("%", "%%").encode() + shape.encode() + b"}}"
            for value in self.values
        ]


class Labelled:
    """Per row a class, by its place among the classes, and the probabilities of all of them."""

    def __init__(self, classes: Classes, chosen: list[int], probabilities: list[list[float]]) -> None:
        self.classes = classes
        self.chosen = chosen
        self.probabilities = probabilities

    def tolist(self) -> list[dict[str, Any]]:
        """As a list of ``{"prediction": class, "probabilities": {class: probability}}``."""
        values, names = self.classes.values, self.classes.names
        return [
            {"prediction": values[place], "probabilities": dict(zip(names, row, strict=True))}
            for place, row in zip(self.chosen, self.probabilities, strict=True)
        ]


class Encoder:
    """Writes answers, by the compiled module of ``accelerator`` where there is one."""

    def __init__(self, core: Any = None) -> None:
        self._compiled: Callable[[Any], bytes] | None = None if core is None else core.JSONEncoder().encode

    def bodies(self, result: Any, counts: Sequence[int]) -> list[bytes | ModelError]:
        """The body for each request, which had so many rows; a request whose answer is no JSON gets a ``ModelError``.

        Raises ``ModelError`` when there is not one prediction per row.
        """
        total = sum(counts)
        if isinstance(result, Labelled):
            texts = self._labelled_texts(result)
            predictions: list[Any] = [] if texts is not None else result.tolist()
        else:
            predictions = one_per_row(result, total)
            texts = self._number_texts(predictions)
        if texts is None:
            return self._one_by_one(predictions, counts)
        if len(texts) != total:
            raise ModelError(f"predict returned {len(texts)} predictions for {total} rows")
        if total == len(counts) and min(counts, default=1) == 1:
            return [b'{"predictions":[%b]}' % text for text in texts]
        ends, bodies = 0, []
        for count in counts:
            bodies.append(b'{"predictions":[%b]}' % b",".join(texts[ends : ends + count]))
            ends += count
        return bodies  # type: ignore[return-value]

    def _labelled_texts(self, result: Labelled) -> list[bytes] | None:
        """The text of each row; None when a probability is no number."""
        if not result.probabilities:
            return []
        try:
            text = self._numbers(result.probabilities)
        except ValueError:
            return None
        if text is None:
            return None
        templates = result.classes.templates
        rows = text[2:-2].split(b"],[")
        return [templates[at] % tuple(row.split(b",")) for at, row in zip(result.chosen, rows, strict=True)]

    def _number_texts(self, predictions: list[Any]) -> list[bytes] | None:
        if not predictions:
            return []
        if not _NUMBERS.issuperset(map(type, predictions)):
            return None
        text = self._numbers(predictions)
        return None if text is None else text[1:-1].split(b",")

    def _numbers(self, values: list[Any]) -> bytes | None:
        """Lists of floats and ints as JSON; None when one is not finite."""
        if self._compiled is not None:
            text = self._compiled(values)
            return None if b"n" in text else text  # it writes null for what is not finite
        try:
            return _dumps(values).encode()
        except ValueError:
            return None

    def _one_by_one(self, predictions: list[Any], counts: Sequence[int]) -> list[bytes | ModelError]:
        bodies: list[bytes | ModelError] = []
        start = 0
        for count in counts:
            try:
                bodies.append(self._body(predictions[start : start + count]))
            except ModelError as error:
                bodies.append(error)
            start += count
        return bodies

    def _body(self, predictions: list[Any]) -> bytes:
        if self._compiled is not None and all(_is_plain(each, 0) for each in predictions):
            try:
                text = self._compiled({"predictions": predictions})
            except (ValueError, TypeError, OverflowError):
                text = b"null"
            if b"null" not in text:  # which may stand for a number that is not finite
                return text
        try:
            return _dumps({"predictions": predictions}).encode()
        except (TypeError, ValueError, RecursionError):
            pass
        for row, prediction in enumerate(predictions):
            try:
                _dumps(prediction)
            except (TypeError, ValueError, RecursionError) as error:
                raise ModelError(f"the prediction for row {row} is not JSON: {error}", row) from error
        raise ModelError("the predictions are not JSON")


def _is_plain(value: Any, depth: int) -> bool:
    """Whether both encoders write the same for a value: exactly JSON's own types, texts as keys, and not deep."""
    kind = type(value)
    if kind in _SCALARS:
        return True
    if depth >= _DEEPEST or kind not in (dict, list):
        return False
    inner = value
    if kind is dict:
        if not _TEXT.issuperset(map(type, value)):
            return False
        inner = value.values()
    if _SCALARS.issuperset(map(type, inner)):
        return True
    return all(_is_plain(each, depth + 1) for each in inner)
