"""Batch transform: how objects become requests, and answers become lines. The model is an inference script."""

import json
from pathlib import Path
from typing import Any

import pytest

from loopline.runtime.transform import JsonPath, TransformError, transform

SCRIPT = """
import json

CALLS = []

def model_fn(model_dir):
    return 2

def input_fn(data, content_type):
    CALLS.append(data)
    if content_type == "text/csv":
        return [[float(cell) for cell in line.split(",")] for line in data.splitlines()]
    return [json.loads(line) for line in data.splitlines()] if "\\n" in data else [json.loads(data)]

def predict_fn(rows, model):
    return [model * (row["x"] if isinstance(row, dict) else sum(row)) for row in rows]

def output_fn(found, accept):
    if accept == "text/csv":
        return "\\n".join(str(value) for value in found), accept
    return "\\n".join(json.dumps(value) for value in found), accept
"""
OPTIONS = {
    "content_type": "text/csv",
    "accept": "text/csv",
    "split": "Line",
    "strategy": "MultiRecord",
    "max_payload_mb": 6,
    "assemble": "Line",
    "input_filter": "$",
    "output_filter": "$",
    "join": "None",
}


def run(folder: Path, files: dict[str, str], **options: Any) -> tuple[dict[str, str], dict[str, Any]]:
    """The answers by name, and the report."""
    model, given = folder / "model", folder / "given"
    for path, text in {"model/code/inference.py": SCRIPT, **{f"given/{k}": v for k, v in files.items()}}.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    for name in ("outputs", "tmp"):
        (folder / name).mkdir()
    call = {"handler": "sagemaker", "program": None, "model_dir": str(model), "input": str(given)}
    manifest = transform({**call, "transform": {**OPTIONS, **options}}, str(folder))
    root = folder / manifest["files.output"]["path"]
    found = {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()}
    return found, manifest["report"]["value"]


def test_every_object_gets_an_answer_by_its_name(tmp_path: Path) -> None:
    found, report = run(tmp_path, {"a.csv": "1,2\n3,4\n", "more/b.csv": "5,6\r\n\r\n"})

    assert found == {"a.csv.out": "6.0\n14.0\n", "more/b.csv.out": "22.0\n"}
    assert report["message"] == "2 objects, 2 requests"


def test_one_record_a_request(tmp_path: Path) -> None:
    found, report = run(tmp_path, {"a.csv": "1,2\n3,4\n5,6"}, strategy="SingleRecord")

    assert (found, report["message"]) == ({"a.csv.out": "6.0\n14.0\n22.0\n"}, "1 objects, 3 requests")


def test_records_are_joined_with_their_answers_and_both_are_filtered(tmp_path: Path) -> None:
    found, _ = run(
        tmp_path, {"a.csv": "id-1,1,2\nid-2,3,4\n"}, input_filter="$[1:]", join="Input", output_filter="$[0,-1]"
    )

    assert found == {"a.csv.out": "id-1,6.0\nid-2,14.0\n"}


def test_lines_of_json_keep_their_members(tmp_path: Path) -> None:
    kinds = {"content_type": "application/json", "accept": "application/json"}
    lines = '{"id": 7, "features": {"x": 2}}\n{"id": 8, "features": {"x": 3}}\n'
    found, _ = run(
        tmp_path,
        {"a.jsonl": lines},
        **kinds,
        strategy="SingleRecord",
        input_filter="$.features",
        join="Input",
        output_filter="$['id','SageMakerOutput']",
    )

    assert [json.loads(line) for line in found["a.jsonl.out"].splitlines()] == [
        {"id": 7, "SageMakerOutput": 4},
        {"id": 8, "SageMakerOutput": 6},
    ]


def test_an_object_that_is_not_split_is_one_request(tmp_path: Path) -> None:
    found, report = run(tmp_path, {"a.csv": "1,2\n3,4"}, split="None", assemble="None")

    assert (found, report["message"]) == ({"a.csv.out": "6.0\n14.0"}, "1 objects, 1 requests")


def test_a_payload_has_a_largest_size(tmp_path: Path) -> None:
    row = "1," * 300_000 + "1"
    found, report = run(tmp_path, {"a.csv": f"{row}\n{row}\n"}, max_payload_mb=1)
    assert (report["message"], len(found["a.csv.out"].splitlines())) == ("1 objects, 2 requests", 2)

    with pytest.raises(TransformError, match="larger than the largest payload"):
        run(tmp_path / "whole", {"a.csv": row * 2}, max_payload_mb=1, split="None")


@pytest.mark.parametrize(
    ("path", "value", "part"),
    [
        ("$", [1], [1]),
        ("$.a.b", {"a": {"b": 3}}, 3),
        ("$['a b'][0]", {"a b": [5]}, 5),
        ("$[1:3]", [0, 1, 2, 3], [1, 2]),
        ("$[0,2:]", [0, 1, 2, 3], [0, 2, 3]),
        ("$[-1]", [0, 1], 1),
    ],
)
def test_paths_name_parts(path: str, value: Any, part: Any) -> None:
    assert JsonPath(path).of(value) == part


@pytest.mark.parametrize("path", ["a", "$[", "$[x]", "$..a", "$.a[?(@.b)]"])
def test_what_is_no_path_is_refused(path: str) -> None:
    with pytest.raises(TransformError, match=r"JSONPath|no index"):
        JsonPath(path)
