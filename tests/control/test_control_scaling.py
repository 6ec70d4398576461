"""The number of servers follows the load: what is started, when it takes requests, and when it is stopped."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from loopline.control import endpoints, events, processes, pushes, registry, scaling
from loopline.domain.latency import Histogram
from loopline.errors import InvalidInput
from loopline.store import metrics
from loopline.store.metrics import Traffic
from loopline.testing.boxes import LOOP, follow, project
from loopline.testing.clock import ManualClock
from loopline.testing.fleet import Fleet
from loopline.testing.world import World

ENDPOINT = """
[endpoint]
name = "boxes"
memory_mb = 700
threads = 3

[rollout]
strategy = "all-at-once"

[scaling]
min = 1
max = 4
target_in_flight = 4
scale_in_cooldown_seconds = 60
"""


class Stage:
    """A world whose endpoint serves version 1, with a clock and a fleet of its own."""

    def __init__(self, world: World, clock: ManualClock) -> None:
        self.world, self.clock, self.fleet = world, clock, Fleet(world.ctx)

    def pass_seconds(self, seconds: int, in_flight: float = 0.0) -> None:
        """Let time go by under a load: each request takes 100 ms."""
        for _ in range(seconds):
            at = int(self.clock.now())
            requests = int(in_flight * 10)
            if requests:
                latency = {str(b): n for b, n in Histogram.of([100_000.0] * requests).buckets.items()}
                with self.world.ctx.db.transaction() as tx:
                    metrics.add_traffic(tx, [Traffic("boxes", "v1", 1, at, requests, 0, 0, latency)])
            self.clock.advance(1.0)
            self.fleet.act()
            self.world.step()

    def variant(self) -> dict[str, Any]:
        shown = endpoints.show(self.world.ctx, self.world.actor, endpoint="boxes")
        return next(row for row in shown["variants"] if row["name"] == "v1")

    def servers(self) -> tuple[int, int]:
        """(asked for, in the snapshot)."""
        published = self.fleet.snapshot()["endpoints"]["boxes"]["variants"]
        return len(self.variant()["servers"]), len(next(v for v in published if v["name"] == "v1")["servers"])

    def events(self, kind: str) -> list[dict[str, Any]]:
        found = events.list_(self.world.ctx, self.world.actor, noun="variant", limit=500)["items"]
        return [row for row in found if row["kind"] == kind]


@pytest.fixture
def stage(tmp_path: Any) -> Iterator[Stage]:
    world = World(tmp_path / "data")
    clock = ManualClock(world.ctx.clock.now())
    world.ctx.clock = clock  # type: ignore[assignment]
    world.ctx.db.use_clock(clock.now)
    stage = Stage(world, clock)
    push = pushes.run(world.ctx, world.actor, tree=world.tree(project(loop_toml=LOOP + ENDPOINT)))["id"]
    assert follow(world, push)["status"] == "Succeeded"
    registry.approve(world.ctx, world.actor, model="boxes", number=1)

    def served() -> bool:
        stage.fleet.act()
        clock.advance(0.2)
        return bool(endpoints.show(world.ctx, world.actor, endpoint="boxes")["status"] == "InService")

    world.settle(served)
    stage.pass_seconds(2)
    yield stage
    world.close()


def test_load_brings_servers_and_its_end_takes_them_away(stage: Stage) -> None:
    assert stage.servers() == (1, 1)
    stage.pass_seconds(45, in_flight=13)
    assert stage.servers() == (4, 4)  # ceil(13 / 4)
    out = stage.events("scaled")
    assert sorted(row["data"]["to"] for row in out)[-1] == 4
    assert all("requests in flight per server; the target is 4" in row["reason"] for row in out)
    stage.pass_seconds(50)
    assert stage.servers() == (4, 4)  # the cool-down
    stage.pass_seconds(100)
    assert stage.servers() == (1, 1)
    fewer = [row["data"]["to"] for row in stage.events("scaled")[: -len(out)]]
    assert 1 in fewer
    assert len(fewer) <= 2  # what the cool-down looks back on may still hold the last of the load
    assert stage.variant()["instances"] == 1


def test_a_server_takes_requests_only_when_it_is_ready(stage: Stage) -> None:
    stage.fleet.act = lambda: None  # type: ignore[method-assign] - nothing starts, nobody acknowledges
    stage.pass_seconds(45, in_flight=13)
    assert stage.servers()[0] > 1
    assert stage.servers()[1] == 1
    stage.pass_seconds(130, in_flight=1)
    assert stage.servers() == (1, 1)  # given up, said so, and tried again only for a load that asks for it
    (failed,) = stage.events("scaling_failed")
    assert failed["reason"] == "not ready within 120 s"


def test_a_server_is_stopped_only_when_no_gateway_knows_it_any_more(stage: Stage) -> None:
    stage.pass_seconds(45, in_flight=13)
    stage.fleet.acknowledging = False
    stage.pass_seconds(100)
    assert stage.servers()[1] < 4
    assert len(stage.fleet.processes()) == 4
    stage.fleet.acknowledging = True
    stage.pass_seconds(3)
    assert len(stage.fleet.processes()) == stage.servers()[1] < 4


def test_limits_by_hand_hold_at_once_and_mistakes_are_named(stage: Stage) -> None:
    ctx, actor = stage.world.ctx, stage.world.actor
    scaling.scale(ctx, actor, endpoint="boxes", min=2)
    stage.pass_seconds(3)
    assert stage.servers() == (2, 2)
    with pytest.raises(InvalidInput, match="min is 9, max 4"):
        scaling.scale(ctx, actor, endpoint="boxes", min=9)
    scaling.scale(ctx, actor, endpoint="boxes", off=True)
    stage.pass_seconds(3, in_flight=50)
    assert stage.servers() == (2, 2)


def test_with_a_minimum_of_none_the_first_server_runs_on_demand(stage: Stage) -> None:
    ctx, actor = stage.world.ctx, stage.world.actor
    before = stage.fleet.processes()[0]
    assert before["fork"].startswith(str(ctx.settings.run_dir / "fork" / "fork-"))
    scaling.scale(ctx, actor, endpoint="boxes", min=0, idle_seconds=30, cold_start_seconds=5)
    stage.pass_seconds(2)
    entry = stage.fleet.processes()[0]
    assert (entry["id"], entry["on_demand"], entry["idle_seconds"]) == (before["id"], True, 30)
    published = stage.fleet.snapshot()["endpoints"]["boxes"]["variants"][0]
    assert (published["on_demand"], published["cold_start_ms"]) == (True, 5000)
    stage.pass_seconds(45, in_flight=9)
    assert [entry.get("on_demand", False) for entry in stage.fleet.processes()] == [True, False, False]
    forkservers = json.loads((ctx.settings.dir / "processes.json").read_text())["forkservers"]
    assert [(fork["socket"], "--serve" in fork["argv"]) for fork in forkservers] == [(entry["fork"], True)]
    scaling.scale(ctx, actor, endpoint="boxes", min=1)
    stage.pass_seconds(2)
    assert not any("on_demand" in entry for entry in stage.fleet.processes())
    assert "on_demand" not in stage.fleet.snapshot()["endpoints"]["boxes"]["variants"][0]


def test_memory_and_threads_are_the_endpoint_s(stage: Stage) -> None:
    entry = stage.fleet.processes()[0]
    assert {entry["environ"][name] for name in processes.THREAD_VARIABLES} == {"3"}
    spec = json.loads(open(entry["argv"][entry["argv"].index("--spec") + 1]).read())  # noqa: PTH123, SIM115
    assert spec["limits"]["memory_mb"] == 700


def test_what_is_released_gets_as_many_servers_as_what_it_replaces(stage: Stage) -> None:
    stage.pass_seconds(45, in_flight=13)
    push = pushes.run(
        stage.world.ctx,
        stage.world.actor,
        tree=stage.world.tree(project(loop_toml=LOOP + ENDPOINT)),
        parameters={"shift": 0.05},
    )["id"]
    assert follow(stage.world, push)["status"] == "Succeeded"
    registry.approve(stage.world.ctx, stage.world.actor, model="boxes", number=2)
    stage.pass_seconds(5, in_flight=13)
    shown = endpoints.show(stage.world.ctx, stage.world.actor, endpoint="boxes")["variants"]
    assert {row["name"]: len(row["servers"]) for row in shown} == {"v1": 4, "v2": 4}
