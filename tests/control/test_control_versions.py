"""What stands behind a version and what follows from it; versions made of objects, changed and deleted; tags."""

import io
import json
import tarfile
from typing import Any

import pytest

from loopline.control import buckets, endpoints, gates, objects, registry, rollbacks, status, tags, versions
from loopline.control.versions import New
from loopline.domain.access import Actor
from loopline.errors import Conflict, Forbidden, GateRefused, InvalidInput, NotFound
from loopline.testing.boxes import LOOP
from loopline.testing.stage import ENDPOINT, Stage
from loopline.testing.world import World

ADMIN = Actor("admin", "admin")
JUDGED_BY_NOBODY = LOOP.replace("[gate]", "[gate]\nmin_rows = 5000") + ENDPOINT
ADVISORY = JUDGED_BY_NOBODY.replace("[gate]", '[gate]\nmode = "advisory"')
COMMAND = "loopline versions evaluate boxes"


def show(stage: Stage, number: int) -> dict[str, Any]:
    return registry.show_version(stage.world.ctx, ADMIN, model="boxes", number=number)


def events_of(stage: Stage, number: int) -> dict[str, str]:
    """{kind: reason} of what happened to a version."""
    return {event["kind"]: event["reason"] for event in show(stage, number)["history"]}


def let_judge(stage: Stage) -> None:
    """Make the gate ask for as many rows as there are."""
    with stage.world.ctx.db.transaction() as tx:
        row = registry.model_row(tx, "boxes")
        policy = {**row["gate"], "min_rows": 30}
        settings = {key: row[key] for key in ("gate_mode", "approval", "description")}
        registry.ensure_model(tx, name="boxes", actor="admin", gate=policy, **settings)


def evaluate(stage: Stage, number: int) -> None:
    judged = gates.evaluate(stage.world.ctx, ADMIN, model="boxes", number=number)["id"]

    def passed() -> bool:
        stage.turn()
        return bool(gates.show(stage.world.ctx, ADMIN, evaluation=judged)["status"] == "Passed")

    stage.world.settle(passed)


def refused(stage: Stage, number: int) -> str:
    """Why the release of a version was refused, once it was."""
    stage.world.settle(lambda: stage.turn() or "release_refused" in events_of(stage, number))
    return events_of(stage, number)["release_refused"]


# -- approving what nobody judged -------------------------------------------------------------------------------------


def test_what_was_approved_unverified_is_deployed_once_it_passes_where_the_gate_is_enforced(stage: Stage) -> None:
    stage.register(JUDGED_BY_NOBODY, count=1)
    assert show(stage, 1)["verification"] == "unverified"
    with pytest.raises(GateRefused, match=f"could not be judged.*{COMMAND} 1"):
        stage.approve(1)
    stage.approve(1, unverified=True)
    assert stage.status(1) == "Approved" and show(stage, 1)["evidence"]["unverified"] is True
    assert f"{COMMAND} 1" in refused(stage, 1)
    assert stage.rollouts() == []
    with pytest.raises(GateRefused, match=f"{COMMAND} 1"):
        stage.release(1, force=False, reason="")
    let_judge(stage)
    evaluate(stage, 1)
    assert show(stage, 1)["verification"] == "verified"
    assert stage.until("Succeeded")["plan"]["number"] == 1
    assert stage.fleet.weights("boxes") == {"v1": 100.0}


def test_what_passes_late_does_not_replace_what_was_approved_after_it(stage: Stage) -> None:
    stage.register(JUDGED_BY_NOBODY, count=2)
    stage.approve(1, unverified=True)
    refused(stage, 1)
    let_judge(stage)
    evaluate(stage, 2)
    stage.clock.advance(10)
    stage.approve(2)
    stage.until("Succeeded")
    evaluate(stage, 1)
    for _ in range(20):
        stage.turn()
        stage.world.step()
    assert len(stage.rollouts()) == 1 and stage.fleet.weights("boxes") == {"v2": 100.0}


def test_force_deploys_what_an_enforced_gate_refuses_and_is_noted(stage: Stage) -> None:
    stage.register(JUDGED_BY_NOBODY, count=1)
    stage.approve(1, force=True, reason="the customer waits")
    assert stage.until("Succeeded")["plan"]["number"] == 1
    assert "release_refused" not in events_of(stage, 1)


def test_an_advisory_gate_lets_work_and_says_its_doubt(stage: Stage) -> None:
    stage.register(ADVISORY, count=1)
    stage.approve(1)
    done = stage.until("Succeeded")
    (warning,) = done["plan"]["warnings"]
    assert f"{COMMAND} 1" in warning and events_of(stage, 1)["warned"] == warning
    overview = status.overview(stage.world.ctx, ADMIN)["endpoints"][0]
    assert overview["variants"][0]["verification"] == "unverified" and overview["rollout"]["warnings"] == [warning]
    assert stage.variants()["v1"]["verification"] == "unverified"


def test_a_gate_that_is_enforced_later_asks_what_was_approved_unverified(stage: Stage) -> None:
    stage.register(ADVISORY.replace("[rollout]", "deploy_on_approval = false\n\n[rollout]"), count=1)
    stage.approve(1)
    registry.set_gate_mode(stage.world.ctx, ADMIN, model="boxes", mode="enforce", reason="grown up")
    with pytest.raises(GateRefused, match=f"{COMMAND} 1"):
        stage.release(1, force=False, reason="")
    let_judge(stage)
    evaluate(stage, 1)
    stage.release(1, force=False, reason="")
    assert "warnings" not in stage.until("Succeeded")["plan"]


# -- following --------------------------------------------------------------------------------------------------------


def test_reapproving_an_older_version_takes_the_endpoint_back_at_once(versions: Stage) -> None:
    for number in (1, 2):
        versions.approve(number)
        versions.until("Succeeded", count=number)
    registry.reject(versions.world.ctx, ADMIN, model="boxes", number=2, comment="wrong prices")
    assert versions.fleet.weights("boxes") == {"v2": 100.0}
    versions.approve(1, again=True, comment="back to what worked")
    back = versions.until("Succeeded", count=3)
    assert (back["kind"], back["strategy"]) == ("rollback", "all-at-once")
    assert versions.fleet.weights("boxes") == {"v1": 100.0} and versions.champion() == 1
    assert show(versions, 2)["comment"] == "wrong prices"
    kinds = [event["kind"] for event in show(versions, 1)["history"]]
    assert "approved_again" in kinds and show(versions, 1)["comment"] == "back to what worked"


def test_reapproving_turns_round_a_rollout_to_what_was_rejected_meanwhile(versions: Stage) -> None:
    versions.approve(1)
    versions.until("Succeeded")
    versions.approve(2)
    versions.until("Baking", count=2)
    registry.reject(versions.world.ctx, ADMIN, model="boxes", number=2, comment="wrong prices")
    versions.approve(1, again=True)
    versions.until("RolledBack", count=2)
    assert versions.fleet.weights("boxes") == {"v1": 100.0}


def test_reapproving_while_nothing_is_wrong_is_a_release_like_any_other(versions: Stage) -> None:
    for number in (1, 2):
        versions.approve(number)
        versions.until("Succeeded", count=number)
    versions.approve(1, again=True)
    done = versions.until("Succeeded", count=3)
    assert (done["kind"], done["plan"]["shares"]) == ("release", [5.0, 50.0, 100.0])
    assert versions.fleet.weights("boxes") == {"v1": 100.0} and versions.status(2) == "Approved"


def test_an_endpoint_follows_when_it_is_told_to(stage: Stage) -> None:
    stage.register(LOOP + ENDPOINT.replace("[rollout]", "deploy_on_approval = false\n\n[rollout]"), count=1)
    ctx = stage.world.ctx
    assert endpoints.show(ctx, ADMIN, endpoint="boxes")["follows"] is None
    stage.approve(1)
    for _ in range(10):
        stage.turn()
        stage.world.step()
    assert stage.rollouts() == []
    endpoints.follow(ctx, ADMIN, endpoint="boxes", model="boxes")
    assert endpoints.show(ctx, ADMIN, endpoint="boxes")["follows"] == "boxes"
    stage.approve(1, again=True)
    stage.until("Succeeded")
    assert endpoints.follow(ctx, ADMIN, endpoint="boxes")["follows"] is None
    registry.create_model(ctx, ADMIN, name="others")
    with pytest.raises(Conflict, match="serves versions of boxes"):
        endpoints.follow(ctx, ADMIN, endpoint="boxes", model="others")
    with pytest.raises(NotFound):
        endpoints.follow(ctx, ADMIN, endpoint="boxes", model="nobody")


# -- deciding again, deleting -----------------------------------------------------------------------------------------


def test_a_decision_is_taken_back(versions: Stage) -> None:
    ctx = versions.world.ctx
    registry.reject(ctx, ADMIN, model="boxes", number=1, comment="no")
    with pytest.raises(Forbidden):
        versions_of(ctx, "reopen", Actor("eve", "editor"), number=1)
    again = versions_of(ctx, "reopen", Actor("ann", "approver"), number=1, comment="let us look again")
    assert again["status"] == "PendingManualApproval"
    row = show(versions, 1)
    assert (row["decided_by"], row["comment"]) == (None, "let us look again")


def versions_of(ctx: Any, what: str, actor: Actor, **given: Any) -> dict[str, Any]:
    """A use case of ``control.versions`` on the model of the boxes."""
    found: dict[str, Any] = getattr(versions, what)(ctx, actor, model="boxes", **given)
    return found


def test_a_version_is_deleted_when_nothing_runs_it_and_its_number_is_not_given_again(versions: Stage) -> None:
    ctx = versions.world.ctx
    for number in (1, 2):
        versions.approve(number)
        versions.until("Succeeded", count=number)
    with pytest.raises(Conflict, match="runs behind boxes"):
        versions_of(ctx, "delete", ADMIN, number=1)
    versions.clock.advance(601)
    versions.world.settle(lambda: len(versions.fleet.processes()) == 1)
    tags.put(ctx, ADMIN, noun="version", name="boxes:1", tags={"team": "risk"})
    versions_of(ctx, "delete", ADMIN, number=1)
    assert tags.known(ctx, ADMIN, noun="version")["items"] == []
    with pytest.raises(NotFound):
        show(versions, 1)
    with pytest.raises(Conflict, match="none to go back to"):
        rollbacks.begin(ctx, "admin", "boxes", "a feeling")
    with pytest.raises(Conflict, match="delete them first"):
        versions_of(ctx, "delete_model", ADMIN)
    versions.register(count=1)
    assert [row["number"] for row in registry.list_versions(ctx, ADMIN, model="boxes")["items"]] == [3, 2]


# -- versions made of objects -----------------------------------------------------------------------------------------


def put(world: World, key: str, data: bytes) -> str:
    if not buckets.list_(world.ctx, ADMIN)["items"]:
        buckets.create(world.ctx, ADMIN, bucket="models")
    objects.put(world.ctx, ADMIN, bucket="models", key=key, data=iter([data]))
    return f"s3://models/{key}"


def model_files() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        entry = tarfile.TarInfo("weights.txt")
        entry.size = 1
        tar.addfile(entry, io.BytesIO(b"7"))
    return buffer.getvalue()


def test_a_version_made_of_an_object_is_all_there_or_not_at_all(world: World) -> None:
    ctx = world.ctx
    registry.create_model(ctx, ADMIN, name="words", gate_mode="advisory")
    data = put(world, "a/model.tar.gz", model_files())
    report = put(world, "a/report.json", json.dumps({"metrics": {"accuracy": {"value": 0.75}}}).encode())
    made = versions.register(
        ctx, ADMIN, model="words", data=data, properties={"team": "risk"}, reports={"model_quality": report}
    )
    assert (made["number"], made["verification"], made["metrics"]) == (1, "claimed", {"accuracy": 0.75})
    assert made["artifact"]["uri"] == data
    for wrong, error in (
        ({"data": "s3://models/nothing"}, NotFound),
        ({"data": data, "status": "Fine"}, InvalidInput),
        ({"data": data, "properties": {"k": "v" * 300}}, InvalidInput),
        ({"data": data, "status": "Approved"}, Forbidden),
    ):
        with pytest.raises(error):
            versions.register(ctx, Actor("eve", "editor"), model="words", **wrong)
    assert registry.show_model(ctx, ADMIN, model="words")["last_version"] == 1


def test_the_same_step_gives_the_same_version_again(world: World) -> None:
    registry.create_model(world.ctx, ADMIN, name="words", gate_mode="advisory")
    wanted = New(source=None, description="by a step", execution="ex_1", step="register")
    first, second = (versions.admit(world.ctx, ADMIN, model="words", wanted=wanted) for _ in range(2))
    assert first["id"] == second["id"] and second["number"] == 1


def test_words_about_a_version_change_and_its_files_do_not(world: World) -> None:
    ctx = world.ctx
    registry.create_model(ctx, ADMIN, name="words")
    data = put(world, "b/model.tar.gz", model_files())
    versions.register(ctx, ADMIN, model="words", data=data, description="one", properties={"a": "1", "b": "2"})
    changed = versions.update(ctx, ADMIN, model="words", number=1, properties={"c": "3"}, remove=["a"])
    assert changed["metadata"] == {"description": "one", "properties": {"b": "2", "c": "3"}}
    assert versions.update(ctx, ADMIN, model="words", number=1, description="two")["metadata"]["description"] == "two"
    with pytest.raises(InvalidInput, match="at most 50"):
        versions.update(ctx, ADMIN, model="words", number=1, properties={str(n): "" for n in range(60)})
    again = versions.Change(source={"data": data})
    with pytest.raises(Conflict, match="never change"):
        versions.amend(ctx, ADMIN, model="words", number=1, change=again)


# -- tags -------------------------------------------------------------------------------------------------------------


def test_tags_are_found_by_name_and_by_id_and_are_bounded(world: World) -> None:
    ctx = world.ctx
    row = registry.create_model(ctx, ADMIN, name="words")
    tags.put(ctx, ADMIN, noun="model", name="words", tags={"team": "risk", "tier": "1"})
    tags.put(ctx, ADMIN, noun="model", name=row["id"], tags={"team": "growth"})
    assert tags.list_(ctx, ADMIN, noun="model", name="words")["items"] == [
        {"key": "team", "value": "growth"},
        {"key": "tier", "value": "1"},
    ]
    found = tags.known(ctx, ADMIN, noun="model", key="team", value="growth")["items"]
    assert [item["record"] for item in found] == [row["id"]]
    for noun, name, error in (
        ("model", "nobody", NotFound),
        ("colour", "red", NotFound),
        ("version", "words", InvalidInput),
    ):
        with pytest.raises(error):
            tags.list_(ctx, ADMIN, noun=noun, name=name)
    for wrong in ({"": "x"}, {"k" * 129: ""}, {"k": "v" * 257}, {str(n): "" for n in range(51)}):
        with pytest.raises(InvalidInput):
            tags.put(ctx, ADMIN, noun="model", name="words", tags=wrong)
    left = tags.delete(ctx, ADMIN, noun="model", name="words", keys=["tier", "never"])
    assert left["items"] == [{"key": "team", "value": "growth"}]
