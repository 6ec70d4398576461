import base64
import hashlib
import itertools
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopline.domain import checksums
from loopline.domain.checksums import Checking, checksum
from loopline.errors import InvalidInput


def by_bits(data, width, polynomial):
    """A reflected CRC by its definition, one bit at a time."""
    value = flip = (1 << width) - 1
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = (value >> 1) ^ (polynomial if value & 1 else 0)
    return base64.b64encode((value ^ flip).to_bytes(width // 8, "big")).decode()


@pytest.mark.parametrize(
    ("name", "said"), [("CRC32", "cbf43926"), ("CRC32C", "e3069283"), ("CRC64NVME", "ae8b14860a799888")]
)
def test_the_check_values_of_the_catalogue(name, said):
    assert base64.b64decode(checksum(name, b"123456789")).hex() == said


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 5000, 300_001])
def test_lanes_say_what_bits_say(size):
    data = bytes((number * 31 + number // 251) & 0xFF for number in range(size))
    assert checksum("CRC32C", data) == by_bits(data, 32, 0x82F63B78)
    assert checksum("CRC64NVME", data) == by_bits(data, 64, 0x9A6C9329AC4BC9B5)


@given(data=st.binary(max_size=3000), cuts=st.lists(st.integers(0, 3000), max_size=4))
def test_how_bytes_are_cut_changes_no_checksum(data, cuts):
    places = sorted({0, len(data), *(min(cut, len(data)) for cut in cuts)})
    parts = [data[a:b] for a, b in itertools.pairwise(places)]
    checking = Checking(wanted=checksums.ALGORITHMS)
    assert b"".join(checking.through(parts)) == data
    assert checking.found == {name: checksum(name, data) for name in checksums.ALGORITHMS}
    assert checking.md5 == hashlib.md5(data).hexdigest()
    assert checking.size_bytes == len(data)


def test_a_checksum_that_differs_is_told_after_the_last_byte():
    right = base64.b64encode(zlib.crc32(b"abc").to_bytes(4, "big")).decode()
    for checking in (
        Checking({"CRC32": right}),
        Checking(later=lambda: {"CRC32": right}, wanted=["CRC32"]),
        Checking(content_md5=base64.b64encode(hashlib.md5(b"abc").digest()).decode()),
    ):
        assert list(checking.through([b"a", b"bc"])) == [b"a", b"bc"]
    for checking in (
        Checking({"CRC32": "AAAAAA=="}),
        Checking(later=lambda: {"CRC32": ""}, wanted=["CRC32"]),
        Checking(content_md5="A" * 22 + "=="),
    ):
        with pytest.raises(InvalidInput) as caught:
            list(checking.through([b"abc"]))
        assert caught.value.details["kind"] == "mismatch"


@pytest.mark.parametrize("said", ["", "abc", "!!!!", "AAAAAAAA"])
def test_what_is_no_checksum_is_refused_before(said):
    with pytest.raises(InvalidInput) as caught:
        Checking({"CRC32": said})
    assert caught.value.details == {"kind": "digest", "algorithm": "CRC32"}


def test_the_checksum_of_checksums():
    parts = [checksum("CRC32", b"a"), checksum("CRC32", b"b")]
    joined = b"".join(base64.b64decode(part) for part in parts)
    assert checksums.composite("CRC32", parts) == f"{checksum('CRC32', joined)}-2"
