"""The whole of control on PostgreSQL: from a tree to a version in production and back."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from loopline.control import (
    audit,
    dashboards,
    endpoints,
    executions,
    metrics,
    pushes,
    registry,
    rollbacks,
    rollouts,
    snapshots,
)
from loopline.testing import postgres
from loopline.testing.boxes import LOOP, follow, project
from loopline.testing.fleet import Fleet
from loopline.testing.world import World

ENDPOINT = '\n[endpoint]\nname = "boxes"\n[rollout]\nstrategy = "all-at-once"\nbake_seconds = 0.1\n'


@pytest.fixture
def world(tmp_path: Path, postgres_url: str) -> Iterator[World]:
    with postgres.Database(postgres_url, postgres.TEMPLATE) as url:
        opened = World(tmp_path / "data", database_url=url)
        yield opened
        opened.close()


def until(world: World, fleet: Fleet, done: Callable[[], bool]) -> None:
    def looked() -> bool:
        fleet.act()
        return done()

    world.settle(looked)


def test_the_loop_on_postgresql(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = Fleet(world.ctx)
    shown: dict[str, Any] = {}
    for shift in (0.0, 0.05):
        tree = world.tree(project(loop_toml=LOOP + ENDPOINT))
        push = pushes.run(world.ctx, world.actor, tree=tree, parameters={"shift": shift})["id"]
        shown = follow(world, push)
        assert shown["status"] == "Succeeded", shown["reason"]
    for number in (1, 2):
        registry.approve(world.ctx, world.actor, model="boxes", number=number)
        until(world, fleet, lambda number=number: fleet_serves(world, number))
    done = rollouts.list_(world.ctx, world.actor, endpoint="boxes")["items"]
    until(world, fleet, lambda: all(row["status"] == "Succeeded" for row in rows(world)))
    assert len(done) == 2
    rollbacks.begin(world.ctx, "admin", "boxes", "only a test")
    until(world, fleet, lambda: rows(world)[0]["status"] == "Succeeded" and fleet_serves(world, 1))
    assert registry.show_version(world.ctx, world.actor, model="boxes", number=2)["status"] == "Rejected"
    monkeypatch.setattr(snapshots, "KEPT_SECONDS", 0.0)
    with world.ctx.db.transaction() as tx:
        snapshots.write(world.ctx, tx, actor="admin", reason="the same traffic")
        snapshots.write(world.ctx, tx, actor="admin", reason="the same traffic")
    assert snapshots.prune(world.ctx) > 0 and fleet_serves(world, 1)
    cached = {step["name"]: step["cached_from"] for step in shown["steps"]}
    assert cached["fit"] is None
    again = follow(world, pushes.run(world.ctx, world.actor, tree=world.tree(project(loop_toml=LOOP + ENDPOINT)))["id"])
    assert {step["cached_from"] for step in again["steps"] if step["kind"] == "job"} != {None}
    world.settle(lambda: audit.verify(world.ctx, world.actor)["waiting"] == 0)
    assert audit.verify(world.ctx, world.actor)["valid"] is True
    assert len(executions.list_(world.ctx, world.actor)["items"]) == 3


def rows(world: World) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = rollouts.list_(world.ctx, world.actor, endpoint="boxes")["items"]
    return found


def fleet_serves(world: World, number: int) -> bool:
    items = endpoints.live(world.ctx, world.actor)["items"]
    return [(item["version"], item["share"]) for item in items] == [(number, 1.0)]


def test_metrics_and_dashboards_on_postgresql(world: World) -> None:
    data = [{"name": "orders", "value": float(n), "dimensions": {"city": "Kyoto"}} for n in range(10)]
    for _ in range(2):
        metrics.put(world.ctx, world.actor, namespace="Shop", data=data)
    given: dict[str, Any] = {"namespace": "Shop", "name": "orders"}
    found = metrics.read(
        world.ctx, world.actor, **given, dimensions=["city=Kyoto"], statistics=["Sum", "SampleCount", "p50"]
    )["items"]
    assert sum(each["Sum"] for each in found) == 90.0 and sum(each["SampleCount"] for each in found) == 20.0
    assert metrics.shown_unit(world.ctx, world.actor, **given, dimensions={"city": "Kyoto"}) == "None"
    listed = metrics.list_(world.ctx, world.actor, dimensions=["city"])["items"]
    assert [(row["namespace"], row["dimensions"]) for row in listed] == [("Shop", {"city": "Kyoto"})]
    metrics.prune(world.ctx)
    dashboards.put(world.ctx, world.actor, name="one", body="{}")
    assert [row["size_bytes"] for row in dashboards.list_(world.ctx, world.actor, prefix="o")["items"]] == [2]
