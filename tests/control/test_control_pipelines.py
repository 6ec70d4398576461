"""Stored pipelines: kept by name in versions, started without a project; actions of control as steps; selections."""

from typing import Any

import pytest

from loopline.control import access, executions, pipelines, registry
from loopline.domain import states
from loopline.errors import Conflict, InvalidInput, NotFound
from loopline.testing.world import World

Json = dict[str, Any]


@pytest.fixture(autouse=True)
def admin(world: World) -> None:
    """An action is performed for whoever started the execution: a user with a role."""
    access.create_user(world.ctx, world.actor, name=world.actor.name, role="admin")


def ref(step: str, *path: str | int, output: str = "result") -> Json:
    return {"ref": {"step": step, "output": output, "path": list(path)}}


def parameter(name: str) -> Json:
    return {"ref": {"parameter": name}}


def literal(value: Any) -> Json:
    return {"value": value}


def spec(*steps: Json, name: str = "flow", parameters: list[Json] | None = None) -> Json:
    return {"version": 1, "name": name, "parameters": parameters or [], "steps": list(steps)}


def action(name: str, **arguments: Json) -> Json:
    return {"kind": "action", "name": name, "action": "version.register", "arguments": arguments}


def fail(name: str, *message: Json, **more: Any) -> Json:
    return {"kind": "fail", "name": name, "message": list(message), **more}


def condition(name: str, op: str, left: Json, right: Json) -> Json:
    return {"kind": "condition", "name": name, "condition": {"op": op, "left": left, "right": right}}


def ran(world: World, pipeline: str = "flow", **options: Any) -> Json:
    """Start a pipeline and wait for its end."""
    started = pipelines.start(world.ctx, world.actor, pipeline=pipeline, **options)
    return ended(world, started["id"])


def ended(world: World, execution: str) -> Json:
    def show() -> Json:
        return executions.show(world.ctx, world.actor, execution=execution)

    world.settle(lambda: states.is_terminal("execution", show()["status"]))
    return show()


def steps(shown: Json) -> dict[str, str]:
    return {step["name"]: step["status"] for step in shown["steps"]}


REGISTER = spec(
    action("register", model=literal("words"), description=parameter("text"), status=literal("PendingManualApproval")),
    condition("second", "ge", ref("register", "version"), literal(2)),
    fail("stop", ref("register", "name"), literal("has two"), parents=[{"step": "second", "branch": True}]),
    parameters=[{"name": "text", "type": "string", "default": "a word"}],
)


def test_a_pipeline_is_kept_in_versions(world: World) -> None:
    made = pipelines.create(world.ctx, world.actor, spec=REGISTER, definition="first", title="Words")
    assert (made["name"], made["version"], made["created_by"]) == ("flow", 1, "admin")
    with pytest.raises(Conflict, match="there is a pipeline 'flow' already"):
        pipelines.create(world.ctx, world.actor, spec=REGISTER)

    same = pipelines.update(world.ctx, world.actor, pipeline="flow", spec=REGISTER, definition="first")
    other = pipelines.update(
        world.ctx, world.actor, pipeline="flow", spec=REGISTER, definition="second", max_parallel=3
    )

    assert (same["version"], other["version"], other["title"]) == (1, 2, "Words")
    assert pipelines.show(world.ctx, world.actor, pipeline="flow", version=1)["definition"] == "first"
    listed = pipelines.list_(world.ctx, world.actor)["items"]
    assert [(row["name"], row["version"], row["last_started_at"]) for row in listed] == [("flow", 2, None)]
    pipelines.delete(world.ctx, world.actor, pipeline="flow")
    with pytest.raises(NotFound, match="no stored pipeline 'flow'"):
        pipelines.show(world.ctx, world.actor, pipeline="flow")
    again = pipelines.create(world.ctx, world.actor, spec=REGISTER, definition="third")
    assert again["version"] == 3  # what ran before keeps its meaning


def test_an_action_is_performed_once_and_what_it_gave_goes_on(world: World) -> None:
    pipelines.create(world.ctx, world.actor, spec=REGISTER)

    first = ran(world, parameters={"text": "hello"})
    second = ran(world)

    assert steps(first) == {"register": "Succeeded", "second": "Succeeded", "stop": "Skipped"}
    assert steps(second) == {"register": "Succeeded", "second": "Succeeded", "stop": "Failed"}
    assert second["reason"] == "stop: words has two"
    version = registry.show_version(world.ctx, world.actor, model="words", number=1)
    assert (version["metadata"]["description"], version["execution"]) == ("hello", first["id"])
    retried = executions.retry(world.ctx, world.actor, execution=second["id"], delivery="once")
    ended(world, retried["id"])
    again = executions.retry(world.ctx, world.actor, execution=second["id"], delivery="once")
    assert again["status"] == "Failed"  # the same request, sent again, tries nothing again
    assert len(registry.list_versions(world.ctx, world.actor, model="words")["items"]) == 2


def test_an_action_that_fails_leaves_nothing(world: World) -> None:
    many = {f"k{number}": "v" for number in range(60)}
    pipelines.create(
        world.ctx, world.actor, spec=spec(action("register", model=literal("words"), properties=literal(many)))
    )

    shown = ran(world)

    assert (shown["status"], shown["reason"]) == ("Failed", "register: properties: at most 50")
    with pytest.raises(NotFound, match="no model 'words'"):
        registry.show_model(world.ctx, world.actor, model="words")


def test_texts_are_made_of_parameters_and_facts(world: World) -> None:
    message = {"join": {"on": "/", "values": [{"execution": "pipeline"}, parameter("n"), {"execution": "id"}]}}
    number = {"name": "n", "type": "number"}
    pipelines.create(world.ctx, world.actor, spec=spec(fail("stop", message), parameters=[number]))

    shown = ran(world, parameters={"n": "0.5"}, texts=True)

    assert shown["reason"] == f"stop: flow/0.5/{shown['id']}"
    with pytest.raises(InvalidInput, match="needs the parameter 'n'"):
        pipelines.start(world.ctx, world.actor, pipeline="flow")
    with pytest.raises(InvalidInput, match="of type number"):
        pipelines.start(world.ctx, world.actor, pipeline="flow", parameters={"n": "0.5"})


def test_selected_steps_take_what_the_others_gave(world: World) -> None:
    pipelines.create(world.ctx, world.actor, spec=REGISTER)
    with pytest.raises(InvalidInput, match="nothing to take results from"):
        pipelines.start(world.ctx, world.actor, pipeline="flow", steps=["second"])
    ran(world)
    second = ran(world)

    shown = ran(world, steps=["second", "stop"])

    assert shown["selection"] == {"steps": ["second", "stop"], "source": second["id"]}
    found = {step["name"]: (step["status"], step["cached_from"]) for step in shown["steps"]}
    assert found == {
        "register": ("Succeeded", second["id"]),
        "second": ("Succeeded", None),
        "stop": ("Failed", None),
    }
    assert len(registry.list_versions(world.ctx, world.actor, model="words")["items"]) == 2
    for wrong, said in ((["nowhere"], "'nowhere' is no step"), ([], "at least one step")):
        with pytest.raises(InvalidInput, match=said):
            pipelines.start(world.ctx, world.actor, pipeline="flow", steps=wrong)


def test_what_was_left_out_stays_left_out_when_it_is_tried_again(world: World) -> None:
    two = spec(fail("one", literal("no")), fail("two", literal("never")))
    pipelines.create(world.ctx, world.actor, spec=two)
    first = ran(world)
    assert steps(first) == {"one": "Failed", "two": "Failed"}

    chosen = ran(world, steps=["one"], source=first["id"])
    executions.retry(world.ctx, world.actor, execution=chosen["id"])

    assert steps(ended(world, chosen["id"])) == {"one": "Failed", "two": "Skipped"}


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (spec({"kind": "job", "name": "fit", "function": "fit"}), "not the path of a Python file"),
        ({**spec({"kind": "job", "name": "fit", "function": "fit"}), "file": "p.py"}, "needs a project's files"),
        (spec({"kind": "action", "name": "a", "action": "world.end"}), "'world.end' is no action"),
        (spec(action("a", colour=literal("red"))), "not 'colour'"),
        (spec(fail("f", parameter("p"))), "not declared"),
        (spec(fail("f", ref("g"))), "which is no step"),
        (spec(), "has 1 to"),
    ],
)
def test_what_cannot_run_is_refused(world: World, wanted: Json, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        pipelines.create(world.ctx, world.actor, spec=wanted)
