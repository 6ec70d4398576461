"""The strategies of rollouts: linear, server by server, blue-green; tests before traffic moves; the split that was."""

import json
from typing import Any

import pytest

from loopline.control import endpoint_tests, release_tests, rollbacks, rollouts, shifts
from loopline.control.snapshots import replace_json
from loopline.domain.access import Actor
from loopline.domain.states import CheckupStatus
from loopline.errors import Conflict
from loopline.store import records
from loopline.testing.boxes import LOOP
from loopline.testing.stage import Stage

ADMIN = Actor("admin", "admin")

FLEET = """
[endpoint]
name = "boxes"
deploy_on_approval = false
instances = 4
keep_warm_seconds = 600

[rollout]
strategy = "{strategy}"
{more}
bake_seconds = 5
"""


@pytest.fixture
def fleet(stage: Stage) -> Stage:
    """Version 1 serves with four servers."""
    stage.register(LOOP + FLEET.format(strategy="rolling", more="batch = 1"))
    stage.release(1)
    stage.until("Succeeded")
    return stage


def _servers(stage: Stage, name: str) -> list[str]:
    """The sockets of a variant in the published snapshot."""
    variants = stage.fleet.snapshot()["endpoints"]["boxes"]["variants"]
    return next((variant["servers"] for variant in variants if variant["name"] == name), [])


def test_a_linear_rollout_adds_the_same_share_in_each_step(versions: Stage) -> None:
    versions.release(1)
    versions.until("Succeeded")
    versions.release(2, strategy="linear", settings={"step_percent": 25, "bake_seconds": 1})
    done = versions.until("Succeeded", count=2)
    assert [note["share"] for note in done["decisions"]] == [25.0, 50.0, 75.0, 100.0]


def test_a_rollout_that_takes_too_long_turns_back(versions: Stage) -> None:
    versions.release(1)
    versions.until("Succeeded")
    settings = {"steps": [50], "bake_seconds": 300, "max_seconds": 60}
    begun = versions.release(2, strategy="canary", settings=settings)
    versions.until("Baking", count=2)
    assert versions.fleet.weights("boxes") == {"v1": 50.0, "v2": 50.0}
    versions.clock.advance(begun["created_at"] + 59 - versions.clock.now())
    versions.world.step()
    assert versions.rollouts()[0]["status"] == "Baking"
    turned = versions.until("RolledBack", count=2)
    assert turned["reason"] == "it was not over within 60 s"
    assert versions.clock.now() - begun["created_at"] < 120
    assert versions.fleet.weights("boxes") == {"v1": 100.0}


def test_a_rollout_whose_servers_do_not_come_in_time_fails_and_leaves_what_serves(versions: Stage) -> None:
    versions.release(1)
    versions.until("Succeeded")
    began = versions.release(2, strategy="canary", settings={"max_seconds": 10, "start_timeout_seconds": 600})
    versions.world.settle(lambda: versions.world.step() or versions.rollouts()[0]["status"] == "Starting")
    versions.clock.advance(began["created_at"] + 11 - versions.clock.now())
    versions.world.settle(lambda: versions.rollouts()[0]["status"] == "Failed")
    assert versions.rollouts()[0]["reason"] == "it was not over within 10 s"
    assert versions.fleet.weights("boxes") == {"v1": 100.0}


def test_servers_are_replaced_one_by_one_and_there_are_never_fewer(fleet: Stage) -> None:
    fleet.release(2)
    seen: list[tuple[int, int, float]] = []

    def over() -> bool:
        fleet.turn()
        weights = fleet.fleet.weights("boxes")
        now = len(_servers(fleet, "v2")) if weights.get("v2") else 0, len(_servers(fleet, "v1")), weights.get("v2", 0.0)
        if now not in seen:
            seen.append(now)
        running = {entry["socket"] for entry in fleet.fleet.processes()}
        for name in ("v1", "v2"):
            if weights.get(name):
                assert set(_servers(fleet, name)) <= running, "a snapshot names a server that is not wanted any more"
        return fleet.rollouts()[0]["status"] == "Succeeded" and len(fleet.rollouts()) == 2

    fleet.world.settle(over)
    assert all(new + old >= 4 for new, old, _ in seen)
    assert [share for _, _, share in seen if share] == sorted(share for _, _, share in seen if share)
    assert {(new, share) for new, _, share in seen if share} == {(1, 25.0), (2, 50.0), (3, 75.0), (4, 100.0)}
    assert [note["share"] for note in fleet.rollouts()[0]["decisions"]] == [25.0, 50.0, 75.0, 100.0]
    assert len(fleet.fleet.processes()) == 5  # the last of the old ones is kept for a rollback


def test_a_replacement_that_goes_wrong_gives_the_old_version_all_its_servers_again(fleet: Stage) -> None:
    fleet.release(2)
    fleet.world.settle(lambda: (fleet.turn(), fleet.fleet.weights("boxes").get("v2") == 75.0)[1])
    fleet.until("Baking", count=2)
    fleet.clock.advance(1.5)
    fleet.answer("v2", 40, errors=30)
    done = fleet.until("RolledBack", count=2)
    assert "at 75 %" in done["reason"]
    assert fleet.fleet.weights("boxes") == {"v1": 100.0}
    assert len(_servers(fleet, "v1")) == 4 and len(fleet.fleet.processes()) == 4
    assert fleet.status(2) == "Rejected"


def test_a_bad_version_goes_while_more_of_its_servers_start(fleet: Stage) -> None:
    fleet.release(2)
    fleet.world.settle(lambda: (fleet.turn(), fleet.rollouts()[0]["step"] == 1)[1])
    assert fleet.rollouts()[0]["status"] == "Starting"
    fleet.answer("v2", 40, errors=30)
    rollout = fleet.rollouts()[0]
    for path in (fleet.world.ctx.settings.run_dir / "servers").glob("*.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "state": "loading"}))
    with fleet.world.ctx.db.transaction() as tx:  # the evidence is of the second in which the step began
        records.set(tx, "rollout", rollout["id"], actor="test", step_at=fleet.clock.now() - 1.5)
    shifts.advance(fleet.world.ctx, rollout["id"])
    assert fleet.rollouts()[0]["status"] == "RollingBack"


def test_blue_green_moves_at_once_to_a_fleet_of_the_same_size_and_keeps_the_old_one(fleet: Stage) -> None:
    fleet.release(2, strategy="blue-green")
    fleet.until("Baking", count=2)
    assert fleet.fleet.weights("boxes") == {"v2": 100.0}
    assert len(_servers(fleet, "v2")) == len(_servers(fleet, "v1")) == 4
    fleet.until("Succeeded", count=2)
    assert fleet.variants()["v1"]["status"] == "Warm"
    assert len(fleet.fleet.processes()) == 8
    fleet.clock.advance(601)
    fleet.world.settle(lambda: len(fleet.fleet.processes()) == 4)


def test_blue_green_goes_back_by_itself_after_the_switch(fleet: Stage) -> None:
    fleet.release(2, strategy="blue-green")
    fleet.until("Baking", count=2)
    fleet.clock.advance(1.5)
    fleet.answer("v2", 100, errors=60)
    assert "at 100 %" in fleet.until("RolledBack", count=2)["reason"]
    assert fleet.fleet.weights("boxes") == {"v1": 100.0}


@pytest.mark.parametrize("strategy", ["canary", "linear", "rolling", "blue-green", "all-at-once"])
def test_a_rollout_of_any_kind_goes_on_after_a_kill_at_any_point(fleet: Stage, strategy: str) -> None:
    """Every status is met with an empty queue, as a restart finds it."""
    settings = {"step_percent": 50, "bake_seconds": 1}
    fleet.release(2, strategy=strategy, settings=settings)
    met = set()

    def over() -> bool:
        rollout = fleet.rollouts()[0]
        fleet.turn()
        fleet.clock.advance(0.5)
        if rollout["status"] not in met:
            met.add(rollout["status"])
            fleet.world.ctx.cache.clear()
            rollouts.recover(fleet.world.ctx)
        return rollout["status"] == "Succeeded" and len(fleet.rollouts()) == 2

    fleet.world.settle(over)
    assert fleet.fleet.weights("boxes") == {"v2": 100.0}
    assert fleet.champion() == 2


# -- tests before traffic moves ---------------------------------------------------------------------------------------

GOLDEN = {"kind": "golden", "cases": [{"request": {"instances": [{"size": 9}]}, "expected": ["large"]}]}


@pytest.fixture
def tested(versions: Stage) -> Stage:
    """An endpoint with a golden test; what its runs come to is said by the tests here."""
    versions.release(1)
    versions.until("Succeeded")
    definition: dict[str, Any] = GOLDEN
    endpoint_tests.put(versions.world.ctx, ADMIN, endpoint="boxes", name="sizes", definition=definition)
    return versions


def _end_run(stage: Stage, *, good: bool) -> str:
    """End the newest run of tests; gives the stage that it stood before. No gateway is there to be asked."""
    run = release_tests.list_(stage.world.ctx, ADMIN)["items"][0]
    status = CheckupStatus.PASSED if good else CheckupStatus.FAILED
    with stage.world.ctx.db.transaction() as tx:
        if records.get(tx, "test_run", run["id"])["status"] == CheckupStatus.PENDING:
            records.move(tx, "test_run", run["id"], CheckupStatus.RUNNING, actor="test")
        records.move(tx, "test_run", run["id"], status, actor="test", reason="1 checks of 1 tests", ended_at=tx.now)
    return str(run["stage"])


def _without_runner(monkeypatch: pytest.MonkeyPatch) -> None:
    from loopline.engine.tasks import TASKS

    monkeypatch.setitem(TASKS, "test_run.advance", lambda ctx, run: None)  # type: ignore[arg-type]


def test_a_version_is_tested_by_name_before_it_gets_any_traffic_and_before_each_step(
    tested: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    _without_runner(monkeypatch)
    tested.release(2)
    stages = []
    for share in (0.0, 5.0, 50.0):
        tested.until("Testing", count=2)
        tested.world.settle(
            lambda: (tested.turn(), _open_runs(tested))[1]  # it begins once every gateway knows the variant
        )
        assert tested.fleet.weights("boxes").get("v2", 0.0) == share
        variants = tested.fleet.snapshot()["endpoints"]["boxes"]["variants"]
        assert {variant["name"] for variant in variants} == {"v1", "v2"}
        stages.append(_end_run(tested, good=True))
    done = tested.until("Succeeded", count=2)
    assert stages == ["staging", "before 50 %", "before 100 %"]
    assert [note["reason"][:5] for note in done["decisions"]].count("tests") == 3


def _open_runs(stage: Stage) -> bool:
    runs = release_tests.list_(stage.world.ctx, ADMIN)["items"]
    return bool(runs) and runs[0]["status"] in (CheckupStatus.PENDING, CheckupStatus.RUNNING)


@pytest.mark.parametrize("passing", [0, 1, 2])
def test_a_failed_test_leaves_nothing_on_the_new_version(
    tested: Stage, monkeypatch: pytest.MonkeyPatch, passing: int
) -> None:
    _without_runner(monkeypatch)
    tested.release(2)
    for turn in range(passing + 1):
        tested.until("Testing", count=2)
        tested.world.settle(lambda: (tested.turn(), _open_runs(tested))[1])
        _end_run(tested, good=turn < passing)
    done = tested.until("RolledBack", count=2)
    assert tested.fleet.weights("boxes") == {"v1": 100.0}
    assert tested.status(2) == "Rejected" and tested.champion() == 1
    assert "tests failed before" in done["reason"] and done["decisions"][-1]["verdict"] == "back"
    assert "v2" not in tested.variants()


def test_a_version_that_answers_errors_goes_while_its_next_tests_run(
    tested: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    _without_runner(monkeypatch)
    tested.release(2)
    tested.until("Testing", count=2)
    tested.world.settle(lambda: (tested.turn(), _open_runs(tested))[1])
    _end_run(tested, good=True)
    tested.until("Baking", count=2)
    tested.until("Testing", count=2)
    tested.answer("v2", 40, errors=30)
    assert "were 5xx" in tested.until("RolledBack", count=2)["reason"]


def test_a_rollout_that_is_being_tested_can_be_called_back(tested: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    _without_runner(monkeypatch)
    tested.release(2)
    tested.until("Testing", count=2)
    rollbacks.begin(tested.world.ctx, "admin", "boxes", "I changed my mind")
    assert tested.until("RolledBack", count=2)["reason"] == "I changed my mind"
    assert tested.fleet.weights("boxes") == {"v1": 100.0}


# -- going back -------------------------------------------------------------------------------------------------------


@pytest.fixture
def third(versions: Stage) -> Stage:
    """Three versions have served, one after the other."""
    versions.register(count=1)
    for number in (1, 2, 3):
        versions.release(number, strategy="all-at-once", settings={"bake_seconds": 0})
        versions.until("Succeeded", count=number)
    return versions


def test_a_second_rollback_says_where_it_would_go_and_goes_there_when_told_to(third: Stage) -> None:
    rollbacks.begin(third.world.ctx, "admin", "boxes", "wrong")
    third.until("Succeeded", count=4)
    assert third.fleet.weights("boxes") == {"v2": 100.0}
    with pytest.raises(Conflict, match="loopline rollback boxes --to 1"):
        rollbacks.begin(third.world.ctx, "admin", "boxes", "again")
    assert third.fleet.weights("boxes") == {"v2": 100.0}
    rollbacks.begin(third.world.ctx, "admin", "boxes", "further", to=1)
    third.until("Succeeded", count=5)
    assert third.fleet.weights("boxes") == {"v1": 100.0} and third.champion() == 1


def test_a_rollback_may_skip_a_version_and_refuses_one_that_never_served(third: Stage) -> None:
    with pytest.raises(Conflict, match="has not served version 9"):
        rollbacks.begin(third.world.ctx, "admin", "boxes", "x", to=9)
    rollbacks.begin(third.world.ctx, "admin", "boxes", "x", to=1)
    third.until("Succeeded", count=4)
    assert third.fleet.weights("boxes") == {"v1": 100.0}
    assert third.status(3) == "Rejected" and third.status(2) == "PendingManualApproval"


def test_a_rollback_after_a_rollout_that_went_back_by_itself_is_a_first_one(third: Stage) -> None:
    third.register(count=1)
    third.release(4)
    third.until("Baking", count=4)
    third.clock.advance(3)
    third.answer("v4", 40, errors=30)
    third.until("RolledBack", count=4)
    rollbacks.begin(third.world.ctx, "admin", "boxes", "3 is bad, too")
    third.until("Succeeded", count=5)
    assert third.fleet.weights("boxes") == {"v2": 100.0}


def test_a_version_whose_process_dies_while_it_loads_is_given_up_and_says_how(versions: Stage) -> None:
    def die() -> None:
        end = {"code": None, "signal": 11, "at": versions.clock.now()}
        wanted = [{"id": each["id"], "restarts": 3, "last_exit": end} for each in versions.fleet.processes()]
        replace_json(versions.world.ctx.settings.run_dir / "supervisor.json", {"children": wanted})

    versions.fleet.act = die  # type: ignore[method-assign] - every server dies as soon as it starts
    versions.release(1)
    failed = versions.until("Failed")
    assert "it ended with signal 11 while it loaded, 3 times" in failed["reason"]
    assert "loopline logs boxes" in failed["reason"]
