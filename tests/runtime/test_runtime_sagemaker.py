"""Handler sagemaker: inference scripts as the SageMaker Inference Toolkit calls them, and what they need not define."""

import json
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loopline.runtime.batches import Batcher
from loopline.runtime.loading import CannotServe, Model, load_model

pytest.importorskip("numpy")  # now: a second time in one process is once too often for it

JSON = b"application/json"
WHOLE = """
import json
def model_fn(model_dir):
    return {"factor": 2}
def input_fn(data, content_type):
    assert isinstance(data, str), type(data)
    return json.loads(data)
def predict_fn(data, model):
    return [model["factor"] * value for value in data]
def output_fn(prediction, accept):
    return json.dumps({"of": prediction, "accept": accept}), accept
"""


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    """Scripts are modules; the next test has others by the same names."""
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def served(folder: Path, files: dict[str, str], **spec: Any) -> Model:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    code = folder / "code"
    given = {"handler": "sagemaker", "model_dir": str(folder), "code_dir": str(code) if code.is_dir() else None}
    return load_model({**given, **spec})


def ask(model: Model, body: bytes, kind: bytes = JSON, **headers: str) -> tuple[int, bytes, bytes]:
    """(status, content type, body) as a gateway gets them."""
    lines = [kind, *(f"{name.replace('_', '-')}: {value}".encode() for name, value in headers.items())]
    ((status, answer),) = Batcher(model, None).answer([(b"\n".join(lines), b"rq_1", body)])
    return status, getattr(answer, "content_type", JSON), bytes(answer)


def test_the_four_functions_make_the_answer(tmp_path: Path) -> None:
    model = served(tmp_path, {"code/inference.py": WHOLE})
    status, kind, body = ask(model, b"[1, 2]", accept="application/json")
    assert (status, kind, json.loads(body)) == (200, JSON, {"of": [2, 4], "accept": "application/json"})


@pytest.mark.parametrize("accept", ["*/*", "", "text/html, */*;q=0.8"])
def test_whoever_accepts_anything_gets_json(tmp_path: Path, accept: str) -> None:
    model = served(tmp_path, {"code/inference.py": WHOLE})
    headers = {"accept": accept} if accept else {}
    assert json.loads(ask(model, b"[1]", **headers)[2])["accept"] == "application/json"


def test_a_script_may_answer_in_any_type_it_names(tmp_path: Path) -> None:
    script = "def model_fn(d): return None\ndef input_fn(b, t): return b\ndef predict_fn(d, m): return d\n"
    script += "def output_fn(p, a): return p[::-1], 'image/x-raw'\n"
    model = served(tmp_path, {"code/inference.py": script})
    assert ask(model, b"\x00\x01", b"application/x-image") == (200, b"image/x-raw", b"\x01\x00")


def test_one_argument_more_is_the_context(tmp_path: Path) -> None:
    script = """
def model_fn(model_dir, context):
    return context.system_properties["model_dir"]
def transform_fn(model, data, content_type, accept, context):
    context.set_response_content_type(0, "text/plain")
    return f"{model == '%s'} {context.get_request_header(0, 'X-Amzn-SageMaker-Custom-Attributes')} {content_type}"
"""
    model = served(tmp_path, {"code/inference.py": script % tmp_path})
    headers = {"x_amzn_sagemaker_custom_attributes": "trace-1"}
    assert ask(model, b"x", b"text/plain", **headers) == (200, b"text/plain", b"True trace-1 text/plain")


def test_a_pickle_needs_no_script_and_tables_come_as_json_and_csv(tmp_path: Path) -> None:
    pytest.importorskip("numpy")
    script = "class Sum:\n    def predict(self, table): return table.sum(axis=1)\n"
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "sums.py").write_text(script)
    sys.path.insert(0, str(tmp_path / "code"))
    import sums  # type: ignore[import-not-found]

    (tmp_path / "model.pkl").write_bytes(pickle.dumps(sums.Sum()))
    model = served(tmp_path, {})
    assert json.loads(ask(model, b"[[1, 2], [3, 4]]")[2]) == [3, 7]
    status, kind, body = ask(model, b"1,2\n3,4.5\n", b"text/csv", accept="text/csv")
    assert (status, kind, body) == (200, b"text/csv", b"3.0\n7.5\n")
    assert model.predict([[1, 2], [5, 5]]) == [3, 10]


def test_the_program_may_have_another_name_and_import_its_neighbours(tmp_path: Path) -> None:
    files = {
        "code/serve_it.py": "from beside import model_fn, input_fn, predict_fn, output_fn\n",
        "code/beside.py": WHOLE,
    }
    model = served(tmp_path, files, program="serve_it.py")
    assert json.loads(ask(model, b"[4]")[2])["of"] == [8]


def test_what_goes_wrong_is_said(tmp_path: Path) -> None:
    script = WHOLE.replace('return [model["factor"]', 'return [model["missing"]')
    model = served(tmp_path, {"code/inference.py": script})
    status, _, body = ask(model, b"[1]")
    assert (status, json.loads(body)["error"]["code"]) == (500, "model_error")
    assert "KeyError: 'missing'" in json.loads(body)["error"]["message"]
    assert ask(model, b"\xff\xfe")[0] == 400


def test_a_type_that_nobody_reads_is_415(tmp_path: Path) -> None:
    model = served(tmp_path, {"code/inference.py": "def model_fn(d): return len\n"})
    status, _, body = ask(model, b"x", b"application/x-image")
    assert (status, json.loads(body)["error"]["code"]) == (415, "unsupported")


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({}, "define model_fn"),
        ({"code/inference.py": "import nothing_like_it\n"}, "add its package to requirements.txt"),
        ({"code/inference.py": "def model_fn(d): raise ValueError('bad weights')\n"}, "bad weights"),
        (
            {"code/inference.py": "def transform_fn(m, d, c, a): pass\ndef predict_fn(d, m): pass\n"},
            "which it replaces",
        ),
    ],
)
def test_a_script_that_cannot_serve_says_why(tmp_path: Path, files: dict[str, str], told: str) -> None:
    with pytest.raises(CannotServe, match=told):
        served(tmp_path, files)


def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CannotServe, match=r"no file other\.py"):
        served(tmp_path, {"code/inference.py": WHOLE}, program="other.py")


TELLS = """
def transform_fn(model, data, content_type, accept, context):
    context.set_response_header(0, "X-Amzn-SageMaker-Custom-Attributes", data)
    context.set_response_header(0, "X-Other", "stays here")
    assert context.get_response_headers(0)["x-other"] == "stays here"
    return "{}", accept
def model_fn(model_dir):
    return None
"""


def test_what_a_script_tells_beside_its_answer_is_one_line(tmp_path: Path) -> None:
    model = served(tmp_path, {"code/inference.py": TELLS})
    assert ask(model, b"trace=7; b") == (200, JSON + b"\ntrace=7; b", b"{}")
    assert ask(model, b"") == (200, JSON, b"{}")
    for bad in (b"a\nx-header: 1", b"a\r\nb", b"x" * 1025, b" a"):
        status, kind, body = ask(model, bad)
        assert (status, kind) == (500, JSON) and b"custom attributes are one line" in body
    assert ask(model, "é".encode())[1] == JSON + b"\n?"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"a.ubj": "", "b.ubj": ""}, "which of a.ubj, b.ubj is the model? call it xgboost-model"),
        ({"a.pt": "", "b.pth": ""}, "which of a.pt, b.pth is the model? call it model.pt"),
        ({"config.json": '{"architectures": ["MarianMTModel"]}'}, "names MarianMTModel: HF_TASK says what it is for"),
        ({"config.json": "[]"}, "not the configuration of a model of transformers"),
        ({}, "no model file"),
    ],
)
def test_what_cannot_be_loaded_without_a_script_is_told(tmp_path: Path, files: dict[str, str], words: str) -> None:
    with pytest.raises(CannotServe) as refused:
        served(tmp_path, files)

    assert words in str(refused.value) and "define model_fn(model_dir)" in str(refused.value)


FRAMEWORKS = {
    "xgboost.py": """
class DMatrix:
    def __init__(self, table):
        self.table = table

class Booster:
    def load_model(self, path):
        self.factor = float(open(path).read())

    def predict(self, given, validate_features):
        assert validate_features is False
        return (given.table * self.factor).sum(axis=1)
""",
    "transformers.py": """
class Pipeline:
    def __init__(self, task, folder):
        self.said = f"{task} of {folder}"

    def __call__(self, inputs, top_k=1):
        return [{"inputs": inputs, "top_k": top_k}]

def pipeline(task, model, tokenizer):
    assert model == tokenizer
    return Pipeline(task, model)
""",
}


@pytest.fixture
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Modules that have the names and the calls of the frameworks; the real ones are asked by ``make images``."""
    folder = tmp_path / "site"
    folder.mkdir()
    for name, text in FRAMEWORKS.items():
        (folder / name).write_text(text)
    monkeypatch.syspath_prepend(str(folder))
    return tmp_path / "model"


def test_a_booster_is_asked_with_a_matrix(stand_ins: Path) -> None:
    model = served(stand_ins, {"xgboost-model": "2"})

    assert json.loads(ask(model, b"[[1, 2], [3, 4]]")[2]) == [6.0, 14.0]
    assert json.loads(ask(model, b"1,2\n", b"text/csv")[2]) == [6.0]
    assert json.loads(ask(model, b"[1, 2]")[2]) == [6.0]


def test_a_pipeline_is_asked_with_inputs_and_parameters(stand_ins: Path) -> None:
    model = served(stand_ins, {"config.json": '{"architectures": ["BertForSequenceClassification"]}'})

    body = json.dumps({"inputs": "good", "parameters": {"top_k": 2}}).encode()
    assert json.loads(ask(model, body)[2]) == [{"inputs": "good", "top_k": 2}]
    assert json.loads(ask(model, b'["good", "bad"]')[2]) == [{"inputs": ["good", "bad"], "top_k": 1}]
