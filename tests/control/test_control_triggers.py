"""Triggers: what is due starts one push, whatever is late, repeated or started anew."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from loopline.control import assets, buckets, events, firings, objects, projects, pushes, triggers
from loopline.domain import loopfile
from loopline.domain import triggers as rules
from loopline.domain.projects import TriggerTable
from loopline.errors import Conflict, InvalidInput, NotFound
from loopline.testing.boxes import LOOP, project
from loopline.testing.clock import ManualClock
from loopline.testing.world import World

START = datetime(2024, 1, 1, 12, 30, tzinfo=UTC).timestamp()
HOUR = 3600.0
HOURLY = TriggerTable(kind="cron", name="hourly", cron="0 * * * *", parameters={"shift": 0.5})


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(START)


@pytest.fixture
def world(tmp_path: Path, clock: ManualClock) -> Iterator[World]:
    opened = World(tmp_path / "data", clock=clock)
    tree = opened.tree(project())
    projects.apply(opened.ctx, opened.actor, tree=tree)
    yield opened
    opened.close()


def apply(world: World, *tables: TriggerTable) -> list[tuple[str, str]]:
    with world.ctx.db.transaction() as tx:
        changes = triggers.apply_triggers(world.ctx, tx, actor="admin", project="boxes", wanted=tables)
    return [(change["name"], change["change"]) for change in changes]


def started(world: World, kind: str) -> list[dict[str, Any]]:
    """Pushes that a kind of trigger started, oldest first."""
    found = pushes.list_(world.ctx, world.actor, project="boxes", limit=200)["items"]
    return [push for push in reversed(found) if push["source"] == kind]


def notes(world: World, kind: str) -> list[dict[str, Any]]:
    found = events.list_(world.ctx, world.actor, noun="trigger", limit=500)["items"]
    return [event for event in found if event["kind"] == kind]


# -- records ----------------------------------------------------------------------------------------------------------


def test_applying_the_same_triggers_again_changes_nothing(world: World) -> None:
    nameless = TriggerTable(kind="data", asset="boxes", every=2)
    first = apply(world, HOURLY, nameless)
    assert [change for _, change in first] == ["created", "created"]
    assert apply(world, HOURLY, nameless) == []
    assert apply(world, nameless, HOURLY) == []
    assert apply(world, nameless) == [("boxes/hourly", "deleted")]
    names = [row["name"] for row in triggers.list_(world.ctx, world.actor, project="boxes")["items"]]
    assert names == [rules.name_of("boxes", nameless)]


def test_a_changed_expression_counts_from_now_and_changed_parameters_do_not(world: World, clock: ManualClock) -> None:
    apply(world, HOURLY)
    due_at = triggers.show(world.ctx, world.actor, trigger="boxes/hourly")["next_at"]
    clock.advance(10 * 60)
    assert apply(world, TriggerTable(kind="cron", name="hourly", cron="0 * * * *")) == [("boxes/hourly", "changed")]
    assert triggers.show(world.ctx, world.actor, trigger="boxes/hourly")["next_at"] == due_at
    apply(world, TriggerTable(kind="cron", name="hourly", cron="50 * * * *"))
    assert triggers.show(world.ctx, world.actor, trigger="boxes/hourly")["next_at"] == START + 20 * 60


def test_two_projects_may_use_the_same_name(world: World) -> None:
    apply(world, HOURLY)
    with world.ctx.db.transaction() as tx:
        triggers.apply_triggers(world.ctx, tx, actor="admin", project="other", wanted=[HOURLY])
    names = [row["name"] for row in triggers.list_(world.ctx, world.actor)["items"]]
    assert names == ["boxes/hourly", "other/hourly"]


def test_a_trigger_that_was_switched_off_stays_off_when_the_file_is_applied(world: World, clock: ManualClock) -> None:
    apply(world, HOURLY)
    triggers.disable(world.ctx, world.actor, trigger="boxes/hourly", reason="too loud")
    apply(world, TriggerTable(kind="cron", name="hourly", cron="*/5 * * * *"))
    clock.advance(HOUR)
    assert firings.cron(world.ctx) == 0
    assert triggers.enable(world.ctx, world.actor, trigger="boxes/hourly")["next_at"] == START + HOUR + 300
    assert firings.cron(world.ctx) == 0  # what passed while it was off starts nothing
    clock.advance(300)
    assert firings.cron(world.ctx) == 1


def test_a_trigger_that_does_not_exist_is_said_so(world: World) -> None:
    with pytest.raises(NotFound, match="no trigger 'x'"):
        triggers.show(world.ctx, world.actor, trigger="x")


# -- cron -------------------------------------------------------------------------------------------------------------


def test_an_hourly_trigger_starts_three_runs_in_three_hours(world: World, clock: ManualClock) -> None:
    apply(world, HOURLY)
    for _ in range(3 * 60):
        clock.advance(60)
        firings.cron(world.ctx)
    found = started(world, "cron")
    times = [push["trigger"]["scheduled_at"] for push in found]
    assert times == [START + HOUR * (number + 0.5) for number in range(3)]
    assert all(push["options"]["parameters"] == {"shift": 0.5} for push in found)
    assert found[0]["trigger"]["name"] == "boxes/hourly" and found[0]["by"] == "loopline"
    assert notes(world, "missed") == []


def test_a_restart_starts_nothing_again(world: World, clock: ManualClock) -> None:
    apply(world, HOURLY)
    clock.advance(HOUR)
    assert firings.cron(world.ctx) == 1
    again = World(world.ctx.settings.dir, clock=clock)
    assert [firings.cron(again.ctx), firings.cron(world.ctx)] == [0, 0]
    again.close()
    assert len(started(world, "cron")) == 1


def test_a_crash_between_the_push_and_the_next_time_starts_one_push(
    world: World, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply(world, HOURLY)
    clock.advance(HOUR)
    with monkeypatch.context() as broken:
        broken.setattr(firings.records, "set", _die)
        with pytest.raises(OSError):
            firings.cron(world.ctx)
    assert started(world, "cron") == []
    assert firings.cron(world.ctx) == 1
    assert len(started(world, "cron")) == 1


def _die(*_: Any, **__: Any) -> None:
    raise OSError("killed here")


def test_times_that_passed_while_nobody_looked_start_one_run_and_are_noted(world: World, clock: ManualClock) -> None:
    apply(world, HOURLY)
    clock.advance(10 * HOUR)
    assert firings.cron(world.ctx) == 1
    [push] = started(world, "cron")
    assert push["trigger"]["scheduled_at"] == START + 9.5 * HOUR
    [note] = notes(world, "missed")
    assert note["data"]["missed"] == 9 and note["data"]["missed_from_at"] == START + 0.5 * HOUR
    assert firings.cron(world.ctx) == 0
    clock.advance(HOUR)
    assert firings.cron(world.ctx) == 1


def test_missed_times_are_counted_up_to_a_bound() -> None:
    due = rules.due("* * * * *", START, START + 365 * 24 * HOUR)
    assert due.missed == rules.MAX_COUNTED
    assert due.scheduled_at == START + 365 * 24 * HOUR and due.next_at == START + 365 * 24 * HOUR + 60


def test_a_time_that_is_due_this_very_second_runs() -> None:
    assert rules.due("30 12 * * *", START, START) == rules.Due(START, 0, None, START + 24 * HOUR)


def test_what_is_no_expression_or_never_comes_is_refused() -> None:
    with pytest.raises(InvalidInput, match="not a cron expression"):
        rules.next_time("0 0 30 2 *", START)
    with pytest.raises(InvalidInput, match="not a cron expression"):
        rules.next_time("nonsense", START)


def test_a_trigger_whose_project_cannot_run_is_noted_and_holds_no_other_up(world: World, clock: ManualClock) -> None:
    apply(world, HOURLY)
    with world.ctx.db.transaction() as tx:
        triggers.apply_triggers(world.ctx, tx, actor="admin", project="nowhere", wanted=[HOURLY])
    clock.advance(HOUR)
    assert firings.cron(world.ctx) == 1
    [note] = notes(world, "failed")
    assert "has not been pushed" in note["reason"]
    assert len(started(world, "cron")) == 1


# -- data -------------------------------------------------------------------------------------------------------------


def upload(world: World, text: str, name: str = "boxes") -> None:
    stream = iter([text.encode()])
    assets.upload(world.ctx, world.actor, project="boxes", name=name, file="boxes.csv", stream=stream)


def look(world: World) -> list[dict[str, Any]]:
    events.consume(world.ctx, "triggers", firings.react)
    return started(world, "data")


def test_a_new_version_of_watched_data_starts_one_push(world: World) -> None:
    apply(world, TriggerTable(kind="data", asset="boxes", parameters={"shift": 1.0}))
    assert look(world) == []  # the version that was there before
    upload(world, "size,kind\n1,small\n")
    upload(world, "size,kind\n1,small\n", "unwatched")
    [push] = look(world)
    assert push["trigger"]["asset"] == "boxes:2"
    assert push["options"]["parameters"] == {"shift": 1.0}
    assert push["delivery"].startswith("data:tr_") and push["delivery"].endswith(":boxes:2")
    upload(world, "size,kind\n1,small\n")  # the same bytes are no new version
    assert len(look(world)) == 1


def test_a_push_starts_after_every_n_versions(world: World) -> None:
    apply(world, TriggerTable(kind="data", asset="boxes", every=3))
    for number in range(7):
        upload(world, f"size,kind\n{number},small\n")
    assert [push["trigger"]["asset"] for push in look(world)] == ["boxes:4", "boxes:7"]


def test_versions_that_come_with_a_push_or_a_retraining_start_nothing(world: World) -> None:
    apply(world, TriggerTable(kind="data", asset="boxes"))
    tree = world.tree({**project(), "data/boxes.csv": "size,kind\n1,small\n"})
    projects.apply(world.ctx, world.actor, tree=tree)
    apply(world, TriggerTable(kind="data", asset="boxes"))  # applying the file, which has no triggers, took it away
    tree = world.tree({**project(), "data/boxes.csv": "size,kind\n2,small\n"})
    with world.ctx.db.transaction() as tx:
        loop = projects.read_loop(world.ctx, tree)
        assert projects.put_data(world.ctx, tx, loop, tree, actor="admin")
        blob = world.ctx.blobs.put_bytes(b"size,kind\n3,small\n")
        _, new = assets.put_in(
            tx,
            project="boxes",
            name="boxes",
            digest=blob.digest,
            size_bytes=blob.size_bytes,
            kind="file",
            file_name="boxes.csv",
            actor="admin",
            source={"kind": "captured"},
        )
        assert new
    assert look(world) == []
    upload(world, "size,kind\n4,small\n")
    assert [push["trigger"]["asset"] for push in look(world)] == ["boxes:5"]


def test_reading_the_events_again_starts_nothing_again(world: World) -> None:
    apply(world, TriggerTable(kind="data", asset="boxes"))
    upload(world, "size,kind\n1,small\n")
    assert len(look(world)) == 1
    events.consume(world.ctx, "a second reader", firings.react)
    assert len(started(world, "data")) == 1


def test_versions_that_came_while_a_trigger_was_off_do_not_count(world: World) -> None:
    table = TriggerTable(kind="data", asset="boxes", every=2)
    apply(world, table)
    name = rules.name_of("boxes", table)
    triggers.disable(world.ctx, world.actor, trigger=name)
    upload(world, "size,kind\n1,small\n")
    assert look(world) == []
    triggers.enable(world.ctx, world.actor, trigger=name)
    upload(world, "size,kind\n2,small\n")
    assert look(world) == []
    upload(world, "size,kind\n3,small\n")
    assert len(look(world)) == 1


# -- fired by a program -----------------------------------------------------------------------------------------------


def test_firing_with_the_same_delivery_starts_one_push(world: World) -> None:
    apply(world, HOURLY)
    given = {"trigger": "boxes/hourly", "parameters": {"least": 0.1}, "delivery": "build-17"}
    first = firings.fire(world.ctx, world.actor, **given)
    assert firings.fire(world.ctx, world.actor, **given)["id"] == first["id"]
    assert firings.fire(world.ctx, world.actor, trigger="boxes/hourly")["id"] != first["id"]
    assert first["options"]["parameters"] == {"shift": 0.5, "least": 0.1}
    assert first["trigger"]["by"] == "admin"


def test_a_trigger_that_is_off_cannot_be_fired(world: World) -> None:
    apply(world, HOURLY)
    triggers.disable(world.ctx, world.actor, trigger="boxes/hourly")
    with pytest.raises(Conflict, match="switched off"):
        firings.fire(world.ctx, world.actor, trigger="boxes/hourly")


def test_triggers_of_the_file_are_applied_with_the_project(world: World) -> None:
    tree = world.tree(project(loop_toml=LOOP + '\n[[triggers]]\nkind = "cron"\ncron = "0 3 * * 1"\n'))
    changes = projects.apply(world.ctx, world.actor, tree=tree)["changes"]
    assert [change["change"] for change in changes if change["noun"] == "trigger"] == ["created"]
    assert projects.apply(world.ctx, world.actor, tree=tree)["changes"] == []


def test_a_trigger_runs_the_branch_that_moves_the_project_s_model(world: World, clock: ManualClock) -> None:
    apply(world, HOURLY)
    tree = world.tree(project())
    with world.ctx.db.transaction() as tx:
        for branch in ("main", "feature-x"):
            pushes.receive_in(tx, project="boxes", tree=tree, by="a", source="push", branch=branch, commit="c")
            clock.advance(1)
    clock.advance(HOUR)
    firings.cron(world.ctx)
    assert started(world, "cron")[0]["branch"] == "main"


# -- objects ----------------------------------------------------------------------------------------------------------


INCOMING = TriggerTable(kind="object", name="incoming", bucket="landing", prefix="raw/", suffix=".csv", every=2)


def arrive(world: World, key: str, **given: Any) -> None:
    objects.put(world.ctx, world.actor, bucket="landing", key=key, data=[b"a,b\n"], **given)


def react(world: World) -> None:
    events.consume(world.ctx, "triggers", firings.react)


def test_new_objects_in_a_watched_place_start_one_push(world: World, clock: ManualClock) -> None:
    buckets.create(world.ctx, world.actor, bucket="landing")
    buckets.create(world.ctx, world.actor, bucket="other-place")
    arrive(world, "raw/before.csv")
    clock.advance(1)
    apply(world, INCOMING)
    arrive(world, "raw/1.csv")
    arrive(world, "raw/readme.txt")
    arrive(world, "elsewhere/1.csv")
    arrive(world, "raw/out.csv", source={"kind": "job", "job": "jo_1"})  # what jobs write starts nothing
    objects.put(world.ctx, world.actor, bucket="other-place", key="raw/1.csv", data=[b""])
    objects.delete(world.ctx, world.actor, bucket="landing", key="raw/1.csv")
    react(world)
    assert started(world, "object") == []
    arrive(world, "raw/2.csv")
    react(world)
    react(world)
    found = started(world, "object")
    assert [push["trigger"]["object"] for push in found] == ["s3://landing/raw/2.csv"]
    assert found[0]["trigger"]["objects"] == 2
    arrive(world, "raw/2.csv")  # the same key again is a new object
    copied = {"source": ("landing", "raw/2.csv", None), "bucket": "landing", "key": "raw/3.csv"}
    objects.copy(world.ctx, world.actor, **copied)
    react(world)
    assert len(started(world, "object")) == 2
    triggers.disable(world.ctx, world.actor, trigger="boxes/incoming")
    for key in ("raw/4.csv", "raw/5.csv"):
        arrive(world, key)
    react(world)
    assert len(started(world, "object")) == 2


@pytest.mark.parametrize("bucket", ["", "Not_A_Bucket"])
def test_an_object_trigger_needs_a_bucket(bucket: str) -> None:
    _, problems = loopfile.parse(LOOP + f'\n[[triggers]]\nkind = "object"\nbucket = "{bucket}"\n')
    assert any("bucket" in problem.message for problem in problems)
