import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from loopline.domain import objects
from loopline.domain.objects import Conditions
from loopline.errors import InvalidInput, NotFound, PreconditionFailed, RangeNotSatisfiable


@pytest.mark.parametrize("name", ["abc", "a.b-c", "sagemaker-us-east-1-123456789012", "1" * 63, "192.168.5.x"])
def test_names_that_a_bucket_may_have(name):
    assert objects.check_bucket(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "ab",
        "a" * 64,
        "Abc",
        "a_b",
        "-ab",
        "ab-",
        "a..b",
        "192.168.5.4",
        "xn--abc",
        "sthree-abc",
        "abc-s3alias",
        "a/b",
        "abc--ol-s3",
        "abc.mrap",
        "abc--x-s3",
        "abc--table-s3",
        "",
        "äbc",
        "abc\n",
        None,
    ],
)
def test_names_that_a_bucket_may_not_have(name):
    with pytest.raises(InvalidInput):
        objects.check_bucket(name)


@pytest.mark.parametrize("key", ["../x", "/", "a//b", ".", "..", "a\nb\r\x01", "ключ/路径/😀", "x" * 1024, "%2e%2e/"])
def test_any_text_is_a_key(key):
    assert objects.check_key(key) == key


@pytest.mark.parametrize("key", ["", "x" * 1025, "é" * 513, "a\0b", "\ud800", None, b"x"])
def test_what_is_no_key(key):
    with pytest.raises(InvalidInput):
        objects.check_key(key)


def test_addresses_of_objects():
    assert objects.split_uri("s3://abc/x/y z") == ("abc", "x/y z")
    assert objects.split_uri("s3://abc") == objects.split_uri("s3://abc/") == ("abc", "")
    assert objects.split_uri("s3://abc//x") == ("abc", "/x")
    assert objects.join_uri("abc", "x/y") == "s3://abc/x/y"
    for wrong in ("https://abc/x", "s3:/abc/x", "s3://", "s3://A/x", None, 5):
        with pytest.raises(InvalidInput):
            objects.split_uri(wrong)


@given(prefix=st.text(max_size=5), text=st.text(max_size=8))
@example(prefix="a\ud7ff", text="a\ue000")
@example(prefix="\U0010ffff", text="z")
def test_what_follows_a_prefix_is_the_first_that_does_not_begin_with_it(prefix, text):
    end = objects.following(prefix)
    if end is None:
        assert text < prefix or text.startswith(prefix)
    else:
        end.encode()
        assert (prefix <= text < end) == text.startswith(prefix)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=0-3", (0, 4)),
        ("bytes=0-0", (0, 1)),
        ("bytes=4-", (4, 6)),
        ("bytes=-3", (7, 3)),
        ("bytes=-99", (0, 10)),
        ("bytes=8-99", (8, 2)),
        (None, None),
        ("bytes=5-2", None),
        ("bytes=0-1,3-4", None),
        ("items=0-1", None),
        ("bytes=-", None),
        ("bytes=" + "9" * 5000 + "-", None),
    ],
)
def test_ranges(header, expected):
    assert objects.byte_range(header, 10) == expected


@pytest.mark.parametrize(
    ("header", "size"), [("bytes=10-", 10), ("bytes=99-100", 10), ("bytes=-0", 10), ("bytes=0-", 0)]
)
def test_ranges_that_are_not_there(header, size):
    with pytest.raises(RangeNotSatisfiable):
        objects.byte_range(header, size)


def test_ranges_of_parts_and_copies():
    assert objects.part_range([5, 5, 2], 3) == (10, 2)
    assert objects.copy_range("bytes=2-4", 5) == (2, 3)
    with pytest.raises(RangeNotSatisfiable):
        objects.part_range([5], 2)
    for wrong in ("bytes=2-", "bytes=-2", "bytes=2-5", "bytes=3-2", "x"):
        with pytest.raises(InvalidInput):
            objects.copy_range(wrong, 5)


def test_what_a_reader_has_already():
    for wanted in (Conditions(none_match='"e"'), Conditions(none_match='"a", W/"e"'), Conditions(modified_since=100)):
        assert objects.is_unmodified(wanted, "e", 100.9)
    for wanted in (Conditions(), Conditions(match="*"), Conditions(match='"e"', unmodified_since=1)):
        assert not objects.is_unmodified(wanted, "e", 100.9)
    assert not objects.is_unmodified(Conditions(none_match='"x"', modified_since=200), "e", 100)  # the tag decides
    for wanted in (Conditions(match='"x"'), Conditions(unmodified_since=99)):
        with pytest.raises(PreconditionFailed):
            objects.is_unmodified(wanted, "e", 100)


def test_what_a_writer_demands():
    objects.check_write(Conditions(none_match="*"), None)
    objects.check_write(Conditions(match='"e"'), "e")
    for wanted in (Conditions(none_match="*"), Conditions(none_match='"e"'), Conditions(match='"x"')):
        with pytest.raises(PreconditionFailed):
            objects.check_write(wanted, "e")
    with pytest.raises(NotFound):
        objects.check_write(Conditions(match="*"), None)


def test_metadata_and_tags_have_limits():
    assert objects.check_metadata({"Owner": "x"}) == {"owner": "x"}
    for check, wrong in (
        (objects.check_metadata, {"a": "x" * 2048}),
        (objects.check_tags, {str(number): "" for number in range(11)}),
        (objects.check_tags, {"x" * 129: ""}),
    ):
        with pytest.raises(InvalidInput):
            check(wrong)


def test_the_tag_of_parts_is_the_one_that_s3_gives():
    # MD5 of (MD5 of "a" and MD5 of "b"), as md5sum and xxd say
    parts = ["0cc175b9c0f1b6a831c399e269772661", "92eb5ffee6ae2fec3ad71c777531578f"]
    assert objects.etag_of_parts(parts).endswith("-2")
