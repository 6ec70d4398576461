"""Data assets: from a file, a folder, a step's output; the same bytes make no new version."""

import io
import tarfile
from collections.abc import Callable
from typing import Any

import pytest

from loopline.control import assets
from loopline.errors import InvalidInput, NotFound
from loopline.testing.boxes import PIPELINE, project
from loopline.testing.world import World

Run = Callable[..., dict[str, Any]]


def tar_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def test_a_file_is_a_version_and_the_same_bytes_are_the_same_version(world: World, run: Run) -> None:
    run(project())
    put = {"project": "boxes", "name": "extra", "file": "extra.csv"}
    first = assets.upload(world.ctx, world.actor, **put, stream=iter([b"size,kind\n", b"1,small\n"]))
    again = assets.upload(world.ctx, world.actor, **put, stream=iter([b"size,kind\n1,small\n"]))
    other = assets.upload(world.ctx, world.actor, **put, stream=iter([b"size,kind\n2,small\n"]))
    assert (first["version"], first["new"], again["version"], again["new"], other["version"]) == (1, True, 1, False, 2)
    kept = assets.content(world.ctx, world.actor, project="boxes", reference="extra:1")
    assert b"".join(kept) == b"size,kind\n1,small\n"
    assert assets.show(world.ctx, world.actor, project="boxes", reference="extra")["version"] == 2


def test_a_folder_is_one_version(world: World, run: Run) -> None:
    run(project())
    files = {"a/one.txt": b"1", "two.txt": b"2"}
    put = {"project": "boxes", "name": "images"}
    row = assets.upload_folder(world.ctx, world.actor, **put, stream=iter([tar_of(files)]))
    again = assets.upload_folder(world.ctx, world.actor, **put, stream=iter([tar_of(dict(reversed(files.items())))]))
    assert (row["kind"], row["version"], again["version"]) == ("folder", 1, 1)
    with pytest.raises(InvalidInput):
        list(assets.content(world.ctx, world.actor, project="boxes", reference="images"))


MAKES_A_TABLE = PIPELINE.replace("    model = fit(", '    chosen = choose(asset("boxes"))\n    model = fit(').replace(
    "@step\ndef fit",
    '@step\ndef choose(data: Path) -> Path:\n    kept = Path("chosen.csv")\n'
    '    kept.write_text("".join(data.read_text().splitlines(keepends=True)[:50]))\n    return kept\n\n@step\ndef fit',
)


def test_what_a_step_gave_becomes_an_asset_with_its_source(world: World, run: Run) -> None:
    shown = run(project(pipeline_py=MAKES_A_TABLE))
    assert shown["status"] == "Succeeded", shown["reason"]
    given = {"project": "boxes", "name": "chosen", "execution": shown["id"], "step": "choose"}
    row = assets.from_step(world.ctx, world.actor, **given)
    assert row["source"]["execution"] == shown["id"] and row["source"]["name"] == "chosen.csv"
    lines = b"".join(assets.content(world.ctx, world.actor, project="boxes", reference="chosen:1")).splitlines()
    assert len(lines) == 50
    with pytest.raises(InvalidInput, match="made from a file"):
        assets.from_step(world.ctx, world.actor, **{**given, "step": "fit"})
    with pytest.raises(NotFound):
        assets.from_step(world.ctx, world.actor, **{**given, "step": "nobody"})


def test_a_fixed_version_stays_the_same_after_the_data_changed(world: World, run: Run) -> None:
    pinned = project(pipeline_py=PIPELINE.replace('fit(asset("boxes")', 'fit(asset("boxes:1")'))
    first = run(pinned)
    changed = {**pinned, "data/boxes.csv": pinned["data/boxes.csv"] + "9.0,large\n"}
    second = run(changed)
    newest = assets.show(world.ctx, world.actor, project="boxes", reference="boxes")
    assert newest["version"] == 2
    cached = {step["name"]: step["cached_from"] for step in second["steps"]}
    assert second["status"] == "Succeeded" and first["status"] == "Succeeded"
    assert cached["fit"] is None  # its code's tree changed with the data; its input did not
    pins = {entry["asset"] for entry in world_inputs(world, second["run"])}
    assert pins == {"boxes:1", "boxes-test:1"}


def world_inputs(world: World, run_id: str) -> list[dict[str, Any]]:
    from loopline.control import tracking

    found: list[dict[str, Any]] = tracking.show(world.ctx, world.actor, run=run_id)["inputs"]
    return found
