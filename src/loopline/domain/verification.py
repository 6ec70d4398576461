"""How far the quality of a version is known, and what figures a client's file claims for it."""

import math
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any

from loopline.domain.states import EvaluationStatus

MAX_FIGURES = 100
MAX_DEPTH = 4
_WRAPPERS = ("metrics", "statistics")  # names, and ends of names, that say nothing about the figures in them
_TABLES = ("confusion_matrix",)  # counts, no figure of quality


class Verification(StrEnum):
    """What stands behind a version: a gate's judgement, somebody's word, or nothing.

    ``verified``: it passed the gate. ``refused``: the gate measured it and said no. ``claimed``: its figures come from
    a file that a client named; nobody measured them here. ``unverified``: there is no evaluation with a result.
    """

    VERIFIED = "verified"
    REFUSED = "refused"
    CLAIMED = "claimed"
    UNVERIFIED = "unverified"


_BY_EVALUATION = {
    EvaluationStatus.PASSED: Verification.VERIFIED,
    EvaluationStatus.REFUSED: Verification.REFUSED,
    EvaluationStatus.CLAIMED: Verification.CLAIMED,
}


def of_evaluation(status: str | None) -> Verification:
    """What the status of a version's latest evaluation says; None where there is none."""
    return Verification.UNVERIFIED if status is None else _of(EvaluationStatus(status))


def _of(status: EvaluationStatus) -> Verification:
    return _BY_EVALUATION.get(status, Verification.UNVERIFIED)


def figures(document: Any) -> dict[str, float]:
    """The finite numbers of a report of model quality by their names, at most ``MAX_FIGURES``.

    A figure is a number, or an object with a number as ``value`` beside whatever else is known of it, as in Model
    Monitor's statistics of model quality and in evaluation reports of pipelines:
    ``{"binary_classification_metrics": {"accuracy": {"value": 0.91, "standard_deviation": "NaN"}}}`` and
    ``{"accuracy": 0.91}`` both say accuracy 0.91. Names of groups go before a dot. Lists, texts and truth values are
    no figures. Raises nothing: what is no report has no figures.
    """
    found: dict[str, float] = {}
    for name, value in _walk(document, "", 0):
        if len(found) == MAX_FIGURES:
            break
        found.setdefault(name, value)
    return found


def _walk(value: Any, name: str, depth: int) -> Iterator[tuple[str, float]]:
    number = _number(value)
    if number is not None and name:
        yield name, number
    if not isinstance(value, Mapping) or depth > MAX_DEPTH:
        return
    inner = _number(value.get("value"))
    if inner is not None:
        yield name or "value", inner
        return
    for key, part in value.items():
        if not isinstance(key, str) or key in _TABLES:
            continue
        wrapper = isinstance(part, Mapping) and key.lower().endswith(_WRAPPERS)
        inside = name if wrapper else f"{name}.{key}" if name else key
        yield from _walk(part, inside[:127], depth + 1)


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
