"""Jobs as the shim runs them: compiled pipelines, steps and what they leave; and the same pipeline run locally."""

import json
import os
import pickle
import subprocess
import sys
import textwrap
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from loopline.domain import calls
from loopline.domain.decisions import decide
from loopline.domain.pipelines import ConditionStep, Index, JobStep, Output, parse_outputs, parse_spec
from loopline.runtime import job, values
from loopline.store.blobs import LocalBlobs

RUNTIME = Path(job.__file__).parent
HEAD = """
from pathlib import Path
from loopline import step, pipeline, asset, when, otherwise, register, fail
from loopline import log_artifact, log_baseline, log_metric, log_params, set_tag
"""


class Failed(Exception):
    """What a job raised, as its own process saw it."""

    def __init__(self, kind: str, message: str, places: list[list[Any]]) -> None:
        self.kind, self.message, self.places = kind, message, places
        super().__init__(f"{kind}: {message}")


# What the shim does in a job's process, and what it would hear of an error.
CHILD = """
import json, os, sys
runtime, folder, work = sys.argv[1:]
package = type(sys)("loopline_runtime")
package.__path__ = [runtime]
sys.modules["loopline_runtime"] = package
from loopline_runtime import job
os.chdir(work)
try:
    sys.exit(job.main(folder))
except Exception as error:
    places, trace = [], error.__traceback__
    while trace is not None:
        places.append([trace.tb_frame.f_code.co_filename, trace.tb_lineno])
        trace = trace.tb_next
    told = [type(error).__name__, str(error), [place for place in places if place[0] not in ("<string>", job.__file__)]]
    with open(folder + "/raised", "w") as file:
        json.dump(told, file)
"""


def in_a_process(folder: Path, work: Path) -> None:
    """``job.main`` in a process of its own, entered by path; raises ``Failed``."""
    command = [sys.executable, "-I", "-c", CHILD, str(RUNTIME), str(folder), str(work)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    if (folder / "raised").exists():
        raise Failed(*json.loads((folder / "raised").read_text()))
    assert ran.returncode == 0, ran.stderr


class Project:
    """A project's files, and attempts of jobs over them."""

    def __init__(self, root: Path) -> None:
        self.root, self.tree, self.count = root, root / "tree", 0
        self.tree.mkdir()

    def write(self, text: str, file: str = "pipeline.py") -> None:
        path = self.tree / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(HEAD + textwrap.dedent(text))

    def attempt(self, kind: str, call: dict[str, Any]) -> Path:
        self.count += 1
        folder = self.root / f"at_{self.count}"
        (folder / "work").mkdir(parents=True)
        (folder / "spec.json").write_text(json.dumps({"kind": kind, "call": {"tree": str(self.tree), **call}}))
        in_a_process(folder, folder / "work")
        return folder

    def step(self, function: str, outputs: Any = ("result",), **arguments: Any) -> tuple[Path, dict[str, Output]]:
        given = {name: item if isinstance(item, dict) else {"value": item} for name, item in arguments.items()}
        call = {"file": "pipeline.py", "function": function, "arguments": given, "outputs": list(outputs)}
        folder = self.attempt("step", call)
        return folder, parse_outputs((folder / "outputs.json").read_bytes())

    def events(self, folder: Path, kind: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in (folder / "events").read_text().splitlines()]
        return [{k: v for k, v in line.items() if k not in ("at", "kind")} for line in lines if line["kind"] == kind]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def handed_on(folder: Path, output: Output, *select: Any) -> dict[str, Any]:
    place = {"path": str(folder / output.path), "format": output.format, "select": list(select)}
    return {"input": place}


# -- compile ----------------------------------------------------------------------------------------------------------

TRAINING = """
from features import widen

class Mean:
    feature_names_in_ = ["x", "z"]
    def __init__(self, level): self.level = level
    def predict(self, rows): return [row[0] > self.level for row in rows]

@step(outputs=["train", "test"])
def prepare(rows, share: float = 0.5):
    cut = int(len(rows) * share)
    return widen(rows[:cut]), widen(rows[cut:])

@step(retries=1)
def fit(train, epochs):
    for epoch in range(epochs):
        log_metric("loss", 1 / (epoch + 1))
    return Mean(sum(row["x"] for row in train) / len(train))

@step(outputs=["report", "notes"])
def judge(model, test):
    notes = Path("notes")
    (notes / "deep").mkdir(parents=True)
    (notes / "deep" / "a.txt").write_text("a")
    (notes / "run.sh").write_text("#!/bin/sh")
    (notes / "run.sh").chmod(0o755)
    answers = model.predict([[row["x"], row["z"]] for row in test])
    right = sum(answer == row["good"] for answer, row in zip(answers, test))
    return {"accuracy": right / len(test)}, notes

@pipeline
def training(epochs: int = 2, least: float = 0.5):
    train, test = prepare(asset("rows"))
    model = fit(train, epochs=epochs)
    report, notes = judge(model, test)
    with when(report["accuracy"] >= least):
        register(model, metrics=report)
    with otherwise():
        fail("accuracy is only", report["accuracy"])

if __name__ == "__main__":
    training.run()
"""
FEATURES = "def widen(rows):\n    return [{**row, 'z': row['x'] * 2} for row in rows]\n"


@pytest.fixture
def training(project: Project) -> Project:
    project.write(TRAINING)
    (project.tree / "features.py").write_text(FEATURES)
    (project.tree / "data").mkdir()
    rows = "".join(f"{n % 7},{str(n % 7 > 3).lower()}\n" for n in range(40))
    (project.tree / "data" / "rows.csv").write_text("x,good\n" + rows)
    return project


def test_compile_leaves_a_spec_that_the_platform_takes(training: Project) -> None:
    folder = training.attempt("compile", {"file": "pipeline.py"})
    manifest = parse_outputs((folder / "outputs.json").read_bytes())
    spec = parse_spec((folder / manifest["pipeline"].path).read_bytes())
    assert [step.name for step in spec.steps] == ["prepare", "fit", "judge", "condition", "register", "fail"]
    assert spec.file == "pipeline.py"


def test_compile_finds_the_one_pipeline_or_the_named_one(project: Project) -> None:
    project.write("@step\ndef one(): ...\n")
    with pytest.raises(Failed, match="has no pipeline: mark a function with @pipeline"):
        project.attempt("compile", {"file": "pipeline.py"})
    project.write("@step\ndef one(): ...\n@pipeline\ndef a(): one()\n@pipeline\ndef b(): one()\n")
    with pytest.raises(Failed, match=r"several pipelines \(a, b\)"):
        project.attempt("compile", {"file": "pipeline.py"})
    folder = project.attempt("compile", {"file": "pipeline.py", "name": "b"})
    assert json.loads((folder / "outputs" / "pipeline.json").read_text())["name"] == "b"
    with pytest.raises(Failed, match="has no pipeline 'c'; it has a, b"):
        project.attempt("compile", {"file": "pipeline.py", "name": "c"})
    with pytest.raises(Failed, match="has no file other"):
        project.attempt("compile", {"file": "other.py"})


def test_a_mistake_in_the_pipeline_is_traced_to_the_users_line(project: Project) -> None:
    project.write("@step\ndef one(x): ...\n@pipeline\ndef p():\n    if one(1):\n        one(2)\n")
    with pytest.raises(Failed) as caught:
        project.attempt("compile", {"file": "pipeline.py"})
    assert caught.value.kind == "PipelineError"
    assert "with when(...):" in caught.value.message
    assert caught.value.places[-1] == [str(project.tree / "pipeline.py"), HEAD.count("\n") + 5]
    assert not [place for place in caught.value.places if "loopline" in Path(place[0]).parts]


# -- steps and formats ------------------------------------------------------------------------------------------------

FORMATS = """
class Thing:
    def __init__(self, value): self.value = value
    def __eq__(self, other): return self.value == other.value

@step
def make(which):
    import numpy as np
    Path("made").mkdir()
    Path("made/a.txt").write_text("a")
    return {
        "json": {"a": [1, 2.5, None, True, "\u00e9\U0001f600"], "b": {"c": -0.0, "d": 10**30}},
        "scalars": {"acc": np.float64(0.1), "n": np.int32(3), "ok": np.bool_(True), "pair": (1, 2)},
        "array": np.arange(6, dtype="<i4").reshape(2, 3).T,
        "nan": {"a": float("nan")},
        "keys": {1: "a"},
        "objects": np.array([{"a": 1}, None], dtype=object),
        "thing": Thing(3),
        "file": Path("made/a.txt"),
        "folder": Path("made"),
        "none": None,
    }[which]

@step
def look(value):
    import numpy as np
    if isinstance(value, Path):
        return sorted(str(p.relative_to(value)) for p in value.rglob("*")) if value.is_dir() else value.read_text()
    if isinstance(value, np.ndarray):
        return [str(value.dtype), value.flags.f_contiguous, value.tolist()]
    return [type(value).__name__, repr(value) if not isinstance(value, Thing) else value.value]

@step
def look_at_path(value: "Path"):
    return [type(value).__name__, value.name, value.exists()]
"""


@pytest.mark.parametrize(
    ("which", "form", "executable", "seen"),
    [
        (
            "json",
            "json",
            False,
            ["dict", "{'a': [1, 2.5, None, True, '\u00e9\U0001f600'], 'b': {'c': -0.0, 'd': 1" + 30 * "0" + "}}"],
        ),
        ("scalars", "json", False, ["dict", "{'acc': 0.1, 'n': 3, 'ok': True, 'pair': [1, 2]}"]),
        ("array", "npy", False, ["int32", True, [[0, 3], [1, 4], [2, 5]]]),
        ("nan", "joblib", True, ["dict", "{'a': nan}"]),
        ("keys", "joblib", True, ["dict", "{1: 'a'}"]),
        ("objects", "joblib", True, ["object", True, [{"a": 1}, None]]),
        ("thing", "joblib", True, ["Thing", 3]),
        ("file", "file", False, "a"),
        ("folder", "folder", False, ["a.txt"]),
        ("none", "json", False, ["NoneType", "None"]),
    ],
)
def test_a_value_comes_back_as_it_was(project: Project, which: str, form: str, executable: bool, seen: Any) -> None:
    project.write(FORMATS)
    folder, made = project.step("make", which=which)
    _, made_again = project.step("make", which=which)
    output = made["result"]
    assert (output.format, output.executable) == (form, executable)
    assert output == made_again["result"], "the same value gives the same bytes"
    if output.format != "folder":
        assert values.digest_file(str(folder / output.path)) == (output.size_bytes, output.sha256)
    _, looked = project.step("look", value=handed_on(folder, output))
    assert looked["result"].value == seen
    _, looked = project.step("look_at_path", value=handed_on(folder, output))
    assert looked["result"].value == ["PosixPath", Path(output.path).name, True]


@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow"])
def test_a_table_comes_back_as_it_was(project: Project, library: str) -> None:
    if find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    project.write(
        f"""
        import {library} as lib
        Table = lib.Table.from_pydict if "{library}" == "pyarrow" else lib.DataFrame
        @step
        def make():
            return Table({{"a": [1, 2, 3], "b": ["x", None, "z"], "c": [0.5, 1.5, None]}})
        @step
        def look(value):
            made = make.__wrapped__()
            return [type(value).__module__.split(".")[0], bool(value.equals(made))]
        @step
        def rows(value: list):
            return value[0]
        """
    )
    folder, made = project.step("make")
    assert (made["result"].format, made["result"].executable) == ("parquet", False)
    assert made == project.step("make")[1]
    _, looked = project.step("look", value=handed_on(folder, made["result"]))
    assert looked["result"].value == [library, True]


def test_a_folder_has_the_digest_that_the_blob_store_gives_it(training: Project, tmp_path: Path) -> None:
    model = {"value": None}
    training.write(TRAINING.replace("answers = model.predict", "answers = (lambda rows: [True for _ in rows])"))
    folder, made = training.step("judge", ["report", "notes"], model=model, test=[{"x": 1, "z": 2, "good": True}])
    notes = made["notes"]
    blobs = LocalBlobs(tmp_path / "blobs")
    assert (notes.sha256, notes.size_bytes) == (
        (blob := blobs.put_folder(folder / notes.path)).digest,
        blob.size_bytes,
    )
    assert [(file.path, file.mode_x) for file in notes.files or ()] == [("deep/a.txt", False), ("run.sh", True)]
    assert notes.executable


def test_a_part_of_json_and_lists_of_inputs_are_handed_on(project: Project) -> None:
    project.write("@step\ndef make(): return {'a': [10, 20]}\n@step\ndef look(one, many): return [one, many]\n")
    folder, made = project.step("make")
    whole, part = handed_on(folder, made["result"]), handed_on(folder, made["result"], "a", 1)
    _, looked = project.step("look", one=part, many={"list": [part, {"dict": {"w": whole}}, {"value": 3}]})
    assert looked["result"].value == [20, [20, {"w": {"a": [10, 20]}}, 3]]


def test_several_outputs_come_as_a_tuple_or_a_dict(project: Project) -> None:
    project.write(
        "@step\ndef make(which): return {'t': (1, 2), 'd': {'b': 2, 'a': 1}, 'l': [1, 2, 3], 'n': None}[which]"
    )
    for which in ("t", "d"):
        _, made = project.step("make", ["a", "b"], which=which)
        assert (made["a"].value, made["b"].value) == (1, 2)
    for which, got in (("l", "a list of 3"), ("n", "a NoneType")):
        with pytest.raises(Failed, match=f"make gives a, b: return a tuple in this order or a dict, not {got}"):
            project.step("make", ["a", "b"], which=which)


def test_what_cannot_be_kept_names_the_output(project: Project) -> None:
    project.write("@step\ndef make(which):\n    return [lambda: 1, Path('nowhere')][which]\n")
    for which, says in (
        (0, "the output 'result', a function, cannot be kept"),
        (1, "is the path .*nowhere, where nothing is"),
    ):
        with pytest.raises(Failed, match=says):
            project.step("make", which=which)


def test_pickles_in_files_are_told_by_content(project: Project) -> None:
    project.write(
        """
        @step
        def make(start):
            Path("model.bin").write_bytes(bytes.fromhex(start) + b"rest")
            return Path("model.bin")
        """
    )
    harmless, dangerous = ["08034200", "7b226122"], [pickle.dumps([], 4)[:4].hex(), "894844460d0a", "1f8b0800"]
    for start in harmless + dangerous:
        _, made = project.step("make", start=start)
        assert made["result"].executable is (start in dangerous), start


def test_a_step_in_another_file_is_found_by_its_module(project: Project) -> None:
    project.write("from lib.steps import double\n@pipeline\ndef p(n: int = 1): double(n)\n")
    project.write("from .inner import TWO\n@step\ndef double(n): return n * TWO\n", "lib/steps.py")
    project.write("TWO = 2\n", "lib/inner.py")
    folder = project.attempt("compile", {"file": "pipeline.py"})
    function = json.loads((folder / "outputs" / "pipeline.json").read_text())["steps"][0]["function"]
    assert function == "lib.steps:double"
    assert project.step(function, n=4)[1]["result"].value == 8
    with pytest.raises(Failed, match="steps has no function 'triple'"):
        project.step("lib.steps:triple", n=4)


def test_an_error_shows_the_users_frames_only(project: Project) -> None:
    project.write("def deep(): raise KeyError('x')\n@step\ndef make():\n    deep()\n")
    with pytest.raises(Failed) as caught:
        project.step("make")
    first = HEAD.count("\n")
    file = str(project.tree / "pipeline.py")
    assert caught.value.kind == "KeyError"
    assert caught.value.places == [[file, first + 4], [file, first + 1]]


def test_names_of_the_runtime_do_not_stand_in_the_projects_way(project: Project) -> None:
    project.write("import values, tables\n@step\ndef make(): return values.MINE + tables.MINE\n")
    project.write("MINE = 1\n", "values.py")
    project.write("MINE = 2\n", "tables.py")
    assert project.step("make")[1]["result"].value == 3


def test_what_a_step_reports_is_spooled(project: Project) -> None:
    project.write(
        """
        @step
        def make(rate, names, data=None):
            for loss in (0.5, 0.25, float("nan")):
                log_metric("loss", loss)
            log_metric("accuracy", 1, step=7)
            log_params({"odd": {1, 2}, "long": "x" * 9000})
            set_tag("owner", "ada")
            Path("outputs/deep").mkdir(parents=True)
            Path("outputs/deep/plot.png").write_bytes(b"png")
            Path("notes.txt").write_text("n")
            log_artifact("notes.txt", "text/notes.txt")
        """
    )
    folder, _ = project.step("make", rate=0.1, names=["a"], data={"value": {"big": 1}, "given": False})
    assert project.events(folder, "metric") == [
        {"key": "loss", "value": 0.5, "step": 0},
        {"key": "loss", "value": 0.25, "step": 1},
        {"key": "loss", "value": None, "step": 2},
        {"key": "accuracy", "value": 1.0, "step": 7},
    ]
    params = {event["key"]: event["value"] for event in project.events(folder, "param")}
    assert params == {"rate": 0.1, "names": ["a"], "odd": "{1, 2}", "long": "x" * 6000}
    assert project.events(folder, "tag") == [{"key": "owner", "value": "ada"}]
    artifacts = {event["path"]: event["media_type"] for event in project.events(folder, "artifact")}
    assert artifacts == {"text/notes.txt": "text/plain", "deep/plot.png": "image/png"}
    assert (folder / "outputs" / "artifacts" / "deep" / "plot.png").read_bytes() == b"png"


def test_reporting_outside_a_job_does_nothing(tmp_path: Path) -> None:
    code = "import sys; sys.path.insert(0, sys.argv[1])\nfrom loopline import log_metric, log_param, set_tag\n"
    code += "log_metric('a', 1); log_param('b', 2); set_tag('c', 'd')"
    source = str(RUNTIME.parents[1])
    subprocess.run([sys.executable, "-I", "-c", code, source], cwd=tmp_path, check=True)
    assert list(tmp_path.iterdir()) == []


# -- the same pipeline here and there ---------------------------------------------------------------------------------


def run_on_jobs(project: Project, parameters: dict[str, Any]) -> dict[str, dict[str, Output]]:
    """The compiled pipeline, moved on by the domain's decisions, each step a job of its own."""
    folder = project.attempt("compile", {"file": "pipeline.py"})
    spec = parse_spec((folder / "outputs" / "pipeline.json").read_bytes())
    index = Index(spec)
    statuses = dict.fromkeys(index.order, "Pending")
    outputs: dict[str, dict[str, Output]] = {}
    folders: dict[str, Path] = {}
    results: dict[str, bool] = {}
    assets = {("rows", None): calls.Asset("rows", 1, "file", "0" * 64, "rows.csv")}

    def locate(item: calls.Input) -> str:
        if item.is_asset:
            return str(project.tree / "data" / item.path)
        return str(folders[item.source.split(".")[0]] / item.path)

    while (decision := decide(index, statuses, results)).status is None:
        statuses |= dict.fromkeys((name for name, _ in decision.skip), "Skipped")
        for name in decision.start:
            step = index.steps[name]
            statuses[name] = "Succeeded"
            if isinstance(step, JobStep):
                resolved = calls.resolve_arguments(step, parameters, outputs, assets)
                call = calls.step_call(spec, step, str(project.tree), calls.call_arguments(resolved, locate))
                folders[name] = project.attempt("step", call)
                outputs[name] = parse_outputs((folders[name] / "outputs.json").read_bytes())
            elif isinstance(step, ConditionStep):
                results[name] = calls.evaluate_condition(step.condition, parameters, outputs)
    return outputs


def test_a_local_run_leaves_the_same_bytes_as_jobs(training: Project) -> None:
    outputs = run_on_jobs(training, {"epochs": 2, "least": 0.5})
    ran = subprocess.run(
        [sys.executable, "pipeline.py", "--epochs", "2"],
        cwd=training.tree,
        env={"PYTHONPATH": str(RUNTIME.parents[1]), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    here = {
        path.parent.parent.name: parse_outputs(path.read_bytes())
        for path in training.tree.glob(".loopline-local/runs/1/*/1/outputs.json")
    }
    assert here == outputs
    assert {"train", "test"} == set(outputs["prepare"])
    assert set(outputs["fit"]) == {"result", "baseline", "signature"}
    version = json.loads((training.tree / ".loopline-local/models/training/1/version.json").read_text())
    assert version["metrics"] == outputs["judge"]["report"].value
    assert (training.tree / ".loopline-local/models/training/1/model/model.joblib").is_file()
    assert "[fail] Skipped: condition was true" in ran.stderr


def test_a_local_run_that_fails_says_so_to_the_shell(training: Project) -> None:
    env = {"PYTHONPATH": str(RUNTIME.parents[1]), "PATH": os.environ["PATH"]}

    def shell(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "pipeline.py", *arguments]
        return subprocess.run(command, cwd=training.tree, env=env, capture_output=True, text=True, check=False)

    ran = shell("--least", "1.5")
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-1] == "pipeline.py: fail: accuracy is only 0.85"
    assert "the parameter 'epochs' is of type integer; 'many' is not" in shell("--epochs", "many").stderr
    (training.tree / "data" / "rows.csv").rename(training.tree / "elsewhere.csv")
    assert "the data asset 'rows': no file in data/rows.*; say where it is with" in shell().stderr
    assert shell("--asset", "rows=elsewhere.csv").returncode == 0


LOCAL = """
from loopline import PipelineError
tries = []

@step(retries=2)
def flaky(need):
    tries.append(1)
    if len(tries) < need:
        raise OSError(f"try {len(tries)}")
    return len(tries)

@step(timeout_seconds=0.2)
def slow():
    while True: pass

@step
def after_it(value): return value

@pipeline
def retrying(need: int):
    after_it(flaky(need))

@pipeline
def timed():
    after_it(slow())

@pipeline
def backwards():
    first = after_it.named("first")(1)
    second = after_it.named("second")(2)
    first.after(second)
"""


def local_pipelines(project: Project, code: str) -> list[str]:
    project.write(LOCAL)
    head = "import sys; sys.path.insert(0, sys.argv[1])\nfrom pipeline import *\n"
    command = [sys.executable, "-c", head + textwrap.dedent(code), str(RUNTIME.parents[1])]
    ran = subprocess.run(command, cwd=project.tree, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()


def test_a_local_run_retries_and_gives_its_values(project: Project) -> None:
    code = """
    run = retrying.run(need=3)
    print(run.status, run.value("after_it"))
    tries.clear()
    try:
        retrying.run(need=9)
    except PipelineError as error:
        print(error, error.run.statuses, repr(error.__cause__), len(tries))
    """
    assert local_pipelines(project, code) == [
        "Succeeded 3",
        "flaky: OSError: try 3 {'flaky': 'Failed', 'after_it': 'Skipped'} OSError('try 3') 3",
    ]


def test_a_local_run_keeps_timeouts_and_order(project: Project) -> None:
    code = """
    try:
        timed.run(folder="elsewhere")
    except PipelineError as error:
        print(error)
    print(list(backwards.run(assets={}).statuses))
    """
    assert local_pipelines(project, code) == [
        "slow: StepTimeout: it ran longer than its limit of 0.2 s",
        "['second', 'first']",
    ]
    assert (project.tree / "elsewhere" / "runs" / "1" / "slow").is_dir()


# -- through the shim, and what it costs ------------------------------------------------------------------------------


def test_a_step_runs_through_the_shim(training: Project) -> None:
    folder = training.root / "shimmed"
    (folder / "work").mkdir(parents=True)
    rows = [{"x": 1, "good": True}, {"x": 2, "good": False}]
    call = {
        "tree": str(training.tree),
        "file": "pipeline.py",
        "function": "prepare",
        "arguments": {"rows": {"value": rows}},
        "outputs": ["train", "test"],
    }
    spec = {
        "attempt": "at_1",
        "token": 1,
        "kind": "step",
        "python": sys.executable,
        "call": call,
        "workdir": str(folder / "work"),
        "sandbox": {
            "read": [str(training.tree), str(RUNTIME.parent), sys.prefix, sys.base_prefix, "/usr", "/lib", "/etc"]
        },
    }
    (folder / "spec.json").write_text(json.dumps(spec))
    subprocess.run([sys.executable, "-I", str(RUNTIME / "shim.py"), str(folder)], check=True, timeout=120)
    ended = json.loads((folder / "exit").read_text())
    assert ended["reason"] == "ok", (folder / "log").read_text()
    assert parse_outputs((folder / "outputs.json").read_bytes())["test"].value == [{"x": 2, "good": False, "z": 4}]


def test_a_step_that_does_nothing_costs_little(project: Project, tmp_path: Path) -> None:
    project.write("@step\ndef nothing(): ...\n")
    call = {"tree": str(project.tree), "file": "pipeline.py", "function": "nothing", "arguments": {}, "outputs": ["r"]}
    job.prepare()
    took = []
    for number in range(20):
        folder = tmp_path / f"quick{number}"
        (folder / "outputs").mkdir(parents=True)
        (folder / "spec.json").write_text(json.dumps({"kind": "step", "call": call}))
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            began = time.perf_counter()
            job.main(str(folder))
            os.write(writer, repr((time.perf_counter() - began) * 1000).encode())
            os._exit(0)
        os.waitpid(pid, 0)
        took.append(float(os.read(reader, 100)))
        os.close(reader)
        os.close(writer)
        assert (folder / "outputs.json").stat().st_size > 0
    print(f"a step that does nothing: median {sorted(took)[10]:.2f} ms, best {min(took):.2f} ms")
