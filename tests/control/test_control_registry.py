"""Registration, the gate, approval, aliases and copies."""

from collections.abc import Callable
from typing import Any

import pytest

from loopline.control import access, aliases, executions, gates, registry, versions
from loopline.domain.access import Actor
from loopline.errors import Forbidden, GateRefused, InvalidInput
from loopline.testing.boxes import LOOP, PIPELINE, project
from loopline.testing.world import World

Run = Callable[..., dict[str, Any]]


def show(world: World, number: int) -> dict[str, Any]:
    return registry.show_version(world.ctx, world.actor, model="boxes", number=number)


def champion(world: World, number: int) -> None:
    aliases.set_alias(world.ctx, world.actor, model="boxes", alias="champion", number=number)


def test_versions_count_up_and_list_newest_first(world: World, run: Run) -> None:
    for shift in (0.0, 0.1, 0.2):
        run(project(), parameters={"shift": shift})
    listed = registry.list_versions(world.ctx, world.actor, model="boxes")["items"]
    assert [row["number"] for row in listed] == [3, 2, 1]
    best = registry.list_versions(world.ctx, world.actor, model="boxes", order="-accuracy")["items"]
    values = [row["metrics"]["accuracy"] for row in best]
    assert values == sorted(values, reverse=True)


def test_a_worse_challenger_is_refused_with_its_numbers(world: World, run: Run) -> None:
    run(project())
    champion(world, 1)
    run(project(), parameters={"shift": 0.9})
    worse = show(world, 2)
    assert worse["status"] == "Rejected" and worse["policy"] == "gate"
    verdict = worse["evaluations"][0]["verdict"]
    against = next(check for check in verdict["checks"] if check["champion"] is not None)
    assert against["observed"] < against["champion"] and against["p_value"] is not None
    with pytest.raises(GateRefused, match="did not pass the gate"):
        registry.approve(world.ctx, world.actor, model="boxes", number=2)


def test_a_forced_approval_needs_a_reason_and_is_audited(world: World, run: Run) -> None:
    run(project())
    champion(world, 1)
    run(project(), parameters={"shift": 0.9})
    with pytest.raises(InvalidInput, match="--reason"):
        registry.approve(world.ctx, world.actor, model="boxes", number=2, force=True)
    registry.approve(world.ctx, world.actor, model="boxes", number=2, force=True, reason="the label was wrong")
    row = show(world, 2)
    assert row["status"] == "Approved" and row["evidence"]["forced"] is True
    assert "forced" in [event["kind"] for event in row["history"]]


def test_without_an_evaluation_nothing_is_approved(world: World, run: Run) -> None:
    untested = LOOP.replace('test = "boxes-test"\n', 'test = "boxes-test"\nmin_rows = 5000\n')
    run(project(loop_toml=untested))
    row = show(world, 1)
    assert row["evaluations"][0]["status"] == "Failed" and "5000" in row["evaluations"][0]["reason"]
    with pytest.raises(GateRefused):
        registry.approve(world.ctx, world.actor, model="boxes", number=1)


def test_four_eyes(world: World, run: Run) -> None:
    run(project(loop_toml=LOOP + "\n[approval]\nfour_eyes = true\n"))
    with pytest.raises(Forbidden, match="two people"):
        registry.approve(world.ctx, world.actor, model="boxes", number=1)
    registry.approve(world.ctx, Actor("ann", "approver"), model="boxes", number=1, comment="looks right")
    row = show(world, 1)
    assert (row["requested_by"], row["decided_by"], row["comment"]) == ("admin", "ann", "looks right")
    assert row["evidence"]["verdict"]["passed"] is True


def test_an_editor_may_not_approve(world: World, run: Run) -> None:
    run(project())
    with pytest.raises(Forbidden):
        registry.approve(world.ctx, Actor("eve", "editor"), model="boxes", number=1)


def test_policy_auto_approves_and_names_itself(world: World, run: Run) -> None:
    run(project(loop_toml=LOOP + '\n[approval]\npolicy = "auto"\n'))
    row = show(world, 1)
    assert (row["status"], row["policy"], row["decided_by"]) == ("Approved", "auto", "loopline")


WITH_STATUS = PIPELINE.replace("register(model, metrics=report)", "register(model, metrics=report, status=status)")


def test_a_parameter_carries_the_status_through_the_same_rules(world: World, run: Run) -> None:
    access.create_user(world.ctx, world.actor, name="admin", role="admin")
    run(project(pipeline_py=WITH_STATUS), parameters={"status": "Approved"})
    row = show(world, 1)
    assert (row["status"], row["decided_by"], row["comment"]) == ("Approved", "admin", "registered as Approved")
    moved = [(event["before"], event["after"]) for event in row["history"] if event["kind"] == "moved"]
    assert moved == [("PendingManualApproval", "Approved")]
    run(project(pipeline_py=WITH_STATUS), parameters={"shift": 0.95, "status": "Approved"})
    assert show(world, 2)["status"] == "Rejected"


def test_nobody_is_approved_by_parameter_who_could_not_approve(world: World, run: Run) -> None:
    access.create_user(world.ctx, world.actor, name="admin", role="editor")
    run(project(pipeline_py=WITH_STATUS), parameters={"status": "Approved"})
    row = show(world, 1)
    assert row["status"] == "PendingManualApproval"
    assert any(event["kind"] == "not_approved" for event in row["history"])


def test_slices_are_judged(world: World, run: Run) -> None:
    run(project(loop_toml=LOOP + '\n[gate.slices."kind=large"]\naccuracy = 0.995\n'))
    row = show(world, 1)
    assert row["status"] == "Rejected", row["evaluations"]
    assert "kind=large" in row["evaluations"][0]["reason"]


def test_copies_keep_their_lineage_and_are_judged_in_their_new_place(world: World, run: Run) -> None:
    shown = run(project())
    registry.create_model(world.ctx, world.actor, name="boxes-challenger")
    copied = versions.copy(world.ctx, world.actor, model="boxes", number=1, to="boxes-challenger")
    assert copied["number"] == 1 and copied["status"] == "PendingManualApproval"
    lineage = registry.lineage(world.ctx, world.actor, model="boxes-challenger", number=1)
    assert lineage["execution"] == shown["id"] and lineage["copied_from"]["model"] == "boxes"
    with pytest.raises(GateRefused, match="versions evaluate boxes-challenger 1"):
        registry.approve(world.ctx, world.actor, model="boxes-challenger", number=1)


def test_scores_are_kept_so_that_nobody_scores_twice(world: World, run: Run) -> None:
    run(project())
    before = gates.list_(world.ctx, world.actor)["items"][0]
    assert before["jobs"]["candidate"]["job"] is not None
    again = gates.evaluate(world.ctx, world.actor, model="boxes", number=1)
    assert again["jobs"]["candidate"]["job"] is None
    world.settle(lambda: gates.show(world.ctx, world.actor, evaluation=again["id"])["status"] == "Passed")


def test_stopping_an_execution_while_its_version_is_judged_leaves_the_version_unjudged(world: World) -> None:
    from loopline.control import pushes

    push = pushes.run(world.ctx, world.actor, tree=world.tree(project()))["id"]

    def judging() -> bool:
        return any(row["status"] == "Scoring" for row in gates.list_(world.ctx, world.actor)["items"])

    world.settle(judging)
    execution = pushes.show(world.ctx, world.actor, push=push)["execution"]
    executions.stop(world.ctx, world.actor, execution=execution)
    world.settle(
        lambda: executions.show(world.ctx, world.actor, execution=execution)["status"] in ("Stopped", "Succeeded")
    )
    row = show(world, 1)
    assert row["status"] == "PendingManualApproval" and row["evaluations"][0]["status"] == "Failed"
