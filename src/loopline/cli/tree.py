"""A project's working tree: which files belong to it, what Git says about it, and its tar."""

import io
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import BinaryIO, NamedTuple

from loopline.errors import InvalidInput

_NEVER = {
    ".git",
    ".venv",
    "__pycache__",
    ".loopline-local",
    "node_modules",
    ".pytest_cache",
    ".mypy_cache",
    ".ruff_cache",
}


class Commit(NamedTuple):
    """Where the tree stands: all None outside of Git."""

    branch: str | None
    commit: str | None
    dirty: bool


def root_of(start: Path) -> Path:
    """The nearest folder upwards that has a loop.toml; raises ``InvalidInput``."""
    for folder in (start.resolve(), *start.resolve().parents):
        if (folder / "loop.toml").is_file():
            return folder
    raise InvalidInput(f"there is no loop.toml in {start.resolve()} or above; make a project with `loopline init NAME`")


def files_of(root: Path) -> list[str]:
    """The project's files, relative with ``/``, sorted: what Git tracks or would track, else all but caches."""
    listed = _git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    if listed:  # nothing, where an outer repository ignores this folder
        found = [name for name in listed.split("\0") if name]
    else:
        found = [path.relative_to(root).as_posix() for path in root.rglob("*")]
    kept = [name for name in found if not _NEVER & set(name.split("/"))]
    return sorted({name for name in kept if (root / name).is_file() and not (root / name).is_symlink()})


def commit_of(root: Path) -> Commit:
    """Branch, commit and whether files differ from it."""
    commit = _git(root, "rev-parse", "--verify", "HEAD")
    if commit is None:
        return Commit(None, None, True)
    branch = (_git(root, "symbolic-ref", "--short", "-q", "HEAD") or "").strip() or None
    return Commit(branch, commit.strip(), bool(_git(root, "status", "--porcelain", "--", ".")))


def _git(root: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode("utf-8", "surrogateescape") if done.returncode == 0 else None


def pack(root: Path, files: list[str]) -> tuple[BinaryIO, int]:
    """A tar of the files, the same bytes for the same contents: an open temporary file at its start, and its size."""
    packed = tempfile.TemporaryFile()  # noqa: SIM115 - the caller reads and closes it
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in files:
            path = root / name
            info = tarfile.TarInfo(name)
            data = path.read_bytes()
            info.size = len(data)
            info.mode = 0o755 if path.stat().st_mode & 0o100 else 0o644
            tar.addfile(info, io.BytesIO(data))
    size = packed.tell()
    packed.seek(0)
    return packed, size
