"""Bytes by their digest: the BlobStore port, and the local directory that implements it.

A blob is named by the SHA-256 of its bytes. Each part of 8 MiB has a SHA-256 of its own, so that reading a range
verifies the parts it touches and no others. A folder is a blob too: its manifest (see ``folders``).
"""

import hashlib
import io
import os
import re
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

from loopline.errors import Corrupt, InvalidInput, NotFound, TooLarge
from loopline.store import folders, tars

PART_BYTES = 8 << 20
CHUNK_BYTES = 1 << 20

_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Blob:
    """What was stored: the digest that finds it again and its size; a folder's size is the sum of its files."""

    digest: str
    size_bytes: int


class BlobStore(Protocol):
    """A content-addressed store. ``loopline.testing.blob_contract`` says in tests what an implementation must do.

    Every method that takes a digest raises ``InvalidInput`` for one that is not 64 lower-case hexadecimal digits, and,
    unless it says otherwise, ``NotFound`` when nothing is stored under it.
    """

    def put_bytes(self, data: bytes) -> Blob:
        """Store bytes. Storing what is there already renews its age (see ``collect``) and repairs it."""
        ...

    def put_stream(self, chunks: Iterable[bytes], max_bytes: int | None = None) -> Blob:
        """Store what ``chunks`` yields; nothing is kept when it raises or exceeds ``max_bytes`` (``TooLarge``)."""
        ...

    def put_file(self, path: Path) -> Blob:
        """Store a regular file's content; a symbolic link is refused with ``InvalidInput``."""
        with folders.open_regular(path) as file:
            return self.put_stream(iter(lambda: file.read(CHUNK_BYTES), b""))

    def put_folder(self, path: Path, budgets: folders.Budgets = folders.OWN) -> Blob:
        """Store a folder: every file, then the manifest whose digest is the folder's identity.

        Refuses symbolic links, special files and names that ``folders.check_paths`` refuses with ``InvalidInput``, and
        what exceeds the budgets with ``TooLarge``. Empty directories are not kept.
        """
        return folders.put_folder(self, path, budgets)

    def put_tar(self, stream: tars.Source, budgets: folders.Budgets = folders.UPLOADED) -> Blob:
        """Store the files of a tar (plain or gzip, told by content) as a folder; see ``tars.put_tar``."""
        return tars.put_tar(self, stream, budgets)

    def open(self, digest: str) -> BinaryIO:
        """A seekable reader; each part is verified when it is first touched (``Corrupt``)."""
        ...

    def chunks(self, digest: str) -> Iterator[bytes]:
        """The whole content in order; raises ``Corrupt`` after the last chunk when the digest does not match."""
        ...

    def read(self, digest: str, start: int = 0, length: int | None = None) -> bytes:
        """Bytes from ``start``, at most ``length``; verifies the parts it touches (``Corrupt``)."""
        if start < 0 or (length is not None and length < 0):
            raise InvalidInput("a range has no negative start or length")
        with self.open(digest) as reader:
            rest = max(0, self.size(digest) - start)
            reader.seek(start)
            data = reader.read(rest if length is None else min(length, rest))
            if length is None or len(data) < length:
                reader.read(1)  # that the blob ends here is verified like any of its bytes
            return data

    def exists(self, digest: str) -> bool:
        """Whether a blob is stored under this digest."""
        ...

    def size(self, digest: str) -> int:
        """Size in bytes (of a folder: of its manifest)."""
        ...

    def delete(self, digest: str) -> None:
        """Remove a blob; one that is not there is no error."""
        ...

    def iter_digests(self) -> Iterator[str]:
        """Every digest that is stored, in no particular order."""
        ...

    def head(self, digest: str, length: int) -> bytes:
        """The first bytes, not verified."""
        ...

    def collect(self, keep: AbstractSet[str], older_than: float, only: AbstractSet[str] | None = None) -> list[Blob]:
        """Remove what nobody refers to and give what was removed; with ``only`` of these alone.

        ``keep``: the digests in use; the files of a folder in ``keep`` are kept with it. ``older_than``: seconds since
        the epoch; a blob that was put at that time or later stays. Raises ``Corrupt``, and removes nothing, when a
        manifest in ``keep`` cannot be read, because nobody knows then which files it needs.
        """
        ...

    def sweep(self, older_than: float) -> int:
        """Remove what writes left behind that were cut short before that time (since the epoch); says how many."""
        ...

    def materialise(
        self, digest: str, kind: str, target: Path, name: str | None = None, *, writable: bool = False
    ) -> Path:
        """Write a blob out as a ``file`` or a ``folder``, at ``target`` or as ``name`` in it; see ``folders``."""
        return folders.materialise(self, digest, kind, target, name, writable=writable)


def check_digest(digest: object) -> str:
    """``digest`` itself when it is 64 lower-case hexadecimal digits; raises ``InvalidInput`` otherwise."""
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise InvalidInput(f"{str(digest)[:80]!r} is not a SHA-256 digest: 64 lower-case hexadecimal digits")
    return digest


class LocalBlobs(BlobStore):
    """Blobs in a local directory: ``<first two digits>/<digest>``, and ``<digest>.parts`` beside one of several parts.

    One process writes (control); its threads may all use one instance. A blob that is there is complete: it is synced
    under a temporary name and renamed.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._temporary = root / "tmp"
        for directory in (root, self._temporary):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = threading.Lock()  # a put that finds its blob there must not race with the collector

    def put_bytes(self, data: bytes) -> Blob:
        """See ``BlobStore.put_bytes``."""
        digest = hashlib.sha256(data).hexdigest()
        with self._lock, suppress(FileNotFoundError):
            path = self._path(digest)
            if len(data) <= PART_BYTES and path.read_bytes() == data:
                os.utime(path)
                return Blob(digest, len(data))
        return self.put_stream([data])

    def put_stream(self, chunks: Iterable[bytes], max_bytes: int | None = None) -> Blob:
        """See ``BlobStore.put_stream``."""
        whole = _Hashes()
        with self._temporary_file() as (file, path):
            for chunk in chunks:
                whole.update(chunk)
                if max_bytes is not None and whole.size_bytes > max_bytes:
                    raise TooLarge(f"larger than the limit of {max_bytes} bytes")
                file.write(chunk)
            file.flush()
            os.fdatasync(file.fileno())
            digest = whole.digest()
            self._directory(digest).mkdir(mode=0o700, exist_ok=True)
            if whole.size_bytes > PART_BYTES:
                self._write_parts(digest, whole.parts())
            with self._lock:
                path.replace(self._path(digest))
        _sync_directory(self._directory(digest))
        return Blob(digest, whole.size_bytes)

    def open(self, digest: str) -> BinaryIO:
        """See ``BlobStore.open``."""
        file = self._open_raw(digest)
        size = os.fstat(file.fileno()).st_size
        reader = _Verified(file, digest, size, self._parts(digest, size))
        return cast(BinaryIO, io.BufferedReader(reader, CHUNK_BYTES))

    def chunks(self, digest: str) -> Iterator[bytes]:
        """See ``BlobStore.chunks``."""
        whole = hashlib.sha256()
        with self._open_raw(digest) as file:
            while chunk := file.read(CHUNK_BYTES):
                whole.update(chunk)
                yield chunk
        if whole.hexdigest() != digest:
            raise _corrupt(digest)

    def exists(self, digest: str) -> bool:
        """See ``BlobStore.exists``."""
        return self._path(digest).is_file()

    def size(self, digest: str) -> int:
        """See ``BlobStore.size``."""
        try:
            return self._path(digest).stat().st_size
        except FileNotFoundError:
            raise _missing(digest) from None

    def delete(self, digest: str) -> None:
        """See ``BlobStore.delete``."""
        path = self._path(digest)
        with self._lock:
            path.unlink(missing_ok=True)
            path.with_suffix(".parts").unlink(missing_ok=True)

    def iter_digests(self) -> Iterator[str]:
        """See ``BlobStore.iter_digests``."""
        for directory in self._root.iterdir():
            if len(directory.name) == 2:
                for path in directory.iterdir():
                    if _DIGEST.fullmatch(path.name):
                        yield path.name

    def head(self, digest: str, length: int) -> bytes:
        """See ``BlobStore.head``."""
        with self._open_raw(digest) as file:
            return file.read(length)

    def collect(self, keep: AbstractSet[str], older_than: float, only: AbstractSet[str] | None = None) -> list[Blob]:
        """See ``BlobStore.collect``; leftovers of writes that were cut short go too."""
        kept = folders.with_contents(self, keep)
        removed = []
        for digest in self.iter_digests() if only is None else only:
            if digest not in kept:
                size = self._remove_if(digest, lambda mtime: mtime < older_than)
                if size is not None:
                    removed.append(Blob(digest, size))
        self.sweep(older_than)
        return removed

    def sweep(self, older_than: float) -> int:
        """See ``BlobStore.sweep``."""
        count = 0
        for path in self._temporary.iterdir():
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < older_than:
                    path.unlink()
                    count += 1
        return count

    def _remove_if(self, digest: str, old: Callable[[float], bool]) -> int | None:
        path = self._path(digest)
        with self._lock, suppress(FileNotFoundError):
            found = path.stat()
            if old(found.st_mtime):
                path.unlink()
                path.with_suffix(".parts").unlink(missing_ok=True)
                return found.st_size
        return None

    def _directory(self, digest: str) -> Path:
        return self._root / digest[:2]

    def _path(self, digest: str) -> Path:
        return self._root / check_digest(digest)[:2] / digest

    def _open_raw(self, digest: str) -> io.FileIO:
        try:
            descriptor = os.open(self._path(digest), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            raise _missing(digest) from None
        return io.FileIO(descriptor)

    @contextmanager
    def _temporary_file(self) -> Iterator[tuple[BinaryIO, Path]]:
        path = self._temporary / secrets.token_hex(16)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file, path
        finally:
            path.unlink(missing_ok=True)  # gone already when it was renamed

    def _write_parts(self, digest: str, parts: list[str]) -> None:
        with self._temporary_file() as (file, path):
            file.write("\n".join(parts).encode())
            file.flush()
            os.fdatasync(file.fileno())
            path.replace(self._path(digest).with_suffix(".parts"))

    def _parts(self, digest: str, size: int) -> list[str]:
        """SHA-256 of each part; a list that is not there is made anew from content that matches the digest."""
        if size <= PART_BYTES:
            return [digest]
        with suppress(FileNotFoundError):
            parts = self._path(digest).with_suffix(".parts").read_text().split("\n")
            if len(parts) != -(-size // PART_BYTES):
                raise _corrupt(digest)
            return parts
        whole = _Hashes()
        for chunk in self.chunks(digest):
            whole.update(chunk)
        self._write_parts(digest, whole.parts())
        return whole.parts()


class _Hashes:
    """The digest of a whole and of its parts, in one pass over the bytes of each."""

    def __init__(self) -> None:
        self.size_bytes = 0
        self._whole = hashlib.sha256()
        self._part = hashlib.sha256()
        self._parts: list[str] = []

    def update(self, chunk: bytes) -> None:
        view = memoryview(chunk)
        while view:
            piece = view[: PART_BYTES - self.size_bytes % PART_BYTES]
            self._whole.update(piece)
            if self._parts:  # the first part is the whole so far
                self._part.update(piece)
            self.size_bytes += len(piece)
            view = view[len(piece) :]
            if self.size_bytes % PART_BYTES == 0:
                self._parts.append(self._last())
                self._part = hashlib.sha256()

    def digest(self) -> str:
        return self._whole.hexdigest()

    def parts(self) -> list[str]:
        return [*self._parts, self._last()] if self.size_bytes % PART_BYTES else list(self._parts)

    def _last(self) -> str:
        return (self._part if self._parts else self._whole).hexdigest()


class _Verified(io.RawIOBase):
    """Reads a blob part by part; hands out no byte of a part whose digest does not match."""

    def __init__(self, file: io.FileIO, digest: str, size: int, parts: list[str]) -> None:
        super().__init__()
        self._file = file
        self._digest = digest
        self._size = size
        self._parts = parts
        self._position = 0
        self._held = -1
        self._bytes = b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, origin + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        number, offset = divmod(self._position, PART_BYTES)
        if not view:
            return 0
        self._hold(min(number, len(self._parts) - 1))
        if self._position >= self._size:
            return 0
        piece = self._bytes[offset : offset + len(view)]
        view[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)

    def close(self) -> None:
        self._file.close()
        super().close()

    def _hold(self, number: int) -> None:
        if number == self._held:
            return
        self._file.seek(number * PART_BYTES)
        wanted = min(PART_BYTES, self._size - number * PART_BYTES)
        pieces: list[bytes] = []
        while wanted and (piece := self._file.read(wanted)):
            pieces.append(piece)
            wanted -= len(piece)
        data = b"".join(pieces)
        if hashlib.sha256(data).hexdigest() != self._parts[number]:
            raise _corrupt(self._digest)
        self._held, self._bytes = number, data


def _missing(digest: str) -> NotFound:
    return NotFound(f"there is no blob {digest}")


def _corrupt(digest: str) -> Corrupt:
    return Corrupt(f"the stored bytes of blob {digest} do not match their digest")


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
