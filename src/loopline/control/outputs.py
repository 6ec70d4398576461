"""What jobs give and take: outputs become blobs, blobs become inputs.

Steps and the cache keep an output as its job's manifest says (``domain.pipelines.Output`` without ``files``), with
``sealed``, this installation's signature over the digest, where it is executable.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
from msgspec import UNSET

from loopline.control import unpacked
from loopline.control.context import Context
from loopline.domain.pipelines import Output, parse_outputs
from loopline.errors import Corrupt, InvalidInput

MAX_MANIFEST_BYTES = 16 << 20
MAX_ARTIFACTS = 10_000
ROOM_BYTES = 65536  # a folder of an ended attempt that holds no more stays


def canonical(value: Any) -> bytes:
    """The one JSON text of a value, for digests."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest_of(value: Any) -> str:
    """SHA-256 of a JSON value's canonical text."""
    return hashlib.sha256(canonical(value)).hexdigest()


def take(ctx: Context, folder: Path, *, needed: bool) -> dict[str, Any]:
    """Store what an attempt's ``outputs.json`` lists; raises ``InvalidInput`` or ``Corrupt`` when it does not hold.

    A command gives nothing but its exit code; for anything else outputs are ``needed``.
    """
    manifest_path = folder / "outputs.json"
    if not manifest_path.exists() or manifest_path.stat().st_size == 0:
        if needed:
            raise InvalidInput("the process ended before it had written its result: does its code call os._exit?")
        return {}
    if manifest_path.stat().st_size > MAX_MANIFEST_BYTES:
        raise InvalidInput("outputs.json is too large")
    manifest = parse_outputs(manifest_path.read_bytes())
    return {name: _take_one(ctx, folder, name, entry) for name, entry in manifest.items()}


def _take_one(ctx: Context, folder: Path, name: str, entry: Output) -> dict[str, Any]:
    taken: dict[str, Any] = msgspec.to_builtins(entry)
    taken.pop("files", None)
    if entry.format == "json" and entry.value is not UNSET:
        return taken
    path = inside(folder, entry.path)
    blob = ctx.blobs.put_folder(path) if kind_of(taken) == "folder" else ctx.blobs.put_file(path)
    if entry.sha256 != blob.digest:
        raise Corrupt(f"the output {name!r} changed after the job had written it")
    if entry.executable:
        taken["sealed"] = ctx.signer.sign(blob.digest)
    return taken


def kind_of(output: dict[str, Any]) -> str:
    """``folder`` or ``file``, as the blob store distinguishes them."""
    return "folder" if output["format"] == "folder" else "file"


def take_artifacts(ctx: Context, folder: Path) -> list[dict[str, Any]]:
    """Store the files below ``outputs/artifacts``: {"path", "digest", "size_bytes"} each."""
    root = folder / "outputs" / "artifacts"
    found: list[dict[str, Any]] = []
    for directory, _, files in os.walk(root):
        for file in sorted(files):
            path = Path(directory) / file
            if not str(path).isprintable() or path.is_symlink() or not path.is_file() or len(found) >= MAX_ARTIFACTS:
                continue
            blob = ctx.blobs.put_file(path)
            found.append({"path": str(path.relative_to(root)), "digest": blob.digest, "size_bytes": blob.size_bytes})
    return found


def inside(root: Path, relative: str) -> Path:
    """The path of ``relative`` below ``root``; raises ``InvalidInput`` when it would lead elsewhere."""
    parts = Path(relative).parts
    if not parts or Path(relative).is_absolute() or ".." in parts:
        raise InvalidInput(f"{relative!r} is not a path inside the outputs")
    path = root.joinpath(*parts)
    for parent in [path, *path.parents]:
        if parent == root:
            break
        if parent.is_symlink():
            raise InvalidInput(f"{relative!r} goes through a symbolic link")
    return path


def lay_out(ctx: Context, folder: Path, place: str, digest: str, kind: str, name: str) -> str:
    """A read-only copy of a blob below ``folder/place``, under its own name; returns its path."""
    target = folder / place / (Path(name).name or "value")
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        ctx.blobs.materialise(digest, kind, target)
    return str(target)


def place_inputs(laid: Mapping[str, str], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A call's arguments with the path of each input in place of its number."""
    return {name: _place(laid, argument) for name, argument in arguments.items()}


def _place(laid: Mapping[str, str], argument: dict[str, Any]) -> dict[str, Any]:
    """One argument, as ``domain.calls.call_arguments`` writes it. What stands below ``value`` is the user's."""
    if "input" in argument:
        entry = argument["input"]
        return {"input": {**entry, "path": laid[entry["path"]]}}
    if "list" in argument:
        return {"list": [_place(laid, item) for item in argument["list"]]}
    if "dict" in argument:
        return {"dict": place_inputs(laid, argument["dict"])}
    return argument


def tree_path(ctx: Context, digest: str) -> Path:
    """A read-only copy of a project tree, shared by its jobs and servers."""
    return unpacked.folder(ctx, "trees", digest, "folder")


def copy_tree(tree: Path, work: Path) -> None:
    """A job's own writable copy of a project tree, for commands that write beside the code (pytest, ruff)."""
    if not work.exists():
        # Without what was compiled for the tree: it would be used whatever a command writes into the copy.
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(tree, work, ignore=ignore, copy_function=shutil.copyfile)
        for path in [work, *work.rglob("*")]:
            path.chmod(0o700 if path.is_dir() else 0o600)


def clear(folder: Path) -> None:
    """Remove what an ended attempt took and gave, if it takes room.

    Removing next to nothing would cost more than it gives: a file system passes over inodes that were just freed, which
    slows down each file that the next jobs make.
    """
    spent = [folder / name for name in ("inputs", "outputs", "work")]
    if any(_takes_room(path) for path in spent):
        for path in spent:
            shutil.rmtree(path, ignore_errors=True)


def _takes_room(folder: Path) -> bool:
    left = ROOM_BYTES
    for directory, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                left -= os.lstat(f"{directory}/{name}").st_size
            if left < 0:
                return True
    return False


def read_json(ctx: Context, output: dict[str, Any]) -> Any:
    """The value of a JSON output, from its record or its blob."""
    if "value" in output:
        return output["value"]
    return json.loads(ctx.blobs.read(output["sha256"]))
