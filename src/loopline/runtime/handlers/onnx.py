"""Handler ``onnx``: a model in the ONNX format, run by the environment's onnxruntime. It needs no trust: it is no code.

A model of labels and probabilities, as converters of scikit-learn make it, answers like handler ``joblib``; another
answers its first output. Rows become one matrix, or one column per input where the model's inputs bear the features'
names. Numbers are float64 and are made what the inputs want.
"""

import importlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..answers import Classes, Labelled
from ..loading import CannotServe, Model

NAME = "model.onnx"
NOTE = "loopline"  # the metadata property in which a conversion notes the classes
_FLOATS = {"tensor(double)": "float64", "tensor(float)": "float32", "tensor(float16)": "float16"}
_WHOLE = {"tensor(int64)": "int64", "tensor(int32)": "int32"}
_TEXT = "tensor(string)"
_NUMERIC = {"number", "integer", "boolean"}
_LARGEST_VERSION = 64  # of the format's own; it grows by about one a year


def load(spec: dict[str, Any]) -> Model:
    """Load the one ONNX file of ``model_dir``. Raises ``CannotServe``."""
    session = _session(_model_file(Path(spec["model_dir"])))
    features = (spec.get("signature") or {}).get("features") or []
    inputs = session.get_inputs()
    answers = _answers_of(session)
    if len(inputs) == 1 and (not features or inputs[0].name not in {feature["name"] for feature in features}):
        ask = _by_matrix(inputs[0], features, answers)
        return Model(matrix=ask, width=len(features) or None, single=_FLOATS.get(inputs[0].type) == "float32")
    return Model(rows=_by_columns(inputs, features, answers))


def _model_file(folder: Path) -> Path:
    found = [folder / NAME] if (folder / NAME).is_file() else sorted(folder.glob("*.onnx"))
    if len(found) != 1:
        what = "no ONNX file" if not found else f"{len(found)} ONNX files"
        raise CannotServe(f"the model folder holds {what}; it must hold one, named {NAME}")
    with found[0].open("rb") as file:
        head = file.read(2)
    # The first field of the format's message is its version, a small number: no archive or pickle begins like that.
    if len(head) < 2 or head[0] != 0x08 or not 0 < head[1] <= _LARGEST_VERSION:
        raise CannotServe(f"{found[0].name} is not in the ONNX format")
    return found[0]


def _session(path: Path) -> Any:
    runtime = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    # As many threads as the numeric libraries get (one unless set): the servers of a machine share its cores.
    options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS") or 1)
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    try:
        return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise CannotServe(f"onnxruntime cannot load {path.name}: {str(error)[:500]}") from error


def _answers_of(session: Any) -> Callable[[dict[str, Any]], Any]:
    """What turns the inputs' values into predictions."""
    outputs = session.get_outputs()
    names = [output.name for output in outputs]
    kinds = [output.type for output in outputs]
    if len(outputs) == 2 and kinds[1].startswith("seq(map("):
        return lambda values: _from_maps(*session.run(names, values))
    noted = session.get_modelmeta().custom_metadata_map.get(NOTE)
    given = json.loads(noted)["classes"] if noted else _places(outputs)
    if len(outputs) != 2 or given is None or kinds[0] not in (*_WHOLE, _TEXT) or kinds[1] not in _FLOATS:
        return lambda values: _plain(session.run(names[:1], values)[0])
    classes = Classes(given)
    places = {value: place for place, value in enumerate(classes.values)}

    def answer(values: dict[str, Any]) -> Labelled:
        labels, probabilities = session.run(names, values)
        return Labelled(classes, [places[label] for label in labels.tolist()], probabilities.tolist())

    return answer


def _places(outputs: list[Any]) -> list[int] | None:
    """The classes 0, 1, ... of a model that does not name any, where its labels are such numbers; None otherwise."""
    shape = outputs[-1].shape
    return list(range(shape[-1])) if outputs[0].type in _WHOLE and shape and isinstance(shape[-1], int) else None


def _plain(result: Any) -> Any:
    return result[:, 0] if getattr(result, "ndim", 1) == 2 and result.shape[1] == 1 else result


def _from_maps(labels: Any, maps: list[dict[Any, float]]) -> list[dict[str, Any]]:
    return [
        {"prediction": label, "probabilities": {str(name): float(share) for name, share in each.items()}}
        for label, each in zip(labels.tolist(), maps, strict=True)
    ]


def _by_matrix(
    given: Any, features: list[dict[str, Any]], answers: Callable[[dict[str, Any]], Any]
) -> Callable[[Any], Any]:
    name = _FLOATS.get(given.type) or _WHOLE.get(given.type)
    if name is None:
        raise CannotServe(f"the model's input {given.name!r} is a {given.type}, which rows of numbers cannot become")
    if not {feature.get("type", "number") for feature in features} <= _NUMERIC:
        raise CannotServe("the model takes one matrix of numbers, but the signature has other features")
    width = given.shape[1] if len(given.shape) == 2 else None
    if isinstance(width, int) and features and width != len(features):
        raise CannotServe(f"the model takes {width} values; the signature has {len(features)}")
    numpy = importlib.import_module("numpy")
    place, kind = given.name, numpy.dtype(name)

    def ask(matrix: Any) -> Any:
        if matrix.dtype is kind:
            return answers({place: matrix})
        with numpy.errstate(over="raise"):  # a number that the input's type cannot hold is an error, no infinity
            return answers({place: matrix.astype(kind)})

    if given.shape and given.shape[0] == 1:  # made for one row at a time
        return lambda matrix: _one_at_a_time(ask, matrix)
    return ask


def _one_at_a_time(ask: Callable[[Any], Any], matrix: Any) -> list[Any]:
    answers: list[Any] = []
    for at in range(len(matrix)):
        answers += ask(matrix[at : at + 1]).tolist()
    return answers


def _by_columns(
    inputs: list[Any], features: list[dict[str, Any]], answers: Callable[[dict[str, Any]], Any]
) -> Callable[[list[Any]], Any]:
    """One input per feature, each a column of its own type."""
    names = [feature["name"] for feature in features]
    unknown = [given.name for given in inputs if given.name not in names]
    if unknown:
        raise CannotServe(f"the model has the input {unknown[0]!r}, which is no feature of the signature")
    kinds = {given.name: _FLOATS.get(given.type) or _WHOLE.get(given.type) for given in inputs}
    texts = {given.name for given in inputs if given.type == _TEXT}
    wrong = [given for given in inputs if kinds[given.name] is None and given.name not in texts]
    if wrong:
        raise CannotServe(f"the model's input {wrong[0].name!r} is a {wrong[0].type}, which no feature can become")
    places = {given.name: names.index(given.name) for given in inputs}
    numpy = importlib.import_module("numpy")

    def ask(rows: list[Any]) -> Any:
        values = {}
        with numpy.errstate(over="raise"):
            for name, place in places.items():
                column = [row[place] for row in rows]
                if name in texts:
                    # What is absent is an empty text: the format knows no null.
                    made = numpy.array(["" if value is None else str(value) for value in column], dtype=object)
                else:
                    made = numpy.array(column, dtype=float).astype(kinds[name])
                values[name] = made.reshape(-1, 1)
        return answers(values)

    return ask
