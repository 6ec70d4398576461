"""The arithmetic of small scikit-learn models without its bookkeeping, which costs ten times as much for one row.

A shortcut repeats the operations of the library in their order. It is used only where it gives, bit for bit, what the
model itself gives on rows that are made for the comparison when the model is loaded; whatever it finds unusual later is
left to the model.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

_PROBES = (1, 2, 7, 64, 300)  # rows of a batch: libraries choose their way by shape
_SPREADS = (0.0, 1.0, 30.0)
_SCALER = ("sklearn.preprocessing._data", "StandardScaler")
_LOGISTIC = ("sklearn.linear_model._logistic", "LogisticRegression")


def probabilities_of(model: Any, steps: list[Any]) -> Callable[[Any], Any] | None:
    """``predict_proba`` of scalers with a logistic regression of two classes after them; None for anything else.

    ``steps`` are those of the pipeline ``model``, or the model alone.
    """
    kinds = [(type(step).__module__, type(step).__name__) for step in steps]
    if kinds[-1] != _LOGISTIC or any(kind != _SCALER for kind in kinds[:-1]) or len(steps[-1].classes_) != 2:
        return None
    try:
        quick = _logistic(model.predict_proba, steps[:-1], steps[-1])
        return quick if _is_exact(model.predict_proba, quick, steps) else None
    except Exception:  # noqa: BLE001 - a model that is unlike what this file knows serves as it is
        return None


def _logistic(original: Callable[[Any], Any], scalers: list[Any], last: Any) -> Callable[[Any], Any]:
    numpy = import_module("numpy")
    expit = import_module("scipy.special").expit
    shifts = [
        (scaler.mean_ if scaler.with_mean else None, scaler.scale_ if scaler.with_std else None) for scaler in scalers
    ]
    coefficients, intercept = last.coef_.T, last.intercept_
    width = coefficients.shape[0]
    isfinite, empty = numpy.isfinite, numpy.empty

    def ask(table: Any) -> Any:
        if table.shape[1] != width:
            return original(table)
        scaled = table
        for mean, scale in shifts:
            if mean is not None:
                scaled = scaled - mean
            if scale is not None:
                scaled = scaled / scale
        decision = (scaled @ coefficients + intercept)[:, 0]
        if not isfinite(decision).all():  # the model would refuse it, and says so best itself
            return original(table)
        probabilities = empty((len(table), 2))
        probabilities[:, 1] = expit(decision)
        probabilities[:, 0] = 1 - probabilities[:, 1]
        return probabilities

    return ask


def _is_exact(original: Callable[[Any], Any], quick: Callable[[Any], Any], steps: list[Any]) -> bool:
    numpy = import_module("numpy")
    generator = numpy.random.default_rng(0)
    width = steps[-1].coef_.shape[1]
    first = steps[0]
    center = getattr(first, "mean_", None)
    scale = getattr(first, "scale_", None)
    for rows in _PROBES:
        for spread in _SPREADS:
            table = generator.normal(size=(rows, width)) * spread
            table = table * (1 if scale is None else scale) + (0 if center is None else center)
            if not numpy.array_equal(original(table), quick(table)):
                return False
    return True
