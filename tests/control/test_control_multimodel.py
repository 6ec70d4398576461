"""Many models behind one endpoint: which versions may come, which answers to a name, and what is followed."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from loopline.control import aliases, endpoints, events, multimodel, projects, pushes, registry, rollouts, variants
from loopline.domain import loopfile
from loopline.domain.access import Actor
from loopline.errors import Conflict, Forbidden, GateRefused, InvalidInput, NotFound
from loopline.testing.boxes import LOOP, follow, project
from loopline.testing.fleet import Fleet
from loopline.testing.world import World

EDITOR = Actor("eve", "editor")


@pytest.fixture
def world(tmp_path: Any) -> Iterator[World]:
    """Two versions of boxes (the first Approved), one Approved version of jars, and an endpoint for many."""
    world = World(tmp_path / "data")
    for name, shifts in (("boxes", (0.0, 0.05)), ("jars", (0.0,))):
        for shift in shifts:
            files = project(loop_toml=LOOP.replace('name = "boxes"', f'name = "{name}"'))
            push = pushes.run(world.ctx, world.actor, tree=world.tree(files), parameters={"shift": shift})["id"]
            assert follow(world, push)["status"] == "Succeeded"
        registry.approve(world.ctx, world.actor, model=name, number=1)
    endpoints.create(world.ctx, world.actor, name="many", settings={"multi_model": {"memory_mb": 900}})
    yield world
    world.close()


def published(world: World) -> dict[str, Any]:
    return dict(Fleet(world.ctx).snapshot()["endpoints"]["many"])


def served(world: World) -> dict[str, bool]:
    """{model:version: whether it answers to the name} in the published snapshot."""
    return {f"{v['model']}:{v['version']}": v["weight"] > 0 for v in published(world)["variants"]}


def test_versions_come_and_go_and_the_last_added_answers_to_the_name(world: World) -> None:
    ctx, actor = world.ctx, world.actor
    assert multimodel.add(ctx, EDITOR, endpoint="many", models=["boxes", "jars", "jars:1"])["items"] == [
        {"model": "boxes", "version": 1, "variant": "boxes-v1"},
        {"model": "jars", "version": 1, "variant": "jars-v1"},
    ]
    assert published(world)["multi_model"] is True
    assert endpoints.show(ctx, actor, endpoint="many")["status"] == "InService"
    assert [(row["model"], row["share"]) for row in endpoints.live(ctx, actor)["items"]] == [
        ("boxes", 1.0),
        ("jars", 1.0),
    ]
    servers = Fleet(ctx).processes()
    assert {(s["on_demand"], s["group"], s["idle_seconds"]) for s in servers} == {(True, "many", 3600)}
    assert len({s["fork"] for s in servers}) == 1
    registry.approve(ctx, actor, model="boxes", number=2)
    aliases.set_alias(ctx, actor, model="boxes", alias="blue", number=2)
    multimodel.add(ctx, EDITOR, endpoint="many", models=["boxes@blue"])
    assert served(world) == {"boxes:1": False, "boxes:2": True, "jars:1": True}
    multimodel.remove(ctx, EDITOR, endpoint="many", model="boxes:2")
    assert served(world) == {"boxes:1": True, "jars:1": True}
    multimodel.remove(ctx, EDITOR, endpoint="many", model="boxes")
    assert served(world) == {"jars:1": True}
    assert len(Fleet(ctx).processes()) == 1
    listed = multimodel.list_(ctx, actor, endpoint="many")
    assert [(row["model"], row["state"]) for row in listed["items"]] == [("jars", "asleep")]
    assert listed["limit_mb"] == 900


def test_the_supervisor_is_told_the_memory_of_all(world: World) -> None:
    multimodel.add(world.ctx, EDITOR, endpoint="many", models=["jars"])
    document = json.loads((world.ctx.settings.dir / "processes.json").read_text())
    assert document["budgets"] == {"many": 900}


def test_a_version_that_is_not_approved_is_refused_and_nothing_is_added(world: World) -> None:
    with pytest.raises(GateRefused, match="boxes version 2 is PendingManualApproval"):
        multimodel.add(world.ctx, EDITOR, endpoint="many", models=["jars", "boxes:2"])
    with pytest.raises(Forbidden):
        multimodel.add(world.ctx, EDITOR, endpoint="many", models=["boxes:2"], force=True, reason="I want it")
    assert Fleet(world.ctx).snapshot()["endpoints"]["many"]["variants"] == []
    approver = Actor("ann", "approver")
    multimodel.add(world.ctx, approver, endpoint="many", models=["boxes:2"], force=True, reason="a look at it")
    forced = [
        e for e in events.list_(world.ctx, world.actor, noun="version", limit=500)["items"] if e["kind"] == "forced"
    ]
    assert [event["reason"] for event in forced] == ["a look at it"]


@pytest.mark.parametrize(
    ("models", "error", "said"),
    [
        (["ghosts"], NotFound, "ghosts"),
        (["boxes:9"], NotFound, "9"),
        (["boxes@nobody"], NotFound, "no alias 'nobody'"),
        (["../boxes"], InvalidInput, "model"),
        ([], InvalidInput, "name at least one"),
    ],
)
def test_mistakes_are_named(world: World, models: list[str], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        multimodel.add(world.ctx, EDITOR, endpoint="many", models=models)


def test_what_does_not_fit_together_is_refused(world: World) -> None:
    ctx, actor = world.ctx, world.actor
    with pytest.raises(Conflict, match="add-model"):
        rollouts.release(ctx, actor, endpoint="many", model="boxes", number=1)
    with pytest.raises(InvalidInput, match="memory_mb"):
        endpoints.create(ctx, actor, name="more", settings={"multi_model": {}})
    with pytest.raises(InvalidInput, match="memory_mb cannot be 3"):
        endpoints.create(ctx, actor, name="more", settings={"multi_model": {"memory_mb": 3}})
    with pytest.raises(InvalidInput, match="leave scaling out"):
        endpoints.create(ctx, actor, name="more", settings={"multi_model": {"memory_mb": 300}, "scaling": {"min": 1}})
    endpoints.create(ctx, actor, name="one", model="boxes")
    with pytest.raises(Conflict, match="one serves one model"):
        multimodel.add(ctx, actor, endpoint="one", models=["boxes"])


def test_an_endpoint_that_follows_serves_what_is_approved(world: World) -> None:
    ctx, actor = world.ctx, world.actor
    endpoints.delete(ctx, actor, endpoint="many")
    endpoints.create(ctx, actor, name="many", settings={"multi_model": {"memory_mb": 900, "follow": ["box*"]}})
    world.settle(lambda: served(world) == {"boxes:1": True})
    with ctx.db.transaction() as tx:  # control died after it had begun to serve the second one
        there = endpoints.endpoint_row(tx, "many"), registry.version_row(tx, "boxes", 2)
        assert variants.ensure(tx, *there, "ann")["status"] == "Starting"
    registry.approve(ctx, actor, model="boxes", number=2)
    world.settle(lambda: served(world) == {"boxes:2": True})
    registry.reject(ctx, actor, model="boxes", number=2, comment="wrong after all")
    world.settle(lambda: served(world) == {"boxes:1": True})


DECLARED = (
    LOOP
    + """
[[multi_model]]
name = "declared"
memory_mb = 700
follow = ["box*"]
"""
)


def apply(world: World, text: str) -> list[dict[str, Any]]:
    tree = world.tree(project(loop_toml=text))
    return [each for each in projects.apply(world.ctx, world.actor, tree=tree)["changes"] if each["noun"] == "endpoint"]


def test_what_loop_toml_declares_is_made_and_changed_as_it_says(world: World) -> None:
    fleet = Fleet(world.ctx)

    def served() -> set[str]:
        found = fleet.snapshot()["endpoints"]["declared"]["variants"]
        return {f"{each['model']}:{each['version']}" for each in found}

    def budget() -> Any:
        return json.loads((world.ctx.settings.dir / "processes.json").read_text())["budgets"].get("declared")

    assert apply(world, DECLARED) == [{"noun": "endpoint", "name": "declared", "change": "created"}]
    world.settle(lambda: served() == {"boxes:1"})
    (before,) = fleet.processes()
    assert apply(world, DECLARED) == [] and budget() == 700
    multimodel.add(world.ctx, EDITOR, endpoint="declared", models=["jars"])

    more = DECLARED.replace("700", "800\nidle_seconds = 60\nqueue_seconds = 2.5")
    assert apply(world, more) == [{"noun": "endpoint", "name": "declared", "change": "changed"}]
    assert budget() == 800 and fleet.snapshot()["endpoints"]["declared"]["queue_ms"] == 2500
    assert {each["idle_seconds"] for each in fleet.processes()} == {60}
    assert before["id"] in {each["id"] for each in fleet.processes()}, "nothing starts anew"
    assert served() == {"boxes:1", "jars:1"}

    apply(world, more.replace("box*", "tubs"))
    assert served() == {"jars:1"}, "what was added by hand stays"
    apply(world, more)
    world.settle(lambda: served() == {"boxes:1", "jars:1"})
    assert endpoints.show(world.ctx, world.actor, endpoint="declared")["project"] == "boxes"


def test_a_branch_of_its_own_leaves_what_is_declared_alone(world: World) -> None:
    tree = world.tree(project(loop_toml=DECLARED))
    projects.apply(world.ctx, world.actor, tree=tree, branch="feature-x")
    with pytest.raises(NotFound):
        endpoints.show(world.ctx, world.actor, endpoint="declared")


def test_an_endpoint_of_another_kind_is_not_taken(world: World) -> None:
    endpoints.create(world.ctx, world.actor, name="one", model="boxes")
    with pytest.raises(Conflict, match="'one' already, which serves one model"):
        apply(world, DECLARED.replace('"declared"', '"one"'))
    with pytest.raises(Conflict, match="'many' serves many models already"):
        apply(world, LOOP + '[endpoint]\nname = "many"\n')
    apply(world, DECLARED)
    with pytest.raises(Conflict, match="belongs to the project 'boxes'"):
        apply(world, DECLARED.replace('name = "boxes"', 'name = "jars"'))


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ('name = "m"', "memory_mb"),
        ('name = "m"\nmemory_mb = 3', "memory_mb"),
        ('name = "a/b"\nmemory_mb = 300', "name"),
        ('name = "boxes"\nmemory_mb = 300\n[endpoint]\nname = "boxes"', "name"),
        ('name = "m"\nmemory_mb = 300\n[[multi_model]]\nname = "m"\nmemory_mb = 300', "name"),
        ('name = "m"\nmemory_mb = 300\nfollow = ["a b"]', "follow"),
        ('name = "m"\nmemory_mb = 300\nfollow = "a"', "follow"),
        ('name = "m"\nmemory_mb = 300\ncold_start_seconds = 0', "cold_start_seconds"),
        ('name = "m"\nmemory_mb = 300\ninstances = 2', "instances"),
    ],
)
def test_mistakes_in_the_table_are_found_before_anything_is_applied(line: str, key: str) -> None:
    loop, problems = loopfile.parse(f"{LOOP}\n[[multi_model]]\n{line}\n")
    assert loop is None and any(key in each.key and each.key.startswith("multi_model") for each in problems), problems
