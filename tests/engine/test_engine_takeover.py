"""What a control that died was doing is taken over by the next one, at once and once."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from loopline.control import executions, jobs, pushes
from loopline.engine.worker import Engine
from loopline.store import queue, records, schema
from loopline.testing.boxes import project
from loopline.testing.live import until
from loopline.testing.world import World


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


def running(world: World) -> None:
    """Start the engine and stop it again, once it has done what was due."""
    engine = Engine(world.ctx)
    engine.start()
    try:
        until(lambda: not queued(world), "nothing is queued")
    finally:
        engine.stop()
    until(lambda: not any(thread.is_alive() for thread in engine._threads), "its threads end")


def queued(world: World) -> list[dict[str, Any]]:
    with world.ctx.db.read() as tx:
        return tx.rows(sa.select(schema.queue))


def held_by(world: World, owner: str) -> None:
    """A task that is done as soon as somebody looks, in the hands of ``owner``."""
    with world.ctx.db.transaction() as tx:
        queue.ask(tx, "jobs.start", "all")
    assert queue.claim(world.ctx.db, ["jobs.start"], owner, 60.0)


@pytest.fixture
def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_task_of_a_dead_process_of_this_host_is_taken_over_at_once(world: World, dead_pid: int) -> None:
    held_by(world, f"{world.ctx.host}:{dead_pid}.123.abcdef01:tasks-0")
    running(world)
    assert queued(world) == []


def test_a_task_of_another_process_with_the_same_pid_is_taken_over(world: World) -> None:
    held_by(world, f"{world.ctx.host}:{os.getpid()}.1.abcdef01:tasks-0")
    running(world)
    assert queued(world) == []


@pytest.mark.parametrize("host", ["another-host", "", "x:y"])
def test_a_task_of_another_host_keeps_its_lease(world: World, dead_pid: int, host: str) -> None:
    owner = f"{host}:{dead_pid}.123.abcdef01:tasks-0"
    held_by(world, owner)
    engine = Engine(world.ctx)
    engine.start()
    engine.stop()
    assert [row["owner"] for row in queued(world)] == [owner]


def test_what_this_process_holds_is_not_given_back(world: World) -> None:
    first = Engine(world.ctx)
    claimed: list[str] = []
    first._work_on = lambda task: claimed.append(task.key)  # type: ignore[method-assign]
    first.start()
    with world.ctx.db.transaction() as tx:
        queue.ask(tx, "jobs.start", "all")
    first.wake()
    until(lambda: claimed, "the task was claimed")
    second = Engine(world.ctx)
    second.start()
    second.stop()
    first.stop()
    assert claimed == ["all"]
    assert queued(world)[0]["owner"] is not None


# -- attempts ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def attempt(world: World, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """An attempt that was recorded by a control which died before it handed it over."""
    with monkeypatch.context() as dying:
        dying.setattr(jobs, "_launch", lambda *_: None)
        push = pushes.run(world.ctx, world.actor, tree=world.tree(project()))
        world.settle(lambda: bool(live(world)))
    world.push = push["id"]  # type: ignore[attr-defined]
    return live(world)[0]


def live(world: World) -> list[dict[str, Any]]:
    with world.ctx.db.read() as tx:
        return tx.rows(sa.select(schema.attempts).where(schema.attempts.c.status.in_(("Starting", "Running"))))


def ends_well(world: World) -> None:
    def shown() -> dict[str, Any]:
        return pushes.show(world.ctx, world.actor, push=world.push)  # type: ignore[attr-defined]

    world.settle(lambda: shown()["status"] == "Started")
    execution = shown()["execution"]
    world.settle(lambda: executions.show(world.ctx, world.actor, execution=execution)["status"] == "Succeeded")


def status_of(world: World, attempt: dict[str, Any]) -> str:
    with world.ctx.db.read() as tx:
        return str(records.get(tx, "attempt", attempt["id"])["status"])


def test_an_attempt_that_was_never_laid_out_is_lost_and_its_job_starts_anew(
    world: World, attempt: dict[str, Any]
) -> None:
    jobs.recover(world.ctx)
    assert status_of(world, attempt) == "Lost"
    ends_well(world)


def test_an_attempt_that_was_laid_out_but_not_begun_is_handed_over_again(
    world: World, attempt: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with world.ctx.db.read() as tx:
        job = records.get(tx, "job", attempt["job"])
    with monkeypatch.context() as dying:
        dying.setattr(type(world.ctx.compute), "_start", lambda *_: None)
        jobs._launch(world.ctx, attempt, job)
    assert world.ctx.compute.poll(attempt["id"]).state == "unclaimed"
    jobs.recover(world.ctx)
    ends_well(world)
    assert status_of(world, attempt) == "Succeeded"


def test_a_job_that_somebody_killed_starts_anew_and_spends_no_try(world: World, tmp_path: Path) -> None:
    slow, go = project(), tmp_path / "go"
    wait = f"    import os, time\n    while not os.path.exists({str(go)!r}): time.sleep(0.01)\n"
    slow["pipeline.py"] = slow["pipeline.py"].replace(
        "    rows = rows_of(data)\n", f"{wait}    rows = rows_of(data)\n", 1
    )
    world.push = pushes.run(world.ctx, world.actor, tree=world.tree(slow))["id"]  # type: ignore[attr-defined]

    def fitting() -> list[dict[str, Any]]:
        with world.ctx.db.read() as tx:
            return tx.rows(
                sa.select(schema.attempts)
                .join(schema.jobs, schema.jobs.c.id == schema.attempts.c.job)
                .where(schema.jobs.c.name == "fit", schema.attempts.c.status.in_(("Starting", "Running")))
            )

    def group() -> Path | None:
        found = [world.ctx.settings.dir / "attempts" / row["id"] / "group" for row in fitting()]
        return found[0] if found and found[0].exists() else None

    world.settle(lambda: group() is not None)
    found = group()
    assert found is not None
    (killed,) = fitting()
    os.kill(json.loads(found.read_text())["pid"], signal.SIGKILL)
    go.touch()
    ends_well(world)
    assert status_of(world, killed) == "Lost"
    with world.ctx.db.read() as tx:
        assert records.get(tx, "job", killed["job"])["tries"] == 0
