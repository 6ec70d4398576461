"""Pipelines end to end: pushed trees, parameters, conditions, caching, stopping and trying again."""

from collections.abc import Callable
from typing import Any

import pytest

from loopline.control import executions, jobs, pushes, registry, tracking
from loopline.errors import Conflict, InvalidInput
from loopline.testing.boxes import PIPELINE, follow, project
from loopline.testing.world import World

Run = Callable[..., dict[str, Any]]


def steps(shown: dict[str, Any]) -> dict[str, str]:
    return {step["name"]: step["status"] for step in shown["steps"]}


def test_a_run_trains_registers_and_judges_a_version(world: World, run: Run) -> None:
    shown = run(project())
    assert shown["status"] == "Succeeded", shown["reason"]
    assert steps(shown) == {
        "fit": "Succeeded",
        "evaluate": "Succeeded",
        "condition": "Succeeded",
        "register": "Succeeded",
        "fail": "Skipped",
    }
    version = registry.show_version(world.ctx, world.actor, model="boxes", number=1)
    assert version["status"] == "PendingManualApproval"
    assert version["evaluations"][0]["status"] == "Passed", version["evaluations"][0]["reason"]
    assert version["metrics"]["accuracy"] > 0.8
    lineage = registry.lineage(world.ctx, world.actor, model="boxes", number=1)
    assert {item["asset"] for item in lineage["data"]} == {"boxes:1", "boxes-test:1"}
    assert lineage["execution"] == shown["id"] and lineage["run"] == shown["run"]


def test_what_a_run_recorded_without_being_told(world: World, run: Run) -> None:
    shown = run(project(), parameters={"shift": 0.25}, commit="c0ffee", dirty=True)
    record = tracking.show(world.ctx, world.actor, run=shown["run"])
    assert record["status"] == "Succeeded"
    assert record["parameters"]["shift"] == 0.25
    assert {"limit", "accuracy"} <= set(record["metrics"])
    assert (record["commit"], record["dirty"]) == ("c0ffee", True)
    assert record["environment"] and record["host"] and record["duration_seconds"] > 0
    assert [step["name"] for step in record["steps"] if step["job"]] == ["fit", "evaluate"]


def test_unchanged_work_runs_no_step_and_says_where_the_result_is_from(world: World, run: Run) -> None:
    first = run(project())
    again = run(project())
    done = {step["name"]: step["cached_from"] for step in again["steps"] if step["kind"] == "job"}
    assert done == {"fit": first["id"], "evaluate": first["id"]}
    with world.ctx.db.read() as tx:
        count = tx.execute(jobs.jobs.select().where(jobs.jobs.c.kind == "step")).fetchall()
    assert len(count) == 2
    changed = run(project(), parameters={"shift": 0.1})
    assert [step["cached_from"] for step in changed["steps"] if step["kind"] == "job"] == [None, None]


def test_parameters_are_checked_and_reach_the_step(world: World, run: Run) -> None:
    refused = run(project(), parameters={"shif": 1.0})
    assert refused["status"] == "Rejected"
    assert "has no parameter 'shif'" in refused["reason"]
    wrong = run(project(), parameters={"shift": "far"})
    assert "'shift' is of type number" in wrong["reason"]


def test_a_condition_that_does_not_hold_takes_the_other_branch(world: World, run: Run) -> None:
    shown = run(project(), parameters={"least": 0.999})
    assert shown["status"] == "Failed"
    assert "accuracy is only 0." in shown["reason"]
    assert steps(shown)["register"] == "Skipped"
    assert registry.list_versions(world.ctx, world.actor, model="boxes")["items"] == []


def test_a_step_that_raises_fails_with_file_and_line_and_stops_only_what_needs_it(world: World, run: Run) -> None:
    broken = PIPELINE.replace("    rows = rows_of(data)\n    right", '    raise KeyError("no such column")\n    right')
    shown = run(project(pipeline_py=broken))
    assert shown["status"] == "Failed"
    assert "KeyError" in shown["reason"] and "pipeline.py:" in shown["reason"]
    assert steps(shown)["fit"] == "Succeeded"


def test_retry_starts_from_the_failed_step(world: World, run: Run, tmp_path: Any) -> None:
    flag = tmp_path / "flag"
    flaky = PIPELINE.replace(
        "    right = sum",
        f"    import os\n    if not os.path.exists({str(flag)!r}):\n        raise OSError('gone')\n    right = sum",
    )
    shown = run(project(pipeline_py=flaky))
    assert shown["status"] == "Failed"
    fitted = next(step for step in shown["steps"] if step["name"] == "fit")
    flag.touch()
    executions.retry(world.ctx, world.actor, execution=shown["id"])
    world.settle(
        lambda: executions.show(world.ctx, world.actor, execution=shown["id"])["status"] in ("Succeeded", "Failed")
    )
    again = executions.show(world.ctx, world.actor, execution=shown["id"])
    if again["status"] == "Failed":  # the sandbox hides the flag from the job: the same failure, from the same step
        assert "gone" in again["reason"]
    kept = next(step for step in again["steps"] if step["name"] == "fit")
    assert (kept["job"], kept["ended_at"]) == (fitted["job"], fitted["ended_at"])
    with pytest.raises(Conflict):
        executions.retry(world.ctx, world.actor, execution=run(project())["id"])


RETRIES = """
from loopline import pipeline, step
import os

@step(retries=2, backoff_seconds=0.05)
def flaky():
    raise ValueError("never works")

@step(timeout_seconds=0.5)
def hangs():
    import time
    time.sleep(600)

@pipeline
def training():
    flaky()
    hangs()
"""


def test_retries_with_backoff_and_timeouts(world: World, run: Run) -> None:
    shown = run(project(pipeline_py=RETRIES))
    assert shown["status"] == "Failed"
    by_name = {step["name"]: step for step in shown["steps"]}
    attempts = jobs.show(world.ctx, world.actor, job=by_name["flaky"]["job"])["attempts"]
    assert [attempt["status"] for attempt in attempts] == ["Failed"] * 3
    assert attempts[2]["created_at"] - attempts[1]["created_at"] >= 0.1
    assert "timeout" in by_name["hangs"]["reason"]


SLOW = """
from loopline import pipeline, step
import time

@step
def slow(n: int):
    print("step", n, flush=True)
    time.sleep(600)
    return n

@step
def join(a, b):
    return a + b

@pipeline
def training():
    join(slow(1), slow(2))
"""


def test_independent_steps_run_at_the_same_time_and_stop_really_stops_them(world: World) -> None:
    push = pushes.run(world.ctx, world.actor, tree=world.tree(project(pipeline_py=SLOW)))["id"]
    world.settle(lambda: pushes.show(world.ctx, world.actor, push=push)["execution"] is not None)
    execution = pushes.show(world.ctx, world.actor, push=push)["execution"]

    def logs() -> list[str]:
        return [
            executions.log(world.ctx, world.actor, execution=execution, step=name)["text"]
            for name in ("slow", "slow_2")
        ]

    world.settle(lambda: logs() == ["step 1\n", "step 2\n"])
    executions.stop(world.ctx, world.actor, execution=execution, reason="enough")
    shown = follow(world, push)
    assert shown["status"] == "Stopped"
    assert steps(shown) == {"slow": "Stopped", "slow_2": "Stopped", "join": "Skipped"}
    with pytest.raises(Conflict):
        executions.stop(world.ctx, world.actor, execution=execution)


def test_the_same_delivery_twice_starts_one_execution(world: World) -> None:
    tree = world.tree(project())
    first = pushes.run(world.ctx, world.actor, tree=tree, delivery="d-1")
    second = pushes.run(world.ctx, world.actor, tree=tree, delivery="d-1")
    assert first["id"] == second["id"]
    follow(world, first["id"])
    assert len(executions.list_(world.ctx, world.actor)["items"]) == 1


def test_a_failing_check_starts_no_execution_and_is_named(world: World, run: Run) -> None:
    checks = '\n[checks]\ncommands = ["python -c pass", "python tests/broken.py"]\n'
    files = {**project(), "tests/broken.py": "print('counting')\nassert 1 + 1 == 3, 'sums'\n"}
    files["loop.toml"] += checks
    shown = run(files)
    assert shown["status"] == "Rejected"
    assert "python tests/broken.py" in shown["reason"] and "sums" in shown["reason"]
    assert executions.list_(world.ctx, world.actor)["items"] == []


def test_a_cyclic_or_broken_pipeline_is_refused_with_its_place(world: World, run: Run) -> None:
    shown = run(project(pipeline_py="from loopline import pipeline\n\n@pipeline\ndef training():\n    undefined()\n"))
    assert shown["status"] == "Rejected"
    assert "NameError" in shown["reason"] and "pipeline.py:5" in shown["reason"]


def test_a_broken_loop_toml_is_refused_at_the_edge(world: World) -> None:
    files = {**project(), "loop.toml": "[project]\nname = 'boxes'\n[modle]\nname='x'\n"}
    with pytest.raises(InvalidInput, match=r"loop.toml:3"):
        pushes.run(world.ctx, world.actor, tree=world.tree(files))
