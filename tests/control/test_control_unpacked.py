"""Unpacked trees and model files: a day after nothing needed them they go, the store makes them again, and what is
needed stays."""

import json
import os
import threading
from typing import Any

import pytest

from loopline.control import artifacts, jobs, outputs, unpacked
from loopline.store import records
from loopline.testing.clock import ManualClock
from loopline.testing.world import World

DAY = unpacked.KEPT_SECONDS


@pytest.fixture
def clock(world: World) -> ManualClock:
    manual = ManualClock(world.ctx.clock.now())
    world.ctx.clock = manual
    world.ctx.db.use_clock(manual.now)
    return manual


def tree(world: World, text: str) -> str:
    return world.tree({"lib/code.py": text, "loop.toml": text})


def version(world: World, text: str) -> dict[str, Any]:
    digest = world.ctx.blobs.put_bytes(text.encode()).digest
    return {"model": "m", "number": 1, "artifact": {"sha256": digest, "kind": "file", "name": "model.joblib"}}


def there(world: World) -> set[str]:
    found = [path for group in unpacked.GROUPS for path in (world.ctx.settings.dir / group).glob("*")]
    return {path.name for path in found}


def test_what_nothing_needs_goes_after_a_day_and_comes_again(world: World, clock: ManualClock) -> None:
    first, second, model = tree(world, "first"), tree(world, "second"), version(world, "weights")
    code = outputs.tree_path(world.ctx, first)
    outputs.tree_path(world.ctx, second)
    folder = artifacts.model_dir(world.ctx, model)
    clock.advance(DAY / 2)
    outputs.tree_path(world.ctx, second)  # asked for again
    clock.advance(DAY / 2 - 1)
    assert unpacked.prune(world.ctx) == 0
    clock.advance(2)

    assert unpacked.prune(world.ctx) == 2

    assert there(world) == {second} and not code.exists()
    assert (outputs.tree_path(world.ctx, first) / "lib" / "code.py").read_text() == "first"
    assert (artifacts.model_dir(world.ctx, model) / "model.joblib").read_text() == "weights"
    assert folder.exists() and unpacked.prune(world.ctx) == 0


def test_what_servers_and_jobs_have_stays_and_goes_a_day_after_them(world: World, clock: ManualClock) -> None:
    served, run = tree(world, "served"), tree(world, "run")
    model = artifacts.model_dir(world.ctx, version(world, "weights"))
    code = outputs.tree_path(world.ctx, served)
    outputs.tree_path(world.ctx, run)
    told = world.ctx.settings.dir / "servers" / "va_1-0.abcd.json"
    told.parent.mkdir()
    told.write_text(json.dumps({"model_dir": str(model), "code_dir": str(code)}))
    with world.ctx.db.transaction() as tx:
        entry = {"process": {"id": told.stem}}
        given = {"endpoint": "e", "name": "v1", "weight": 0.0, "instances": 1, "digest": "", "server": [entry]}
        variant = records.create(tx, "variant", actor="ann", status="Warm", **given)["id"]
        waits: dict[str, Any] = {"owner": "push", "owner_id": "pu_1", "name": "check", "kind": "command", "tries": 0}
        job = records.create(tx, "job", actor="ann", spec={"tree": run}, max_tries=1, backoff_seconds=0.0, **waits)[
            "id"
        ]

    for _ in range(3):
        clock.advance(DAY + 1)
        assert unpacked.prune(world.ctx) == 0
    with world.ctx.db.transaction() as tx:
        records.move(tx, "variant", variant, "Stopped", actor="ann")
        jobs.stop(world.ctx, tx, job, actor="ann", reason="a test")
    clock.advance(DAY - 1)
    assert unpacked.prune(world.ctx) == 0 and there(world) == {served, run, model.name}
    clock.advance(2)
    assert unpacked.prune(world.ctx) == 3 and not there(world)


def test_what_a_killed_process_left_half_done_goes_too(world: World, clock: ManualClock) -> None:
    outputs.tree_path(world.ctx, tree(world, "whole"))
    trees = world.ctx.settings.dir / "trees"
    for name in (".0123.tmp", ".4567.gone"):
        (trees / name).mkdir()
        os.utime(trees / name, (clock.now(), clock.now()))
    clock.advance(DAY + 1)
    assert unpacked.prune(world.ctx) == 3 and not list(trees.iterdir())


def test_whoever_asks_while_a_folder_goes_finds_all_of_its_files(world: World, clock: ManualClock) -> None:
    digest = tree(world, "text")
    both = threading.Barrier(2)
    found: list[list[str]] = []

    def ask() -> None:
        both.wait()
        folder = outputs.tree_path(world.ctx, digest)
        found.append([(folder / name).read_text() for name in ("lib/code.py", "loop.toml")])

    outputs.tree_path(world.ctx, digest)
    for _ in range(40):
        clock.advance(DAY + 1)
        asking = threading.Thread(target=ask)
        asking.start()
        both.wait()
        unpacked.prune(world.ctx)
        asking.join()
    assert found == [["text", "text"]] * 40
