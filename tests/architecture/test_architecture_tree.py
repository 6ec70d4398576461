"""What holds for the whole tree: links that lead somewhere, locks without addresses, layers that are really checked."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("src", "tests", "docs", "examples", "benchmarks", ".ci")
TEXT = {".py", ".md", ".toml", ".txt", ".lock", ".yml", ".yaml", ".json", ".html", ".css", ".js", ".sh", ".cfg", ""}
# Written in two pieces, so that this file does not name them either.
NOT_HERE = {
    "a package registry": re.compile(r"pypi\.(org|python)|python" + "hosted|test" + r"pypi|registry\.npm" + "js"),
    "a path of somebody's machine": re.compile(r"(?<![\w.}~-])/(work|root|Users)" + "/"),
}
LINK = re.compile(r"(?<!\!)\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"^```.*?^```|^ {4}[^\n]*", re.M | re.S)
LOCK_ADDRESS = re.compile(r"://|^\s*--?(i|f|index-url|extra-index-url|find-links|trusted-host)\b| @ ", re.M)


def tracked_text() -> list[Path]:
    """Files that git tracks or would track; every file where the tree is no git checkout."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listed.returncode == 0:
        files = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    else:
        files = [path for part in PARTS for path in (ROOT / part).rglob("*")] + list(ROOT.glob("*"))
    return [path for path in files if path.suffix in TEXT and path.is_file()]


def forbidden_words(name: str, text: str) -> list[str]:
    return [
        f"{name}:{text[: hit.start()].count(chr(10)) + 1} names {what}: {hit.group()}"
        for what, pattern in NOT_HERE.items()
        for hit in pattern.finditer(text)
    ]


def broken_links(document: Path) -> list[str]:
    """Relative links of a Markdown file that lead nowhere; code blocks do not count."""
    text = CODE.sub("", document.read_text())
    found = []
    for target in LINK.findall(text):
        path = target.split("#")[0]
        if path and not re.match(r"[a-z]+:", path) and not (document.parent / path).exists():
            found.append(f"{document.name} links to {target}, which is not there")
    return found


def lock_problems(text: str) -> list[str]:
    """What is wrong with a lock file: addresses, pins without a hash, names without a version."""
    found = [f"names an address: {hit.group().strip()}" for hit in LOCK_ADDRESS.finditer(text)]
    for entry in re.split(r"^(?=\S)", text, flags=re.M):
        if entry.strip() and not re.match(r"[\w.-]+(\[[\w,-]+\])?==\S+", entry):
            found.append(f"is not pinned: {entry.splitlines()[0]}")
        elif entry.strip() and "--hash=sha256:" not in entry:
            found.append(f"has no hash: {entry.splitlines()[0]}")
    return found


def pins(name: str) -> set[str]:
    return set(re.findall(r"^[\w.-]+==[^\s\\;]+", (ROOT / name).read_text(), re.M))


def test_no_file_names_a_registry_or_a_machine() -> None:
    found = [
        problem
        for path in tracked_text()
        for problem in forbidden_words(str(path.relative_to(ROOT)), path.read_text(errors="replace"))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "bad", ["see https://pypi" + ".org/simple", "cd /wor" + "k/main", "files.python" + "hosted.org"]
)
def test_a_forbidden_word_is_found(bad: str) -> None:
    assert forbidden_words("x", "first line\n" + bad)[0].startswith("x:2 ")


@pytest.mark.parametrize("good", ["{folder}/work/out", "attempts/work/x", "a registry of models", "./root/x"])
def test_a_word_near_a_forbidden_one_is_not(good: str) -> None:
    assert forbidden_words("x", good) == []


def test_links_between_documents_lead_somewhere() -> None:
    documents = [*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")]
    assert documents
    found = [problem for document in documents for problem in broken_links(document)]
    assert not found, "\n".join(found)


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "there.md").write_text("x")
    document = tmp_path / "a.md"
    document.write_text("[a](there.md#part) [b](https://example.org) [c](#here) [d](gone.md)\n\n    [e](code.md)\n")
    assert broken_links(document) == ["a.md links to gone.md, which is not there"]


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-dev.lock"])
def test_locks_pin_by_hash_and_name_no_address(name: str) -> None:
    text = (ROOT / name).read_text()
    assert text.count("==") > 10
    assert lock_problems(text) == []


@pytest.mark.parametrize(
    "bad",
    [
        "a==1 \\\n    --hash=sha256:00\n--index-url https://example.org/simple\n",
        "a==1\n",
        "a>=1 \\\n    --hash=sha256:00\n",
        "a @ file:///tmp/a.whl\n",
    ],
)
def test_a_loose_lock_is_found(bad: str) -> None:
    assert lock_problems(bad)


def test_the_developers_lock_holds_the_runtime_lock() -> None:
    assert pins("requirements.lock") <= pins("requirements-dev.lock")


def test_every_declared_dependency_has_an_upper_bound_and_a_pin() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    pinned = {pin.split("==")[0] for pin in pins("requirements.lock")}
    for requirement in declared:
        assert "<" in requirement, requirement
        assert re.match(r"[\w-]+", requirement).group() in pinned, requirement  # type: ignore[union-attr]


def not_installed(source: str, installed: set[str], own: set[str]) -> list[str]:
    """The modules that a file imports and that come with no package of these."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        for name in {name.partition(".")[0] for name in names} - own - sys.stdlib_module_names:
            if not installed & {package.lower() for package in packages_distributions().get(name, ())}:
                found.append(name)
    return found


def test_what_the_examples_start_with_comes_with_loopline_itself() -> None:
    """`make demo` installs what the runtime lock names, and no developers' tools."""
    installed = {pin.partition("==")[0] for pin in pins("requirements.lock")}
    examples = ROOT / "examples"
    files = [examples / "run.py", examples / "credit-scoring" / "run.py"]
    for folder in ("demo", "demonstration", "sagemaker-sentiment/demo"):
        files += (examples / folder).glob("*.py")
    own = {"loopline", "demonstration"} | {file.stem for file in files} | {"applicants"}
    assert len(files) > 10
    assert [f"{file}: {name}" for file in files for name in not_installed(file.read_text(), installed, own)] == []


def test_an_import_that_is_not_installed_is_found() -> None:
    source = "import numpy.linalg, os\ndef late():\n    from pytest import raises\n    from . import near\n"
    assert not_installed(source, {"numpy"}, set()) == ["pytest"]


def lint_imports(tree: Path) -> subprocess.CompletedProcess[str]:
    command = Path(sys.executable).parent / "lint-imports"
    if not command.exists():
        pytest.skip("import-linter is not installed beside this interpreter")
    environ = {"PYTHONPATH": str(tree / "src"), "PATH": "/usr/bin:/bin"}
    return subprocess.run(
        [str(command), "--no-cache"], cwd=tree, env=environ, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("path", "line", "contract"),
    [
        ("store/upward.py", "import loopline.control", "Imports point down"),
        ("fronts/native/sideways.py", "import loopline.fronts.git", "Fronts know nothing of one another"),
        ("fronts/native/deep.py", "import loopline.store", "never touch store or compute"),
        ("domain/clock.py", "import time", "The domain does no I/O"),
        ("gateway/database.py", "import sqlalchemy", "The gateway knows"),
        ("runtime/inward.py", "import loopline.errors", "What runs inside jobs"),
        ("stray/__init__.py", '"""A package that no layer names."""', "Imports point down"),
    ],
)
def test_a_contract_breaks_when_the_code_breaks_it(tmp_path: Path, path: str, line: str, contract: str) -> None:
    """On a copy of the packages alone, which is all that the contracts need."""
    (tmp_path / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    package = ROOT / "src" / "loopline"
    for source in [*package.glob("*.py"), *package.rglob("__init__.py")]:
        copy = tmp_path / "src" / "loopline" / source.relative_to(package)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text('"""Copied."""\n')
    bad = tmp_path / "src" / "loopline" / path
    bad.parent.mkdir(parents=True, exist_ok=True)
    bad.write_text(line + "\n")
    done = lint_imports(tmp_path)
    broken = [said for said in done.stdout.splitlines() if said.rstrip().endswith("BROKEN")]
    assert done.returncode == 1, done.stdout + done.stderr
    assert any(contract in said for said in broken), done.stdout
