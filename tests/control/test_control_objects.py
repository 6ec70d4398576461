"""Objects: versions of keys, conditions, copies, lists against a plain model; on both databases."""

import hashlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loopline.control import buckets, objects
from loopline.domain.checksums import Checking
from loopline.domain.objects import Conditions
from loopline.errors import Conflict, InvalidInput, NotFound, PreconditionFailed, TooLarge
from loopline.testing import postgres
from loopline.testing.world import World

names = (f"bucket-{number}" for number in itertools.count())


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder: Path = tmp_path_factory.mktemp("objects") / "data"
    if request.param == "sqlite":
        opened = World(folder)
        yield opened
        opened.close()
        return
    with postgres.Database(request.getfixturevalue("postgres_url"), postgres.TEMPLATE) as url:
        opened = World(folder, database_url=url)
        yield opened
        opened.close()


@pytest.fixture
def bucket(world: World) -> str:
    return made(world)


def made(world: World, versioning: str | None = None) -> str:
    name = next(names)
    buckets.create(world.ctx, world.actor, bucket=name)
    if versioning:
        buckets.set_versioning(world.ctx, world.actor, bucket=name, versioning=versioning)
    return name


def put(world: World, bucket: str, key: str, data: bytes = b"x", **given: Any) -> dict[str, Any]:
    return objects.put(world.ctx, world.actor, bucket=bucket, key=key, data=[data], **given)


def read(world: World, bucket: str, key: str, version: str | None = None) -> bytes:
    row, reader = objects.open_(world.ctx, bucket, key, version)
    with reader:
        data = reader.read()
    assert hashlib.sha256(data).hexdigest() == row["digest"]
    return data


def blobs(world: World) -> set[str]:
    return set(world.ctx.blobs.iter_digests())


def files_below(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


# -- versions ---------------------------------------------------------------------------------------------------------


def test_a_bucket_without_versions_keeps_the_last_bytes(world: World, bucket: str) -> None:
    first = put(world, bucket, "k", b"one")
    second = put(world, bucket, "k", b"two")
    assert read(world, bucket, "k") == b"two"
    assert first["version"] == second["version"] == "null"
    assert first["etag"] == hashlib.md5(b"one").hexdigest()
    assert len(objects.page_versions(world.ctx, world.actor, bucket=bucket).rows) == 1
    objects.delete(world.ctx, world.actor, bucket=bucket, key="k")
    objects.delete(world.ctx, world.actor, bucket=bucket, key="k")  # what is not there is no error
    with pytest.raises(NotFound) as caught:
        read(world, bucket, "k")
    assert caught.value.details == {"missing": "object"}


def test_every_version_stays_until_it_is_deleted_for_good(world: World) -> None:
    bucket = made(world, "Enabled")
    one, two = put(world, bucket, "k", b"one"), put(world, bucket, "k", b"two")
    assert read(world, bucket, "k") == b"two"
    assert read(world, bucket, "k", one["version"]) == b"one"
    marker = objects.delete(world.ctx, world.actor, bucket=bucket, key="k")
    assert marker["marker"] is True
    with pytest.raises(NotFound) as caught:
        read(world, bucket, "k")
    assert caught.value.details["marker"] == marker["version"]
    assert objects.list_(world.ctx, world.actor, bucket=bucket)["items"] == []
    listed = objects.page_versions(world.ctx, world.actor, bucket=bucket).rows
    assert [(row["marker"], row["current"]) for row in listed] == [(True, True), (False, False), (False, False)]
    objects.delete(world.ctx, world.actor, bucket=bucket, key="k", version=marker["version"])  # undeleted
    assert read(world, bucket, "k") == b"two"
    objects.delete(world.ctx, world.actor, bucket=bucket, key="k", version=two["version"])
    assert read(world, bucket, "k") == b"one"
    with pytest.raises(Conflict):
        buckets.delete(world.ctx, world.actor, bucket=bucket)
    objects.delete(world.ctx, world.actor, bucket=bucket, key="k", version=one["version"])
    buckets.delete(world.ctx, world.actor, bucket=bucket)
    with pytest.raises(NotFound):
        buckets.show(world.ctx, world.actor, bucket=bucket)


def test_a_bucket_that_keeps_no_more_versions_replaces_its_own_only(world: World) -> None:
    bucket = made(world)
    put(world, bucket, "k", b"before")
    buckets.set_versioning(world.ctx, world.actor, bucket=bucket, versioning="Enabled")
    kept = put(world, bucket, "k", b"kept")
    assert read(world, bucket, "k", "null") == b"before"
    buckets.set_versioning(world.ctx, world.actor, bucket=bucket, versioning="Suspended")
    put(world, bucket, "k", b"after")
    assert read(world, bucket, "k", "null") == b"after"
    assert read(world, bucket, "k", kept["version"]) == b"kept"
    assert objects.delete(world.ctx, world.actor, bucket=bucket, key="k") == {"version": "null", "marker": True}
    listed = objects.page_versions(world.ctx, world.actor, bucket=bucket).rows
    assert [(row["version"], row["marker"]) for row in listed] == [("null", True), (kept["version"], False)]


# -- whole or not at all ----------------------------------------------------------------------------------------------


def test_an_object_appears_whole_or_not_at_all(world: World, bucket: str) -> None:
    put(world, bucket, "k", b"old")

    def broken() -> Iterator[bytes]:
        yield b"half"
        raise ConnectionError("the client is gone")

    before = blobs(world), files_below(world.ctx.settings.dir / "blobs")
    with pytest.raises(ConnectionError):
        objects.put(world.ctx, world.actor, bucket=bucket, key="k", data=broken())
    with pytest.raises(InvalidInput):
        put(world, bucket, "k", b"other", checking=Checking({"CRC32": "AAAAAA=="}))
    with pytest.raises(TooLarge):
        put(world, bucket, "k", b"too large", max_bytes=3)
    assert read(world, bucket, "k") == b"old"
    assert (blobs(world), files_below(world.ctx.settings.dir / "blobs")) == before


def test_conditions_are_judged_where_the_object_is_written(world: World, bucket: str) -> None:
    absent = Conditions(none_match="*")
    row = put(world, bucket, "k", b"one", wanted=absent)
    with pytest.raises(PreconditionFailed):
        put(world, bucket, "k", b"two", wanted=absent)
    with pytest.raises(NotFound):
        put(world, bucket, "other", b"two", wanted=Conditions(match="*"))

    def meanwhile() -> Iterator[bytes]:
        yield b"late"
        put(world, bucket, "k", b"quicker")

    with pytest.raises(PreconditionFailed):
        objects.put(
            world.ctx, world.actor, bucket=bucket, key="k", data=meanwhile(), wanted=Conditions(match=row["etag"])
        )
    assert read(world, bucket, "k") == b"quicker"
    with pytest.raises(PreconditionFailed):
        objects.delete(world.ctx, world.actor, bucket=bucket, key="k", wanted=Conditions(match="other"))


def test_keys_are_never_paths(world: World, bucket: str) -> None:
    keys = ["../x", "/etc/passwd", "..", ".", "a/../../b", "c\nd\r\te", "ключ/😀", "x" * 1024, "%2e%2e/", "a\\b", " "]
    outside = files_below(world.ctx.settings.dir.parent) - files_below(world.ctx.settings.dir / "blobs")
    for key in keys:
        put(world, bucket, key, key.encode())
    assert {key: read(world, bucket, key) for key in keys} == {key: key.encode() for key in keys}
    assert [row["key"] for row in objects.list_prefix(world.ctx, bucket)] == sorted(keys)
    now = files_below(world.ctx.settings.dir.parent) - files_below(world.ctx.settings.dir / "blobs")
    assert {path.name for path in now - outside} <= {"loopline.db-wal", "loopline.db-shm"}
    with pytest.raises(NotFound):
        put(world, "no-such-bucket", "k")


# -- copies and folders -----------------------------------------------------------------------------------------------


def test_a_copy_holds_the_same_bytes_and_its_own_description(world: World, bucket: str) -> None:
    source = put(world, bucket, "k", b"abc", content_type="text/plain", metadata={"Who": "me"}, tags={"a": "1"})
    copied, came = objects.copy(world.ctx, world.actor, source=(bucket, "k", None), bucket=bucket, key="same")
    assert came["id"] == source["id"]
    assert {name: copied[name] for name in ("digest", "content_type", "metadata", "tags", "etag")} == {
        name: source[name] for name in ("digest", "content_type", "metadata", "tags", "etag")
    }
    replace = {"content_type": "text/csv", "metadata": {"who": "you"}}
    other, _ = objects.copy(
        world.ctx, world.actor, source=(bucket, "k", None), bucket=bucket, key="k", replace=replace, tags={}
    )
    assert (other["content_type"], other["metadata"], other["tags"]) == ("text/csv", {"who": "you"}, None)
    assert read(world, bucket, "k") == b"abc"
    with pytest.raises(PreconditionFailed):
        objects.copy(
            world.ctx,
            world.actor,
            source=(bucket, "k", None),
            bucket=bucket,
            key="z",
            source_wanted=Conditions(none_match=f'"{source["etag"]}"'),
        )


def test_a_prefix_is_a_folder_for_jobs_and_a_folder_becomes_objects(world: World, bucket: str, tmp_path: Path) -> None:
    for key in ("data/", "data/a.csv", "data/sub/b.csv", "data-other", "datax/c"):
        put(world, bucket, key, key.encode())
    folder = objects.folder(world.ctx, bucket, "data")
    target = world.ctx.blobs.materialise(folder.digest, "folder", tmp_path / "channel")
    assert {path.relative_to(target).as_posix() for path in files_below(target)} == {"a.csv", "sub/b.csv"}
    rows = objects.put_folder(
        world.ctx, world.actor, bucket=bucket, prefix="out", digest=folder.digest, source={"kind": "job"}
    )
    assert [row["key"] for row in rows] == ["out/a.csv", "out/sub/b.csv"]
    assert rows[0]["etag"] == hashlib.md5(b"data/a.csv").hexdigest()
    assert read(world, bucket, "out/sub/b.csv") == b"data/sub/b.csv"
    put(world, bucket, "data/../secret", b"")
    with pytest.raises(InvalidInput):
        objects.folder(world.ctx, bucket, "data/")


# -- lists ------------------------------------------------------------------------------------------------------------

KEYS = st.lists(st.text("ab/\n\U0010ffff\ue000", min_size=1, max_size=5), max_size=14)


def entries(keys: list[str], prefix: str, delimiter: str) -> list[tuple[str, bool]]:
    """The plain model of a list: (key or common prefix, whether it is a prefix), in the order of UTF-8."""
    found = set()
    for key in keys:
        if key.startswith(prefix):
            head, mark, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
            found.add((prefix + head + mark, True) if mark else (key, False))
    return sorted(found, key=lambda entry: entry[0].encode())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    keys=KEYS,
    deleted=KEYS,
    prefix=st.sampled_from(["", "a", "a/", "b", "\U0010ffff"]),
    delimiter=st.sampled_from(["", "/", "a", "/a"]),
    after=st.none() | st.text("ab/", max_size=3),
    limit=st.integers(1, 4),
)
def test_pages_together_are_the_list(
    world: World,
    keys: list[str],
    deleted: list[str],
    prefix: str,
    delimiter: str,
    after: str | None,
    limit: int,
) -> None:
    bucket = made(world, "Enabled")
    for key in dict.fromkeys(keys):
        put(world, bucket, key, b"")
    for key in deleted:
        objects.delete(world.ctx, world.actor, bucket=bucket, key=key)
    expected = [
        entry for entry in entries(sorted(set(keys) - set(deleted)), prefix, delimiter) if entry[0] > (after or "")
    ]
    found: list[tuple[str, bool]] = []
    place = after or None
    for _ in range(len(expected) // limit + 1):
        page = objects.page(
            world.ctx, world.actor, bucket=bucket, prefix=prefix, delimiter=delimiter, after=place, limit=limit
        )
        got = [(row["key"], False) for row in page.rows] + [(each, True) for each in page.prefixes]
        found += sorted(got, key=lambda entry: entry[0].encode())
        place = page.last
        if place is None:
            break
        assert len(got) == limit
    assert found == expected
    assert place is None


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    moves=st.lists(st.tuples(st.sampled_from(["a", "a/b", "a/c", "b"]), st.booleans()), max_size=12),
    delimiter=st.sampled_from(["", "/"]),
    limit=st.integers(1, 3),
)
def test_pages_of_versions_together_are_all_versions(
    world: World, moves: list[tuple[str, bool]], delimiter: str, limit: int
) -> None:
    bucket = made(world, "Enabled")
    made_versions: dict[str, list[str]] = {}
    for key, is_put in moves:
        done = put(world, bucket, key) if is_put else objects.delete(world.ctx, world.actor, bucket=bucket, key=key)
        made_versions.setdefault(key, []).insert(0, done["version"])
    expected: list[tuple[str, str | None]] = []
    for name, rolled in entries(sorted(made_versions), "", delimiter):
        expected += [(name, None)] if rolled else [(name, version) for version in made_versions[name]]
    found: list[tuple[str, str | None]] = []
    after = after_version = None
    for _ in range(len(expected) + 1):
        page = objects.page_versions(
            world.ctx,
            world.actor,
            bucket=bucket,
            delimiter=delimiter,
            after=after,
            after_version=after_version,
            limit=limit,
        )
        got = [(row["key"], row["version"]) for row in page.rows] + [(each, None) for each in page.prefixes]
        found += sorted(got, key=lambda entry: entry[0])
        after, after_version = page.last, None if page.last_row is None else page.last_row["version"]
        if after is None:
            break
    assert found == expected
