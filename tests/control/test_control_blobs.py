"""Bytes of objects that are gone leave the disk a day later, and nothing else does; on both databases."""

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loopline.control import assets, blobs, buckets, objects
from loopline.errors import Corrupt
from loopline.store import blobs as stored
from loopline.testing import postgres
from loopline.testing.clock import ManualClock
from loopline.testing.world import World

DAY = blobs.KEPT_SECONDS


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1_800_000_000.0)


@pytest.fixture(params=["sqlite", "postgresql"])
def world(request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock) -> Iterator[World]:
    if request.param == "sqlite":
        opened = World(tmp_path / "data", clock=clock)
        yield opened
        opened.close()
        return
    with postgres.Database(request.getfixturevalue("postgres_url"), postgres.TEMPLATE) as url:
        opened = World(tmp_path / "data", clock=clock, database_url=url)
        yield opened
        opened.close()


def put(world: World, key: str, data: bytes) -> str:
    """An object; its bytes are as old as the clock says."""
    row = objects.put(world.ctx, world.actor, bucket="box", key=key, data=[data])
    age(world, row["digest"])
    return str(row["digest"])


def age(world: World, digest: str) -> None:
    now = world.ctx.clock.now()
    os.utime(world.ctx.settings.dir / "blobs" / digest[:2] / digest, (now, now))


def delete(world: World, key: str) -> None:
    objects.delete(world.ctx, world.actor, bucket="box", key=key)


def there(world: World) -> set[str]:
    return set(world.ctx.blobs.iter_digests())


@pytest.fixture(autouse=True)
def box(world: World) -> None:
    buckets.create(world.ctx, world.actor, bucket="box")


def test_bytes_go_a_day_after_the_last_object_that_had_them(world: World, clock: ManualClock) -> None:
    gone, shared, kept = put(world, "gone", b"gone"), put(world, "shared", b"shared"), put(world, "kept", b"kept")
    objects.copy(world.ctx, world.actor, source=("box", "shared", None), bucket="box", key="copy")
    overwritten, newer = put(world, "same", b"first"), put(world, "same", b"second")
    stranger = world.ctx.blobs.put_bytes(b"never an object's").digest
    age(world, stranger)
    for key in ("gone", "shared"):
        delete(world, key)

    clock.advance(DAY - 1)
    assert blobs.free(world.ctx) == 0 and {gone, overwritten} <= there(world)
    clock.advance(2)
    assert blobs.free(world.ctx) == 2

    assert there(world) & {gone, shared, kept, overwritten, newer, stranger} == {shared, kept, newer, stranger}
    delete(world, "copy")
    clock.advance(DAY + 1)
    assert (blobs.free(world.ctx), blobs.free(world.ctx), shared in there(world)) == (1, 0, False)


def test_bytes_that_came_again_or_are_named_elsewhere_stay(world: World, clock: ManualClock) -> None:
    again, named = put(world, "again", b"again"), put(world, "named", b"a,b\n1,2\n")
    with world.ctx.db.transaction() as tx:
        kind = {"kind": "file", "file_name": "rows.csv", "size_bytes": 8}
        assets.put_in(tx, project="shop", name="rows", digest=named, actor="ann", source={}, **kind)
    tree = world.tree({"in/folder.txt": b"in a folder"})
    below = put(world, "below", b"in a folder")
    objects.put_blob(world.ctx, world.actor, bucket="box", key="tree", digest=tree)
    for key in ("again", "named", "below"):
        delete(world, key)
    clock.advance(DAY + 1)
    world.ctx.blobs.put_bytes(b"again")  # whoever put it has not written the record yet
    age(world, again)
    for digest in (named, below):
        os.utime(world.ctx.settings.dir / "blobs" / digest[:2] / digest, (1.0, 1.0))

    assert blobs.free(world.ctx) == 0

    assert {again, named, below, tree} <= there(world)


def test_what_was_killed_on_the_way_is_done_again(
    world: World, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = put(world, "first", b"1"), put(world, "second", b"2")
    for key in ("first", "second"):
        delete(world, key)
    clock.advance(DAY + 1)
    remove = stored.LocalBlobs._remove_if

    def killed(self: Any, digest: str, old: Any) -> int | None:
        if not {first, second} <= there(world):
            raise KeyboardInterrupt
        return remove(self, digest, old)

    with monkeypatch.context() as patched:
        patched.setattr(stored.LocalBlobs, "_remove_if", killed)
        with pytest.raises(KeyboardInterrupt):
            blobs.free(world.ctx)
    assert len(there(world) & {first, second}) == 1

    assert blobs.free(world.ctx) == 1 and not there(world) & {first, second}


def test_nothing_goes_while_a_manifest_cannot_be_read(world: World, clock: ManualClock) -> None:
    tree, gone = world.tree({"a.txt": b"a"}), put(world, "gone", b"gone")
    objects.put_blob(world.ctx, world.actor, bucket="box", key="tree", digest=tree)
    delete(world, "gone")
    clock.advance(DAY + 1)
    path = world.ctx.settings.dir / "blobs" / tree[:2] / tree
    whole = path.read_bytes()
    path.write_bytes(whole[:-2] + b"x}")

    with pytest.raises(Corrupt):
        blobs.free(world.ctx)

    assert gone in there(world)
    path.write_bytes(whole)
    assert blobs.free(world.ctx) == 1


@pytest.mark.parametrize("seed", range(3))
def test_every_object_that_is_there_can_be_read_whatever_went(world: World, clock: ManualClock, seed: int) -> None:
    chance = random.Random(seed)
    if seed % 2:
        buckets.set_versioning(world.ctx, world.actor, bucket="box", versioning="Enabled")
    for _ in range(120):
        key, other = (f"k{chance.randrange(6)}" for _ in range(2))
        what = chance.randrange(10)
        if what < 5:
            put(world, key, f"content {chance.randrange(9)}".encode())
        elif what < 7:
            delete(world, key)
        elif what < 8 and objects.page(world.ctx, world.actor, bucket="box", prefix=key).rows:
            objects.copy(world.ctx, world.actor, source=("box", key, None), bucket="box", key=other)
        clock.advance(chance.choice((1, 1, DAY / 2, DAY)))
        blobs.free(world.ctx)
    for row in objects.page_versions(world.ctx, world.actor, bucket="box").rows:
        if not row["marker"]:
            assert world.ctx.blobs.read(row["digest"]).startswith(b"content")
    clock.advance(2 * DAY)
    blobs.free(world.ctx)
    named = {row["digest"] for row in objects.page_versions(world.ctx, world.actor, bucket="box").rows}
    assert there(world) == named - {None}
