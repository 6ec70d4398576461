"""What a program leaves in folders of its own, as outputs of its job; several hosts' folders become one."""

# Pathlib would cost every job milliseconds to import.
# ruff: noqa: PTH103, PTH104, PTH113, PTH118, PTH123

import gzip
import os
import tarfile
from collections.abc import Callable
from typing import Any

from . import values

LEVEL = 3  # weights hardly get smaller, however long one tries


def gather(folder: str, name: str, sources: list[str]) -> dict[str, Any]:
    """The files below some folders as one output that is a folder; what several have is the first one's."""
    from pathlib import Path

    return values.save(name, Path(_merge(sources)), folder)


def pack(folder: str, name: str, sources: list[str], *, say: Callable[[str], None]) -> dict[str, Any] | None:
    """The files below some folders as a tar.gz, equal bytes for equal files; None when there are none.

    A link is its target's content; one that leads nowhere is left out, and ``say`` tells so.
    """
    source = _merge(sources)
    path = f"outputs/{name}.tar.gz"
    if not any(files for _, _, files in os.walk(source)):
        return None
    with (
        open(f"{folder}/{path}", "wb") as raw,
        gzip.GzipFile("", "wb", LEVEL, raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for directory, below, files in os.walk(source):
            below.sort()
            inside = os.path.relpath(directory, source)
            if inside != ".":
                tar.addfile(_member(inside, tarfile.DIRTYPE, 0o755))
            for file in sorted(files):
                _add(tar, f"{directory}/{file}", os.path.normpath(f"{inside}/{file}"), say)
    size, digest = values.digest_file(f"{folder}/{path}")
    return {"format": "file", "path": path, "size_bytes": size, "sha256": digest, "executable": True}


def _member(name: str, kind: bytes, mode: int, size: int = 0) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.mode, member.size = kind, mode, size
    return member


def _add(tar: tarfile.TarFile, path: str, name: str, say: Callable[[str], None]) -> None:
    if not os.path.isfile(path):
        say(f"{name} is a link that leads nowhere, or no file: it is left out")
        return
    with open(path, "rb") as file:
        found = os.fstat(file.fileno())
        tar.addfile(_member(name, tarfile.REGTYPE, 0o755 if found.st_mode & 0o100 else 0o644, found.st_size), file)


def _merge(sources: list[str]) -> str:
    """Move what the other folders have beyond the first one there, and give it."""
    first = sources[0]
    for source in sources[1:]:
        for directory, _, files in os.walk(source):
            place = os.path.normpath(os.path.join(first, os.path.relpath(directory, source)))
            os.makedirs(place, exist_ok=True)
            for file in files:
                if not os.path.lexists(f"{place}/{file}"):
                    os.rename(f"{directory}/{file}", f"{place}/{file}")
    return first
