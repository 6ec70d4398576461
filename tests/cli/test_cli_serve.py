"""`loopline serve`: a foreign model file, and a project's own predict code, without a platform."""

import json
import pickle
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

PREDICT = """
import json, pathlib

def load(model_dir):
    return json.loads((pathlib.Path(model_dir) / "model.json").read_text())

def predict(model, batch):
    return [row["x"] * model["factor"] for row in batch]
"""


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-c", "import sys; from loopline.cli import main; sys.exit(main())", "serve", *arguments]


@contextmanager
def serving(*arguments: str) -> Iterator[str]:
    """The URL that the command prints when it serves; it must end well on SIGTERM."""
    process = subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith("serving at "), process.communicate(timeout=60)
        yield line.removeprefix("serving at ").strip()
    finally:
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors


def ask(url: str, document: Any) -> Any:
    request = urllib.request.Request(url, json.dumps(document).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def test_a_foreign_file_is_opened_only_when_it_is_trusted(tmp_path: Path) -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    model = linear.LinearRegression().fit([[0.0], [1.0]], [1.0, 3.0])
    file = tmp_path / "model.pkl"
    file.write_bytes(pickle.dumps(model))
    refused = subprocess.run(command(str(file)), capture_output=True, text=True, check=False)
    assert refused.returncode == 1 and "--trust" in refused.stderr
    with serving(str(file), "--trust", "--port", "0", "--python", sys.executable) as url:
        answer = ask(url, {"instances": [[2.0], [0.0]]})
    assert answer["predictions"] == pytest.approx([5.0, 1.0])


def test_a_project_is_tried_before_any_release(tmp_path: Path) -> None:
    (tmp_path / "predict.py").write_text(PREDICT)
    folder = tmp_path / ".loopline-local" / "models" / "m" / "1" / "model"
    folder.mkdir(parents=True)
    (folder / "model.json").write_text('{"factor": 3}')
    with serving("--local", str(tmp_path), "--port", "0") as url:
        assert ask(url, {"instances": [{"x": 2}, {"x": 5}]}) == {"predictions": [6, 15]}


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    nothing = subprocess.run(command("--local", str(tmp_path)), capture_output=True, text=True, check=False)
    assert nothing.returncode == 1 and "has no predict.py" in nothing.stderr
    (tmp_path / "predict.py").write_text(PREDICT)
    untrained = subprocess.run(command("--local", str(tmp_path)), capture_output=True, text=True, check=False)
    assert "python pipeline.py" in untrained.stderr
    broken = tmp_path / "model"
    broken.mkdir()
    (tmp_path / "predict.py").write_text(
        "def load(model_dir):\n    import no_such_package\n\ndef predict(model, batch):\n    return batch\n"
    )
    failed = subprocess.run(
        command("--local", str(tmp_path), "--model-dir", str(broken)), capture_output=True, text=True, check=False
    )
    assert failed.returncode == 2 and "'no_such_package'" in failed.stderr
