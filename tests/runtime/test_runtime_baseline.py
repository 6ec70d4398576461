"""The baseline and the signature that a training step takes by itself, or is told to take."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LinearRegression, LogisticRegression

from loopline.domain.baselines import Baseline, baseline_from_columns
from loopline.runtime import baseline, steps, tracking

ROWS = [{"age": 20 + n % 50, "city": "Oslo" if n % 3 else "Rome", "sick": n % 2 == 0} for n in range(100)]
MATRIX = np.array([[row["age"], float(n)] for n, row in enumerate(ROWS)])
TRUTH = [row["sick"] for row in ROWS]

NUMBERS = st.lists(
    st.none() | st.integers(-3, 3) | st.floats(allow_infinity=True, allow_nan=True, width=32), min_size=1, max_size=60
)
TEXTS = st.lists(st.none() | st.sampled_from("abcdef"), min_size=1, max_size=60)
FLAGS = st.lists(st.none() | st.booleans(), min_size=1, max_size=20)


@given(NUMBERS | TEXTS | FLAGS)
def test_a_baseline_is_the_one_that_the_platform_would_fit(column: list[Any]) -> None:
    mine = baseline.of_columns({"x": column})
    assert Baseline.from_dict(mine).to_dict() == mine
    theirs = baseline_from_columns({"x": column}).to_dict()
    for name in ("mean", "sd"):
        if name in mine["features"]["x"]:
            both = [each["features"]["x"].pop(name) for each in (mine, theirs)]
            assert both == [None, None] or both[0] == pytest.approx(both[1], rel=1e-6, abs=1e-9)
    assert mine == theirs


def test_more_categories_than_are_listed_are_counted_together() -> None:
    column = [f"c{n % 120:03}" for n in range(1000)]
    mine, theirs = baseline.of_columns({"x": column}), baseline_from_columns({"x": column}).to_dict()
    assert mine == theirs
    assert mine["features"]["x"]["counts"][-1] > 0


class Stubborn(LinearRegression):  # type: ignore[misc]
    def predict(self, rows: Any) -> Any:
        raise RuntimeError("not today")


def execute(function: Any, folder: Path, *, wanted: bool = True, **arguments: Any) -> dict[str, Any]:
    (folder / "outputs").mkdir(parents=True, exist_ok=True)
    given_arguments = {name: {"value": value, "given": False} for name, value in arguments.items()}
    return steps.execute(
        function, {"arguments": given_arguments, "outputs": ["result"], "baseline": wanted}, str(folder)
    )


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(tracking.FOLDER_VARIABLE, str(tmp_path / "job"))
    return tmp_path / "job"


def test_a_classifier_of_an_array_is_covered_without_being_told(folder: Path) -> None:
    def fit(inputs: Any, truth: Any) -> Any:
        return LogisticRegression().fit(inputs, truth)

    made = execute(fit, folder, truth=TRUTH, inputs=MATRIX)
    taken = Baseline.from_dict(made["baseline"]["value"])
    assert (taken.rows, list(taken.features)) == (100, ["x0", "x1", "@prediction", "@score"])
    model = LogisticRegression().fit(MATRIX, TRUTH)
    scores = baseline_from_columns({"@score": model.predict_proba(MATRIX)[:, 1]}).features["@score"].to_dict()
    assert made["baseline"]["value"]["features"]["@score"]["counts"] == scores["counts"]
    assert made["baseline"]["value"]["features"]["@prediction"]["categories"] in (["true", "false"], ["false", "true"])
    assert made["signature"]["value"] == {
        "features": [
            {"name": "x0", "type": "number", "required": True},
            {"name": "x1", "type": "number", "required": True},
        ],
        "prediction": {"type": "boolean", "classes": [False, True]},
    }
    events = [json.loads(line) for line in (folder / "events").read_text().splitlines()]
    assert [event["kind"] for event in events] == ["baseline"]


def test_columns_that_the_model_did_not_see_are_left_out(folder: Path) -> None:
    def fit(rows: Any) -> Any:
        model = LinearRegression().fit([[row["age"]] for row in rows], [float(row["sick"]) for row in rows])
        model.feature_names_in_ = ["age"]
        return model

    made = execute(fit, folder, rows=[*ROWS, {"age": None, "city": "Oslo", "sick": True}][:100])
    assert list(made["baseline"]["value"]["features"]) == ["age", "@prediction"]
    assert [item["name"] for item in made["signature"]["value"]["features"]] == ["age"]
    assert made["baseline"]["value"]["features"]["@prediction"]["kind"] == "numeric"


def test_a_guess_is_refused_with_the_cure(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fit(rows: Any) -> Any:
        return LinearRegression().fit([[row["age"], row["sick"]] for row in rows], [1.0 for _ in rows])

    assert set(execute(fit, folder, rows=ROWS)) == {"result"}
    said = capsys.readouterr().err
    assert "the model was trained on 2 features, the table has 3 columns" in said
    assert "log_baseline(X, feature_names=[...], score=model.predict(X))" in said


def test_a_model_that_cannot_be_asked_costs_a_line_and_not_the_step(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = execute(lambda inputs: Stubborn().fit(inputs, [1.0] * 100), folder, inputs=MATRIX)
    assert set(made) == {"result"}
    assert "RuntimeError: not today" in capsys.readouterr().err


def test_no_baseline_is_taken_when_the_step_wants_none(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = execute(lambda inputs: LinearRegression().fit(inputs, TRUTH), folder, wanted=False, inputs=MATRIX)
    assert set(made) == {"result"}
    assert capsys.readouterr().err == ""


def test_a_baseline_that_the_step_logs_itself_stands(folder: Path) -> None:
    def fit(inputs: Any) -> Any:
        model = LogisticRegression().fit(inputs, TRUTH)
        baseline.log_baseline(inputs, ["age", "number"], model.predict(inputs))
        return model

    made = execute(fit, folder, inputs=MATRIX)
    assert list(made["baseline"]["value"]["features"]) == ["age", "number", "@prediction"]
    assert Baseline.from_dict(made["baseline"]["value"]).rows == 100


def test_what_is_no_table_is_refused(folder: Path) -> None:
    for table, names in (({"a": 1}, None), (MATRIX, ["only"]), ([], None)):
        with pytest.raises(baseline.BaselineError):
            baseline.log_baseline(table, names)
    with pytest.raises(baseline.BaselineError, match="one value for each row"):
        baseline.log_baseline(MATRIX, None, [1, 2])


def test_a_large_table_is_thinned_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baseline, "MAX_ROWS", 50)
    columns = baseline.columns_of([[n, "x"] for n in range(149)])
    assert columns is not None
    assert columns["x0"] == list(range(0, 149, 3))


@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow"])
def test_tables_of_libraries_are_read_by_column(library: str, folder: Path) -> None:
    lib = pytest.importorskip(library)
    data = {"age": [1.0, 2.0, math.nan, 4.0], "city": ["a", None, "b", "a"], "ok": [True, False, True, True]}
    table = lib.Table.from_pydict(data) if library == "pyarrow" else lib.DataFrame(data)
    columns = baseline.columns_of(table)
    assert columns is not None
    fitted = baseline.of_columns(columns)["features"]
    assert (fitted["age"]["kind"], fitted["age"]["missing"]) == ("numeric", 1)
    assert (fitted["city"]["categories"], fitted["city"]["missing"]) == (["a", "b"], 1)
    assert fitted["ok"]["categories"] == ["true", "false"]
    assert [item["type"] for item in baseline.signature_of(columns)] == ["number", "string", "boolean"]
    assert [item["required"] for item in baseline.signature_of(columns)] == [False, False, True]


def test_a_model_of_a_data_frame_sees_the_frame(folder: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(ROWS)

    def fit(table: Any) -> Any:
        return LogisticRegression().fit(table[["age"]], table["sick"])

    made = execute(fit, folder, table=frame)
    assert list(made["baseline"]["value"]["features"]) == ["age", "@prediction", "@score"]
