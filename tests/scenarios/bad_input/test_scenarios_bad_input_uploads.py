"""Tars that somebody made to break out, to fill the disk, or to stand still."""

import gzip
import io
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from loopline.testing.live import Platform, until

LOOP = b'[project]\nname = "tarred"\n[model]\nname = "tarred"\n'


def tar_of(*members: tuple[tarfile.TarInfo, bytes], kind: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as tar:
        for info, data in members:
            if info.isreg():
                info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def member(name: str, type_: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = type_, link
    return info


def file(name: str, data: bytes = b"x") -> tuple[tarfile.TarInfo, bytes]:
    return member(name), data


def bomb() -> bytes:
    return gzip.compress(tar_of(file("a", bytes(64 << 20))))


def lying_size() -> bytes:
    data = bytearray(tar_of(file("a", b"short"), kind=tarfile.USTAR_FORMAT))
    data[124:136] = b"77777777777\0"
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    return bytes(data)


def negative_size() -> bytes:
    data = bytearray(tar_of(file("a", b"short"), kind=tarfile.USTAR_FORMAT))
    data[124:136] = b"\xff" * 12
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    return bytes(data)


def many() -> bytes:
    return tar_of(*(file(f"f{number}") for number in range(20_000)), kind=tarfile.USTAR_FORMAT)


TARS: dict[str, tuple[Callable[[], bytes], int]] = {
    "a symbolic link": (lambda: tar_of((member("a", tarfile.SYMTYPE, "/etc/passwd"), b"")), 400),
    "a link and a file through it": (
        lambda: tar_of((member("a", tarfile.SYMTYPE, "/tmp"), b""), file("a/loopline-was-here")),
        400,
    ),
    "a hard link": (lambda: tar_of(file("b"), (member("a", tarfile.LNKTYPE, "b"), b"")), 400),
    "climbing": (lambda: tar_of(file("../loopline-was-here")), 400),
    "climbing inside": (lambda: tar_of(file("a/../../loopline-was-here")), 400),
    "absolute": (lambda: tar_of(file("/tmp/loopline-was-here")), 400),
    "a device": (lambda: tar_of((member("a", tarfile.CHRTYPE), b"")), 400),
    "a pipe": (lambda: tar_of((member("a", tarfile.FIFOTYPE), b"")), 400),
    "the same name twice": (lambda: tar_of(file("a"), file("a")), 400),
    "names that fold to one": (lambda: tar_of(file("README"), file("readme")), 400),
    "a file that is a folder": (lambda: tar_of(file("a"), file("a/b")), 400),
    "an empty name": (lambda: tar_of(file("")), 400),
    "a control character": (lambda: tar_of(file("a\nb")), 400),
    "a backslash": (lambda: tar_of(file("..\\a")), 400),
    "300 characters": (lambda: tar_of(file("n" * 300)), 400),
    "100 folders deep": (lambda: tar_of(file("a/" * 600 + "b")), 400),
    "a name that is no UTF-8": (lambda: tar_of(file("a\udcff"), kind=tarfile.USTAR_FORMAT), 400),
    "a bomb": (bomb, 413),
    "20 000 files": (many, 413),
    "a size that lies": (lying_size, 413),
    "a negative size": (negative_size, 400),
    "cut off": (lambda: tar_of(file("a", b"x" * 5000))[:2000], 400),
    "a cut gzip": (lambda: gzip.compress(tar_of(file("a", b"x" * 5000)))[:40], 400),
    "no tar": (lambda: b"PK\x03\x04" + b"x" * 2000, 400),
    "nothing": (lambda: b"", 400),
    "zeros": (lambda: bytes(512), 400),
}


def around(platform: Platform) -> set[str]:
    places = [platform.folder.parent, platform.folder, platform.folder / "blobs", Path("/tmp")]
    return {str(path) for place in places for path in place.glob("*") if "loopline-was-here" in path.name} | {
        str(path) for path in platform.folder.parent.glob("*")
    }


@pytest.mark.parametrize(("make", "status"), TARS.values(), ids=list(TARS))
def test_a_tar_that_is_not_a_project_is_refused_whole(
    platform: Platform, make: Callable[[], bytes], status: int
) -> None:
    before = around(platform)
    events = platform.call("GET", "/api/events?limit=1")["items"]
    began = time.monotonic()
    answer = platform.ask("POST", "/api/trees", make())
    if answer.status == 201:  # no file at all: a project without its file
        answer = platform.ask("POST", "/api/pushes", {"tree": answer.json["tree"]})
    assert answer.status == status, answer
    assert answer.error["code"] == {400: "invalid_input", 413: "too_large"}[status]
    assert time.monotonic() - began < 60
    assert around(platform) == before
    assert platform.call("GET", "/api/events?limit=1")["items"] == events
    assert not list((platform.folder / "blobs" / "tmp").iterdir())


@pytest.mark.parametrize("tree", ["0" * 64, "../../etc/passwd", "", "g" * 64, "A" * 64, "0" * 63])
def test_a_tree_that_was_never_uploaded_is_refused(platform: Platform, tree: str) -> None:
    for path in ("/api/pushes", "/api/projects", "/api/projects/diff"):
        answer = platform.ask("POST", path, {"tree": tree})
        assert answer.status in (400, 404), answer
        assert answer.error["code"] in ("invalid_input", "not_found")


def test_a_file_is_no_tree_and_a_tree_no_file(platform: Platform) -> None:
    asset = platform.call("GET", "/api/assets/boxes/boxes")
    answer = platform.ask("POST", "/api/pushes", {"tree": asset["digest"]})
    assert 400 <= answer.status < 500, answer
    assert answer.error["message"]


def test_an_upload_that_breaks_off_leaves_nothing(platform: Platform) -> None:
    import socket

    address, _, port = platform.host.partition(":")
    head = f"POST /api/trees HTTP/1.1\r\nhost: {platform.host}\r\nauthorization: Bearer {platform.key}\r\n"
    with socket.create_connection((address, int(port)), 60) as sock:
        sock.sendall(head.encode() + b"content-length: 100000\r\n\r\n" + tar_of(file("a", b"x" * 5000))[:4000])
    assert platform.call("GET", "/api/health")
    until(lambda: not list((platform.folder / "blobs" / "tmp").iterdir()), "nothing of it stays")
