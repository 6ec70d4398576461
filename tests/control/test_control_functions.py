"""Functions follow the files that were applied; where new processes do not come up, the old ones go on."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from loopline.control import functions, processes, projects, snapshots
from loopline.domain import loopfile
from loopline.errors import Conflict, InvalidInput, NotFound
from loopline.testing.fleet import Fleet
from loopline.testing.world import World

LOOP = """
[project]
name = "{project}"
[model]
name = "m"
handler = "joblib"
[[functions]]
name = "resize"
file = "fn.py"
endpoints = ["patients"]
timeout_seconds = {timeout}
"""
CODE = "def handler(event, context):\n    return 1\n"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    opened = World(tmp_path / "data")
    with opened.ctx.db.transaction() as tx:
        snapshots.write(opened.ctx, tx, actor="test", reason="the first")
    yield opened
    opened.close()


@pytest.fixture
def fleet(world: World) -> Fleet:
    return Fleet(world.ctx)


def apply(
    world: World,
    *,
    project: str = "p",
    timeout: float = 5,
    code: str = CODE,
    loop: str | None = None,
    more: dict[str, str] | None = None,
) -> Any:
    text = LOOP.format(project=project, timeout=timeout) if loop is None else loop
    files = {"loop.toml": text, "fn.py": code, "pipeline.py": "", "requirements.txt": "", **(more or {})}
    return projects.apply(world.ctx, world.actor, tree=world.tree(files))["changes"]


def settled(world: World, fleet: Fleet, status: str = "Ready") -> dict[str, Any]:
    def done() -> bool:
        fleet.act()
        row = functions.show(world.ctx, world.actor, function="resize")
        return row["status"] == status and (status != "Ready" or len(fleet.processes()) == 1)

    world.settle(done)
    return functions.show(world.ctx, world.actor, function="resize")


def test_a_function_is_started_and_published(world: World, fleet: Fleet) -> None:
    changes = apply(world)
    assert {"noun": "function", "name": "resize", "change": "created"} in changes
    row = settled(world, fleet)
    assert row["environment"] and [server["state"] for server in row["servers"]] == ["ready"]
    published = fleet.snapshot()["functions"]["resize"]
    assert (published["calls"], published["timeout_ms"], published["auth"]) == (["patients"], 5000, True)
    assert published["variants"][0]["version"] is None
    assert published["variants"][0]["servers"] == [fleet.processes()[0]["socket"]]
    assert not [change for change in apply(world) if change["noun"] == "function"]
    assert functions.list_(world.ctx, world.actor, project="p")["items"][0]["name"] == "resize"


def test_a_new_tree_takes_over_when_its_processes_are_ready(world: World, fleet: Fleet) -> None:
    apply(world)
    settled(world, fleet)
    (before,) = fleet.processes()
    assert {"noun": "function", "name": "resize", "change": "changed"} in apply(world, code=CODE + "\n")
    world.settle(lambda: len(fleet.processes()) == 2)
    assert fleet.snapshot()["functions"]["resize"]["variants"][0]["servers"] == [before["socket"]]
    settled(world, fleet)
    (after,) = fleet.processes()
    assert after["id"] != before["id"]
    assert fleet.snapshot()["functions"]["resize"]["variants"][0]["servers"] == [after["socket"]]


def test_processes_go_on_while_nothing_that_they_see_changes(world: World, fleet: Fleet) -> None:
    narrow = LOOP.format(project="p", timeout=5) + 'code = ["shared/*"]\n'
    files = {"shared/a.py": "A = 1\n", "other/b.py": "", "packages.txt": ""}
    apply(world, loop=narrow, more=files)
    settled(world, fleet)
    (before,) = fleet.processes()
    seen = Path(before["cwd"])
    assert {str(path.relative_to(seen)) for path in seen.rglob("*") if path.is_file()} == {
        "fn.py",
        "shared/a.py",
        "requirements.txt",
    }

    def process(old: str, new: str, **changed: str) -> Any:
        """The process that answers when a text of loop.toml, or a file, is another one."""
        apply(world, loop=narrow.replace(old, new), more={**files, **changed})
        settled(world, fleet)
        return fleet.processes()[0]["id"]

    assert process("", "", **{"other/b.py": "B = 1\n", "pipeline.py": "# another\n"}) == before["id"]
    assert process("[model]", 'description = "another"\n[model]') == before["id"]
    assert process("timeout_seconds = 5", "timeout_seconds = 9") == before["id"]
    assert fleet.snapshot()["functions"]["resize"]["timeout_ms"] == 9000
    packed = process("[[functions]]", '[environment]\nrequirements = "packages.txt"\n[[functions]]')
    assert packed != before["id"]
    unpacked = process("", "")
    assert unpacked != packed
    assert process("", "", **{"shared/a.py": "A = 2\n"}) != unpacked


def test_code_that_does_not_start_leaves_what_answered_before(world: World, fleet: Fleet) -> None:
    apply(world)
    first = settled(world, fleet)
    (before,) = fleet.processes()
    apply(world, code="import nothing_like_this\n")
    world.settle(lambda: len(fleet.processes()) == 2)
    fleet.broken = {first["id"]: "no module named nothing_like_this"}
    row = settled(world, fleet)
    assert "does not start: no module named nothing_like_this" in row["reason"]
    assert [entry["id"] for entry in fleet.processes()] == [before["id"]]


def test_a_first_start_that_fails_says_why_and_may_be_applied_again(world: World, fleet: Fleet) -> None:
    apply(world)
    row = functions.show(world.ctx, world.actor, function="resize")
    fleet.broken = {row["id"]: "fn.py defines no function handler(event, context)"}
    assert "defines no function" in settled(world, fleet, "Failed")["reason"]
    fleet.broken = {}
    apply(world)
    settled(world, fleet)


class Interrupted:
    """The environments of an installation; while the next one is looked for, something else happens."""

    def __init__(self, real: Any, happens: Callable[[], Any]) -> None:
        self._real = real
        self._happens: Callable[[], Any] | None = happens

    def lock(self, requirements: str) -> str:
        happens, self._happens = self._happens, None
        if happens is not None:
            happens()
        found: str = self._real.lock(requirements)
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def test_what_is_declared_while_processes_are_made_is_what_they_get(world: World, fleet: Fleet) -> None:
    closed = LOOP.format(project="p", timeout=5)
    apply(world, loop=closed + "network = true\n")
    world.ctx.environments = Interrupted(world.ctx.environments, lambda: apply(world, loop=closed))
    settled(world, fleet)
    argv = fleet.processes()[0]["argv"]
    spec = json.loads(Path(argv[argv.index("--spec") + 1]).read_text())
    assert spec["sandbox"] == {"network": False}


def test_what_cannot_be_made_says_nothing_of_what_was_applied_meanwhile(world: World, fleet: Fleet) -> None:
    apply(world)

    def replaced() -> None:
        apply(world, code=CODE + "\n")
        raise InvalidInput("there is no such package")

    world.ctx.environments = Interrupted(world.ctx.environments, replaced)
    assert not settled(world, fleet)["reason"]


def test_a_push_tries_again_what_did_not_come_up(world: World, fleet: Fleet) -> None:
    apply(world)
    first = settled(world, fleet)
    (before,) = fleet.processes()
    apply(world, code=CODE + "\n")
    world.settle(lambda: len(fleet.processes()) == 2)
    fleet.broken = {first["id"]: "there was no room"}
    assert "there was no room" in settled(world, fleet)["reason"]
    fleet.broken = {}
    apply(world, code=CODE + "\n", timeout=9)
    assert not settled(world, fleet)["reason"]
    assert fleet.processes()[0]["id"] != before["id"]
    assert not [change for change in apply(world, code=CODE + "\n", timeout=9) if change["noun"] == "function"]


def test_a_function_that_is_no_longer_declared_goes_and_may_come_back(world: World, fleet: Fleet) -> None:
    apply(world)
    settled(world, fleet)
    without = LOOP.format(project="p", timeout=5).partition("[[functions]]")[0]
    assert {"noun": "function", "name": "resize", "change": "deleted"} in apply(world, loop=without)
    assert not fleet.processes() and not fleet.snapshot()["functions"]
    with pytest.raises(NotFound):
        functions.show(world.ctx, world.actor, function="resize")
    apply(world)
    settled(world, fleet)
    functions.delete(world.ctx, world.actor, function="resize")
    assert not fleet.processes()


def test_the_function_of_another_project_is_not_taken(world: World, fleet: Fleet) -> None:
    apply(world)
    with pytest.raises(Conflict, match="belongs to the project 'p'"):
        apply(world, project="q")


def test_a_function_on_its_way_goes_on_after_a_restart(world: World, fleet: Fleet) -> None:
    apply(world)
    world.settle(lambda: len(fleet.processes()) == 1)
    functions.recover(world.ctx)
    processes.write(world.ctx)
    settled(world, fleet)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ('file = "../x.py"', "file"),
        ('file = "missing.py"', "file"),
        ('file = "fn.py"\nhandler = "a.b"', "handler"),
        ('file = "fn.py"\ninstances = 0', "instances"),
        ('file = "fn.py"\ncode = ["shared/*"]', "code"),
        ('file = "fn.py"\nendpoints = ["a/b"]', "endpoints"),
        ('file = "fn.py"\ntimeout_seconds = 0', "timeout_seconds"),
    ],
)
def test_mistakes_are_found_before_anything_is_applied(line: str, what: str) -> None:
    text = '[project]\nname = "p"\n[model]\nname = "m"\nhandler = "joblib"\n[[functions]]\nname = "f"\n' + line
    _, problems = loopfile.parse(text, "loop.toml", frozenset({"loop.toml", "fn.py", "pipeline.py"}))
    assert any(what in problem.key for problem in problems if problem.level == "error"), problems


def test_two_functions_of_one_name_are_a_mistake(world: World) -> None:
    twice = LOOP.format(project="p", timeout=5) + '\n[[functions]]\nname = "resize"\nfile = "fn.py"\n'
    with pytest.raises(InvalidInput, match="two functions are called"):
        apply(world, loop=twice)
