"""Servables: made of objects as they are now, unpacked safely, and told what is wrong with them."""

import io
import tarfile
from pathlib import Path
from typing import Any

import pytest

from loopline.control import buckets, objects, servables
from loopline.errors import Conflict, InvalidInput, NotFound
from loopline.testing.world import World

PREDICT = "def load(d): return 1\ndef predict(m, batch): return [m for _ in batch]\n"


def packed(files: dict[str, str], kind: bytes = tarfile.REGTYPE) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.type, entry.linkname = len(text) if kind == tarfile.REGTYPE else 0, kind, "/etc/passwd"
            tar.addfile(entry, io.BytesIO(text.encode()))
    return buffer.getvalue()


def put(world: World, data: bytes, key: str = "model.tar.gz") -> str:
    if not buckets.list_(world.ctx, world.actor)["items"]:
        buckets.create(world.ctx, world.actor, bucket="files")
    objects.put(world.ctx, world.actor, bucket="files", key=key, data=iter([data]))
    return f"s3://files/{key}"


def settled(world: World, name: str) -> dict[str, Any]:
    def shown() -> dict[str, Any]:
        return servables.show(world.ctx, world.actor, servable=name)

    world.settle(lambda: shown()["status"] != "Pending")
    return shown()


def test_what_becomes_of_the_object_later_changes_nothing(world: World) -> None:
    uri = put(world, packed({"code/predict.py": PREDICT, "word.txt": "first"}))
    made = servables.create(world.ctx, world.actor, name="words", data=uri, variables={"TOKEN": "a secret"})
    put(world, packed({"word.txt": "second"}))
    row = settled(world, "words")
    assert (row["status"], row["gated"], row["variables"]) == ("Ready", False, ["TOKEN"])
    assert row["source"] == made["source"]
    found = servables.spec(world.ctx, servables.describe(world.ctx, world.actor, servable="words"))
    assert (found["code_dir"], found["variables"]) == (f"{found['model_dir']}/code", {"TOKEN": "a secret"})
    assert (Path(found["model_dir"]) / "word.txt").read_text() == "first"
    with pytest.raises(Conflict, match="already"):
        servables.create(world.ctx, world.actor, name="words", data=uri)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"no tar at all", "is no tar of files"),
        (packed({"../outside": "x"}), "holds '.', '..'"),
        (packed({"link": ""}, tarfile.SYMTYPE), "a link or a special file"),
    ],
)
def test_what_is_no_tar_of_files_fails_with_the_reason(world: World, data: bytes, told: str) -> None:
    servables.create(world.ctx, world.actor, name="bad", data=put(world, data))
    row = settled(world, "bad")
    assert row["status"] == "Failed"
    assert told in row["reason"]


def test_bad_input_is_refused_and_leaves_nothing(world: World) -> None:
    uri = put(world, packed({"word.txt": "x"}))
    for given, error in (
        ({"data": "s3://files/none"}, NotFound),
        ({"data": "/etc/passwd"}, InvalidInput),
        ({"data": uri, "handler": "shell"}, InvalidInput),
        ({"data": uri, "version": "boxes:1"}, InvalidInput),
        ({}, InvalidInput),
        ({"data": uri, "variables": {"LONG": "x" * 40_000}}, InvalidInput),
    ):
        with pytest.raises(error):
            servables.create(world.ctx, world.actor, name="wrong", **given)
    assert servables.list_(world.ctx, world.actor)["items"] == []


def test_a_name_is_free_again_once_its_servable_is_deleted(world: World) -> None:
    uri = put(world, packed({"code/predict.py": PREDICT}))
    first = servables.create(world.ctx, world.actor, name="again", data=uri)
    servables.delete(world.ctx, world.actor, servable="again")
    second = servables.create(world.ctx, world.actor, name="again", data=uri)
    assert first["id"] != second["id"]


def test_the_code_has_the_last_word_on_a_package() -> None:
    image = "numpy\nscikit_learn==1.2\n\nscipy>=1\n"
    assert servables.merge(image, "Scikit-Learn==1.5\ntqdm") == "numpy\nscipy>=1\nScikit-Learn==1.5\ntqdm"
