"""What every implementation of the ``BlobStore`` port must do, as tests.

Subclass ``BlobContract`` in a test module, give it ``make`` and ``damage``, and pytest runs it::

    class TestMyBlobs(BlobContract):
        def make(self, tmp_path): return MyBlobs(...)
        def damage(self, blobs, digest, position): ...
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loopline.errors import Conflict, Corrupt, InvalidInput, LooplineError, NotFound, TooLarge
from loopline.store.blobs import PART_BYTES, BlobStore

_FUTURE = 4e9  # later than any blob's age
_NOBODY = "0" * 64  # well-formed, and no blob's digest


@contextmanager
def raises(kind: type[LooplineError]) -> Iterator[None]:
    """Fail unless the block raises ``kind``."""
    try:
        yield
    except kind:
        return
    raise AssertionError(f"expected {kind.__name__}")


class BlobContract:
    """The tests. Each makes its own store by ``make``."""

    def make(self, tmp_path: Path) -> BlobStore:
        """An empty store."""
        raise NotImplementedError

    def damage(self, blobs: BlobStore, digest: str, position: int) -> None:
        """Flip a bit of the byte at ``position`` of a stored blob, behind the store's back."""
        raise NotImplementedError

    def test_bytes_come_back_under_their_sha256(self, tmp_path: Path) -> None:
        blobs = self.make(tmp_path)
        for data in (b"", b"x", b"hello" * 1000):
            blob = blobs.put_bytes(data)
            assert (blob.digest, blob.size_bytes) == (hashlib.sha256(data).hexdigest(), len(data))
            assert blobs.read(blob.digest) == data
            assert b"".join(blobs.chunks(blob.digest)) == data
            assert blobs.exists(blob.digest)
            assert blobs.size(blob.digest) == len(data)

    def test_streams_and_files_of_several_parts_are_the_same_blob_as_their_bytes(self, tmp_path: Path) -> None:
        blobs = self.make(tmp_path)
        data = os.urandom(PART_BYTES * 2 + 12345)
        (tmp_path / "file").write_bytes(data)
        pieces = (data[start : start + 3_333_333] for start in range(0, len(data), 3_333_333))
        streamed = blobs.put_stream(pieces)
        assert streamed == blobs.put_file(tmp_path / "file") == blobs.put_bytes(data)
        assert list(blobs.iter_digests()) == [streamed.digest]

    def test_any_range_reads_as_a_slice(self, tmp_path: Path) -> None:
        blobs = self.make(tmp_path)
        data = os.urandom(PART_BYTES + 1000)
        digest = blobs.put_bytes(data).digest
        end = len(data)
        for start, length in (
            (0, 0),
            (0, 10),
            (PART_BYTES - 5, 10),
            (PART_BYTES, None),
            (end - 1, 1),
            (end, 5),
            (end + 9, 5),
            (3, end * 9),
        ):
            assert blobs.read(digest, start, length) == data[start:][:length]
        with raises(InvalidInput):
            blobs.read(digest, -1)
        with blobs.open(digest) as reader:
            reader.seek(-500, os.SEEK_END)
            assert reader.read(10) == data[-500:-490]
            assert reader.tell() == end - 490

    def test_a_flipped_byte_is_reported_and_never_handed_out(self, tmp_path: Path) -> None:
        blobs = self.make(tmp_path)
        data = os.urandom(PART_BYTES + 1000)
        digest = blobs.put_bytes(data).digest
        self.damage(blobs, digest, PART_BYTES + 10)
        assert blobs.read(digest, 0, 100) == data[:100]  # a part that is sound
        with raises(Corrupt):
            blobs.read(digest, PART_BYTES + 500, 10)
        with raises(Corrupt):
            blobs.read(digest)
        with raises(Corrupt):
            list(blobs.chunks(digest))
        with raises(Corrupt):
            blobs.materialise(digest, "file", tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_storing_damaged_bytes_again_repairs_them(self, tmp_path: Path) -> None:
        blobs = self.make(tmp_path)
        for data in (b"small", os.urandom(PART_BYTES + 3)):
            digest = blobs.put_bytes(data).digest
            self.damage(blobs, digest, 2)
            blobs.put_bytes(data)
            assert blobs.read(digest) == data

    def test_only_a_digest_finds_a_blob(self, tmp_path: Path) -> None:
        blobs = self.make(tmp_path)
        for wrong in ("", "../../etc/passwd", "A" * 64, "0" * 63, "0" * 65, "0" * 64 + "\n"):
            for call in (blobs.read, blobs.size, blobs.exists, blobs.delete):
                with raises(InvalidInput):
                    call(wrong)
        assert not blobs.exists(_NOBODY)
        for missing in (blobs.read, blobs.size, lambda digest: list(blobs.chunks(digest))):
            with raises(NotFound):
                missing(_NOBODY)

    def test_a_stream_that_fails_or_is_too_long_leaves_nothing(self, tmp_path: Path) -> None:
        blobs = self.make(tmp_path)

        def broken() -> Iterator[bytes]:
            yield b"first"
            raise InvalidInput("the client went away")

        with raises(InvalidInput):
            blobs.put_stream(broken())
        with raises(TooLarge):
            blobs.put_stream(iter([b"12345", b"67890"]), max_bytes=9)
        assert blobs.put_stream(iter([b"12345", b"6789"]), max_bytes=9).size_bytes == 9
        assert len(list(blobs.iter_digests())) == 1

    def test_delete_removes_and_may_be_said_twice(self, tmp_path: Path) -> None:
        blobs = self.make(tmp_path)
        digest = blobs.put_bytes(os.urandom(PART_BYTES + 1)).digest
        blobs.delete(digest)
        blobs.delete(digest)
        assert not blobs.exists(digest)
        assert list(blobs.iter_digests()) == []

    def test_a_folder_comes_back_whole_and_its_digest_is_its_content(self, tmp_path: Path) -> None:
        blobs = self.make(tmp_path)
        source = make_folder(tmp_path / "source")
        blob = blobs.put_folder(source)
        target = blobs.materialise(blob.digest, "folder", tmp_path, "target")
        assert target == tmp_path / "target"
        assert read_folder(target) == read_folder(source)
        assert blobs.put_folder(target) == blob
        assert blob.size_bytes == sum(len(data) for data, _ in read_folder(source).values())
        (source / "a.txt").write_text("changed")
        assert blobs.put_folder(source).digest != blob.digest

    def test_what_is_written_out_is_not_the_store(self, tmp_path: Path) -> None:
        blobs = self.make(tmp_path)
        digest = blobs.put_bytes(b"sound").digest
        path = blobs.materialise(digest, "file", tmp_path / "copy")
        assert path.stat().st_mode & 0o777 == 0o400
        path.chmod(0o600)
        path.write_bytes(b"altered")
        assert blobs.read(digest) == b"sound"

    def test_a_folder_never_replaces_one_that_holds_something(self, tmp_path: Path) -> None:
        blobs = self.make(tmp_path)
        digest = blobs.put_folder(make_folder(tmp_path / "source")).digest
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "mine").write_text("x")
        with raises(Conflict):
            blobs.materialise(digest, "folder", tmp_path / "full")
        assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine"]
        (tmp_path / "empty").mkdir()
        blobs.materialise(digest, "folder", tmp_path / "empty")

    def test_links_and_unclean_names_are_refused(self, tmp_path: Path) -> None:
        blobs = self.make(tmp_path)
        for name, make in (
            ("link", lambda path: path.symlink_to("/etc/passwd")),
            ("linked-directory", lambda path: path.symlink_to("/etc")),
            ("pipe", os.mkfifo),
            ("back\\slash", lambda path: path.write_text("x")),
            ("new\nline", lambda path: path.write_text("x")),
            ("A.TXT", lambda path: path.write_text("beside a.txt")),
        ):
            folder = make_folder(tmp_path / name.encode().hex())
            make(folder / name)
            with raises(InvalidInput):
                blobs.put_folder(folder)

    def test_the_collector_takes_what_nobody_keeps_and_keeps_the_files_of_kept_folders(self, tmp_path: Path) -> None:
        blobs = self.make(tmp_path)
        folder = blobs.put_folder(make_folder(tmp_path / "source"))
        kept = blobs.put_bytes(b'{"files":["a document that begins like a manifest"]}')
        dropped = blobs.put_bytes(b"dropped")
        assert blobs.head(kept.digest, 8) == b'{"files"' and blobs.head(dropped.digest, 100) == b"dropped"
        assert blobs.collect({folder.digest, kept.digest}, older_than=1.0) == []
        assert blobs.collect({folder.digest}, older_than=_FUTURE, only={folder.digest, _NOBODY}) == []
        assert blobs.collect({folder.digest, kept.digest, _NOBODY}, older_than=_FUTURE) == [dropped]
        blobs.materialise(folder.digest, "folder", tmp_path / "target")
        assert blobs.read(kept.digest)

    def test_the_collector_removes_nothing_when_a_manifest_is_damaged(self, tmp_path: Path) -> None:
        blobs = self.make(tmp_path)
        folder = blobs.put_folder(make_folder(tmp_path / "source"))
        before = set(blobs.iter_digests())
        for position in (0, 20):
            self.damage(blobs, folder.digest, position)
            with raises(Corrupt):
                blobs.collect({folder.digest}, older_than=_FUTURE)
            assert set(blobs.iter_digests()) == before
            self.damage(blobs, folder.digest, position)  # flips it back


def make_folder(path: Path) -> Path:
    """A small folder with an executable, an empty file and directories inside one another."""
    (path / "below" / "further").mkdir(parents=True)
    (path / "a.txt").write_text("a")
    (path / "below" / "empty").write_bytes(b"")
    (path / "below" / "further" / "prédire.py").write_text("x = 1\n")
    (path / "run.sh").write_text("#!/bin/sh\n")
    (path / "run.sh").chmod(0o755)
    return path


def read_folder(path: Path) -> dict[str, tuple[bytes, bool]]:
    """Every file: relative path -> content and whether it is executable."""
    return {
        file.relative_to(path).as_posix(): (file.read_bytes(), bool(file.stat().st_mode & 0o100))
        for file in path.rglob("*")
        if file.is_file()
    }
