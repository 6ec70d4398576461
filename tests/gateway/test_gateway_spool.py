"""The capture spool of a real gateway."""

import asyncio
import os
import resource
import signal
import threading

from loopline.domain.capture import META_FIELDS, encode_record, iter_records
from loopline.gateway import spool as spool_module
from loopline.gateway.spool import Segment, Spool

IDENTIFIER = b"rq_01m7z3fq9hwvmhyftg00"
ECHO = "def load(d): pass\ndef predict(m, batch): return [row[0] for row in batch]"


def test_every_invocation_is_recorded_and_bodies_as_often_as_sampled(rig, make_variant, until):
    path = rig.start_server("a", ECHO)
    rig.publish(make_variant("v1", path, version=7), wait=False, capture=1.0)
    rig.start_gateway()
    rig.ask({"x": 5}, x_loopline_inference_id='my "join"')
    rig.ask({"x": "bad"})
    rig.ask({"x": 1}, authorization="")
    rig.publish(make_variant("v1", path, version=8), capture=0.0)
    rig.ask({"x": 6})
    records = until(lambda: len(found := rig.records()) == 4 and found)
    good, bad, denied, unsampled = records
    assert tuple(good.meta) == META_FIELDS
    assert good.meta["join"] == 'my "join"'
    assert (good.meta["endpoint"], good.meta["variant"], good.meta["version"], good.meta["model"]) == (
        "e",
        "v1",
        7,
        "m",
    )
    assert (good.meta["key"], good.meta["status"], good.meta["content_type"]) == ("abcdefgh", 200, "application/json")
    assert 0 < good.meta["latency_us"] < 60e6
    assert (good.body, good.answer) == (b'{"x": 5}', b'{"predictions":[5.0]}')
    assert (bad.meta["status"], bad.body) == (400, b'{"x": "bad"}')
    assert b"invalid_input" in bad.answer
    assert (denied.meta["status"], denied.meta["key"], denied.meta["variant"]) == (401, None, None)
    assert (denied.body, denied.answer) == (b"", b"")
    assert (unsampled.meta["version"], unsampled.body, unsampled.answer) == (8, b"", b"")


def test_half_of_the_bodies_are_kept_when_half_are_sampled(rig, make_variant, until):
    rig.publish(make_variant("v1", rig.start_server("a", ECHO)), wait=False, capture=0.5)
    rig.start_gateway(LOOPLINE_SEED="half")
    client = rig.client()
    for _ in range(400):
        rig.ask({"x": 1}, client)
    records = until(lambda: len(found := rig.records()) == 400 and found)
    kept = sum(bool(record.body) for record in records)
    assert abs(kept - 200) < 4 * 10
    assert all(bool(record.body) == bool(record.answer) for record in records)


def test_what_was_flushed_survives_a_kill_and_a_torn_tail_is_passed_over(rig, make_variant, until):
    rig.publish(make_variant("v1", rig.start_server("a", ECHO)), wait=False)
    rig.start_gateway()
    rig.ask({"x": 1})
    until(lambda: len(rig.records()) == 1)
    rig.processes["gateway"].send_signal(signal.SIGKILL)
    rig.processes["gateway"].wait()
    (segment,) = (rig.folder / "spool" / "gateway-0").glob("*.seg")
    with segment.open("ab") as file:
        file.write(encode_record({"id": "torn"}, b"x" * 100)[:-10])
    (rig.folder / "gateway.log").unlink()
    rig.start_gateway()
    rig.ask({"x": 2})
    records = until(lambda: len(found := rig.records()) == 2 and found)
    assert [record.body for record in records] == [b'{"x": 1}', b'{"x": 2}']


def test_segments_rotate_by_size(tmp_path, monkeypatch):
    monkeypatch.setattr(spool_module, "SEGMENT_BYTES", 1000)

    async def write():
        spool = Spool(tmp_path)
        for number in range(50):
            spool.add(b'{"n": %d}' % number, (IDENTIFIER, 1.0, 200, 5, b"b" * 60, b""))
            spool.flush()
            await asyncio.sleep(0)
            while spool._writing is not None:
                await asyncio.sleep(0.001)
        await spool.close()

    asyncio.run(write())
    segments = sorted(tmp_path.glob("*.seg"))
    assert len(segments) >= 5
    assert all(len(segment.stem) == 15 and segment.stat().st_size < 1200 for segment in segments)
    numbers = [record.meta["n"] for segment in segments for record in iter_records(segment.read_bytes())[0]]
    assert numbers == list(range(50))


def test_records_that_are_written_together_are_one_block_for_each_context(tmp_path):
    bodies = [b"%d" % number for number in range(30)]

    async def write():
        spool = Spool(tmp_path)
        for number, body in enumerate(bodies):
            spool.add(b'{"endpoint": "%d"}' % (number % 2), (IDENTIFIER, number, 200, number, body, b"answer"))
        await spool.close()

    asyncio.run(write())
    (segment,) = tmp_path.glob("*.seg")
    data = segment.read_bytes()
    assert data.count(b"endpoint") == 2
    records, size = iter_records(data)
    assert size == len(data)
    assert [record.body for record in records] == bodies[::2] + bodies[1::2]
    assert [record.meta["endpoint"] for record in records] == ["0"] * 15 + ["1"] * 15


def test_a_block_that_cannot_be_written_counts_every_record_of_it(tmp_path, monkeypatch):
    def full(descriptor, data):
        raise OSError(28, "No space left on device")

    async def write():
        spool = Spool(tmp_path)
        for number in range(7):
            spool.add(b"{}", (IDENTIFIER, number, 200, number, b"body", b"answer"))
        spool.add(b'{"endpoint": "e"}', (IDENTIFIER, 1.0, 200, 5, b"", b""))
        await spool.close()
        return spool.dropped

    monkeypatch.setattr(os, "write", full)
    assert asyncio.run(write()) == 8


def test_a_disk_that_does_not_answer_makes_the_gateway_hold_so_much_and_drop_the_rest(tmp_path, monkeypatch):
    real, go_on = os.write, threading.Event()

    def stuck(descriptor, data):
        go_on.wait()
        return real(descriptor, data)

    async def write():
        spool, body = Spool(tmp_path), bytes(1 << 20)
        for number in range(40):
            spool.add(b"{}", (IDENTIFIER, number, 200, number, body, b""))
        go_on.set()
        await spool.close()
        return spool.dropped

    monkeypatch.setattr(os, "write", stuck)
    dropped = asyncio.run(write())
    written = [record for path in tmp_path.glob("*.seg") for record in iter_records(path.read_bytes())[0]]
    assert [record.meta["at"] for record in written] == list(range(40 - dropped))
    assert spool_module.WAITING_BYTES <= (len(written) << 20) <= spool_module.WAITING_BYTES + (3 << 20)


def test_a_write_that_fails_half_way_keeps_whole_records_and_cuts_the_torn_one_off(tmp_path, monkeypatch):
    segment = Segment(tmp_path)
    records = [encode_record({"n": number}) for number in range(5)]
    assert segment.append(records[:1]) == (1, None)
    real, room = os.write, [len(records[1]) + 10]

    def full(descriptor, data):
        if not room[0]:
            raise OSError(28, "No space left on device")
        count = real(descriptor, data[: room[0]])
        room[0] -= count
        return count

    monkeypatch.setattr(os, "write", full)
    kept, error = segment.append(records[1:4])
    assert kept == 1
    assert "No space" in str(error)
    (path,) = tmp_path.glob("*.seg")
    seen = path.stat().st_size  # a reader may be here already
    monkeypatch.setattr(os, "write", real)
    assert segment.append(records[4:]) == (1, None)
    segment.close()
    found, consumed = iter_records(path.read_bytes())
    assert [record.meta["n"] for record in found] == [0, 1, 4]
    assert consumed == path.stat().st_size > seen


def test_a_full_disk_drops_captures_with_a_count_and_one_line_while_answers_go_on(rig, make_variant, until):
    rig.publish(make_variant("v1", rig.start_server("a", ECHO)), wait=False)
    gateway = rig.start_gateway()
    client = rig.client()
    rig.ask({"x": 1}, client)
    until(lambda: len(rig.records()) == 1)
    size = max(path.stat().st_size for path in (rig.folder / "spool" / "gateway-0").glob("*.seg"))
    resource.prlimit(gateway.pid, resource.RLIMIT_FSIZE, (size + 100, resource.RLIM_INFINITY))
    for _ in range(3):
        before = rig.state().get("captures_dropped", 0)
        assert rig.ask({"x": 2}, client)[0] == 200
        until(lambda count=before: rig.state().get("captures_dropped", 0) > count)
    assert rig.gateway_log().count("captures are dropped") == 1
    resource.prlimit(gateway.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    rig.ask({"x": 3}, client)
    records = until(lambda: len(found := rig.records()) >= 2 and found)
    assert records[-1].body == b'{"x": 3}'
    assert [record.body for record in records].count(b'{"x": 2}') == 0
    until(lambda: "captures are written again" in rig.gateway_log())
