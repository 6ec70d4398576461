"""Retraining: one cause starts one execution, on data that holds each labelled row once."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loopline.control import (
    assets,
    endpoints,
    events,
    executions,
    labels,
    projects,
    pushes,
    registry,
    retrain_requests,
    retraining,
    variants,
)
from loopline.control.context import Clock, Ids
from loopline.domain.capture import encode_record
from loopline.errors import Conflict, NotFound
from loopline.store import queue, records
from loopline.testing.boxes import LOOP, follow, project
from loopline.testing.world import World

RETRAIN = """
[endpoint]
name = "boxes"

[retrain]
enabled = true
asset = "boxes"
min_rows = 3
cooldown_seconds = 3600
budget = 3
budget_window_seconds = 36000
parameters = { shift = 0.25 }

[branches."dev"]
model = "boxes-dev"
endpoint = "boxes-dev"
"""
HOUR = 3600.0


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    opened = World(tmp_path / "data")
    projects.apply(opened.ctx, opened.actor, tree=opened.tree(project(loop_toml=LOOP + RETRAIN)))
    yield opened
    opened.close()


class Shifted(Clock):
    """The time of day, and as much later as a test says."""

    def __init__(self, by: float) -> None:
        self.by = by

    def now(self) -> float:
        return super().now() + self.by


def later(world: World, seconds: float) -> None:
    world.ctx.clock = Shifted(seconds)
    world.ctx.ids = Ids(world.ctx.clock)
    world.ctx.db.use_clock(world.ctx.clock.now)


def serve(world: World, count: int, *, endpoint: str = "boxes", size: float = 5.0) -> list[str]:
    """Requests as a gateway captures them; gives their ids."""
    folder = world.ctx.settings.dir / "spool" / "gateway-0"
    folder.mkdir(parents=True, exist_ok=True)
    now = world.ctx.clock.now()
    found = []
    with (folder / f"{int(now * 1000):015}.seg").open("ab") as file:
        for number in range(count):
            meta = {
                "id": world.ctx.ids.new("rq"),
                "at": now,
                "endpoint": endpoint,
                "variant": "v1",
                "version": 1,
                "model": "boxes",
                "status": 200,
                "latency_us": 10,
                "content_type": "application/json",
            }
            body = json.dumps({"instances": [{"size": size + number, "extra": "not in the file"}]}).encode()
            file.write(encode_record(meta, body, b'{"predictions": ["large"]}'))
            found.append(str(meta["id"]))
    return found


def label(world: World, ids: list[str], value: Any = "large", endpoint: str = "boxes") -> None:
    items = [{"request_id": identifier, "label": value} for identifier in ids]
    labels.put_labels(world.ctx, world.actor, endpoint=endpoint, items=items)
    labels.join(world.ctx, endpoint)


def ask_by_alarm(world: World, name: str = "drift", endpoint: str = "boxes") -> dict[str, Any]:
    """A Pending retraining as an alarm creates it."""
    with world.ctx.db.transaction() as tx:
        return records.create(
            tx,
            "retraining",
            actor="loopline",
            reason="psi is above 0.1",
            project="boxes",
            endpoint=endpoint,
            cause={"kind": "alarm", "alarm": name},
            delivery=f"alarm:{name}:{tx.now!r}",
            asset="boxes",
            by="loopline",
        )


def shown(world: World, row: dict[str, Any]) -> dict[str, Any]:
    return retraining.show(world.ctx, world.actor, retraining=row["id"])


def advance(world: World, row: dict[str, Any]) -> dict[str, Any]:
    retraining.advance(world.ctx, row["id"])
    return shown(world, row)


def end_execution(world: World, row: dict[str, Any], status: str = "Succeeded", reason: str | None = None) -> None:
    """Let the push of a retraining start an execution that ends so, without running it."""
    with world.ctx.db.transaction() as tx:
        execution = records.create(
            tx,
            "execution",
            actor="a",
            project="boxes",
            pipeline="training",
            pipeline_version=1,
            push=row["push"],
            targets={"model": "boxes", "endpoint": row["endpoint"]},
            assets=[{"name": "boxes", "version": int((row["asset"] or "boxes:1").partition(":")[2] or 1)}],
            cache=True,
            max_parallel=1,
            by="a",
        )
        for to in ("Preparing", "Compiling", "Started"):
            records.move(tx, "push", row["push"], to, actor="a", execution=execution["id"])
        records.move(tx, "execution", execution["id"], "Running", actor="a")
        records.move(tx, "execution", execution["id"], status, actor="a", reason=reason)
    react(world)


def react(world: World) -> None:
    events.consume(world.ctx, "retraining", retraining.react)


def rows_of(world: World, reference: str) -> list[str]:
    content = b"".join(assets.content(world.ctx, world.actor, project="boxes", reference=reference)).decode()
    return content.splitlines()


# -- the data ---------------------------------------------------------------------------------------------------------


def test_labelled_captured_rows_follow_the_base_in_its_columns(world: World) -> None:
    ids = serve(world, 5)
    label(world, ids[:4])
    row = advance(world, ask_by_alarm(world))
    assert row["status"] == "Training" and row["asset"] == "boxes:2"
    base, made = rows_of(world, "boxes:1"), rows_of(world, "boxes:2")
    assert made[: len(base)] == base
    assert made[len(base) :] == ["5.0,large", "6.0,large", "7.0,large", "8.0,large"]
    source = assets.show(world.ctx, world.actor, project="boxes", reference="boxes:2")["source"]
    assert (source["kind"], source["endpoint"], source["rows"], source["base"]) == ("captured", "boxes", 4, "boxes:1")
    assert source["window"]["start_at"] < row["created_at"] <= source["window"]["end_at"]
    push = pushes.show(world.ctx, world.actor, push=row["push"])
    assert push["trigger"]["cause"] == {"kind": "alarm", "alarm": "drift"}
    assert push["trigger"]["why"] == "alarm:drift"
    assert push["options"]["parameters"] == {"shift": 0.25}
    assert push["delivery"] == f"retraining:{row['id']}"


def test_labels_that_were_sent_just_before_are_waited_for_and_unknown_ones_not_for_long(world: World) -> None:
    ids = serve(world, 4)
    items = [{"request_id": identifier, "label": "large"} for identifier in [*ids, "somebody-else-s"]]
    labels.put_labels(world.ctx, world.actor, endpoint="boxes", items=items)
    asked = ask_by_alarm(world)
    assert advance(world, asked)["status"] == "Collecting"
    labels.join(world.ctx, "boxes")
    assert advance(world, asked)["status"] == "Collecting"
    later(world, retraining.LABELS_WAIT_SECONDS)
    row = advance(world, asked)
    assert (row["status"], row["asset"]) == ("Training", "boxes:2")
    assert assets.show(world.ctx, world.actor, project="boxes", reference="boxes:2")["source"]["rows"] == 4


def test_too_few_labelled_rows_fail_with_the_figures_and_keep_nothing(world: World) -> None:
    label(world, serve(world, 2))
    row = advance(world, ask_by_alarm(world))
    assert row["status"] == "Failed" and row["push"] is None
    assert "2 captured rows have new labels" in row["reason"] and "asks for 3" in row["reason"]
    with pytest.raises(NotFound):
        assets.show(world.ctx, world.actor, project="boxes", reference="boxes:2")


def test_a_second_retraining_adds_each_row_once_late_labels_included(world: World) -> None:
    early, late = serve(world, 3), serve(world, 3, size=50.0)
    label(world, early)
    first = advance(world, ask_by_alarm(world))
    end_execution(world, first)
    assert shown(world, first)["status"] == "Succeeded"
    later(world, 2 * HOUR)
    label(world, late)  # requests of before, labels of now
    label(world, serve(world, 1, size=90.0))
    second = advance(world, ask_by_alarm(world))
    assert second["asset"] == "boxes:3"
    one, two = rows_of(world, "boxes:2"), rows_of(world, "boxes:3")
    assert two[: len(one)] == one
    assert two[len(one) :] == ["50.0,large", "51.0,large", "52.0,large", "90.0,large"]


def test_the_data_of_a_retraining_that_failed_is_not_built_upon(world: World) -> None:
    label(world, serve(world, 3))
    first = advance(world, ask_by_alarm(world))
    end_execution(world, first, "Failed", "evaluate: it broke")
    assert "evaluate: it broke" in shown(world, first)["reason"]
    later(world, 2 * HOUR)
    label(world, serve(world, 1, size=90.0))
    second = advance(world, ask_by_alarm(world))
    added = rows_of(world, second["asset"])[len(rows_of(world, "boxes:1")) :]
    assert added == ["5.0,large", "6.0,large", "7.0,large", "90.0,large"]


def test_rows_of_another_endpoint_are_not_taken_and_do_not_reset_the_window(world: World) -> None:
    tree = world.tree(project(loop_toml=LOOP + RETRAIN))
    projects.apply(world.ctx, world.actor, tree=tree, branch="dev")
    label(world, serve(world, 3))
    label(world, serve(world, 3, endpoint="boxes-dev", size=70.0), endpoint="boxes-dev")
    end_execution(world, advance(world, ask_by_alarm(world)))
    other = advance(world, ask_by_alarm(world, endpoint="boxes-dev"))
    assert rows_of(world, other["asset"])[-3:] == ["70.0,large", "71.0,large", "72.0,large"]
    end_execution(world, other)
    later(world, 2 * HOUR)
    label(world, serve(world, 3, size=90.0))
    third = advance(world, ask_by_alarm(world))
    assert len(rows_of(world, third["asset"])) == len(rows_of(world, "boxes:1")) + 9


def test_the_project_s_own_file_does_not_displace_the_captured_version(world: World) -> None:
    label(world, serve(world, 3))
    advance(world, ask_by_alarm(world))
    tree = world.tree(project(loop_toml=LOOP + RETRAIN))
    loop = projects.read_loop(world.ctx, tree)
    with world.ctx.db.transaction() as tx:
        assert projects.put_data(world.ctx, tx, loop, tree, actor="a") == []
    changed = world.tree({**project(loop_toml=LOOP + RETRAIN), "data/boxes.csv": "size,kind\n1,small\n"})
    with world.ctx.db.transaction() as tx:
        assert [c["name"] for c in projects.put_data(world.ctx, tx, loop, changed, actor="a")] == ["boxes:3"]


def upload(world: World, text: bytes, file: str = "boxes.csv") -> None:
    assets.upload(world.ctx, world.actor, project="boxes", name="boxes", file=file, stream=iter([text]))


@pytest.mark.parametrize(
    ("text", "file", "reason"),
    [
        (b"size,colour\n1,red\n", "boxes.csv", "has no column 'kind'"),
        (b"\x93NUMPY", "boxes.npy", "is a npy"),
        (b"\xff\xfe,kind\n", "boxes.csv", "not a CSV file in UTF-8"),
        (b"kind,kind\n", "boxes.csv", "distinct column names"),
        (b"", "boxes.csv", "distinct column names"),
    ],
)
def test_a_base_that_rows_cannot_follow_is_said_so(world: World, text: bytes, file: str, reason: str) -> None:
    label(world, serve(world, 3))
    upload(world, text, file)
    row = advance(world, ask_by_alarm(world))
    assert row["status"] == "Failed" and reason in row["reason"]


def test_a_base_without_a_last_line_end_is_closed_first(world: World) -> None:
    upload(world, b"kind,size\nsmall,1")
    label(world, serve(world, 3))
    row = advance(world, ask_by_alarm(world))
    assert rows_of(world, row["asset"]) == ["kind,size", "small,1", "large,5", "large,6", "large,7"]


# -- once and no more -------------------------------------------------------------------------------------------------


def test_of_two_alarms_at_once_one_begins_whichever_is_looked_at_first(world: World) -> None:
    label(world, serve(world, 3))
    first, second = ask_by_alarm(world, "drift"), ask_by_alarm(world, "accuracy")
    assert advance(world, second)["status"] == "Failed"
    assert advance(world, first)["status"] == "Training"
    assert f"the retraining {first['id']} was still" in shown(world, second)["reason"]


def test_a_cool_down_holds_after_the_end_and_what_failed_without_an_execution_does_not_count(world: World) -> None:
    assert advance(world, ask_by_alarm(world))["status"] == "Failed"  # no labels yet
    label(world, serve(world, 3))
    first = advance(world, ask_by_alarm(world))
    assert first["status"] == "Training"
    end_execution(world, first)
    label(world, serve(world, 3))
    held = advance(world, ask_by_alarm(world))
    assert held["status"] == "Failed" and "Cooling down" in held["reason"]
    later(world, HOUR + 1)
    label(world, serve(world, 3))
    assert advance(world, ask_by_alarm(world))["status"] == "Training"


def test_a_budget_holds(world: World) -> None:
    for number in range(3):
        later(world, number * 1.1 * HOUR)
        label(world, serve(world, 3))
        row = advance(world, ask_by_alarm(world))
        assert row["status"] == "Training"
        end_execution(world, row)
    later(world, 4 * HOUR)
    assert "budget is used up" in advance(world, ask_by_alarm(world))["reason"]


def test_retraining_that_is_off_stays_off_for_alarms_and_not_for_people(world: World) -> None:
    off = LOOP + RETRAIN.replace("enabled = true", "enabled = false").replace("min_rows", "captured = false\nmin_rows")
    projects.apply(world.ctx, world.actor, tree=world.tree(project(loop_toml=off)))
    assert "retraining is off" in advance(world, ask_by_alarm(world))["reason"]
    mine = retraining.start(world.ctx, world.actor, project="boxes", reason="a new season")
    assert advance(world, mine)["status"] == "Training"
    assert shown(world, mine)["cause"] == {"kind": "person", "by": "admin", "reason": "a new season"}


def test_a_person_is_not_held_up_by_the_cool_down_and_counts_against_it(world: World) -> None:
    label(world, serve(world, 3))
    mine = advance(world, retraining.start(world.ctx, world.actor, project="boxes"))
    end_execution(world, mine)
    label(world, serve(world, 3))
    assert "Cooling down" in advance(world, ask_by_alarm(world))["reason"]
    again = retraining.start(world.ctx, world.actor, project="boxes", delivery="x")
    assert advance(world, again)["status"] == "Training"
    assert retraining.start(world.ctx, world.actor, project="boxes", delivery="x")["id"] == again["id"]
    with pytest.raises(Conflict, match="is still Training"):
        retraining.start(world.ctx, world.actor, project="boxes")


def test_only_a_project_s_own_endpoints_can_be_retrained(world: World) -> None:
    with pytest.raises(NotFound, match="no endpoint 'other'"):
        retraining.start(world.ctx, world.actor, project="boxes", endpoint="other")
    with pytest.raises(NotFound, match="no project"):
        retraining.start(world.ctx, world.actor, project="nothing")


def test_doing_it_again_after_a_crash_starts_one_execution(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    label(world, serve(world, 3))
    row = ask_by_alarm(world)
    with monkeypatch.context() as broken:
        broken.setattr(retraining.pushes, "again_in", _die)
        with pytest.raises(OSError):
            retraining.advance(world.ctx, row["id"])
    assert shown(world, row)["status"] == "Collecting"
    assert assets.list_(world.ctx, world.actor, project="boxes", name="boxes")["items"][0]["version"] == 1
    assert advance(world, row)["status"] == "Training"
    assert advance(world, row)["asset"] == "boxes:2"
    assert len(pushes.list_(world.ctx, world.actor, project="boxes")["items"]) == 1


def _die(*_: Any, **__: Any) -> None:
    raise OSError("killed here")


def test_a_retraining_that_nobody_asked_the_queue_for_is_begun_by_its_event(world: World) -> None:
    row = ask_by_alarm(world)
    react(world)
    tasks = queue.claim(world.ctx.db, ["retraining.advance"], "test", 60.0)
    assert [task.key for task in tasks] == [row["id"]]


# -- the end ----------------------------------------------------------------------------------------------------------


def test_a_push_that_is_rejected_ends_the_retraining(world: World) -> None:
    label(world, serve(world, 3))
    row = advance(world, ask_by_alarm(world))
    with world.ctx.db.transaction() as tx:
        pushes.reject(tx, row["push"], "the environment cannot be built")
    react(world)
    ended = shown(world, row)
    assert ended["status"] == "Failed" and "the environment cannot be built" in ended["reason"]
    assert ended["ended_at"] is not None


def test_a_pipeline_that_reads_another_version_is_said_so(world: World) -> None:
    label(world, serve(world, 3))
    row = advance(world, ask_by_alarm(world))
    end_execution(world, {**row, "asset": "boxes:1"})
    assert "did not read boxes:2" in shown(world, row)["reason"]


def test_a_branch_s_endpoint_is_retrained_from_that_branch(world: World) -> None:
    tree = world.tree(project(loop_toml=LOOP + RETRAIN))
    projects.apply(world.ctx, world.actor, tree=tree, branch="dev")
    with world.ctx.db.transaction() as tx:
        push = pushes.receive_in(tx, project="boxes", tree=tree, by="a", source="push", branch="dev", commit="c" * 40)
    end_execution(world, {"push": push["id"], "endpoint": "boxes-dev", "asset": None})
    label(world, serve(world, 3, endpoint="boxes-dev"), endpoint="boxes-dev")
    row = advance(world, ask_by_alarm(world, endpoint="boxes-dev"))
    made = pushes.show(world.ctx, world.actor, push=row["push"])
    assert (made["branch"], made["commit"], made["source"]) == ("dev", "c" * 40, "retraining")


def test_retrainings_are_listed_newest_first(world: World) -> None:
    first = ask_by_alarm(world)
    later(world, 1)
    second = ask_by_alarm(world, endpoint="boxes-dev")
    found = retraining.list_(world.ctx, world.actor, project="boxes")["items"]
    assert [row["id"] for row in found] == [second["id"], first["id"]]
    assert retraining.list_(world.ctx, world.actor, endpoint="boxes")["items"] == [shown(world, first)]


# -- the whole --------------------------------------------------------------------------------------------------------


def test_an_alarm_retrains_on_captured_rows_and_the_new_version_knows_it(world: World) -> None:
    """From the alarm's request to a version trained on more rows, by the engine's own tables and real jobs."""
    label(world, serve(world, 3))
    with world.ctx.db.transaction() as tx:
        alarm = records.create(
            tx,
            "alarm",
            actor="a",
            name="boxes/drift",
            project="boxes",
            endpoint="boxes",
            definition={"metric": "drift"},
            actions=["retrain"],
            enabled=False,
            since_at=tx.now,
        )
        done, refused = retrain_requests.ask(tx, alarm, {"psi": 0.2})
    assert done and refused is None
    [row] = retraining.list_(world.ctx, world.actor)["items"]
    world.settle(lambda: shown(world, row)["status"] in ("Succeeded", "Failed"))
    ended = shown(world, row)
    assert ended["status"] == "Succeeded", ended["reason"]
    execution = executions.show(world.ctx, world.actor, execution=ended["execution"])
    assert {"name": "boxes", "version": 2}.items() <= next(
        a for a in execution["assets"] if a["name"] == "boxes"
    ).items()
    assert execution["trigger"]["why"] == "alarm:boxes/drift"
    assert execution["parameters"]["shift"] == 0.25
    steps = {step["name"]: step for step in execution["steps"]}
    assert steps["fit"]["status"] == "Succeeded" and steps["fit"]["cached_from"] is None


def test_a_project_without_a_label_column_cannot_collect(world: World) -> None:
    plain = '[project]\nname = "boxes"\n\n[model]\nname = "boxes"\n\n[data.boxes]\npath = "data/boxes.csv"\n' + RETRAIN
    projects.apply(world.ctx, world.actor, tree=world.tree(project(loop_toml=plain)))
    row = advance(world, ask_by_alarm(world))
    assert row["status"] == "Failed" and "[gate] label" in row["reason"]


def test_what_was_released_and_taken_back_is_not_trained_from(world: World) -> None:
    good, bad = (world.tree(project(loop_toml=LOOP + RETRAIN + mark)) for mark in ("# good\n", "# bad\n"))
    made = {}
    for tree in (good, bad):
        push = pushes.run(world.ctx, world.actor, tree=tree)
        follow(world, push["id"])
        made[tree] = push["id"]
    with world.ctx.db.transaction() as tx:
        version = registry.version_row(tx, "boxes", 1)
        endpoint = endpoints.endpoint_row(tx, "boxes")
        serving = variants.ensure(tx, endpoint, version, "admin")
        records.move(tx, "variant", serving["id"], "Ready", actor="admin", weight=100.0)
        found = retraining._source_push(tx, "boxes")
    assert found is not None and found["id"] == made[good]
