"""Scoring in chunks inside a job: every way of reading gives the same rows, every way of writing the same pieces."""

import csv
import io
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopline.runtime import batch, batchdeaths, batchinput, batchoutput, job, processes
from loopline.runtime.signature import Signature

FEATURES = [{"name": name, "type": "number"} for name in ("a", "b")]
JUDGE = """
class Judge:
    classes_ = ["no", "yes"]
    def predict(self, rows):
        import numpy
        return numpy.array(["yes" if row[0] > row[1] else "no" for row in rows])
    def predict_proba(self, rows):
        import numpy
        return numpy.array([[0.25, 0.75] if row[0] > row[1] else [1 / 3, 2 / 3] for row in rows])
"""


class Ran(Exception):
    """What a batch that ran in another process said."""


def run(root: Path, **more: Any) -> dict[str, Any]:
    """``batch.score`` in a process of its own, as modules it imports must not stay in this one."""
    for name in ("work", "att/outputs", "code", "model"):
        (root / name).mkdir(parents=True, exist_ok=True)
    call = {
        "tree": str(root / "code"),
        "handler": "predict",
        "model_dir": str(root / "model"),
        "table": {"path": str(root / "t.csv"), "format": "csv"},
        "signature": {"features": FEATURES},
        "keep": [],
        "workers": 1,
        "rows_per_call": 100,
        "max_bad_share": 0.5,
        "max_bytes": 1 << 30,
        "form": "csv",
        "output": "out",
        "folder": str(root / "work"),
        **more,
    }
    pid = os.fork()
    if pid == 0:
        try:
            job._enter_package()
            text = json.dumps(batch.score(call, str(root / "att")))
        except BaseException as error:
            text = json.dumps({"raised": f"{type(error).__name__}: {error}"})
        (root / "said").write_text(text)
        os._exit(0)
    os.waitpid(pid, 0)
    said: dict[str, Any] = json.loads((root / "said").read_text())
    if "raised" in said:
        raise Ran(said["raised"])
    return said


def output(root: Path) -> str:
    return (root / "att" / "outputs" / "output" / "out").read_text()


def write_predict(root: Path, body: str) -> None:
    (root / "code").mkdir(exist_ok=True)
    (root / "code" / "predict.py").write_text(f"def load(model_dir): return None\ndef predict(model, batch):\n{body}")


# -- reading ----------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(*[st.floats(allow_nan=False, allow_infinity=False)] * 2), min_size=1, max_size=30))
def test_a_matrix_holds_the_numbers_that_the_careful_way_gives(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[float, float]]
) -> None:
    path = tmp_path_factory.mktemp("t") / "t.csv"
    path.write_text("id,b,a\n" + "".join(f"{n},{b!r},{a!r}\n" for n, (a, b) in enumerate(rows)))
    reader = batchinput.Reader(str(path), batchinput.plan(str(path), "csv"), Signature(FEATURES), ["id"])
    quick, careful = reader.read(0, matrix=True), reader.read(0)
    assert quick.rows.tolist() == careful.rows == [list(row) for row in rows]
    assert (list(quick.numbers), quick.kept, quick.bad) == (list(careful.numbers), careful.kept, careful.bad)
    assert quick.inputs(0) == careful.inputs(0)


@pytest.mark.parametrize(
    "line", ["1,2,", "1,,2", "1,nan,2", "1,2", "1,2,3,4", '"1",2,3', "1,x,2", "1,inf,2", "1,1e999,2", "1,#,2"]
)
def test_what_is_no_matrix_of_numbers_is_read_carefully(tmp_path: Path, line: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"id,a,b\n0,1,2\n{line}\n")
    optional = [{**FEATURES[0], "required": False}, FEATURES[1]]
    for features in (FEATURES, optional):
        reader = batchinput.Reader(str(path), batchinput.plan(str(path), "csv"), Signature(features), ["id"])
        quick, careful = reader.read(0, matrix=True), reader.read(0)
        assert [list(row) for row in quick.rows] == careful.rows
        assert quick.bad == careful.bad


def test_optional_features_may_be_absent_and_columns_may_be_more(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("x,b\n7,2\n8,\n")
    features = [{**FEATURES[0], "required": False}, FEATURES[1]]
    reader = batchinput.Reader(
        str(tmp_path / "t.csv"), batchinput.plan(str(tmp_path / "t.csv"), "csv"), Signature(features), []
    )
    found = reader.read(0)
    assert found.rows == [[None, 2.0]]
    assert [(bad.row, bad.reason) for bad in found.bad] == [(2, "row 2: 'b' is required and must not be null")]


@pytest.mark.parametrize("library", ["pyarrow", "polars"])
def test_parquet_is_read_and_written(tmp_path: Path, library: str) -> None:
    pytest.importorskip(library)
    rows = [{"a": float(n), "b": 1.5, "id": n} for n in range(250)]
    if library == "pyarrow":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "t.parquet", row_group_size=70)
    else:
        import polars

        polars.DataFrame(rows).write_parquet(tmp_path / "t.parquet", row_group_size=70)
    write_predict(tmp_path, '    return [{"score": row[0] / 2} for row in batch]\n')
    table = {"path": str(tmp_path / "t.parquet"), "format": "parquet"}
    found = run(tmp_path, table=table, form="parquet", keep=["id"], chunk_rows=60, workers=2)
    assert found["summary"]["value"]["columns"] == ["id", "score"]
    from loopline.runtime import tables

    path = tmp_path / "out.parquet"
    (tmp_path / "att" / "outputs" / "output" / "out").rename(path)
    assert tables.read_rows(str(path)) == [{"id": n, "score": n / 2} for n in range(250)]


# -- writing ----------------------------------------------------------------------------------------------------------


def test_classes_with_probabilities_are_columns_however_they_are_written(tmp_path: Path) -> None:
    pytest.importorskip("numpy")
    (tmp_path / "t.csv").write_text("id,a,b\n" + "".join(f"{n},{n % 3},1\n" for n in range(500)))
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "judge.py").write_text(JUDGE)
    (tmp_path / "model").mkdir()
    namespace: dict[str, Any] = {"__name__": "judge"}
    exec(JUDGE, namespace)  # the class that the pickle below refers to
    import sys
    import types

    sys.modules["judge"] = types.ModuleType("judge")
    sys.modules["judge"].Judge = namespace["Judge"]  # type: ignore[attr-defined]
    try:
        (tmp_path / "model" / "model.pkl").write_bytes(pickle.dumps(namespace["Judge"]()))
    finally:
        del sys.modules["judge"]
    run(tmp_path, handler="joblib", keep=["id"])
    rows = list(csv.reader(io.StringIO(output(tmp_path))))
    assert rows[0] == ["id", "prediction", "probabilities.no", "probabilities.yes"]
    answers = [["yes", "0.25", "0.75"] if n % 3 > 1 else ["no", repr(1 / 3), repr(2 / 3)] for n in range(500)]
    assert rows[1:] == [[str(n), *answer] for n, answer in enumerate(answers)]


def test_cells_of_csv(tmp_path: Path) -> None:
    kept, predictions = [["x,y"], ["z"]], [{"p": None, "q": [1, "a"], "r": {"s": True}}, {"p": 1e-7, "t": "é"}]
    names, piece = batchoutput.part("csv", ["id"], kept, predictions)
    assert names == ["p", "q", "r.s", "t"]
    assert piece.decode() == '"x,y",,"[1,""a""]",true,\nz,1e-07,,,é\n'


def test_pieces_that_differ_in_their_columns_are_joined(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n" + "".join(f"{n},1\n" for n in range(40)))
    write_predict(
        tmp_path, '    return [{"one": row[0]} if row[0] < 20 else {"two": row[0], "one": 1} for row in batch]\n'
    )
    found = run(tmp_path, chunk_rows=10, rows_per_call=10)
    assert found["summary"]["value"]["columns"] == ["one", "two"]
    rows = output(tmp_path).splitlines()
    assert (rows[0], rows[1], rows[-1]) == ("one,two", "0.0,", "1,39.0")


def test_a_prediction_that_is_no_json_costs_its_own_row_alone(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n" + "".join(f"{n},1\n" for n in range(30)))
    write_predict(
        tmp_path,
        "    bad = {3: float('nan'), 7: object(), 9: {1, 2}}\n"
        "    return [bad.get(int(row[0]), row[0]) for row in batch]\n",
    )
    found = run(tmp_path)
    assert (found["summary"]["value"]["rows"], found["summary"]["value"]["bad"]) == (30, 3)
    aside = (tmp_path / "att" / "outputs" / "errors" / "errors.jsonl").read_text().splitlines()
    assert [json.loads(line)["row"] for line in aside] == [4, 8, 10]
    assert output(tmp_path).splitlines()[4] == "4.0"


@pytest.mark.parametrize(
    ("body", "options", "says"),
    [
        ("    return []\n", {}, "row 1: WorkerError: predict returned 0 predictions for 1 rows"),
        ("    return batch\n    x = (\n", {}, "importing predict.py failed"),
        ("    return [row[0] for row in batch]\n", {"max_bytes": 1}, "the output is larger than"),
        (
            "    return [{'a': 1} for row in batch]\n",
            {"keep": ["a"]},
            "the kept column 'a' is a column of the predictions",
        ),
        ("    raise SystemExit('enough')\n", {}, "SystemExit: enough"),
    ],
)
def test_what_cannot_go_on_says_why(tmp_path: Path, body: str, options: dict[str, Any], says: str) -> None:
    (tmp_path / "t.csv").write_text("a,b\n1,2\n3,4\n")
    write_predict(tmp_path, body)
    with pytest.raises(Ran) as raised:
        run(tmp_path, **{"max_bad_share": 0.0, **options})
    assert says in str(raised.value)


# -- rows that end the process ----------------------------------------------------------------------------------------

DEATHS = {
    "exit": ("os._exit(3)", "status 3"),
    "segfault": ("ctypes.string_at(0)", "signal 11 (SIGSEGV)"),
}


def table(root: Path, count: int) -> None:
    (root / "t.csv").write_text("id,a,b\n" + "".join(f"n{n},{n},1\n" for n in range(count)))


def aside(root: Path) -> list[tuple[int, str]]:
    lines = (root / "att" / "outputs" / "errors" / "errors.jsonl").read_text().splitlines()
    return [(found["row"], found["reason"]) for found in map(json.loads, lines)]


def deadly(root: Path, condition: str, death: str, *, load: str = "return None") -> None:
    """A model that ends its process; ``born`` gets a line for each process that loads it."""
    (root / "code").mkdir(exist_ok=True)
    (root / "code" / "predict.py").write_text(
        "import ctypes, faulthandler, os, time\n"
        "faulthandler.disable()\n"
        "def load(model_dir):\n"
        f"    with open({str(root / 'born')!r}, 'a') as file: file.write('1\\n')\n"
        f"    {load}\n"
        "def predict(model, batch):\n"
        "    for row in batch:\n"
        f"        if {condition}:\n"
        f"            {death}\n"
        "    if any(row[0] == 333 for row in batch): raise ValueError('thrice')\n"
        "    return [row[0] * 2 for row in batch]\n"
    )


def born(root: Path) -> int:
    return len((root / "born").read_text().splitlines())


@pytest.mark.parametrize(("death", "workers"), [("exit", 3), ("segfault", 1)])
def test_a_row_that_ends_its_process_costs_itself_alone(tmp_path: Path, death: str, workers: int) -> None:
    table(tmp_path, 3000)
    killers = {0, 5, 6, 330, 1777, 2999}
    deadly(tmp_path, f"row[0] in {killers}", DEATHS[death][0])
    found = run(tmp_path, keep=["id"], chunk_rows=600, rows_per_call=256, workers=workers)
    assert (found["summary"]["value"]["rows"], found["summary"]["value"]["bad"]) == (3000, 7)
    right = "".join(f"n{n},{n * 2.0}\n" for n in range(3000) if n not in {*killers, 333})
    assert output(tmp_path) == "id,prediction\n" + right
    died = f"the process that predicted it ended with {DEATHS[death][1]}"
    reasons = {**dict.fromkeys(killers, died), 333: "ValueError: thrice"}
    assert aside(tmp_path) == [(n + 1, f"row {n + 1}: {reasons[n]}") for n in sorted(reasons)]
    assert born(tmp_path) <= workers + 4 * len(killers)


def test_a_process_that_is_killed_from_outside_costs_no_row(tmp_path: Path) -> None:
    table(tmp_path, 1000)
    once = tmp_path / "once"
    deadly(tmp_path, f"row[0] == 450 and not os.path.exists({str(once)!r})", f"open({str(once)!r}, 'w'); os.abort()")
    found = run(tmp_path, chunk_rows=300, rows_per_call=100, workers=2)
    assert [row for row, _ in aside(tmp_path)] == [334] and found["summary"]["value"]["rows"] == 1000
    assert output(tmp_path) == "prediction\n" + "".join(f"{n * 2.0}\n" for n in range(1000) if n != 333)


def test_children_of_a_dead_process_hold_nothing_up(tmp_path: Path) -> None:
    table(tmp_path, 300)
    over = tmp_path / "over"
    child = f"while not os.path.exists({str(over)!r}): time.sleep(0.01)"
    deadly(tmp_path, "row[0] == 7", "os.abort()", load=f"if os.fork() == 0:\n        {child}\n        os._exit(0)")
    try:
        run(tmp_path, keep=["id"])
        assert [row for row, _ in aside(tmp_path)] == [8]
    finally:
        over.touch()


@pytest.mark.parametrize(
    ("condition", "load", "share", "says"),
    [
        ("False", "os._exit(5)", 1.0, "ended with status 5 while it loaded the model, 3 times one after another"),
        ("True", "return None", 1.0, "40 processes ended so in the chunk of these rows, 36 rows of it end each"),
        ("True", "return None", 0.0005, "2 of 2 rows were set aside so far, of 2000; max_bad_share is 0.0005: row 1: "),
    ],
)
def test_a_model_that_dies_again_and_again_ends_the_batch_soon(
    tmp_path: Path, condition: str, load: str, share: float, says: str
) -> None:
    table(tmp_path, 2000)
    deadly(tmp_path, condition, "os.abort()", load=load)
    with pytest.raises(Ran) as raised:
        run(tmp_path, rows_per_call=4096, max_bad_share=share)
    assert says in str(raised.value)
    assert born(tmp_path) <= batchdeaths.MOST_OF_A_CHUNK


def test_a_row_that_takes_too_much_memory_costs_itself_alone(tmp_path: Path) -> None:
    table(tmp_path, 400)
    hoard = "hoard = []\n            while len(hoard) < 512: hoard.append(b'x' * (1 << 21)); time.sleep(0.001)"
    deadly(tmp_path, "row[0] == 77", hoard)
    most = processes.resident_bytes([os.getpid()]) / 1048576 + 200
    run(tmp_path, rows_per_call=1, chunk_rows=200, workers=2, memory_mb=most)
    died = f"the process that predicted it was ended when the job was about to use more than its {most:g} MB of memory"
    assert aside(tmp_path) == [(78, f"row 78: {died}"), (334, "row 334: ValueError: thrice")]
    assert output(tmp_path) == "prediction\n" + "".join(f"{n * 2.0}\n" for n in range(400) if n not in (77, 333))


@settings(deadline=None, max_examples=40)
@given(st.sets(st.integers(0, 4999), max_size=8), st.sampled_from([1, 7, 64, 100, 4096]))
def test_the_rows_at_fault_are_found_by_few_deaths(killers: set[int], step: int) -> None:
    deaths = batchdeaths.Deaths()

    def call(start: int, end: int, care: batchdeaths.Care) -> bool:
        part = care.parts.get((start, end))
        if part:
            return all(call(first, min(first + part, end), care) for first in range(start, end, part))
        if end - start == 1 and start in care.aside:
            return True
        if killers.isdisjoint(range(start, end)):
            return True
        deaths.add(0, batchdeaths.Note(batchdeaths.PREDICTING, start, end, start + 1, end), "died")
        return False

    def score() -> bool:
        care = batchdeaths.Care(json.loads(json.dumps(deaths.care_for(0))))
        return all(call(start, min(start + step, 5000), care) for start in range(0, 5000, step))

    attempts = 0
    while not score():
        attempts += 1
    assert attempts <= 4 * len(killers)
    care = batchdeaths.Care(deaths.care_for(0))
    assert set(care.aside) == killers
    assert sorted(deaths.aside(0)) == sorted(f"row {n + 1}: {care.aside[n]}" for n in killers)
