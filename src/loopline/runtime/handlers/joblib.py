"""Handler ``joblib``: a pickled estimator with the scikit-learn interface, without any code of the project.

A classifier with ``predict_proba`` answers ``{"prediction": label, "probabilities": {label: probability}}`` per row;
everything else answers what ``predict`` returns.
"""

import importlib
import pickle
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..loading import CannotServe, Predict

NAMES = ("model.joblib", "model.pkl", "model.pickle")
SUFFIXES = (".joblib", ".pkl", ".pickle")
_NUMERIC = {"number", "integer", "boolean"}


def load(spec: dict[str, Any]) -> Predict:
    """Load the one model file of ``model_dir``. Raises ``CannotServe`` when there is none, or more than one."""
    code_dir = spec.get("code_dir")
    if code_dir:
        sys.path.insert(0, str(code_dir))  # classes of the project that the pickle refers to
    model = _read(_model_file(Path(spec["model_dir"])))
    if not callable(getattr(model, "predict", None)):
        raise CannotServe(f"the model is a {type(model).__name__}, which has no predict method")
    warnings.filterwarnings("ignore", message="X does not have valid feature names")
    features = (spec.get("signature") or {}).get("features") or []
    shape = _table_maker(model, features)
    if not callable(getattr(model, "predict_proba", None)):
        return lambda rows: model.predict(shape(rows))
    labels = [_label(value) for value in model.classes_]

    def predict(rows: list[Any]) -> list[dict[str, Any]]:
        table = shape(rows)
        return [
            {"prediction": prediction, "probabilities": dict(zip(labels, row, strict=True))}
            for prediction, row in zip(model.predict(table).tolist(), model.predict_proba(table).tolist(), strict=True)
        ]

    return predict


def _model_file(folder: Path) -> Path:
    for name in NAMES:
        if (folder / name).is_file():
            return folder / name
    found = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and path.is_file())
    if len(found) != 1:
        what = "no model file" if not found else f"{len(found)} model files"
        raise CannotServe(f"the model folder holds {what}; it must hold one, named {NAMES[0]}")
    return found[0]


def _read(path: Path) -> Any:
    try:
        loader = importlib.import_module("joblib").load
    except ModuleNotFoundError:
        with path.open("rb") as file:
            return pickle.load(file)  # noqa: S301 - this process exists to run the user's model
    return loader(path)


def _label(value: Any) -> str:
    plain = value.item() if hasattr(value, "item") else value
    return str(plain)


def _table_maker(model: Any, features: list[dict[str, Any]]) -> Callable[[list[Any]], Any]:
    """How checked rows become what the model takes: a float matrix, or a data frame where columns go by name."""
    names = [feature["name"] for feature in features]
    numeric = bool(features) and all(feature.get("type", "number") in _NUMERIC for feature in features)
    wanted = [str(name) for name in getattr(model, "feature_names_in_", [])]
    if wanted and names and set(wanted) != set(names):
        raise CannotServe(f"the model was trained on the features {wanted}; the signature has {names}")
    if names and (not numeric or (wanted and _goes_by_name(model))):
        frame = importlib.import_module("pandas").DataFrame
        return lambda rows: frame(rows, columns=names)[wanted or names]
    numpy = importlib.import_module("numpy")
    order = [names.index(name) for name in wanted] if wanted and names else []
    if order in ([], list(range(len(order)))):
        return lambda rows: numpy.array(rows, dtype=float)
    return lambda rows: numpy.array(rows, dtype=float)[:, order]


def _goes_by_name(model: Any) -> bool:
    """Whether some step selects columns by name, as a ColumnTransformer does."""
    steps = [step for _, step in getattr(model, "steps", [])] or [model]
    return any(hasattr(step, "transformers") for step in steps)
