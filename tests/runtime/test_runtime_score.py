"""Scoring a table by the code that serves the model, and reading tables from files."""

import json
import os
from pathlib import Path
from typing import Any

import joblib
import pytest
from sklearn.linear_model import LogisticRegression

from loopline.runtime import job, tables

SIGNATURE = {
    "features": [
        {"name": "age", "type": "number", "required": True},
        {"name": "city", "type": "string", "required": False},
    ]
}
PREDICT = """
def load(model_dir):
    return float(open(model_dir + "/level.txt").read())

def predict(model, batch):
    assert len(batch) <= 1024
    return [{"prediction": int(row[0] > model), "score": row[0] / 100} for row in batch]
"""
TABLE = "number,age,city,sick\n1,10,007,0\n2,60,,1\n3,70,x,0\n"


class Fork:
    """``job.main`` for kind ``score`` in a process of its own, as modules it imports must not stay in this one."""

    def __init__(self, root: Path) -> None:
        self.root, self.count = root, 0

    def __call__(self, **call: Any) -> Any:
        self.count += 1
        folder = self.root / f"at_{self.count}"
        folder.mkdir()
        (folder / "spec.json").write_text(json.dumps({"kind": "score", "call": call}))
        pid = os.fork()
        if pid == 0:
            try:
                job.main(str(folder))
            except BaseException as error:
                (folder / "raised").write_text(f"{type(error).__name__}: {error}")
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        if (folder / "raised").exists():
            return (folder / "raised").read_text()
        manifest = json.loads((folder / "outputs.json").read_text())
        assert manifest["predictions"]["format"] == "json"
        return json.loads((folder / "outputs" / "predictions.json").read_text())


@pytest.fixture
def score(tmp_path: Path) -> Fork:
    (tmp_path / "code").mkdir()
    (tmp_path / "model").mkdir()
    (tmp_path / "code" / "predict.py").write_text(PREDICT)
    (tmp_path / "model" / "level.txt").write_text("50")
    (tmp_path / "table.csv").write_text(TABLE)
    return Fork(tmp_path)


def call_of(root: Path, **more: Any) -> dict[str, Any]:
    return {
        "tree": str(root / "code"),
        "handler": "predict",
        "model_dir": str(root / "model"),
        "table": {"path": str(root / "table.csv"), "format": "csv"},
        "label": "sick",
        "signature": SIGNATURE,
        "slices": ["city"],
        **more,
    }


def test_a_table_is_scored_row_by_row(score: Fork) -> None:
    assert score(**call_of(score.root)) == {
        "predictions": [0, 1, 1],
        "scores": [0.1, 0.6, 0.7],
        "labels": [0, 1, 0],
        "slices": {"city": ["007", None, "x"]},
    }


def test_json_lines_score_as_csv_does(score: Fork) -> None:
    rows = tables.read_rows(str(score.root / "table.csv"))
    path = score.root / "table.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows * 1000))
    scored = score(**call_of(score.root, table={"path": str(path), "format": "jsonl"}))
    assert scored["predictions"] == [0, 1, 1] * 1000


def test_rows_without_a_signature_arrive_as_objects_without_the_label(score: Fork) -> None:
    (score.root / "code" / "predict.py").write_text(
        "def load(model_dir): return None\ndef predict(model, batch): return [sorted(row) for row in batch]\n"
    )
    scored = score(**call_of(score.root, signature=None))
    assert (scored["predictions"], scored["scores"]) == ([["age", "city", "number"]] * 3, None)


def test_a_joblib_model_needs_no_code(score: Fork) -> None:
    rows, truth = [[float(n), 1.0] for n in range(40)], ["yes" if n > 20 else "no" for n in range(40)]
    model = LogisticRegression().fit(rows, truth)
    joblib.dump(model, score.root / "model" / "model.joblib")
    lines = "".join(f"{a:g},{b:g},{label}\n" for (a, b), label in zip(rows, truth, strict=True))
    (score.root / "table.csv").write_text("a,b,sick\n" + lines)
    features = [{"name": name, "type": "number", "required": True} for name in "ab"]
    call = call_of(score.root, tree=None, handler="joblib", signature={"features": features}, slices=[])
    scored = score(**call)
    assert scored["predictions"] == model.predict(rows).tolist()
    assert scored["scores"] == pytest.approx(model.predict_proba(rows)[:, 1].tolist())
    negative = score(**call, positive="no")["scores"]
    assert [a + b for a, b in zip(scored["scores"], negative, strict=True)] == pytest.approx([1.0] * 40)


@pytest.mark.parametrize(
    ("table", "changes", "says"),
    [
        (TABLE, {"label": "ill"}, "ScoreError: the table has no column 'ill'; it has number, age, city, sick"),
        (TABLE, {"slices": ["land"]}, "ScoreError: the table has no column 'land'"),
        (TABLE.replace("age", "years"), {}, "ScoreError: the table has no column 'age', which the model takes"),
        (TABLE.replace(",10,", ",ten,"), {}, "ScoreError: row 0: 'age' must be a number, not a string"),
        (TABLE.replace("10,007,0", "10,007,"), {}, "ScoreError: row 0 has no 'sick'"),
        (TABLE + "4,5\n", {}, "TableError: table.csv, line 5: 2 cells; the header has 4"),
        ("age,city,sick\n", {}, "ScoreError: the table has no rows"),
        (TABLE, {"handler": "nothing"}, "CannotServe: there is no handler 'nothing'"),
    ],
)
def test_what_cannot_be_scored_is_explained(score: Fork, table: str, changes: dict[str, Any], says: str) -> None:
    (score.root / "table.csv").write_text(table)
    answer = score(**call_of(score.root, **changes))
    assert isinstance(answer, str) and answer.startswith(says), answer


def test_too_few_predictions_are_refused(score: Fork) -> None:
    (score.root / "code" / "predict.py").write_text(PREDICT.replace("for row in batch]", "for row in batch[1:]]"))
    assert score(**call_of(score.root)) == "ScoreError: predict returned 2 predictions for 3 rows (from row 0 on)"


# -- tables -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cells", "values"),
    [
        (["1", "-2", ""], [1, -2, None]),
        (["1", "2.5"], [1.0, 2.5]),
        (["1e3", "-0.5"], [1000.0, -0.5]),
        (["True", "false", ""], [True, False, None]),
        (["007", "8"], ["007", "8"]),
        (["1", "nan"], ["1", "nan"]),
        (["inf", "1"], ["inf", "1"]),
        (["1_000", "2"], ["1_000", "2"]),
        (["1", "x", ""], ["1", "x", None]),
        (["", ""], [None, None]),
    ],
)
def test_a_column_of_csv_has_one_type(tmp_path: Path, cells: list[str], values: list[Any]) -> None:
    (tmp_path / "t.csv").write_text("id,c\n" + "".join(f"r,{cell}\n" for cell in cells))
    column = [row["c"] for row in tables.read_rows(str(tmp_path / "t.csv"))]
    assert [(type(value), value) for value in column] == [(type(value), value) for value in values]


def test_files_are_read_by_their_suffix(tmp_path: Path) -> None:
    def read(name: str, text: str, hint: str | None = None) -> Any:
        (tmp_path / name).write_text(text)
        return tables.read(str(tmp_path / name), hint)

    assert read("a.json", '{"a": 1}') == {"a": 1}
    assert read("a.jsonl", '{"a": 1}\n\n{"a": 2}\n') == [{"a": 1}, {"a": 2}]
    assert read("a.tsv", "a\tb\n1\t2\n") == [{"a": 1, "b": 2}]
    assert read("a.bin", "x") == tmp_path / "a.bin"
    assert read("b.csv", "a,b\n1,2\n3,4\n", "numpy").tolist() == [[1.0, 2.0], [3.0, 4.0]]
    for name, text, says in (
        ("c.jsonl", '{"a": 1}\n{"a"\n', "c.jsonl, line 2"),
        ("c.csv", "a,a\n1,2\n", "name each column once"),
        ("c.csv", 'a\n"1\n', "c.csv, line 2"),
    ):
        with pytest.raises(tables.TableError, match=says):
            read(name, text)
    with pytest.raises(tables.TableError, match="must be a list of objects"):
        tables.read_rows(str(tmp_path / "a.json"))


@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow"])
def test_parquet_comes_back_by_the_library_that_is_wanted(tmp_path: Path, library: str) -> None:
    pytest.importorskip(library)
    (tmp_path / "t.csv").write_text("a,b\n1,x\n2,y\n")
    table = tables.read(str(tmp_path / "t.csv"), library)
    assert type(table).__module__.split(".")[0] == library
    path = str(tmp_path / "t.parquet")
    if library == "pyarrow":
        pytest.importorskip("pyarrow.parquet").write_table(table, path)
    else:
        (table.to_parquet if library == "pandas" else table.write_parquet)(path)
    assert type(tables.read(path)).__module__.split(".")[0] == library
    assert tables.read_rows(path) == [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]
