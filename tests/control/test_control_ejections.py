"""What gateways say about sick servers stands in the event log, once."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loopline.control import ejections, endpoints, events
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


def test_what_the_supervisor_did_about_a_server_is_told_with_its_variant(world: World) -> None:
    done = {"server": "va_1-0.abcd", "kind": "replaced", "reason": "it failed; process 7 took its place", "at": 200.0}
    gone = {**done, "server": "va_2-0.abcd", "at": 201.0}
    world.ctx.settings.run_dir.mkdir(parents=True, exist_ok=True)
    state = {"children": [], "replacements": [done, gone]}
    (world.ctx.settings.run_dir / "supervisor.json").write_text(json.dumps(state))
    ejections.watch(world.ctx)
    ejections.watch(world.ctx)
    found = events.list_(world.ctx, world.actor, noun="variant", limit=50)["items"]
    (event,) = [each for each in found if each["kind"] == "replaced"]
    assert (event["record"], event["reason"]) == ("va_1", "va_1-0.abcd: it failed; process 7 took its place")


def test_an_endpoint_shows_which_server_fails_and_what_is_done_about_it(world: World) -> None:
    endpoints.create(world.ctx, world.actor, name="patients")
    entry = {"id": "va_1-0.abcd", "status": "/nowhere", "process": {}}
    with world.ctx.db.transaction() as tx:
        records.set(tx, "variant", "va_1", actor="test", server=[entry, {**entry, "id": "va_1-1.abcd"}])
    failing = {"attempts": 2, "says": "another process starts beside it (attempt 2 of 6)", "next_at": 300.0}
    state = {"children": [{"id": "va_1-0.abcd"}, {"id": "va_1-1.abcd"}], "failing": {"va_1-0.abcd": failing}}
    world.ctx.settings.run_dir.mkdir(parents=True, exist_ok=True)
    (world.ctx.settings.run_dir / "supervisor.json").write_text(json.dumps(state))
    (variant,) = endpoints.show(world.ctx, world.actor, endpoint="patients")["variants"]
    assert [server.get("failing") for server in variant["servers"]] == [failing, None]


def test_what_is_gone_or_broken_is_passed_over(world: World) -> None:
    report(world, (100.0, "other"))
    ejections.watch(world.ctx)
    (world.ctx.settings.run_dir / "gateway-0.json").write_text('{"ejections": [{"at": "soon"}]}')
    (world.ctx.settings.run_dir / "gateway-1.json").write_text("{")
    ejections.watch(world.ctx)
    assert not told(world)
