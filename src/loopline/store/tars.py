"""Reads a tar that a client sent, straight into a blob store: no member's name ever becomes a path of this machine.

The reader is our own because those of the standard library have been led outside their destination more than once.
It knows regular files and directories, in the ustar, pax and GNU formats; any link, device or sparse file is refused.
"""

import zlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, BinaryIO

from loopline.errors import InvalidInput, TooLarge
from loopline.store import folders

if TYPE_CHECKING:
    from loopline.store.blobs import Blob, BlobStore

Source = BinaryIO | Iterable[bytes]

_BLOCK_BYTES = 512
_CHUNK_BYTES = 1 << 20
_MAX_EXTENSION_BYTES = 64 << 10  # a pax header or a GNU long name
_SMALL_BYTES = 1 << 20
_RATIO_FLOOR_BYTES = 16 << 20  # below this the ratio says nothing: a small file of zeros is no attack
_FILE, _DIRECTORY = frozenset(b"0\0"), ord("5")
_PAX, _PAX_GLOBAL, _LONG_NAME = ord("x"), ord("g"), ord("L")


def put_tar(blobs: "BlobStore", stream: Source, budgets: folders.Budgets) -> "Blob":
    """Store a tar's files as a folder and give the manifest's blob.

    Plain or gzip is told by content. Raises ``InvalidInput`` for what is no whole tar, for links and special files, and
    for names that ``folders.check_paths`` refuses; ``TooLarge`` beyond the budgets, as soon as they are exceeded.
    Files that were stored before an error are left to the collector.
    """
    return folders.put_manifest(blobs, _entries(blobs, _Reader(_inflate(_read(stream), budgets)), budgets))


def _entries(blobs: "BlobStore", reader: "_Reader", budgets: folders.Budgets) -> Iterator[folders.Entry]:
    total = files = headers = 0
    renamed: dict[str, str] = {}  # what an extension header says about the next member
    while (header := reader.take(_BLOCK_BYTES)) != bytes(_BLOCK_BYTES):
        size, kind = _parse_size(header), header[156]
        headers, files = headers + 1, files + (kind in _FILE)
        if files > budgets.members or headers > 4 * budgets.members:  # directories and extensions beside the files
            raise TooLarge(f"the tar has more than {budgets.members} files, or too many directories")
        if kind in {_PAX, _PAX_GLOBAL, _LONG_NAME}:
            extension = reader.take_padded(size)
            if kind != _PAX_GLOBAL:  # a global one holds a commit id (git) or defaults, which we do not take
                renamed.update(_parse_pax(extension) if kind == _PAX else {"path": _text(extension)})
            continue
        path = _member_path(renamed.get("path") or _ustar_path(header), directory=kind == _DIRECTORY)
        if "size" in renamed:
            size = _parse_pax_size(renamed["size"])
        renamed = {}
        if kind == _DIRECTORY:
            reader.take_padded(size)
            continue
        if kind not in _FILE:
            raise InvalidInput(
                f"the tar's member {path!r} is a link or a special file; only files and directories may be"
            )
        total += size
        if total > budgets.total_bytes:
            raise TooLarge(f"the tar's files hold more than {budgets.total_bytes} bytes")
        content = reader.stream_padded(size)
        # What is there already costs a small file no write: most files of a project do not change between two uploads.
        blob = blobs.put_bytes(b"".join(content)) if size <= _SMALL_BYTES else blobs.put_stream(content)
        yield folders.Entry(path, blob.size_bytes, blob.digest, bool(_octal(header[100:108]) & 0o100))


class _Reader:
    """Takes exact numbers of bytes from a stream of chunks."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._held = memoryview(b"")

    def stream(self, count: int) -> Iterator[bytes]:
        while count:
            if not self._held:
                chunk = next(self._chunks, None)
                if chunk is None:
                    raise InvalidInput("the tar ends in the middle of a member, or without its end mark")
                self._held = memoryview(chunk)
            piece = self._held[:count]
            self._held = self._held[len(piece) :]
            count -= len(piece)
            yield bytes(piece)

    def stream_padded(self, count: int) -> Iterator[bytes]:
        yield from self.stream(count)
        for _ in self.stream(-count % _BLOCK_BYTES):
            pass

    def take(self, count: int) -> bytes:
        return b"".join(self.stream(count))

    def take_padded(self, count: int) -> bytes:
        if count > _MAX_EXTENSION_BYTES:
            raise TooLarge(f"a header of the tar holds more than {_MAX_EXTENSION_BYTES} bytes")
        return b"".join(self.stream_padded(count))


def _read(stream: Source) -> Iterator[bytes]:
    read = getattr(stream, "read", None)
    if read is None:
        yield from (bytes(chunk) for chunk in stream)
        return
    while chunk := read(_CHUNK_BYTES):
        yield chunk


def _inflate(chunks: Iterator[bytes], budgets: folders.Budgets) -> Iterator[bytes]:
    """The tar's bytes, bounded in whole and per chunk; gzip is recognised by its first two bytes."""
    first = next(chunks, b"")
    while len(first) < 2 and (more := next(chunks, b"")):
        first += more
    # Headers and padding come on top of the files.
    limit = budgets.total_bytes + budgets.members * 8 * _BLOCK_BYTES + _CHUNK_BYTES
    source = _gunzip(first, chunks, budgets.ratio) if first[:2] == b"\x1f\x8b" else _chain(first, chunks)
    total = 0
    for chunk in source:
        total += len(chunk)
        if total > limit:
            raise TooLarge(f"the tar holds more than {limit} bytes")
        yield chunk


def _chain(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    if first:
        yield first
    yield from (chunk for chunk in rest if chunk)


def _gunzip(first: bytes, rest: Iterator[bytes], ratio: int) -> Iterator[bytes]:
    inflater = zlib.decompressobj(wbits=31)
    taken = given = 0
    for chunk in _chain(first, rest):
        taken += len(chunk)
        pending = chunk
        while pending and not inflater.eof:
            try:
                piece = inflater.decompress(pending, _CHUNK_BYTES)
            except zlib.error:
                raise InvalidInput("the upload is not a valid gzip file") from None
            pending = inflater.unconsumed_tail
            given += len(piece)
            if given > _RATIO_FLOOR_BYTES and given > ratio * taken:
                raise TooLarge(f"the upload unpacks to more than {ratio} times its size")
            if piece:
                yield piece
    if not inflater.eof:
        raise InvalidInput("the gzip file is cut short")


def _parse_size(header: bytes) -> int:
    """Check the header's sum, then give the member's size."""
    summed = sum(header[:148]) + 8 * ord(" ") + sum(header[156:])
    if summed != _octal(header[148:156]):
        raise InvalidInput("the upload is not a tar file, or it is damaged")
    return _octal(header[124:136])


def _octal(field: bytes) -> int:
    """A number of a header: octal digits, or base 256 when the first bit is set; never negative."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    text = field.split(b"\0", 1)[0].strip(b" ")
    if text.strip(b"01234567"):
        raise InvalidInput("a number in a header of the tar is not valid")
    return int(text or b"0", 8)


def _parse_pax(data: bytes) -> dict[str, str]:
    """The records ``length key=value\\n`` that matter here; sparse files and links are not for us."""
    records: dict[str, str] = {}
    data = data.rstrip(b"\0")
    while data:
        digits, space, _ = data.partition(b" ")
        length = int(digits) if space and digits.isdigit() and len(digits) < 8 else 0
        key, equals, value = data[len(digits) + 1 : length - 1].partition(b"=")
        if not equals or length > len(data) or data[length - 1 : length] != b"\n":
            raise InvalidInput("a pax header of the tar is not valid")
        if key.startswith(b"GNU.sparse"):
            raise InvalidInput("the tar holds a sparse file; pack it without --sparse")
        if key in {b"path", b"size"}:
            records[key.decode()] = _text(value)
        data = data[length:]
    return records


def _parse_pax_size(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 19:
        raise InvalidInput("a size in the tar is not valid")
    return int(text)


def _ustar_path(header: bytes) -> str:
    name = _text(header[:100])
    prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _member_path(path: str, *, directory: bool) -> str:
    """The name as a manifest may hold it; ``./a`` is ``a``. The folder's own entry (``./``) has no name to check."""
    path = path.rstrip("/") if directory else path
    while path.startswith("./"):
        path = path[2:]
    if directory and path in {"", "."}:
        return path
    return folders.check_path(path)


def _text(field: bytes) -> str:
    try:
        return field.split(b"\0", 1)[0].decode()
    except UnicodeDecodeError:
        raise InvalidInput("a name in the tar is not UTF-8") from None
