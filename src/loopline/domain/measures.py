"""What a gate measures: accuracy, F1, ROC AUC, RMSE and the like, as functions of row weights.

A measure is turned into a curve: weights of shape (..., rows) in, values of shape (...) out. Weights of one give the
measure itself; bootstrap counts give thousands of resampled values in a few matrix products. Values equal those of
scikit-learn; where a value is not defined (recall without a positive row) a curve gives NaN.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from loopline.errors import InvalidInput

Column = Sequence[Any] | npt.NDArray[Any]
Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Curve = Callable[[Floats], Floats]


@dataclass(frozen=True, slots=True)
class Measure:
    """A measure's name, what it is computed from, and which direction is good."""

    name: str
    needs: Literal["classes", "scores", "numbers"]
    higher_is_better: bool


MEASURES: Mapping[str, Measure] = {
    measure.name: measure
    for measure in (
        Measure("accuracy", "classes", True),
        Measure("precision", "classes", True),
        Measure("recall", "classes", True),
        Measure("f1", "classes", True),
        Measure("balanced_accuracy", "classes", True),
        Measure("roc_auc", "scores", True),
        Measure("log_loss", "scores", False),
        Measure("brier", "scores", False),
        Measure("rmse", "numbers", False),
        Measure("mae", "numbers", False),
        Measure("r2", "numbers", True),
    )
}


def measure_of(name: str) -> Measure:
    """The measure of this name; InvalidInput lists the names there are."""
    if name not in MEASURES:
        raise InvalidInput(f"There is no metric {name!r}: use one of {', '.join(MEASURES)}.")
    return MEASURES[name]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evaluated:
    """A model's answers to the rows of a test set, in the test set's order.

    labels, predictions: class labels (text, whole numbers or booleans) or numbers; shape (rows,).
    scores: probabilities or scores of the positive class, shape (rows,), or of every class, shape (rows, classes).
    classes: the order of the columns of `scores`; sorted when left out.
    slices: {name: boolean mask of shape (rows,)}.
    """

    labels: Column
    predictions: Column
    scores: Column | None = None
    classes: Sequence[Any] | None = None
    slices: Mapping[str, Column] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """Checked answers of one model: codes of classes (indices into `classes`), or numbers when `classes` is None.

    positive: the code of the positive class, None for several classes without one; `named` when somebody said so or
    0 and 1 do, else the second of two classes stands in where it does not matter which it is.
    scores: shape (rows,) for the class `positive`, or (rows, len(classes)).
    """

    labels: Array
    predictions: Array
    classes: tuple[Any, ...] | None = None
    positive: int | None = None
    named: bool = True
    scores: Floats | None = None

    def take(self, rows: Array) -> "Answers":
        """These rows only (indices or a mask)."""
        scores = None if self.scores is None else self.scores[rows]
        return replace(self, labels=self.labels[rows], predictions=self.predictions[rows], scores=scores)


def prepare(models: Sequence[Evaluated], names: Sequence[str], positive: Any = None) -> list[Answers]:
    """The checked answers of models that were given the same rows, for the measures named.

    InvalidInput, with what to do about it: an unknown measure, classes and numbers mixed, rows that differ between the
    models, missing values, labels of the wrong kind, no or unusable scores.
    """
    needs = {measure_of(name).needs for name in names}
    if "numbers" in needs and len(needs) > 1:
        raise InvalidInput(
            f"The metrics {', '.join(names)} mix classes and numbers: keep to one kind "
            "(`metric` is the one compared with the champion)."
        )
    if "numbers" in needs:
        prepared = [_numbers(model) for model in models]
    else:
        prepared = _classes(models, positive, scored="scores" in needs)
        for name in names:
            _check_positive(models[0], prepared[0], name)
    for other in prepared[1:]:
        if not np.array_equal(prepared[0].labels, other.labels):
            raise InvalidInput(
                "The models were scored on different rows: score both on the same test set, in its order."
            )
    return prepared


def curve_of(name: str, answers: Answers) -> Curve:
    """The measure of this name on these answers, as a function of row weights."""
    needs = measure_of(name).needs
    if needs == "numbers":
        return _number_curve(name, answers)
    if name == "accuracy":
        right = (answers.labels == answers.predictions).astype(np.float64)
        return lambda weights: weights @ right / weights.sum(axis=-1)
    if needs == "classes":
        return _confusion_curve(name, answers)
    return _auc_curve(answers) if name == "roc_auc" else _loss_curve(name, answers)


def measured(name: str, answers: Answers) -> float:
    """The measure's value; NaN where it is not defined."""
    return float(curve_of(name, answers)(np.ones(len(answers.labels))))


# --- curves


def _number_curve(name: str, answers: Answers) -> Curve:
    error = answers.predictions - answers.labels
    if name == "mae":
        size = np.abs(error)
        return lambda weights: weights @ size / weights.sum(axis=-1)
    square = error**2
    if name == "rmse":
        return lambda weights: np.sqrt(weights @ square / weights.sum(axis=-1))
    centred = answers.labels - answers.labels.mean()

    def r2(weights: Floats) -> Floats:
        spread = weights @ centred**2 - (weights @ centred) ** 2 / weights.sum(axis=-1)
        return 1.0 - _ratio(weights @ square, np.where(spread > 1e-12 * (weights @ centred**2), spread, 0.0), np.nan)

    return r2


def _confusion_curve(name: str, answers: Answers) -> Curve:
    known = np.arange(len(answers.classes or ()))
    label = (answers.labels[:, None] == known).astype(np.float64)
    chosen = (answers.predictions[:, None] == known).astype(np.float64)
    hit = label * chosen

    def value(weights: Floats) -> Floats:
        right, support, predicted = weights @ hit, weights @ label, weights @ chosen
        if name == "balanced_accuracy":
            return _mean_where(_ratio(right, support, 0.0), support > 0)
        over = {"precision": predicted, "recall": support, "f1": (support + predicted) / 2.0}[name]
        each = _ratio(right, over, 0.0)
        if answers.positive is None:
            return _mean_where(each, support + predicted > 0)
        mine: Floats = each[..., answers.positive]
        return mine if name != "recall" else np.where(support[..., answers.positive] == 0, np.nan, mine)

    return value


def _loss_curve(name: str, answers: Answers) -> Curve:
    scores = _needed_scores(answers)
    if scores.min() < 0.0 or scores.max() > 1.0:
        raise InvalidInput(f"{name} needs probabilities between 0 and 1; these scores are not: use roc_auc for them.")
    if scores.ndim == 2 and np.abs(scores.sum(axis=1) - 1.0).max() > 1e-3:
        raise InvalidInput(f"{name} needs probabilities that add up to 1 in every row.")
    if scores.ndim == 1:
        truth = (answers.labels == answers.positive).astype(np.float64)
        own = np.where(truth == 1.0, scores, 1.0 - scores)
        square = (scores - truth) ** 2
    else:
        own = scores[np.arange(len(scores)), answers.labels]
        truth = np.eye(scores.shape[1])[answers.labels]
        square = ((scores - truth) ** 2).sum(axis=1)
    tiny = np.finfo(np.float64).eps
    loss = square if name == "brier" else -np.log(np.clip(own, tiny, 1.0 - tiny))
    return lambda weights: weights @ loss / weights.sum(axis=-1)


def _auc_curve(answers: Answers) -> Curve:
    scores = _needed_scores(answers)
    if scores.ndim == 1:
        return _one_auc(scores, answers.labels == answers.positive)
    each = [_one_auc(scores[:, k], answers.labels == k) for k in np.unique(answers.labels).tolist()]
    return lambda weights: np.mean([curve(weights) for curve in each], axis=0)


def _one_auc(scores: Floats, positive: Array) -> Curve:
    """The share of (positive, negative) pairs in the right order, ties counting half; NaN without such a pair."""
    order = np.argsort(scores, kind="stable")
    ranked = scores[order]
    starts = np.flatnonzero(np.concatenate(([True], ranked[1:] != ranked[:-1])))
    is_positive = positive[order].astype(np.float64)
    sums = np.add.reduceat if len(starts) < len(ranked) else None

    def value(weights: Floats) -> Floats:
        up = np.take(weights, order, axis=-1)
        down = up * (1.0 - is_positive)
        up *= is_positive
        if sums is not None:
            up, down = sums(up, starts, axis=-1), sums(down, starts, axis=-1)
        below = np.cumsum(down, axis=-1)
        total = below[..., -1].copy()
        down *= 0.5
        below -= down
        return _ratio(np.einsum("...i,...i->...", up, below), up.sum(axis=-1) * total, np.nan)

    return value


def _needed_scores(answers: Answers) -> Floats:
    if answers.scores is None:
        raise InvalidInput("This metric needs probabilities or scores: let predict return them.")
    return answers.scores


def _ratio(above: Floats, below: Floats, otherwise: float) -> Floats:
    """above / below, and `otherwise` where below is 0."""
    out: Floats = np.full(np.shape(below), otherwise)
    np.divide(above, below, out=out, where=np.asarray(below) != 0)
    return out


def _mean_where(values: Floats, present: Array) -> Floats:
    return _ratio((values * present).sum(axis=-1), present.sum(axis=-1).astype(np.float64), np.nan)


# --- checks of what was handed in


def _flat(values: Column, what: str) -> Array:
    """A one-dimensional array of text or of numbers, without missing values."""
    if isinstance(values, np.ndarray) and values.dtype.kind in "biufU":
        array = values
    else:
        kinds = {np.dtype(type(item)).kind for item in values if item is not None}
        if not kinds <= {"U"} and not kinds <= {"b", "i", "u", "f"}:
            raise InvalidInput(f"The {what} mix text with other values: make all of them text, or all of them numbers.")
        gaps = [row for row, item in enumerate(values) if item is None]
        if gaps:
            raise InvalidInput(f"The {what} have no value in row {gaps[0]}: every row needs one.")
        array = np.asarray(list(values))
    if array.ndim != 1:
        raise InvalidInput(f"The {what} must be one value per row, not of shape {array.shape}.")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        row = int(np.flatnonzero(~np.isfinite(array))[0])
        raise InvalidInput(f"The {what} hold NaN or infinity in row {row}: every row needs a value.")
    return array


def _both(model: Evaluated) -> tuple[Array, Array]:
    labels, predictions = _flat(model.labels, "labels"), _flat(model.predictions, "predictions")
    if len(labels) != len(predictions):
        raise InvalidInput(f"{len(predictions)} predictions do not fit {len(labels)} labels: one per row is needed.")
    if len(labels) == 0:
        raise InvalidInput("There are no rows to judge.")
    return labels, predictions


def _numbers(model: Evaluated) -> Answers:
    labels, predictions = _both(model)
    for array, what in ((labels, "labels"), (predictions, "predictions")):
        if array.dtype.kind not in "iuf":
            raise InvalidInput(
                f"The {what} are not numbers, which rmse, mae and r2 need: use accuracy or f1 for classes."
            )
    return Answers(labels.astype(np.float64), predictions.astype(np.float64))


def _classes(models: Sequence[Evaluated], positive: Any, *, scored: bool) -> list[Answers]:
    pairs = [tuple(_class_labels(array) for array in _both(model)) for model in models]
    arrays = [array for pair in pairs for array in pair]
    if len({array.dtype.kind == "U" for array in arrays}) > 1:
        raise InvalidInput(
            "Some of the labels and predictions are text and some are numbers: let predict return the same kind as the "
            "test set's labels."
        )
    known = np.unique(np.concatenate(arrays))
    if known.dtype.kind != "U" and set(known.tolist()) <= {0, 1}:
        known = np.array([0, 1])
    code, named = _positive_code(known, positive)
    return [
        Answers(
            np.searchsorted(known, labels),
            np.searchsorted(known, predictions),
            tuple(known.tolist()),
            code,
            named,
            _scores(model, known, code) if scored else None,
        )
        for model, (labels, predictions) in zip(models, pairs, strict=True)
    ]


def _class_labels(array: Array) -> Array:
    if array.dtype.kind == "U":
        return array
    whole = array.astype(np.int64)
    if array.dtype.kind == "f" and not np.array_equal(whole, array):
        example = float(array[array != whole][0])
        raise InvalidInput(
            f"{example:g} is no class: class labels are text, whole numbers or booleans. Hand probabilities in as "
            "scores; for a regression use rmse, mae or r2."
        )
    return whole


def _positive_code(known: Array, positive: Any) -> tuple[int | None, bool]:
    """The code of the positive class, and whether it is known to be that; see `Answers`."""
    values = known.tolist()
    if positive is not None:
        if positive not in values:
            raise InvalidInput(f"The positive class {positive!r} is none of the classes {values}: correct `positive`.")
        return int(values.index(positive)), True
    if len(values) == 2:
        return 1, values in ([0, 1], [-1, 1])
    return None, True


def _check_positive(model: Evaluated, answers: Answers, name: str) -> None:
    """InvalidInput when this measure of two classes needs to know which of them is the positive one.

    With a column of scores for either class the score measures are the same whichever it is.
    """
    single = measure_of(name).needs == "scores" and np.ndim(np.asarray(model.scores, dtype=object)) == 1
    if not answers.named and (single or name in ("precision", "recall", "f1")):
        first, second = answers.classes or ("", "")
        raise InvalidInput(f"{name} needs to know the positive class: set `positive` to {first!r} or {second!r}.")


def _scores(model: Evaluated, known: Array, positive: int | None) -> Floats:
    if model.scores is None:
        raise InvalidInput("roc_auc, log_loss and brier need probabilities or scores: let predict return them.")
    try:
        scores = np.asarray(model.scores, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"Scores are numbers ({error}).") from error
    if scores.ndim not in (1, 2) or len(scores) != len(model.labels) or not np.isfinite(scores).all():
        raise InvalidInput("Scores are finite numbers: one per row, or one per row and class.")
    if scores.ndim == 1:
        if positive is None:
            raise InvalidInput("With more than two classes a score for each class is needed, not one per row.")
        return scores
    columns = known.tolist() if model.classes is None else list(model.classes)
    if len(columns) != scores.shape[1] or not set(known.tolist()) <= set(columns):
        raise InvalidInput(
            f"The {scores.shape[1]} columns of scores do not fit the classes {known.tolist()}: name the columns' order "
            "in `classes`."
        )
    if len(columns) == 2 and positive is not None:
        return scores[:, columns.index(known.tolist()[positive])]
    return scores[:, [columns.index(value) for value in known.tolist()]]
