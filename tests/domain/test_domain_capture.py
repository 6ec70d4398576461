"""Capture records."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopline.domain.capture import (
    HEADER,
    META_FIELDS,
    encode_captured,
    encode_compact,
    encode_record,
    ids_at,
    iter_records,
)
from loopline.domain.capturecolumns import read_columns

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


CONTEXT = {"endpoint": "e", "variant": "v", "version": 3, "model": "m", "key": None, "content_type": "a/b", "join": "j"}
IDENTIFIER = b"rq_01m7z3fq9hwvmhyftg00"


@given(st.floats(0, 4e9), st.integers(200, 599), st.integers(0, 2**40), st.binary(), st.binary())
def test_the_two_forms_of_a_record_say_the_same(at, status, latency, body, answer):
    meta = {"id": IDENTIFIER.decode(), "at": at, "status": status, "latency_us": min(latency, 2**32 - 1), **CONTEXT}
    assert tuple(meta) == META_FIELDS
    compact = encode_compact(json.dumps(CONTEXT).encode(), IDENTIFIER, at, status, latency, body, answer)
    (first, second), consumed = iter_records(compact + encode_record(meta, body, answer))
    assert first == second == (meta, body, answer)
    assert consumed > len(compact)


def test_the_id_stands_at_the_same_place_in_both_forms():
    compact = encode_compact(b"{}", IDENTIFIER, 1.0, 200, 5, b"", b"")
    written = encode_record({"id": IDENTIFIER.decode()})
    assert compact.find(IDENTIFIER) == written.find(IDENTIFIER) == HEADER.size + 7


@pytest.mark.parametrize("context", [b"", b"{", b"[]", b"\xff"])
def test_a_context_that_is_no_object_ends_the_reading(context):
    assert iter_records(encode_compact(context, IDENTIFIER, 1.0, 200, 5, b"", b"")) == ([], 0)


def test_a_reader_that_changes_a_meta_does_not_change_the_next_one():
    record = encode_compact(b'{"endpoint": "e"}', IDENTIFIER, 1.0, 200, 5, b"", b"")
    iter_records(record)[0][0].meta["endpoint"] = "other"
    assert iter_records(record)[0][0].meta["endpoint"] == "e"


@given(
    st.lists(
        st.tuples(
            st.booleans(), st.floats(0, 4e9), st.integers(200, 599), st.binary(max_size=80), st.binary(max_size=9)
        )
    ),
    st.integers(0, 60),
)
def test_columns_say_what_the_records_say(given_, torn):
    contexts = [CONTEXT, {**CONTEXT, "join": None, "purpose": "test"}]
    data, metas = b"", []
    for number, (compact, at, status, body, answer) in enumerate(given_):
        context = contexts[number % 2]
        metas.append({"id": IDENTIFIER.decode(), "at": at, "status": status, "latency_us": number, **context})
        if compact:
            data += encode_compact(json.dumps(context).encode(), IDENTIFIER, at, status, number, body, answer)
        else:
            data += encode_record(metas[-1], body, answer)
    data = data[: len(data) - torn] if torn < len(data) else data
    records, size = iter_records(data)
    columns, consumed = read_columns(data)
    everything = np.arange(len(columns))
    assert consumed == size and len(columns) == len(records)
    assert columns.bodies(everything) == [record.body for record in records]
    assert columns.answers(everything) == [record.answer for record in records]
    for number, record in enumerate(records):
        told = columns.contexts[columns.context[number]]
        assert {name: told.get(name) for name in CONTEXT} == {name: record.meta[name] for name in CONTEXT}
        assert told.get("purpose") == record.meta.get("purpose")
        values = [columns.at[number], columns.status[number], columns.latency_us[number]]
        assert values == [record.meta["at"], record.meta["status"], record.meta["latency_us"]]


CAPTURED = st.tuples(
    st.binary(min_size=23, max_size=23),
    st.floats(0, 4e9),
    st.integers(200, 599),
    st.integers(0, 2**33),
    st.binary(max_size=40),
    st.binary(max_size=20),
)


@given(
    st.lists(st.tuples(st.integers(0, 2), st.lists(CAPTURED, min_size=1, max_size=9)), max_size=5), st.integers(0, 90)
)
def test_a_block_says_what_its_records_say_one_by_one(groups, torn):
    contexts = [json.dumps({**CONTEXT, "version": version}).encode() for version in range(3)]
    blocks = [encode_captured(contexts[number], captured) for number, captured in groups]
    alone = [[encode_compact(contexts[number], *each) for each in captured] for number, captured in groups]
    data = b"".join(blocks)
    cut = max(0, len(data) - torn)
    there = sum(len(b"".join(blocks[: count + 1])) <= cut for count in range(len(blocks)))
    wanted, _ = iter_records(b"".join(record for group in alone[:there] for record in group))
    records, size = iter_records(data[:cut])
    assert records == wanted
    assert size == len(b"".join(blocks[:there]))
    columns, consumed = read_columns(data[:cut])
    everything = np.arange(len(columns))
    assert consumed == size and len(columns) == len(records)
    assert columns.bodies(everything) == [record.body for record in records]
    assert columns.answers(everything) == [record.answer for record in records]
    told = zip(columns.at, columns.status, columns.latency_us, strict=True)
    assert list(told) == [tuple(r.meta[name] for name in ("at", "status", "latency_us")) for r in records]
    assert [columns.contexts[number]["version"] for number in columns.context] == [r.meta["version"] for r in records]
    starts = {int(place) for place in columns.places[:, 0]}
    ids = [identifier for start in sorted(starts) for identifier in ids_at(data, start)]
    assert ids == [record.meta["id"].encode("latin-1") for record in records]


@pytest.mark.parametrize("column", ["count", "bodies", "answers", "context", "short"])
def test_a_block_that_contradicts_itself_ends_the_reading(column):
    captured = [(IDENTIFIER, 1.0, 200, 5, b"one", b"1"), (IDENTIFIER, 2.0, 200, 5, b"three", b"3")]
    good = encode_captured(b"{}", captured)
    meta_length = HEADER.unpack_from(good)[1]
    meta, rest = bytearray(good[HEADER.size : HEADER.size + meta_length]), good[HEADER.size + meta_length :]
    place = {
        "count": 2,
        "bodies": len(meta) - 2 - 9,
        "answers": len(meta) - 2 - 1,
        "context": len(meta) - 1,
        "short": 0,
    }
    if column == "short":
        meta = meta[:2]
    else:
        meta[place[column]] ^= 1
    bad = encode_record(bytes(meta), rest[:8], rest[8:])
    for data, count in ((good, 2), (bad, 0), (good + bad + good, 2)):
        assert len(iter_records(data)[0]) == len(read_columns(data)[0]) == count


def test_a_latency_that_is_longer_than_its_place_is_the_longest():
    records, _ = iter_records(encode_captured(b"{}", [(IDENTIFIER, 1.0, 200, 2**40, b"", b"")] * 2))
    assert [record.meta["latency_us"] for record in records] == [2**32 - 1] * 2


def test_what_is_no_number_is_nan_in_columns():
    columns, _ = read_columns(encode_record({"at": "soon", "status": None, "latency_us": [1]}))
    assert np.isnan([columns.at, columns.status, columns.latency_us]).all()
