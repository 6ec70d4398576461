"""Expressions over metrics: what they make, and that nothing else is evaluated."""

import pytest

from loopline.domain.dashboards import check
from loopline.domain.metricmath import evaluate, names
from loopline.errors import InvalidInput

ERRORS, REQUESTS = {60.0: 1.0, 120.0: 3.0}, {0.0: 5.0, 60.0: 10.0, 120.0: 0.0}
SERIES = {"errors": ERRORS, "requests": REQUESTS}


@pytest.mark.parametrize(
    ("expression", "wanted"),
    [
        ("100 * errors / requests", {60.0: 10.0}),
        ("errors + 1", {60.0: 2.0, 120.0: 4.0}),
        ("-errors", {60.0: -1.0, 120.0: -3.0}),
        ("errors ^ 2", {60.0: 1.0, 120.0: 9.0}),
        ("FILL(errors, 0)", {0.0: 0.0, 60.0: 1.0, 120.0: 3.0}),
        ("FILL(errors, REPEAT)", {60.0: 1.0, 120.0: 3.0}),
        ("SUM([errors, requests])", {0.0: 5.0, 60.0: 11.0, 120.0: 3.0}),
        ("MAX([errors, requests])", {0.0: 5.0, 60.0: 10.0, 120.0: 3.0}),
        ("AVG(errors)", {0.0: 2.0, 60.0: 2.0, 120.0: 2.0}),
        ("ABS(0 - errors)", {60.0: 1.0, 120.0: 3.0}),
    ],
)
def test_what_an_expression_makes(expression: str, wanted: dict[float, float]) -> None:
    assert evaluate(expression, SERIES) == wanted


def test_the_series_that_an_expression_needs() -> None:
    assert names("SUM([errors, FILL(requests, REPEAT)]) / errors") == ["errors", "requests"]


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "errors +",
        "unknown",
        "__import__('os').system('x')",
        "errors.real",
        "[each for each in (1,)]",
        "errors if 1 else 2",
        "'text'",
        "True",
        "RATE(errors)",
        "SUM(errors, errors)",
        "(lambda: 1)()",
        "-" * 1000 + "1",
        "1" * 2000,
    ],
)
def test_nothing_else_is_evaluated(expression: str) -> None:
    with pytest.raises(InvalidInput):
        evaluate(expression, SERIES)


def test_a_label_that_names_another_statistic_is_told() -> None:
    body = """{"widgets": [{"type": "metric", "properties": {"metrics": [
        ["AWS/SageMaker", "ModelLatency", {"stat": "Average", "label": "P50"}],
        ["...", {"stat": "p90", "label": "P90"}],
        ["...", {"stat": "p99", "label": "slow ones"}]]}}]}"""
    (message,) = check(body)
    assert message.path == "/widgets/0/properties/metrics/0" and '"stat": "p50"' in message.text


@pytest.mark.parametrize("body", ["", "[]", '{"widgets": 1}', "{"])
def test_what_is_no_dashboard_is_refused(body: str) -> None:
    with pytest.raises(InvalidInput):
        check(body)


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ('{"widgets": [1]}', "/widgets/0"),
        ('{"widgets": [{"type": "clock"}]}', "/widgets/0"),
        ('{"widgets": [{"type": "text"}]}', "/widgets/0/properties"),
        ('{"widgets": [{"type": "metric", "properties": {}}]}', "/widgets/0/properties/metrics"),
        (
            '{"widgets": [{"type": "metric", "properties": {"metrics": [["a", "b", {"stat": "p999"}]]}}]}',
            "/widgets/0/properties/metrics/0",
        ),
    ],
)
def test_what_cannot_be_drawn_is_told(body: str, path: str) -> None:
    assert [message.path for message in check(body)] == [path]
