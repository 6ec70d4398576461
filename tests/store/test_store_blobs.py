import hashlib
import json
import os
import stat
import threading
from pathlib import Path

import pytest

from loopline.errors import Corrupt, InvalidInput, TooLarge
from loopline.store import folders
from loopline.store.blobs import PART_BYTES, BlobStore, LocalBlobs
from loopline.testing.blob_contract import BlobContract, make_folder, read_folder


class TestLocalBlobs(BlobContract):
    def make(self, tmp_path: Path) -> BlobStore:
        return LocalBlobs(tmp_path / "blobs")

    def damage(self, blobs: BlobStore, digest: str, position: int) -> None:
        flip(blobs, digest, position)


@pytest.fixture
def blobs(tmp_path):
    return LocalBlobs(tmp_path / "blobs")


def flip(blobs, digest, position):
    with (blobs._root / digest[:2] / digest).open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 1]))


def put_raw_manifest(blobs, files):
    return blobs.put_bytes(json.dumps({"files": files}).encode()).digest


def listed(blobs, path, data=b"x"):
    return {"path": path, "size_bytes": len(data), "sha256": blobs.put_bytes(data).digest, "mode_x": False}


def test_nobody_else_can_read_the_store(blobs):
    old = os.umask(0)
    try:
        blobs.put_bytes(os.urandom(PART_BYTES + 1))
    finally:
        os.umask(old)
    for path in [blobs._root, *blobs._root.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_a_list_of_parts_that_is_lost_is_made_anew_and_a_wrong_one_is_reported(blobs):
    data = os.urandom(PART_BYTES + 5)
    digest = blobs.put_bytes(data).digest
    sidecar = blobs._root / digest[:2] / f"{digest}.parts"
    good = sidecar.read_text()
    sidecar.unlink()
    assert blobs.read(digest, PART_BYTES, 5) == data[PART_BYTES:]
    assert sidecar.read_text() == good
    for wrong in (good.split("\n")[0], good.replace(good[0], "g"), ""):
        sidecar.write_text(wrong)
        with pytest.raises(Corrupt):
            blobs.read(digest, 0, 5)
    sidecar.unlink()
    flip(blobs, digest, 3)
    with pytest.raises(Corrupt):
        blobs.read(digest, PART_BYTES, 5)


def test_a_blob_cut_short_is_reported(blobs):
    for size in (100, PART_BYTES + 100):
        digest = blobs.put_bytes(os.urandom(size)).digest
        path = blobs._root / digest[:2] / digest
        for left in (size - 1, 10, 0):
            os.truncate(path, left)
            with pytest.raises(Corrupt):
                blobs.read(digest)
            with pytest.raises(Corrupt):
                blobs.read(digest, size + 10, 5)


def test_putting_a_blob_again_saves_it_from_the_collector(blobs):
    digest = blobs.put_bytes(b"used again").digest
    os.utime(blobs._root / digest[:2] / digest, (1000, 1000))
    blobs.put_bytes(b"used again")
    assert blobs.collect(set(), older_than=2000) == []
    os.utime(blobs._root / digest[:2] / digest, (1000, 1000))
    assert [blob.digest for blob in blobs.collect(set(), older_than=2000)] == [digest]


def test_a_put_and_the_collector_never_lose_a_blob_between_them(blobs):
    data = b"wanted"
    digest = hashlib.sha256(data).hexdigest()
    path = blobs._root / digest[:2] / digest
    done = threading.Event()

    def collect():
        while not done.is_set():
            blobs.collect(set(), older_than=2000)

    thread = threading.Thread(target=collect)
    thread.start()
    try:
        for _ in range(300):
            blobs.put_bytes(data)
            assert path.exists()
            os.utime(path, (1000, 1000))
    finally:
        done.set()
        thread.join()


def test_the_collector_clears_what_interrupted_writes_left(blobs):
    leftover = blobs._temporary / "cut-short"
    leftover.write_bytes(b"half")
    blobs.collect(set(), older_than=leftover.stat().st_mtime)
    assert leftover.exists()
    blobs.collect(set(), older_than=leftover.stat().st_mtime + 1)
    assert not leftover.exists()


def test_a_manifest_is_canonical_json(blobs, tmp_path):
    blob = blobs.put_folder(make_folder(tmp_path / "f"))
    text = blobs.read(blob.digest).decode()
    files = json.loads(text)["files"]
    assert text == json.dumps({"files": files}, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert [file["path"] for file in files] == ["a.txt", "below/empty", "below/further/prédire.py", "run.sh"]
    assert [file["mode_x"] for file in files] == [False, False, False, True]


@pytest.mark.parametrize(
    "paths",
    [
        ["../out"],
        ["/etc/cron.d/x"],
        ["a/../../b"],
        ["a//b"],
        ["./a"],
        ["a/"],
        ["a\\b"],
        ["a\x00b"],
        ["a\x1bb"],
        ["a\u202eb"],
        ["a\x85b"],
        ["\udcff"],
        [""],
        ["."],
        ["x" * 256],
        ["d/" * 70 + "x"],
        ["a", "a"],
        ["Model.bin", "model.BIN"],
        ["caf\u00e9", "cafe\u0301"],
        ["stra\u00dfe", "STRASSE"],
        ["a", "a/b"],
        ["A", "a/b"],
        ["Dir/x", "dir/y"],
        [7],
        [None],
    ],
)
def test_a_manifest_with_a_deceiving_path_is_refused_and_writes_nothing(blobs, tmp_path, paths):
    digest = put_raw_manifest(blobs, [listed(blobs, path) for path in paths])
    with pytest.raises(InvalidInput):
        blobs.materialise(digest, "folder", tmp_path / "out" / "target")
    assert list((tmp_path / "out").iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["blobs", "out"]


@pytest.mark.parametrize(
    "document",
    [b"", b"[]", b"7", b"{}", b'{"files":7}', b'{"files":[7]}', b'{"files":[{"path":"a"}]}', b"\xff", b"[" * 100_000],
)
def test_what_is_no_manifest_is_no_folder(blobs, tmp_path, document):
    digest = blobs.put_bytes(document).digest
    with pytest.raises(InvalidInput):
        blobs.materialise(digest, "folder", tmp_path / "target")


def test_a_folder_whose_file_is_damaged_or_not_as_listed_does_not_appear(blobs, tmp_path):
    damaged = listed(blobs, "b", b"bytes")
    flip(blobs, damaged["sha256"], 0)
    lying = {**listed(blobs, "c"), "size_bytes": 2}
    for entry in (damaged, lying):
        digest = put_raw_manifest(blobs, [listed(blobs, "a"), entry])
        with pytest.raises(Corrupt):
            blobs.materialise(digest, "folder", tmp_path / "out" / "target")
        assert list((tmp_path / "out").iterdir()) == []


def test_budgets_of_a_folder_are_kept(blobs, tmp_path):
    folder = make_folder(tmp_path / "f")
    with pytest.raises(TooLarge):
        blobs.put_folder(folder, folders.Budgets(members=3, total_bytes=1000))
    with pytest.raises(TooLarge):
        blobs.put_folder(folder, folders.Budgets(members=10, total_bytes=10))
    assert blobs.put_folder(folder, folders.Budgets(members=4, total_bytes=17)).size_bytes == 17


def test_a_file_replaces_a_file_and_a_name_is_one_component(blobs, tmp_path):
    digest = blobs.put_bytes(b"new").digest
    (tmp_path / "x").write_bytes(b"old")
    assert blobs.materialise(digest, "file", tmp_path, "x", writable=True).read_bytes() == b"new"
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o600
    for name in ("a/b", "..", "", "/etc/x"):
        with pytest.raises(InvalidInput):
            blobs.materialise(digest, "file", tmp_path, name)
    with pytest.raises(InvalidInput):
        blobs.materialise(digest, "archive", tmp_path / "y")


def test_a_file_never_follows_a_link_at_its_target(blobs, tmp_path):
    (tmp_path / "victim").write_text("untouched")
    (tmp_path / "link").symlink_to(tmp_path / "victim")
    blobs.materialise(blobs.put_bytes(b"new").digest, "file", tmp_path / "link")
    assert (tmp_path / "victim").read_text() == "untouched"
    assert not (tmp_path / "link").is_symlink()


def test_writable_folders_and_executables_have_their_modes(blobs, tmp_path):
    source = make_folder(tmp_path / "f")
    digest = blobs.put_folder(source).digest
    fixed = blobs.materialise(digest, "folder", tmp_path / "fixed")
    loose = blobs.materialise(digest, "folder", tmp_path / "loose", writable=True)
    modes = [stat.S_IMODE((folder / name).stat().st_mode) for folder in (fixed, loose) for name in ("a.txt", "run.sh")]
    assert modes == [0o400, 0o500, 0o600, 0o700]
    assert read_folder(fixed) == read_folder(loose) == read_folder(source)


def test_an_empty_folder_is_a_folder(blobs, tmp_path):
    (tmp_path / "none").mkdir()
    blob = blobs.put_folder(tmp_path / "none")
    assert blob.size_bytes == 0
    assert list(blobs.materialise(blob.digest, "folder", tmp_path / "out").iterdir()) == []
