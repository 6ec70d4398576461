"""Rows that a model server predicts before it takes traffic: an ordinary row of the training data."""

from collections.abc import Mapping
from typing import Any

ROWS = 3  # the first one loads, the others show that it works twice


def rows(signature: Mapping[str, Any] | None, baseline: Mapping[str, Any] | None) -> list[list[Any]]:
    """Warm-up rows in signature order: means of numbers, commonest categories; none without signature and baseline."""
    if not signature or not baseline:
        return []
    known = baseline.get("features") or {}
    row = [_usual(feature, known.get(feature["name"])) for feature in signature.get("features") or ()]
    if not row or any(value is None for value in row):
        return []
    return [row] * ROWS


def _usual(feature: Mapping[str, Any], column: Mapping[str, Any] | None) -> Any:
    if column is None:
        return None
    if column["kind"] == "numeric":
        mean = column.get("mean")
        return mean if mean is None or feature["type"] == "number" else round(mean)
    counts = column["counts"][: len(column["categories"])]
    if not counts:
        return None
    value = column["categories"][counts.index(max(counts))]
    return {"true": True, "false": False}.get(value, value) if feature["type"] == "boolean" else value
