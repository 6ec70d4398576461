"""Compiled files of a project's tree: made once, used by who imports, and never in the way."""

import subprocess
import sys
from pathlib import Path

from loopline.runtime import compiled


def run(tree: Path, code: str) -> str:
    command = [sys.executable, "-S", "-v", "-c", code]
    done = subprocess.run(command, check=False, cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_what_was_compiled_once_is_what_an_import_uses(tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("")
    (tmp_path / "package" / "part.py").write_text("value = 7\n")
    (tmp_path / "steps.py").write_text("from package.part import value\n")
    assert compiled.compile_tree(str(tmp_path))
    said = run(tmp_path, "import sys; sys.path.insert(0, ''); import steps; print('value', steps.value)")
    assert "value 7" in said
    for name in ("steps", "part", "__init__"):
        assert f"/__pycache__/{name}.{sys.implementation.cache_tag}.pyc matches" in said
    assert not compiled.compile_tree(str(tmp_path))


def test_a_file_that_is_not_python_is_left_to_who_imports_it(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("def (:\n")
    (tmp_path / "deep.py").write_text("(" * 500 + ")" * 500)
    (tmp_path / "right.py").write_text("x = 1\n")
    assert compiled.compile_tree(str(tmp_path))
    found = {path.name.partition(".")[0] for path in (tmp_path / "__pycache__").glob("*.pyc")}
    assert found == {"right"}


def test_a_tree_beyond_the_limit_is_compiled_in_part(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\n")
    (tmp_path / "b.py").write_text("#" * compiled.MAX_BYTES)
    assert compiled.compile_tree(str(tmp_path))
    assert [path.name.partition(".")[0] for path in (tmp_path / "__pycache__").glob("*.pyc")] == ["a"]


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside.py"
    outside.write_text("x = 1\n")
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "linked.py").symlink_to(outside)
    assert compiled.compile_tree(str(tree))
    assert not list(tree.rglob("*.pyc"))
