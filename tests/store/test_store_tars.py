import gzip
import io
import os
import subprocess
import tarfile
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopline.errors import InvalidInput, TooLarge
from loopline.store import folders
from loopline.store.blobs import PART_BYTES, LocalBlobs
from loopline.testing.blob_contract import make_folder, read_folder


@pytest.fixture
def blobs(tmp_path):
    return LocalBlobs(tmp_path / "blobs")


def make_tar(members, mode="w", fmt=tarfile.PAX_FORMAT, **options):
    """Members: (name, data) or (TarInfo, data)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, format=fmt, **options) as tar:
        for name, data in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize("fmt", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("root", [".", ""])
def test_a_tar_and_the_folder_it_was_made_of_have_one_digest(blobs, tmp_path, fmt, mode, root):
    source = make_folder(tmp_path / "source")
    deep = source / ("d" * 90) / ("e" * 90) / ("f" * 60 + ".txt")  # too long for a plain header
    if fmt != tarfile.USTAR_FORMAT:
        deep.parent.mkdir(parents=True)
        deep.write_text("deep")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, format=fmt) as tar:
        for path in [source] if root else sorted(source.iterdir()):
            tar.add(path, root or path.name)
    buffer.seek(0)
    blob = blobs.put_tar(buffer)
    assert blob == blobs.put_folder(source)
    assert read_folder(blobs.materialise(blob.digest, "folder", tmp_path / "out")) == read_folder(source)


def test_tars_of_git_and_of_gnu_tar_are_read(blobs, tmp_path):
    source = make_folder(tmp_path / "source")
    expected = blobs.put_folder(source)
    packed = subprocess.run(["tar", "-C", source, "-cz", "."], capture_output=True, check=True).stdout
    assert blobs.put_tar(io.BytesIO(packed)) == expected
    who = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b"}

    def git(*arguments):
        command = ["git", *arguments]
        return subprocess.run(command, cwd=source, check=True, capture_output=True, env={**os.environ, **who}).stdout

    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "x")
    archive = git("archive", "HEAD")
    assert b"pax_global_header" in archive
    assert blobs.put_tar(iter([archive])) == expected


def test_a_stream_may_come_in_any_pieces(blobs):
    data = os.urandom(5000)
    packed = make_tar([("a", data), ("b/c", b"")], "w:gz")
    whole = blobs.put_tar(io.BytesIO(packed))
    for size in (1, 7, 511, 512, 513):
        assert blobs.put_tar(packed[start : start + size] for start in range(0, len(packed), size)) == whole


def test_a_file_of_several_parts_is_streamed(blobs):
    data = os.urandom(PART_BYTES + 700)
    blob = blobs.put_tar(io.BytesIO(make_tar([("big", data)])))
    (entry,) = folders.read_manifest(blobs, blob.digest)
    assert blobs.read(entry.sha256) == data


@pytest.mark.parametrize(
    "member",
    [
        special("link", tarfile.SYMTYPE, "/etc/passwd"),
        special("hard", tarfile.LNKTYPE, "a"),
        special("pipe", tarfile.FIFOTYPE),
        special("device", tarfile.CHRTYPE),
        special("block", tarfile.BLKTYPE),
        special("contiguous", tarfile.CONTTYPE),
        special("sparse", tarfile.GNUTYPE_SPARSE),
        special("x" * 120, tarfile.SYMTYPE, "y" * 120),
        "../out",
        "/absolute",
        "a/../../out",
        "back\\slash",
        "new\nline",
        "A",
        "a/b",
    ],
)
@pytest.mark.parametrize("fmt", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_links_special_files_and_deceiving_names_are_refused(blobs, tmp_path, member, fmt):
    packed = make_tar([("a", b"1"), (member, b"")], fmt=fmt)
    with pytest.raises(InvalidInput):
        blobs.put_tar(io.BytesIO(packed))
    assert [path.name for path in tmp_path.iterdir()] == ["blobs"]


def test_a_link_followed_by_a_file_beneath_it_is_refused_too(blobs):
    packed = make_tar([(special("d", tarfile.SYMTYPE, "/tmp"), b""), ("d/x", b"owned")])
    with pytest.raises(InvalidInput):
        blobs.put_tar(io.BytesIO(packed))


def header_of(name=b"a", size=b"00000000001\0", kind=b"0"):
    header = bytearray(512)
    header[: len(name)] = name
    header[100:108] = b"0000644\0"
    header[124:136] = size
    header[156:157] = kind
    header[257:265] = b"ustar\x0000"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def one_record(key, value):
    body = b" " + key + b"=" + value + b"\n"
    length = len(body) + 2
    return str(length).encode() + body


def padded(data):
    return data + bytes(-len(data) % 512)


@pytest.mark.parametrize(
    "size",
    [
        b"\xff" * 12,  # -1 in base 256
        b"\xff" + b"\0" * 11,
        b"-0000000001\0",
        b"0x000000001\0",
        b"99999999999\0",
        b"1 2 3 4 5 6\0",
    ],
)
def test_a_size_that_is_negative_or_no_number_is_refused(blobs, size):
    with pytest.raises(InvalidInput):
        blobs.put_tar(iter([header_of(size=size) + bytes(2048)]))


@pytest.mark.parametrize(
    "extension",
    [
        one_record(b"size", b"-1"),
        one_record(b"size", b"1e3"),
        one_record(b"path", b"../up"),
        one_record(b"path", b"\xff\xfe"),
        one_record(b"GNU.sparse.map", b"0,1"),
        b"0 path=a\n",
        b"999 path=a\n",
        b"path=a\n",
        b"99999999999 path=a\n",
        b" =\n",
    ],
)
def test_a_pax_header_that_deceives_is_refused(blobs, extension):
    head = header_of(size=b"%011o\0" % len(extension), kind=b"x") + padded(extension)
    with pytest.raises(InvalidInput):
        blobs.put_tar(iter([head + header_of() + padded(b"x") + bytes(1024)]))


def test_huge_headers_many_members_and_large_files_are_refused_early(blobs):
    read = 0

    def endless(block):
        nonlocal read
        while True:
            read += len(block)
            yield block

    small = folders.Budgets(members=100, total_bytes=1 << 20)
    for block in (
        header_of(size=b"%011o\0" % (50 << 20), kind=b"x") + bytes(1 << 20),
        header_of(size=b"%011o\0" % (50 << 20), kind=b"g") + bytes(1 << 20),
        header_of(size=b"%011o\0" % (50 << 20), kind=b"L") + bytes(1 << 20),
        header_of(size=b"%011o\0" % (2 << 20)) + bytes(1 << 20),
        header_of(size=b"\x80" + b"\x7f" * 11) + bytes(1 << 20),
        header_of(size=b"%011o\0" % 0, kind=b"5"),
    ):
        read = 0
        with pytest.raises(TooLarge):
            blobs.put_tar(endless(block), small)
        assert read < 4 << 20


def test_many_files_are_refused(blobs):
    packed = make_tar([(f"f{i}", b"") for i in range(20)])
    with pytest.raises(TooLarge):
        blobs.put_tar(io.BytesIO(packed), folders.Budgets(members=19, total_bytes=1 << 20))
    assert blobs.put_tar(io.BytesIO(packed), folders.Budgets(members=20, total_bytes=1 << 20))


def test_a_gzip_bomb_is_refused_by_its_ratio_and_by_its_size(blobs):
    def bomb():
        deflate = zlib.compressobj(wbits=31)
        yield deflate.compress(header_of(size=b"\x80" + (1 << 40).to_bytes(11, "big")))
        for _ in range(300):
            yield deflate.compress(bytes(1 << 20))
        yield deflate.flush()

    with pytest.raises(TooLarge):
        blobs.put_tar(bomb(), folders.Budgets(members=10, total_bytes=1 << 50))
    with pytest.raises(TooLarge):
        blobs.put_tar(bomb(), folders.Budgets(members=10, total_bytes=1 << 20, ratio=10**9))
    zeros = gzip.compress(make_tar([("zeros", bytes(4 << 20))]))  # small: no attack, whatever its ratio
    assert blobs.put_tar(io.BytesIO(zeros)).size_bytes == 4 << 20


def test_what_is_cut_short_damaged_or_no_tar_is_refused(blobs):
    packed = make_tar([("a", b"x" * 1000)])
    zipped = gzip.compress(packed)
    damaged = bytearray(packed)
    damaged[3] ^= 1
    broken = bytearray(zipped)
    broken[len(broken) // 2] ^= 0xFF
    for data in (
        b"",
        b"x",
        b"PK\x03\x04" + bytes(600),
        os.urandom(2000),
        packed[:700],
        packed[:100],
        zipped[:-20],
        bytes(damaged),
        bytes(broken),
        b"\x1f\x8b",
        header_of(),
    ):
        with pytest.raises(InvalidInput):
            blobs.put_tar(iter([data]))


def test_what_follows_the_end_mark_is_not_read(blobs):
    assert blobs.put_tar(iter([make_tar([("a", b"1")]) + b"trailing"])).size_bytes == 1


@given(data=st.binary(max_size=2048), position=st.integers(0, 3000), zipped=st.booleans())
def test_no_damage_raises_anything_but_a_refusal(tmp_path_factory, data, position, zipped):
    blobs = LocalBlobs(tmp_path_factory.getbasetemp() / "fuzzed-tars")
    packed = make_tar([("a", b"x" * 600), ("n" * 150, b"y"), ("d/e", b"")])
    packed = gzip.compress(packed) if zipped else packed
    position %= len(packed)
    damaged = packed[:position] + data + packed[position + len(data) :]
    try:
        blob = blobs.put_tar(iter([damaged]))
    except (InvalidInput, TooLarge):
        return
    folders.check_paths(entry.path for entry in folders.read_manifest(blobs, blob.digest))
