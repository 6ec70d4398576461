"""What gateways say about sick servers stands in the event log, once."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loopline.control import ejections, events
from loopline.store import records
from loopline.testing.world import World


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    opened = World(tmp_path / "data")
    with opened.ctx.db.transaction() as tx:
        records.create(
            tx,
            "variant",
            actor="test",
            id="va_1",
            endpoint="patients",
            name="v3",
            weight=100.0,
            instances=1,
            digest="d",
        )
    yield opened
    opened.close()


def report(world: World, *found: tuple[float, str], gateway: str = "gateway-0") -> None:
    listed = [
        {"server": f"va_1-0.{at:g}", "endpoint": endpoint, "variant": "v3", "reason": "it hangs", "at": at}
        for at, endpoint in found
    ]
    world.ctx.settings.run_dir.mkdir(parents=True, exist_ok=True)
    (world.ctx.settings.run_dir / f"{gateway}.json").write_text(json.dumps({"ejections": listed}))


def told(world: World) -> list[dict[str, Any]]:
    items = events.list_(world.ctx, world.actor, limit=50)["items"]
    return [event for event in items if event["kind"] == "ejected"]


def test_each_is_told_once_also_after_a_restart(world: World) -> None:
    report(world, (100.0, "patients"))
    ejections.watch(world.ctx)
    ejections.watch(world.ctx)
    (event,) = told(world)
    assert (event["noun"], event["record"], event["reason"]) == ("variant", "va_1", "va_1-0.100: it hangs")
    world.ctx.cache.clear()
    report(world, (100.0, "patients"), (101.5, "patients"))
    ejections.watch(world.ctx)
    assert len(told(world)) == 2
    report(world, (100.0, "patients"), gateway="gateway-1")
    ejections.watch(world.ctx)
    assert len(told(world)) == 3


def test_what_is_gone_or_broken_is_passed_over(world: World) -> None:
    report(world, (100.0, "other"))
    ejections.watch(world.ctx)
    (world.ctx.settings.run_dir / "gateway-0.json").write_text('{"ejections": [{"at": "soon"}]}')
    (world.ctx.settings.run_dir / "gateway-1.json").write_text("{")
    ejections.watch(world.ctx)
    assert not told(world)
