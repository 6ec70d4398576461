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
_BOOSTING = ("sklearn.ensemble._gb", "GradientBoostingClassifier")


def probabilities_of(model: Any, steps: list[Any]) -> Callable[[Any], Any] | None:
    """``predict_proba`` of scalers with a logistic regression or boosted trees of two classes after them; None for
    anything else.

    ``steps`` are those of the pipeline ``model``, or the model alone.
    """
    kinds = [(type(step).__module__, type(step).__name__) for step in steps]
    make = {_LOGISTIC: _logistic, _BOOSTING: _boosting}.get(kinds[-1])
    if make is None or any(kind != _SCALER for kind in kinds[:-1]) or len(steps[-1].classes_) != 2:
        return None
    try:
        quick = make(model.predict_proba, steps[:-1], steps[-1])
        return quick if _is_exact(model.predict_proba, quick, steps) else None
    except Exception:  # noqa: BLE001 - a model that is unlike what this file knows serves as it is
        return None


def _scaling(scalers: list[Any]) -> Callable[[Any], Any]:
    shifts = [
        (scaler.mean_ if scaler.with_mean else None, scaler.scale_ if scaler.with_std else None) for scaler in scalers
    ]

    def scale(table: Any) -> Any:
        for mean, spread in shifts:
            if mean is not None:
                table = table - mean
            if spread is not None:
                table = table / spread
        return table

    return scale


def _boosting(original: Callable[[Any], Any], scalers: list[Any], last: Any) -> Callable[[Any], Any]:
    numpy = import_module("numpy")
    stages = import_module(_BOOSTING[0]).predict_stages
    first = last.init_
    if first != "zero" and (type(first).__name__ != "DummyClassifier" or first.strategy != "prior"):
        raise ValueError("the trees begin with what another model says of each row")
    trees, rate, width, scale = last.estimators_, last.learning_rate, last.n_features_in_, _scaling(scalers)
    start = float(last._raw_predict_init(numpy.zeros((1, width), numpy.float32))[0, 0])
    from_raw, single, array = last._loss.predict_proba, numpy.float32, numpy.ndarray

    def ask(table: Any) -> Any:
        if type(table) is not array or table.shape[1] != width:
            return original(table)
        with numpy.errstate(over="ignore"):  # what is too large for a single is refused by the model
            rows = scale(table).astype(single, order="C")
        if not numpy.isfinite(rows).all():
            return original(table)
        raw = numpy.full((len(rows), 1), start)
        stages(trees, rows, rate, raw)
        return from_raw(raw.ravel())

    return ask


def _logistic(original: Callable[[Any], Any], scalers: list[Any], last: Any) -> Callable[[Any], Any]:
    numpy = import_module("numpy")
    expit = import_module("scipy.special").expit
    scale = _scaling(scalers)
    coefficients, intercept = last.coef_.T, last.intercept_
    width = coefficients.shape[0]
    isfinite, empty = numpy.isfinite, numpy.empty

    def ask(table: Any) -> Any:
        if table.shape[1] != width:
            return original(table)
        decision = (scale(table) @ coefficients + intercept)[:, 0]
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
    width = steps[-1].n_features_in_
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
