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

from ..answers import Classes, Labelled
from ..loading import CannotServe, Model
from ..shortcuts import probabilities_of

NAMES = ("model.joblib", "model.pkl", "model.pickle")
SUFFIXES = (".joblib", ".pkl", ".pickle")
_NUMERIC = {"number", "integer", "boolean"}
# Classifiers of scikit-learn whose label is the most probable class, except where two are as good as equal.
_MOST_PROBABLE = frozenset(
    {
        "AdaBoostClassifier",
        "BernoulliNB",
        "CategoricalNB",
        "ComplementNB",
        "DecisionTreeClassifier",
        "ExtraTreeClassifier",
        "ExtraTreesClassifier",
        "GaussianNB",
        "GradientBoostingClassifier",
        "HistGradientBoostingClassifier",
        "LinearDiscriminantAnalysis",
        "LogisticRegression",
        "LogisticRegressionCV",
        "MLPClassifier",
        "MultinomialNB",
        "QuadraticDiscriminantAnalysis",
        "RandomForestClassifier",
    }
)
_NEAR = 1e-9  # two probabilities this close may be in the other order where the label is decided


def load(spec: dict[str, Any]) -> Model:
    """Load the one model file of ``model_dir``. Raises ``CannotServe`` when there is none, or more than one."""
    model = read_model(str(spec["model_dir"]), spec.get("code_dir"))
    if not callable(getattr(model, "predict", None)):
        raise CannotServe(f"the model is a {type(model).__name__}, which has no predict method")
    warnings.filterwarnings("ignore", message="X does not have valid feature names")
    predict = _predict_of(model)
    features = (spec.get("signature") or {}).get("features") or []
    frame = _frame_maker(model, features)
    if frame is not None:
        return Model(rows=lambda rows: predict(frame(rows)))
    order = _order(model, features)
    width = len(features) or None
    if width is None:
        return Model(matrix=predict, columns=getattr(model, "n_features_in_", None))
    if order is None:
        return Model(matrix=predict, width=width)
    return Model(matrix=lambda matrix: predict(matrix[:, order]), width=width)


def read_model(model_dir: str, code_dir: str | None) -> Any:
    """The estimator itself. Raises ``CannotServe`` when there is none, or more than one."""
    if code_dir and code_dir not in sys.path:
        sys.path.insert(0, code_dir)  # classes of the project that the pickle refers to
    return _read(_model_file(Path(model_dir)))


def _predict_of(model: Any) -> Callable[[Any], Any]:
    """What gives the answers for a table."""
    known: Any = getattr(model, "classes_", None)
    # Of a classifier with several outputs they are a list of arrays: its labels are its answer.
    several = known is None or any(getattr(value, "ndim", 0) for value in known)
    if several or not callable(getattr(model, "predict_proba", None)):
        predict: Callable[[Any], Any] = model.predict
        return predict
    classes = Classes(list(known))
    places = {value: place for place, value in enumerate(classes.values)}
    ask = _inside(model)

    def twice(table: Any) -> Labelled | list[dict[str, Any]]:
        labels, probabilities = model.predict(table).tolist(), ask(table).tolist()
        if not all(label in places for label in labels):  # a wrapper may give its classes names of its own
            return [
                {"prediction": label, "probabilities": dict(zip(classes.names, row, strict=True))}
                for label, row in zip(labels, probabilities, strict=True)
            ]
        return Labelled(classes, [places[label] for label in labels], probabilities)

    if not _labels_by_probability(model):
        return twice
    numpy = importlib.import_module("numpy")

    def once(table: Any) -> Labelled:
        probabilities = ask(table)
        chosen = probabilities.argmax(axis=1)
        if probabilities.shape[1] > 1:
            best = probabilities if probabilities.shape[1] == 2 else numpy.partition(probabilities, -2, axis=1)
            near = abs(best[:, -1] - best[:, -2]) < _NEAR
            if near.any():
                chosen[near] = [places[label] for label in model.predict(table[near]).tolist()]
        return Labelled(classes, chosen.tolist(), probabilities.tolist())

    return once


def _labels_by_probability(model: Any) -> bool:
    """Whether the label follows from the probabilities, so that the model need not be asked twice."""
    last = _last_step(model)
    kind = type(last)
    return kind.__module__.startswith("sklearn.") and kind.__name__ in _MOST_PROBABLE


def _is_pipeline(model: Any) -> bool:
    kind = type(model)
    return kind.__module__ == "sklearn.pipeline" and kind.__name__ == "Pipeline"


def _last_step(model: Any) -> Any:
    return _last_step(model.steps[-1][1]) if _is_pipeline(model) else model


def _inside(model: Any) -> Callable[[Any], Any]:
    """``predict_proba`` of a model. A pipeline's steps are called one after the other, as it does, without its own
    bookkeeping, which costs as much as a small model.
    """
    probabilities: Callable[[Any], Any] = model.predict_proba
    pipeline = _is_pipeline(model)
    if pipeline and any(step in (None, "passthrough") for _, step in model.steps):
        return probabilities
    quick = probabilities_of(model, [step for _, step in model.steps] if pipeline else [model])
    if quick is not None or not pipeline:
        return quick or probabilities
    transforms = [step.transform for _, step in model.steps[:-1]]
    last = _inside(model.steps[-1][1])

    def ask(table: Any) -> Any:
        for transform in transforms:
            table = transform(table)
        return last(table)

    return ask


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


def _wanted(model: Any, names: list[str]) -> list[str]:
    """The features that the model was trained on by name. Raises ``CannotServe`` when the signature has others."""
    wanted = [str(name) for name in getattr(model, "feature_names_in_", [])]
    if wanted and names and set(wanted) != set(names):
        raise CannotServe(f"the model was trained on the features {wanted}; the signature has {names}")
    return wanted


def _frame_maker(model: Any, features: list[dict[str, Any]]) -> Callable[[list[Any]], Any] | None:
    """How checked rows become a data frame, for a model that takes columns by name or texts; None for a matrix."""
    names = [feature["name"] for feature in features]
    numeric = all(feature.get("type", "number") in _NUMERIC for feature in features)
    wanted = _wanted(model, names)
    if not names or (numeric and not (wanted and goes_by_name(model))):
        return None
    frame = importlib.import_module("pandas").DataFrame
    return lambda rows: frame(rows, columns=names)[wanted or names]


def _order(model: Any, features: list[dict[str, Any]]) -> list[int] | None:
    """In which order the model wants the signature's columns; None when as they are."""
    names = [feature["name"] for feature in features]
    wanted = _wanted(model, names)
    order = [names.index(name) for name in wanted] if names else []
    return None if order == list(range(len(order))) else order


def goes_by_name(model: Any) -> bool:
    """Whether some step selects columns by name, as a ColumnTransformer does."""
    steps = [step for _, step in getattr(model, "steps", [])] or [model]
    return any(hasattr(step, "transformers") for step in steps)
