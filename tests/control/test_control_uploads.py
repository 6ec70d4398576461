"""Uploads in parts: what one becomes, what is refused, and that nothing is left of one that breaks off."""

import base64
import hashlib
import itertools
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from loopline.control import buckets, objects, uploads
from loopline.control.uploads import Part
from loopline.domain.checksums import Checking, checksum, composite
from loopline.domain.objects import MIN_PART_BYTES, Conditions
from loopline.errors import InvalidInput, NotFound, PreconditionFailed
from loopline.testing import postgres
from loopline.testing.clock import ManualClock
from loopline.testing.world import World

BUCKET, KEY = "bucket", "../large\nobject"
PLACE = {"bucket": BUCKET, "key": KEY}
BIG = b"0123456789abcdef" * (MIN_PART_BYTES // 16)


@pytest.fixture(params=["sqlite", "postgresql"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    with ExitStack() as stack:
        settings: dict[str, Any] = {}
        if request.param == "postgresql":
            database = postgres.Database(request.getfixturevalue("postgres_url"), postgres.TEMPLATE)
            settings["database_url"] = stack.enter_context(database)
        opened = World(tmp_path / "data", **settings)
        stack.callback(opened.close)
        buckets.create(opened.ctx, opened.actor, bucket=BUCKET)
        yield opened


def begin(world: World, **given: Any) -> str:
    described = objects.describe(content_type="text/plain", metadata={"a": "b"})
    return str(uploads.begin(world.ctx, world.actor, **PLACE, described=described, **given)["id"])


def put(world: World, upload: str, number: int, data: bytes, **given: Any) -> Part:
    row = uploads.put_part(world.ctx, world.actor, **PLACE, upload=upload, number=number, data=[data], **given)
    return Part(number, row["md5"], row["checksums"] or {})


def complete(world: World, upload: str, parts: list[Part], **given: Any) -> dict[str, Any]:
    return uploads.complete(world.ctx, world.actor, **PLACE, upload=upload, parts=parts, **given)


def files(world: World) -> list[Path]:
    return [path for path in (world.ctx.settings.dir / "uploads").rglob("*") if path.is_file()]


def test_parts_in_any_order_become_one_object(world: World) -> None:
    upload = begin(world)
    last = put(world, upload, 7, b"the end")
    put(world, upload, 2, b"replaced")
    first = put(world, upload, 2, BIG)
    assert len(files(world)) == 2
    _, listed, more = uploads.list_parts(world.ctx, world.actor, **PLACE, upload=upload)
    assert [(part["number"], part["size_bytes"]) for part in listed] == [(2, MIN_PART_BYTES), (7, 7)]
    assert not more
    assert [row["id"] for row in uploads.page(world.ctx, world.actor, bucket=BUCKET).rows] == [upload]
    with pytest.raises(NotFound):
        objects.show(world.ctx, world.actor, **PLACE)
    row = complete(world, upload, [first, last], size_bytes=MIN_PART_BYTES + 7)
    data = BIG + b"the end"
    md5s = hashlib.md5(BIG).digest() + hashlib.md5(b"the end").digest()
    assert row["etag"] == hashlib.md5(md5s).hexdigest() + "-2"
    assert row["digest"] == hashlib.sha256(data).hexdigest()
    assert (row["content_type"], row["metadata"]) == ("text/plain", {"a": "b"})
    assert [part["size_bytes"] for part in row["parts"]] == [MIN_PART_BYTES, 7]
    assert complete(world, upload, [first, last])["id"] == row["id"]  # a client that heard no answer asks again
    assert files(world) == []
    with pytest.raises(NotFound):
        put(world, upload, 1, b"late")
    assert files(world) == []
    assert uploads.page(world.ctx, world.actor, bucket=BUCKET).rows == []


def test_what_cannot_be_completed(world: World) -> None:
    upload = begin(world)
    one, two = put(world, upload, 1, b"small"), put(world, upload, 2, b"last")
    for kind, parts in (
        ("no_parts", []),
        ("part_order", [two, one]),
        ("part_order", [one, one]),
        ("part", [one, Part(3, two.etag)]),
        ("part", [Part(1, two.etag)]),
        ("part_size", [one, two]),
        ("size", [one]),
    ):
        with pytest.raises(InvalidInput) as caught:
            complete(world, upload, parts, size_bytes=99 if kind == "size" else None)
        assert caught.value.details["kind"] == kind
    objects.put(world.ctx, world.actor, **PLACE, data=[b"there"])
    with pytest.raises(PreconditionFailed):
        complete(world, upload, [one], wanted=Conditions(none_match="*"))
    for number in (0, 10_001):
        with pytest.raises(InvalidInput):
            put(world, upload, number, b"")
    assert complete(world, upload, [one])["size_bytes"] == 5


def test_checksums_of_parts_and_of_the_whole(world: World) -> None:
    upload = begin(world, algorithm="CRC32")
    parts = [put(world, upload, n, data, checking=Checking(wanted=["CRC32"])) for n, data in ((1, BIG), (2, b"end"))]
    assert parts[0].checksums == {"CRC32": checksum("CRC32", BIG)}
    wrong = [parts[0], Part(2, parts[1].etag, {"CRC32": "AAAAAA=="})]
    for refused, given in ((wrong, {}), (parts, {"expected": {"CRC32": "AAAAAA==-2"}})):
        with pytest.raises(InvalidInput):
            complete(world, upload, refused, **given)
    row = complete(world, upload, parts)
    said = composite("CRC32", [part.checksums["CRC32"] for part in parts])
    assert row["checksums"] == {"CRC32": said, "type": "COMPOSITE"}

    whole = base64.b64encode(zlib.crc32(BIG + b"end").to_bytes(4, "big")).decode()
    upload = begin(world, algorithm="CRC32", whole=True)
    parts = [put(world, upload, n, data) for n, data in ((1, BIG), (2, b"end"))]
    with pytest.raises(InvalidInput):
        complete(world, upload, parts, expected={"CRC32": "AAAAAA=="})
    row = complete(world, upload, parts, expected={"CRC32": whole})
    assert row["checksums"] == {"CRC32": whole, "type": "FULL_OBJECT"}
    for wrong_kind in ({"algorithm": "SHA256", "whole": True}, {"algorithm": "CRC64NVME", "whole": False}):
        with pytest.raises(InvalidInput):
            begin(world, **wrong_kind)


def test_a_part_that_breaks_off_leaves_nothing(world: World) -> None:
    upload = begin(world)

    def broken() -> Iterator[bytes]:
        yield b"half"
        raise ConnectionError("the client is gone")

    for data, checking in ((broken(), None), ([b"abc"], Checking({"SHA1": checksum("SHA1", b"other")}))):
        with pytest.raises((ConnectionError, InvalidInput)):
            uploads.put_part(world.ctx, world.actor, **PLACE, upload=upload, number=1, data=data, checking=checking)
    assert files(world) == []

    def aborted() -> Iterator[bytes]:
        yield b"half"
        uploads.abort(world.ctx, world.actor, **PLACE, upload=upload)
        yield b"rest"

    with pytest.raises(NotFound):
        uploads.put_part(world.ctx, world.actor, **PLACE, upload=upload, number=1, data=aborted())
    assert files(world) == []
    with pytest.raises(NotFound):
        complete(world, upload, [Part(1, "x")])
    with pytest.raises(NotFound):
        uploads.abort(world.ctx, world.actor, **PLACE, upload=upload)


def test_what_a_dead_process_left_is_swept(world: World) -> None:
    folder = world.ctx.settings.dir / "uploads"
    kept, ended = begin(world), begin(world)
    part = put(world, kept, 1, b"kept")
    complete(world, ended, [put(world, ended, 1, b"done")])
    (folder / ended).mkdir()
    (folder / ended / "left").write_bytes(b"of a process that died between its commit and its cleaning")
    half = world.ctx.settings.dir / "blobs" / "tmp" / "half"
    half.write_bytes(b"half an object")
    assert uploads.prune(world.ctx) == 0
    assert half.exists()  # perhaps it is being written
    assert [path.parent.name for path in files(world)] == [kept]
    clock = ManualClock(world.ctx.clock.now() + uploads.KEPT_SECONDS + 1)
    world.ctx.clock = clock
    world.ctx.db.use_clock(clock.now)
    assert uploads.prune(world.ctx) == 1
    assert not half.exists()
    assert complete(world, kept, [part])["size_bytes"] == 4


def test_pages_of_uploads(world: World) -> None:
    for key in ("a/1", "a/2", "b", "b", "c"):
        described = objects.describe()
        uploads.begin(world.ctx, world.actor, bucket=BUCKET, key=key, described=described)
    found: list[str] = []
    place: dict[str, Any] = {}
    for _ in itertools.repeat(None, 9):
        page = uploads.page(world.ctx, world.actor, bucket=BUCKET, delimiter="/", limit=1, **place)
        found += [row["key"] for row in page.rows] + page.prefixes
        if page.last is None:
            break
        place = {"after": page.last, "after_upload": page.last_row["id"] if page.last_row else None}
    assert found == ["a/", "b", "b", "c"]
