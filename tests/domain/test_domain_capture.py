"""Capture records."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopline.domain.capture import HEADER, encode_record, iter_records

RECORDS = st.lists(st.tuples(st.dictionaries(st.text(), st.integers()), st.binary(), st.binary()), max_size=5)


@given(RECORDS)
def test_what_is_written_is_read_back(records):
    segment = b"".join(encode_record(*record) for record in records)
    found, consumed = iter_records(segment)
    assert [tuple(record) for record in found] == records
    assert consumed == len(segment)


@given(RECORDS, st.data())
def test_a_torn_tail_is_left_for_later_and_read_when_it_is_whole(records, data):
    segment = b"".join(encode_record(*record) for record in records)
    cut = data.draw(st.integers(0, len(segment)))
    first, consumed = iter_records(segment[:cut])
    assert consumed <= cut
    rest, more = iter_records(segment[consumed:])
    assert [tuple(record) for record in first + rest] == records
    assert consumed + more == len(segment)


@pytest.mark.parametrize("position", range(HEADER.size + 12))
def test_a_flipped_byte_stops_the_reader_at_its_record(position):
    good = encode_record({"a": 1}, b"body", b"out")
    bad = bytearray(encode_record({"a": 1}, b"body", b"out"))
    bad[position] ^= 0x40
    records, consumed = iter_records(good + bytes(bad) + good)
    assert len(records) == 1
    assert consumed == len(good)


def test_meta_may_be_given_as_json_text():
    assert encode_record(b'{"a":1}', b"b") == encode_record({"a": 1}, b"b")


def test_meta_that_is_no_object_is_damage():
    assert iter_records(encode_record(b"[1]")) == ([], 0)
    assert iter_records(encode_record(b"{")) == ([], 0)
