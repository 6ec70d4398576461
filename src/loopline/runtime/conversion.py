"""A version's model in the ONNX format: converted in its own environment, and compared with the original on a table.

Converted models are many times faster, but not every one can be converted, and not every one that was answers the
same. So float64 is tried first, then float32, and only a model that answers the same on every row is kept.
"""

import json
import math
from importlib import import_module
from pathlib import Path
from typing import Any

from . import score

MAX_EXAMPLES = 5
MAX_REASON = 300
PACKAGES = ("skl2onnx", "onnxruntime")
_NUMERIC = {"number", "integer", "boolean"}
_PRECISIONS = ("float64", "float32")


class ConversionError(ValueError):
    """The model cannot be converted; the message says why."""


def convert(call: dict[str, Any], folder: str) -> tuple[dict[str, Any], Path | None]:
    """(report, path of the file or None). ``call`` is that of ``score.score``, with ``tolerance``.

    The report: ``passed``, ``reason``, ``rows``, ``attempts``: per precision ``reason`` (None: it answers the same),
    ``largest_difference``, ``different_rows`` and ``examples`` of {"row", "native", "converted"}.
    """
    for package in PACKAGES:
        try:
            import_module(package)
        except ImportError:
            message = f"the environment has no {package}; add {' and '.join(PACKAGES)} to requirements.txt"
            return {"passed": False, "reason": message, "rows": 0, "attempts": []}, None
    rows, _ = score.read_table(call)
    native = _answers(call, "joblib", call["model_dir"], rows)
    report: dict[str, Any] = {"passed": False, "rows": len(rows), "attempts": []}
    for precision in _PRECISIONS:
        attempt: dict[str, Any] = {"precision": precision, "reason": None}
        report["attempts"].append(attempt)
        target = Path(folder, precision)
        target.mkdir(parents=True, exist_ok=True)
        try:
            path = _write(call, precision, target)
            converted = _answers(call, "onnx", str(target), rows)
        except Exception as error:  # noqa: BLE001 - whatever the converter or the runtime says is the report
            attempt["reason"] = f"{type(error).__name__}: {error}".partition("\n")[0][:MAX_REASON]
            continue
        attempt.update(compare(native, converted, call["tolerance"]))
        if attempt["reason"] is None:
            return {**report, "passed": True, "reason": None, "precision": precision}, path
    told = "; ".join(f"{attempt['precision']}: {attempt['reason']}" for attempt in report["attempts"])
    return {**report, "reason": told}, None


def _answers(call: dict[str, Any], handler: str, model_dir: str, rows: list[Any]) -> list[Any]:
    """The answers as a model server would give them."""
    spec = {"handler": handler, "model_dir": model_dir, "code_dir": call["tree"], "signature": call["signature"]}
    # The handlers are of the model server, which knows them by the package's own name.
    model = import_module("loopline.runtime.loading").load_model(spec)
    return score.predict_all(model, rows)


# -- converting -------------------------------------------------------------------------------------------------------


def _write(call: dict[str, Any], precision: str, target: Path) -> Path:
    """Convert the model and write it to ``target``. Raises whatever the converter raises."""
    handler = import_module("loopline.runtime.handlers.joblib")
    model = handler.read_model(call["model_dir"], call["tree"])
    convert_model = import_module("skl2onnx").convert_sklearn
    features = (call["signature"] or {}).get("features") or []
    options = {"zipmap": False} if callable(getattr(model, "predict_proba", None)) else None
    made = convert_model(
        model,
        initial_types=_inputs(model, features, precision, handler.goes_by_name(model)),
        options={id(model): options} if options else None,
    )
    entry = made.metadata_props.add()
    entry.key = import_module("loopline.runtime.handlers.onnx").NOTE
    entry.value = json.dumps({"classes": [_plain(value) for value in model.classes_] if options else None})
    path = target / "model.onnx"
    path.write_bytes(made.SerializeToString())
    return path


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _inputs(model: Any, features: list[dict[str, Any]], precision: str, by_name: bool) -> list[tuple[str, Any]]:
    """The converted model's inputs: one matrix, or a column per feature where a step chooses columns by name."""
    types = import_module("skl2onnx.common.data_types")
    number = types.DoubleTensorType if precision == "float64" else types.FloatTensorType
    numeric = all(feature.get("type", "number") in _NUMERIC for feature in features)
    if features and (by_name or not numeric):
        return [
            (
                feature["name"],
                number([None, 1]) if feature.get("type", "number") in _NUMERIC else types.StringTensorType([None, 1]),
            )
            for feature in features
        ]
    width = len(features) or getattr(model, "n_features_in_", None)
    if not width:
        raise ConversionError("the number of the model's features is not known: give the version a signature")
    wanted = [str(name) for name in getattr(model, "feature_names_in_", [])]
    if wanted and features and wanted != [feature["name"] for feature in features]:
        raise ConversionError("the model was trained on the features in another order than the signature's")
    return [("rows", number([None, int(width)]))]


# -- comparing --------------------------------------------------------------------------------------------------------


def compare(native: list[Any], converted: list[Any], tolerance: float) -> dict[str, Any]:
    """How two lists of answers differ: ``reason`` is None when every label is equal and no number is further away.

    Probabilities may differ by ``tolerance``, other numbers by ``tolerance`` times their size where that is above 1.
    """
    largest, different, labels = 0.0, [], 0
    for row, (one, other) in enumerate(zip(native, converted, strict=True)):
        distance = _distance(one, other)
        labels += math.isinf(distance)
        if not math.isinf(distance):
            largest = max(largest, distance)
        if distance > tolerance:
            different.append(row)
    examples = [{"row": row, "native": native[row], "converted": converted[row]} for row in different[:MAX_EXAMPLES]]
    reason = None
    if labels:
        reason = f"{labels} of {len(native)} rows get another answer, the first is row {examples[0]['row']}"
    elif different:
        reason = (
            f"{len(different)} of {len(native)} rows differ by more than {tolerance:g}, "
            f"the first is row {different[0]}; the largest difference is {largest:.3g}"
        )
    return {"reason": reason, "largest_difference": largest, "different_rows": len(different), "examples": examples}


def _distance(one: Any, other: Any) -> float:
    """The greatest difference between two answers' numbers; infinite for another label or another form."""
    if isinstance(one, dict) and isinstance(other, dict) and list(one) == list(other):
        if one.get("prediction") != other.get("prediction") and "probabilities" in one:
            return math.inf
        return max((_distance(one[key], other[key]) for key in one), default=0.0)
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return max(map(_distance, one, other), default=0.0)
    if type(one) in (int, float) and type(other) in (int, float):
        distance = float(abs(one - other) / max(1.0, abs(one)))
        return math.inf if math.isnan(distance) else distance
    return 0.0 if one == other else math.inf
