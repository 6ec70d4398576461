"""Score a table with a model, by the code that serves it: predictions, scores and labels for the gate."""

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from . import tables

BATCH_ROWS = 1024


class ScoreError(ValueError):
    """The table cannot be scored; the message names the row or the column."""


def score(call: dict[str, Any]) -> dict[str, Any]:
    """``{"predictions", "scores", "labels", "slices"}`` of the rows of ``call["table"]``, in their order.

    ``call``: ``tree`` (the code, or null: what stands in the model's folder ``inner``), ``program`` of it, ``handler``,
    ``model_dir``, ``table`` {path, format}, ``label`` (a column), ``signature`` or null, ``slices`` (columns),
    ``positive`` (the positive class; default: the greater label).
    ``scores`` are the probabilities of the positive class, null when the model gives none or has more than two classes.
    Raises ``ScoreError``.
    """
    rows, typed = read_table(call)
    if not typed:
        raise ScoreError("the table has no rows")
    label = call["label"]
    columns = {name: [row.get(name) for row in typed] for name in (label, *call.get("slices", ()))}
    for name, values in columns.items():
        if not any(name in row for row in typed):
            raise ScoreError(f"the table has no column {name!r}; it has {', '.join(typed[0])}")
        if name == label and None in values:
            raise ScoreError(f"row {values.index(None)} has no {label!r}: every row of a test table needs its label")
    # The handlers are of the model server, which knows them by the package's own name.
    model = import_module("loopline.runtime.loading").load_model(
        {
            "handler": call["handler"],
            "model_dir": call["model_dir"],
            "code_dir": code_of(call),
            "program": call.get("program"),
            "signature": call["signature"],
        }
    )
    answers = predict_all(model, rows)
    return {
        "predictions": [answer["prediction"] if _is_detailed(answer) else answer for answer in answers],
        "scores": _scores(answers, columns[label], call.get("positive")),
        "labels": columns.pop(label),
        "slices": columns,
    }


def code_of(call: dict[str, Any]) -> str | None:
    """The folder of the code that asks the model; None where there is none."""
    if call.get("tree"):
        return str(call["tree"])
    inner = Path(call["model_dir"], call["inner"]) if call.get("inner") else None
    return str(inner) if inner is not None and inner.is_dir() else None


def predict_all(model: Any, rows: list[Any]) -> list[Any]:
    """A model's answer to each row, as JSON has it. Raises ``ScoreError``."""
    answers: list[Any] = []
    for start in range(0, len(rows), BATCH_ROWS):
        batch = rows[start : start + BATCH_ROWS]
        answers += _one_per_row(model.predict(batch), len(batch), start)
    return answers


def read_table(call: dict[str, Any]) -> tuple[list[Any], list[tables.Row]]:
    """The rows as the model takes them, and as typed dicts for label and slices."""
    path, form = call["table"]["path"], call["table"].get("format")
    typed = tables.read_rows(path, None if form in (None, "file") else form)
    if call["signature"] is None:
        return [{name: value for name, value in row.items() if name != call["label"]} for row in typed], typed
    module = import_module("loopline.runtime.signature")
    signature = module.Signature(call["signature"]["features"])
    lacking = [name for name in signature.names if typed and not any(name in row for row in typed)]
    if lacking:
        raise ScoreError(f"the table has no column {lacking[0]!r}, which the model takes")
    try:
        return [signature.check(_as_kinds(signature, row), index) for index, row in enumerate(typed)], typed
    except module.InputError as error:
        raise ScoreError(str(error)) from None


def _as_kinds(signature: Any, row: tables.Row) -> list[Any]:
    """A row's values in the signature's order; a text column of digits is read as numbers only by a table's reader."""
    values = [row.get(name) for name in signature.names]
    return [
        str(value) if kind == "string" and value is not None else value
        for value, kind in zip(values, signature.kinds, strict=True)
    ]


def _one_per_row(result: Any, count: int, start: int) -> list[Any]:
    if hasattr(result, "to_dict") and hasattr(result, "columns"):
        result = result.to_dict("records")
    answers = [_plain(answer) for answer in (result.tolist() if hasattr(result, "tolist") else result)]
    if len(answers) != count:
        raise ScoreError(f"predict returned {len(answers)} predictions for {count} rows (from row {start} on)")
    return answers


def _plain(answer: Any) -> Any:
    return json.loads(json.dumps(answer, default=lambda item: item.tolist(), allow_nan=False))


def _is_detailed(answer: Any) -> bool:
    return isinstance(answer, dict) and "prediction" in answer


def _scores(answers: list[Any], labels: list[Any], positive: Any) -> list[float] | None:
    """``score`` of each answer, or the positive class's entry of its ``probabilities``; null unless all have it."""
    if not all(_is_detailed(answer) for answer in answers):
        return None
    if all("score" in answer for answer in answers):
        return [float(answer["score"]) for answer in answers]
    given = [answer.get("probabilities") for answer in answers]
    if not all(isinstance(each, dict) and len(each) == 2 for each in given):
        return None
    names = sorted({name for each in given for name in each})
    chosen = _class_name(positive if positive is not None else max(labels, key=_rank), names)
    if chosen is None:
        sys.stderr.write(f"[loopline] no scores: the model's classes are {', '.join(names)}\n")
        return None
    return [float(each[chosen]) for each in given]


def _rank(label: Any) -> tuple[str, Any]:
    return ("", label) if isinstance(label, int | float) else (type(label).__name__, label)


def _class_name(label: Any, names: list[str]) -> str | None:
    """The name under which a class stands among a model's probabilities: 1, 1.0 and true are one class."""
    candidates = [str(label), str(label).lower()]
    if isinstance(label, bool | int | float):
        candidates += [str(int(label)), str(float(label)), str(bool(label))]
    return next((name for name in candidates if name in names), None)
