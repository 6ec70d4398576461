"""Folders in a blob store: manifests, what paths they may hold, and how a blob is written out.

A manifest is canonical JSON, ``{"files":[{"mode_x","path","sha256","size_bytes"}, ...]}`` sorted by path, so that equal
folders have equal digests. Paths are checked when a manifest is made and again when it is read.
"""

import errno
import json
import os
import secrets
import shutil
import stat
import unicodedata
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from loopline.errors import Conflict, Corrupt, InvalidInput, NotFound, TooLarge

if TYPE_CHECKING:
    from loopline.store.blobs import Blob, BlobStore

MAX_PATH_BYTES = 1024
MAX_NAME_BYTES = 255
MAX_DEPTH = 64
MAX_MANIFEST_BYTES = 64 << 20
_CHUNK_BYTES = 1 << 20
_START = b'{"files":['  # every manifest begins so; a blob that does not is no folder


@dataclass(frozen=True)
class Budgets:
    """How much a folder may hold. ``ratio``: bytes out of a compressed tar for each byte in."""

    members: int
    total_bytes: int
    ratio: int = 200


UPLOADED = Budgets(members=10_000, total_bytes=512 << 20)  # by a client
OWN = Budgets(members=200_000, total_bytes=256 << 30)  # by a job of this installation, which has a disk limit already


@dataclass(frozen=True)
class Entry:
    """One file of a folder. ``mode_x``: whether it may be executed, the one bit of its mode that is kept."""

    path: str
    size_bytes: int
    sha256: str
    mode_x: bool


def check_path(path: object) -> str:
    """``path`` itself when it is a clean relative path (``a/b.txt``); raises ``InvalidInput`` otherwise."""
    if not isinstance(path, str) or not path or _byte_length(path) > MAX_PATH_BYTES:
        raise InvalidInput(f"{str(path)[:80]!r} is not a path of 1 to {MAX_PATH_BYTES} bytes")
    if "\\" in path or any(unicodedata.category(character) in {"Cc", "Cf", "Cs"} for character in path):
        raise InvalidInput(f"the path {path!r} holds a backslash or a control character, or is not UTF-8")
    names = path.split("/")
    if len(names) > MAX_DEPTH or any(name in {"", ".", ".."} or _byte_length(name) > MAX_NAME_BYTES for name in names):
        raise InvalidInput(f"the path {path!r} is absolute, empty in part, too deep, or holds '.', '..' or a long name")
    return path


def check_paths(paths: Iterable[str]) -> None:
    """Raise ``InvalidInput`` unless all paths are clean, and can stand in one folder, letter case ignored or not."""
    files: set[str] = set()
    directories: dict[str, str] = {}
    for path in paths:
        folded = _fold(check_path(path))
        if folded in files:
            raise InvalidInput(f"the path {path!r} is there twice, perhaps in another letter case")
        files.add(folded)
        parent = path
        while "/" in parent:
            parent = parent.rpartition("/")[0]
            if directories.setdefault(_fold(parent), parent) != parent:
                raise InvalidInput(f"the directory {parent!r} is there twice, in another letter case")
    for folded, directory in directories.items():
        if folded in files:
            raise InvalidInput(f"{directory!r} is both a file and a directory")


def open_regular(path: Path | str, dir_fd: int | None = None) -> BinaryIO:
    """Open a regular file for reading, following no symbolic link in its last part; ``InvalidInput`` otherwise."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=dir_fd)
    except FileNotFoundError:
        raise NotFound(f"there is no file {Path(path).name!r}") from None
    except OSError as error:
        raise InvalidInput(f"{Path(path).name!r} is not a regular file that can be read: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InvalidInput(f"{Path(path).name!r} is not a regular file")
    return os.fdopen(descriptor, "rb", buffering=0)


def put_folder(blobs: "BlobStore", path: Path, budgets: Budgets) -> "Blob":
    """See ``BlobStore.put_folder``."""
    if path.is_symlink() or not path.is_dir():
        raise InvalidInput(f"{path.name!r} is not a directory")
    entries: list[Entry] = []
    total = 0
    for directory, below, names, descriptor in os.fwalk(path, follow_symlinks=False):
        inside = Path(directory).relative_to(path)
        for name in below:
            if stat.S_ISLNK(os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_mode):
                raise InvalidInput(f"{(inside / name).as_posix()!r} is a symbolic link")
        for name in names:
            relative = check_path((inside / name).as_posix())
            if len(entries) >= budgets.members:
                raise TooLarge(f"the folder has more than {budgets.members} files")
            with open_regular(name, descriptor) as file:
                executable = bool(os.fstat(file.fileno()).st_mode & stat.S_IXUSR)
                blob = blobs.put_stream(_chunks(file), budgets.total_bytes - total)
            total += blob.size_bytes
            entries.append(Entry(relative, blob.size_bytes, blob.digest, executable))
    return put_manifest(blobs, entries)


def put_manifest(blobs: "BlobStore", entries: Iterable[Entry]) -> "Blob":
    """Store the manifest of files that are stored already; the size given back is the sum of theirs."""
    files = sorted(entries, key=lambda entry: entry.path)
    check_paths(entry.path for entry in files)
    listed = [
        {"mode_x": entry.mode_x, "path": entry.path, "sha256": entry.sha256, "size_bytes": entry.size_bytes}
        for entry in files
    ]
    text = json.dumps({"files": listed}, separators=(",", ":"), sort_keys=True, ensure_ascii=False)
    data = text.encode()
    if len(data) > MAX_MANIFEST_BYTES:
        raise TooLarge("the folder's list of files is too long")
    blob = blobs.put_bytes(data)
    return type(blob)(blob.digest, sum(entry.size_bytes for entry in files))


def read_manifest(blobs: "BlobStore", digest: str) -> list[Entry]:
    """The files of a folder, sorted by path; raises ``InvalidInput`` when the blob is no manifest."""
    if blobs.size(digest) > MAX_MANIFEST_BYTES:
        raise InvalidInput(f"blob {digest} is not a folder")
    data = b"".join(blobs.chunks(digest))
    try:
        entries = [_entry(item) for item in json.loads(data)["files"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InvalidInput(f"blob {digest} is not a folder") from None
    check_paths(entry.path for entry in entries)
    return entries


def with_contents(blobs: "BlobStore", digests: AbstractSet[str]) -> set[str]:
    """``digests`` and those of every file in the folders among them; raises ``Corrupt`` for a damaged manifest."""
    found = set(digests)
    for digest in digests:
        if blobs.exists(digest) and _may_be_manifest(blobs, digest):
            with suppress(InvalidInput):  # somebody's JSON that only begins like one
                found.update(entry.sha256 for entry in read_manifest(blobs, digest))
    return found


def materialise(
    blobs: "BlobStore", digest: str, kind: str, target: Path, name: str | None = None, *, writable: bool = False
) -> Path:
    """Write a blob out and give its path, which appears only when it is complete and every digest matched.

    ``kind``: ``file`` or ``folder``. With ``name``, one clean path component, it is written as ``target/name``. A file
    replaces one that is there; a folder replaces an empty one only (``Conflict``). Files are copies, never links: a job
    that runs under the same user could change a link's mode and then the store, and since each byte is read for its
    digest anyway, a link would save little. They are read-only unless ``writable``.
    """
    if kind not in {"file", "folder"}:
        raise InvalidInput(f"{kind!r} is not a kind of blob; kinds: file, folder")
    if name is not None:
        if "/" in check_path(name):
            raise InvalidInput(f"{name!r} is not one name")
        target = target / name
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = target.parent / f".{secrets.token_hex(8)}.tmp"
    try:
        if kind == "file":
            _write_file(blobs, digest, temporary, executable=False, writable=writable)
        else:
            _write_folder(blobs, digest, temporary, writable=writable)
        _rename(temporary, target)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)
    return target


def _write_folder(blobs: "BlobStore", digest: str, target: Path, *, writable: bool) -> None:
    target.mkdir(mode=0o700)
    made = {target}
    for entry in read_manifest(blobs, digest):
        path = target / entry.path
        if path.parent not in made:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            made.add(path.parent)
        size = _write_file(blobs, entry.sha256, path, executable=entry.mode_x, writable=writable)
        if size != entry.size_bytes:
            raise Corrupt(f"{entry.path!r} of folder {digest} is not as large as its manifest says")


def _write_file(blobs: "BlobStore", digest: str, path: Path, *, executable: bool, writable: bool) -> int:
    mode = (0o700 if executable else 0o600) & (0o777 if writable else 0o555)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb", buffering=0) as file:
        size = sum(_write_all(file, chunk) for chunk in blobs.chunks(digest))
        os.fchmod(file.fileno(), mode)
    return size


def _write_all(file: Any, chunk: bytes) -> int:
    view = memoryview(chunk)
    while view:
        view = view[file.write(view) :]
    return len(chunk)


def _rename(temporary: Path, target: Path) -> None:
    try:
        temporary.rename(target)
    except OSError as error:
        if error.errno not in {errno.ENOTEMPTY, errno.EEXIST, errno.EISDIR, errno.ENOTDIR}:
            raise
        raise Conflict(f"{target.name!r} is there already") from None


def _chunks(file: BinaryIO) -> Iterable[bytes]:
    while chunk := file.read(_CHUNK_BYTES):
        yield chunk


def _may_be_manifest(blobs: "BlobStore", digest: str) -> bool:
    """Whether the blob begins like a manifest; a few damaged bytes are for ``read_manifest`` to report."""
    head = blobs.head(digest, len(_START))
    return sum(a == b for a, b in zip(head, _START, strict=False)) > len(_START) // 2


def _entry(item: Any) -> Entry:
    entry = Entry(check_path(item["path"]), item["size_bytes"], item["sha256"], item["mode_x"])
    if type(entry.size_bytes) is not int or type(entry.mode_x) is not bool or type(entry.sha256) is not str:
        raise TypeError
    return entry


def _fold(path: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


def _byte_length(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))
