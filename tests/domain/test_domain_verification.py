"""What a report of quality claims."""

from typing import Any

import pytest

from loopline.domain.states import EvaluationStatus
from loopline.domain.verification import MAX_FIGURES, Verification, figures, of_evaluation


@pytest.mark.parametrize(
    ("document", "found"),
    [
        ({"accuracy": 0.9, "f1": 1}, {"accuracy": 0.9, "f1": 1.0}),
        ({"metrics": {"accuracy": {"value": 0.9}}}, {"accuracy": 0.9}),
        (
            {"regression_metrics": {"mse": {"value": 4.5, "standard_deviation": 2.1}, "r2": {"value": 0.5}}},
            {"mse": 4.5, "r2": 0.5},
        ),
        (
            {
                "version": 0.0,
                "dataset": {"item_count": 200},
                "multiclass_classification_metrics": {
                    "confusion_matrix": {"0": {"0": 3}},
                    "accuracy": {"value": 0.8, "standard_deviation": "NaN"},
                },
            },
            {"version": 0.0, "dataset.item_count": 200.0, "accuracy": 0.8},
        ),
        ({"test": {"auc": 0.7}, "train": {"auc": 0.9}}, {"test.auc": 0.7, "train.auc": 0.9}),
        ({"a": float("nan"), "b": True, "c": "0.9", "d": [1], "e": None, "f": 10**400, 1: 2}, {}),
        ([1, 2], {}),
        (3, {}),
        ("text", {}),
        (None, {}),
    ],
)
def test_figures_are_the_numbers_of_a_report_by_their_names(document: Any, found: dict[str, float]) -> None:
    assert figures(document) == found


def test_reports_without_end_are_not_followed() -> None:
    deep: Any = 1.0
    for _ in range(200):
        deep = {"deeper": deep}
    assert figures(deep) == {}
    assert len(figures({f"m{n}": n for n in range(1000)})) == MAX_FIGURES


def test_only_what_the_gate_passed_is_verified() -> None:
    found = {status: of_evaluation(status) for status in EvaluationStatus}
    assert [status for status, said in found.items() if said == Verification.VERIFIED] == [EvaluationStatus.PASSED]
    assert found[EvaluationStatus.CLAIMED] == Verification.CLAIMED
    assert of_evaluation(None) == of_evaluation("Failed") == Verification.UNVERIFIED
