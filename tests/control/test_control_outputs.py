"""What jobs take: inputs are put where a call names them, and nowhere else."""

from pathlib import Path
from typing import Any

import pytest

from loopline.control import outputs
from loopline.domain import calls
from loopline.domain.calls import Input, Plain

FILE = Input(source="fit.model", format="file", sha256="0" * 64, path="outputs/model/model.bin")


def called(argument: calls.Argument) -> Any:
    """The argument as its job reads it, with every input laid down in /laid."""
    laid: dict[str, str] = {}

    def locate(given: Input) -> str:
        laid[str(len(laid))] = f"/laid/{given.path}"
        return str(len(laid) - 1)

    return outputs.place_inputs(laid, calls.call_arguments({"x": argument}, locate))["x"]


def test_each_input_gets_its_place_at_any_depth() -> None:
    found = called({"a": [FILE, Plain(1, True)], "b": {"c": FILE}})
    assert found["dict"]["a"]["list"][0]["input"]["path"] == "/laid/outputs/model/model.bin"
    assert found["dict"]["a"]["list"][1] == {"value": 1}
    assert found["dict"]["b"]["dict"]["c"]["input"]["path"] == "/laid/outputs/model/model.bin"


@pytest.mark.parametrize("key", ["value", "input", "list", "dict", "given"])
def test_a_dict_whose_keys_are_words_of_the_call_is_passed_as_it_is(key: str) -> None:
    own = {key: {"path": "0"}, "other": 1}
    assert called(Plain(own, True)) == {"value": own}
    found = called({key: FILE, "other": Plain(own, True)})
    assert found["dict"][key]["input"]["path"] == "/laid/outputs/model/model.bin"
    assert found["dict"]["other"] == {"value": own}


def test_an_ended_attempt_keeps_small_files_and_loses_large_ones(tmp_path: Path) -> None:
    for name, size in (("small", 100), ("large", outputs.ROOM_BYTES + 1)):
        (tmp_path / name / "outputs" / "below").mkdir(parents=True)
        (tmp_path / name / "outputs" / "below" / "data").write_bytes(bytes(size))
        (tmp_path / name / "inputs").mkdir()
        (tmp_path / name / "log").write_text("said")
        outputs.clear(tmp_path / name)
    assert (tmp_path / "small" / "outputs" / "below" / "data").exists()
    assert [path.name for path in (tmp_path / "large").iterdir()] == ["log"]


def test_a_copy_of_a_tree_is_without_what_was_compiled_for_it(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "__pycache__").mkdir(parents=True)
    (tree / "__pycache__" / "steps.cpython-311.pyc").write_bytes(b"stale")
    (tree / "steps.py").write_text("x = 1\n")
    outputs.copy_tree(tree, tmp_path / "work")
    assert [path.name for path in (tmp_path / "work").rglob("*")] == ["steps.py"]
