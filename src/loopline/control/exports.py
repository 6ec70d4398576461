"""Exports: a version as a folder that serves it elsewhere, without loopline.

The folder holds the model, the project's code without its data, the exact versions of its packages, the files of the
model server that it needs, and a Dockerfile. ``python server.py`` answers there what an endpoint answers here. Of a
version that was converted, the compiled form can leave in the model's place: without code, and with fewer packages.
"""

import ast
import io
import json
import re
import tarfile
import tempfile
import tomllib
from collections.abc import Iterator
from importlib import metadata, resources
from pathlib import Path, PurePosixPath
from typing import IO, Any

import loopline
from loopline.control import aliases, artifacts, compilations, lineage, outputs, registry
from loopline.control.context import Context
from loopline.domain import warmup
from loopline.domain.access import Actor
from loopline.errors import Conflict
from loopline.store import records
from loopline.store.db import Row

PACKAGE = Path(loopline.__file__).parent
CHUNK_BYTES = 1 << 20
ENTRY = "standalone"
SUPPORT = ("__init__.py", "sdk/__init__.py", "sdk/pipeline.py", "runtime/__init__.py", "runtime/handlers/__init__.py")


# What a form needs of the environment's packages, with what these need; all of them where it is not said.
PACKAGES = {"onnx": ("numpy", "onnxruntime")}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def export(
    ctx: Context,
    actor: Actor,
    *,
    model: str,
    number: int | None = None,
    compiled: bool = False,
    force: bool = False,
    reason: str = "",
) -> Iterator[bytes]:
    """A tar of the folder for a version (default: the champion), or of its ``compiled`` form.

    A version that is not Approved is refused unless ``force``, which an approver may use with a ``reason``. Raises
    ``Conflict`` where there is no compiled form that answers the same.
    """
    with ctx.db.transaction(durable=True) as tx:
        version = aliases.champion_or(tx, model, number)
        registry.check_deployable(tx, version, actor, force=force, reason=reason)
        form = compilations.accepted(tx, version) if compiled else None
        if form is not None:
            version = {**compilations.in_form(version, form), "tree": None}
        artifacts.check_trust(ctx, version["artifact"])
        if not version["environment"]:
            raise Conflict(f"{model} version {version['number']} names no environment whose packages it needs")
        environment = records.get(tx, "environment", version["environment"])
        facts = lineage.facts(tx, version)
        noted = {"format": form["format"]} if form else {}
        records.note(
            tx, "version", version["id"], "exported", actor=actor.name, model=model, number=version["number"], **noted
        )
    file = tempfile.TemporaryFile(dir=ctx.settings.dir)  # noqa: SIM115 - closed by the one who reads it
    try:
        with tarfile.open(fileobj=file, mode="w") as tar:
            _fill(ctx, tar, version, environment, facts, form)
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return _pieces(file)


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    with file:
        while piece := file.read(CHUNK_BYTES):
            yield piece


def _fill(
    ctx: Context, tar: tarfile.TarFile, version: Row, environment: Row, facts: dict[str, Any], form: Row | None
) -> None:
    spec = {
        "model": version["model"],
        "number": version["number"],
        "handler": version["handler"],
        "signature": version["signature"],
        "warmup": version["warmup"] or warmup.rows(version["signature"], version["baseline"]),
    }
    told = {
        "model": version["model"],
        "number": str(version["number"]),
        "python": _python(environment),
        "commit": str(facts["commit"] or "none"),
        "artifact": str(facts["artifact"]),
        "example": json.dumps({"instances": spec["warmup"][:1]}),
        "version": loopline.__version__,
        **_told_of_form(form),
    }
    templates = resources.files("loopline.control") / "export"
    for name in ("Dockerfile", "README.md", "server.py"):
        text = (templates / f"{name}.in").read_text(encoding="utf-8")
        _add(tar, name, re.sub(r"{{(\w+)}}", lambda found: told[found[1]], text).encode())
    _add(tar, "spec.json", json.dumps(spec, indent=2, ensure_ascii=False).encode())
    _add(tar, "requirements.txt", _requirements(environment, form).encode())
    _add(tar, ".dockerignore", b".venv\n__pycache__\n")
    for path in _runtime_files(version["handler"]):
        _add(tar, f"lib/loopline/{path}", (PACKAGE / path).read_bytes())
    _add_folder(tar, "model", artifacts.model_dir(ctx, version), frozenset())
    if version["tree"]:
        tree = outputs.tree_path(ctx, version["tree"])
        _add_folder(tar, "code", tree, _data_of(tree))


def _told_of_form(form: Row | None) -> dict[str, str]:
    """What a reader of the folder has to know about what is in it."""
    if form is None:
        return {
            "kind": "",
            "form": "",
            "files": "`model/`, `code/` | the model's files, and the project's code without its data",
            "packages": "the packages, in the versions that the model was tested with",
        }
    report = form["report"]
    kept = next(attempt for attempt in report["attempts"] if attempt["precision"] == report["precision"])
    return {
        "kind": f" ({form['format'].upper()})",
        "form": (
            f"This is the model's compiled form ({form['format'].upper()}, {report['precision']}), not the model "
            f"itself. On the {report['rows']} rows that both\nforms were compared on, every label was equal and no "
            f"number was further away than {kept['largest_difference']:.3g} (allowed: {form['tolerance']:g}).\n\n"
        ),
        "files": "`model/` | the compiled model",
        "packages": "what the compiled form needs, in the versions that it was tested with",
    }


def _requirements(environment: Row, form: Row | None) -> str:
    """The environment's lock, or the part of it that a compiled form needs."""
    lock = environment["lock"] or ""
    if form is None:
        return lock
    needed = _with_dependencies(_site_packages(environment), PACKAGES[form["format"]])
    entries = re.split(r"\n(?=\S)", lock.strip())  # an entry's further lines are indented
    return "".join(f"{entry}\n" for entry in entries if _normal(entry) in needed)


def _with_dependencies(site: Path, names: tuple[str, ...]) -> set[str]:
    """These packages and what they need, by what the installed ones say of themselves."""
    installed = {_normal(found.name): found for found in metadata.distributions(path=[str(site)])}
    waiting, needed = list(names), set[str]()
    while waiting:
        name = _normal(waiting.pop())
        if name not in needed:
            needed.add(name)
            wanted = installed[name].requires if name in installed else None
            waiting += [each for each in wanted or () if "extra" not in each.partition(";")[2]]
    return needed


def _normal(requirement: str) -> str:
    """The name at the beginning of a requirement, as all spellings of it are compared."""
    found = _NAME.match(requirement)
    return re.sub(r"[-_.]+", "-", found[0]).lower() if found else ""


def _site_packages(environment: Row) -> Path:
    found = next((Path(environment["path"]) / "lib").glob("python3.*"), None)
    if found is None:
        raise Conflict(f"the environment {environment['id']} is gone; it is built again with the next push")
    return found / "site-packages"


def _python(environment: Row) -> str:
    """The environment's Python, as ``3.11``."""
    return _site_packages(environment).parent.name.removeprefix("python")


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), 0o644
    tar.addfile(entry, io.BytesIO(data))


def _add_folder(tar: tarfile.TarFile, name: str, folder: Path, left_out: frozenset[str]) -> None:
    """Every file of a folder, without what was compiled and what is left out (paths, or folders above them)."""
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if not path.is_file() or path.is_symlink() or "__pycache__" in inside.parts:
            continue
        if not left_out & {inside.as_posix(), *(parent.as_posix() for parent in inside.parents)}:
            _add(tar, f"{name}/{inside.as_posix()}", path.read_bytes())


def _data_of(tree: Path) -> frozenset[str]:
    """The project's data, by its loop.toml: what a model was trained on has no place beside what it serves."""
    try:
        tables = tomllib.loads((tree / "loop.toml").read_text(encoding="utf-8")).get("data", {}).values()
        return frozenset(PurePosixPath(table["path"]).as_posix() for table in tables)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return frozenset()


def _runtime_files(handler: str) -> list[str]:
    """The files of the model server that serving with a handler needs: those that import one another."""
    found = {*SUPPORT}
    waiting = [f"runtime/{ENTRY}.py", f"runtime/handlers/{handler}.py"]
    while waiting:
        path = waiting.pop()
        if path not in found and (PACKAGE / path).is_file():
            found.add(path)
            waiting += _imported(path)
    return sorted(found)


def _imported(path: str) -> list[str]:
    """The files that a file of the runtime imports by a relative import, at its top or later."""
    folder = PurePosixPath(path).parent
    found = []
    for node in ast.walk(ast.parse((PACKAGE / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            place = folder if node.level == 1 else folder.parent
            names = [node.module] if node.module else [alias.name for alias in node.names]
            found += [f"{place}/{name.replace('.', '/')}.py" for name in names]
    return found
