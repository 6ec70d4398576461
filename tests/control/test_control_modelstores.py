"""Model stores: what becomes of the archives below a prefix when a gateway asks for them."""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loopline.control import blueprints, buckets, endpoints, modelstores, multimodel, objects, servables
from loopline.errors import Conflict, InvalidInput, NotFound
from loopline.testing.fleet import Fleet
from loopline.testing.world import World

PREDICT = "def load(model_dir): pass\ndef predict(model, batch): return [1 for row in batch]\n"


def packed(files: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text.encode()))
    return buffer.getvalue()


def put(world: World, key: str, data: bytes) -> None:
    objects.put(world.ctx, world.actor, bucket="files", key=key, data=iter([data]))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """The endpoint ``many`` over ``s3://files/models/``, with one archive, ``north/a.tar``."""
    world = World(tmp_path / "data")
    ctx, actor = world.ctx, world.actor
    buckets.create(ctx, actor, bucket="files")
    put(world, "models/north/a.tar", packed({"code/predict.py": PREDICT}))
    servables.create(ctx, actor, name="store", store="s3://files/models")
    given = {"name": "live", "servable": "store", "memory_mb": 300}
    blueprints.create(ctx, actor, name="store", variants=[given])
    blueprints.start(ctx, actor, endpoint="many", blueprint="store")
    world.settle(lambda: shown(world)["status"] == "InService")
    yield world
    world.close()


def shown(world: World) -> dict[str, Any]:
    found: dict[str, Any] = endpoints.show(world.ctx, world.actor, endpoint="many")
    return found


def served(world: World) -> list[str]:
    """What can be asked for, by the published snapshot."""
    body = Fleet(world.ctx).snapshot()["endpoints"]["many"]
    assert body["multi_model"] is True and body["fetches"] is True
    return [each["answers_to"] for each in body["variants"]]


def told(world: World, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What gateways are told besides tables."""
    heard: list[dict[str, Any]] = []
    monkeypatch.setattr(modelstores.snapshots, "tell_gateways", lambda _, message: heard.append(message))
    return heard


def test_an_archive_becomes_a_model_once_however_often_it_is_asked_for(world: World) -> None:
    assert served(world) == []
    for _ in range(3):
        modelstores.wanted(world.ctx, "many", "north/a.tar")
    world.settle(lambda: served(world) == ["north/a.tar"])
    modelstores.wanted(world.ctx, "many", "north/a.tar")
    (variant,) = shown(world)["variants"]
    assert (variant["status"], variant["called"], variant["weight"]) == ("Ready", "live", 100.0)
    assert variant["name"].startswith("north-a-tar-")
    (process,) = Fleet(world.ctx).processes()
    assert (process["on_demand"], process["group"]) == (True, "many")
    listed = multimodel.list_(world.ctx, world.actor, endpoint="many")
    assert [(row["model"], row["state"]) for row in listed["items"]] == [("north/a.tar", "asleep")]
    assert listed["limit_mb"] == 300


def test_an_archive_that_changes_or_goes_is_put_down(world: World) -> None:
    modelstores.wanted(world.ctx, "many", "north/a.tar")
    world.settle(lambda: served(world) == ["north/a.tar"])
    modelstores.refresh(world.ctx)
    assert served(world) == ["north/a.tar"]
    put(world, "models/north/a.tar", packed({"code/predict.py": PREDICT, "more": "x"}))
    modelstores.refresh(world.ctx)
    assert served(world) == [] and Fleet(world.ctx).processes() == []
    modelstores.wanted(world.ctx, "many", "north/a.tar")
    world.settle(lambda: served(world) == ["north/a.tar"])
    objects.delete(world.ctx, world.actor, bucket="files", key="models/north/a.tar")
    modelstores.refresh(world.ctx)
    assert served(world) == []


def test_what_is_no_model_is_told_to_the_gateways(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    put(world, "secret.tar", packed({"code/predict.py": PREDICT}))
    put(world, "models/broken.tar", b"no tar at all")
    heard = told(world, monkeypatch)
    for model in ("none.tar", "../secret.tar", "", "x" * 2000, "a\0b"):
        modelstores.wanted(world.ctx, "many", model)
        assert heard.pop()["absent"] is True, model
    modelstores.wanted(world.ctx, "nowhere", "north/a.tar")
    assert heard.pop()["absent"] is True
    modelstores.wanted(world.ctx, "many", "broken.tar")
    world.settle(lambda: len(heard) > 0)
    assert heard[0]["absent"] is False and "is no tar of files" in heard[0]["message"]
    modelstores.wanted(world.ctx, "many", "broken.tar")  # the same bytes are not tried again
    assert len(heard) == 2 and "is no tar of files" in heard[1]["message"]
    monkeypatch.undo()
    put(world, "models/broken.tar", packed({"code/predict.py": PREDICT}))
    modelstores.wanted(world.ctx, "many", "broken.tar")
    world.settle(lambda: served(world) == ["broken.tar"])


def test_a_store_is_alone_in_its_blueprint_and_its_endpoint_is_not_brought_elsewhere(world: World) -> None:
    ctx, actor = world.ctx, world.actor
    for variants, said in (
        ([{"name": "a", "servable": "store"}, {"name": "b", "servable": "store"}], "is alone"),
        ([{"name": "a", "servable": "store", "instances": 2}], "is alone"),
        ([{"name": "a", "servable": "store", "memory_mb": 3}], "memory_mb of a"),
    ):
        with pytest.raises(InvalidInput, match=said):
            blueprints.create(ctx, actor, name="wrong", variants=variants)
    with pytest.raises(Conflict, match="serves many models"):
        blueprints.apply(ctx, actor, endpoint="many", blueprint="store")
    with pytest.raises(Conflict, match="already"):
        blueprints.start(ctx, actor, endpoint="many", blueprint="store")
    with pytest.raises(NotFound, match="bucket"):
        servables.create(ctx, actor, name="nowhere", store="s3://no-such-bucket/models/")
    with pytest.raises(InvalidInput):
        servables.create(ctx, actor, name="both", store="s3://files/models/", data="s3://files/secret.tar")
    endpoints.delete(ctx, actor, endpoint="many")
    modelstores.refresh(ctx)
    assert Fleet(ctx).processes() == []
